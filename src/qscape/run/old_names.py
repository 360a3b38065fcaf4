"""Names of arrays in saves of format 1, as this version calls them."""

import re
from typing import Any

# In this order: (pattern, replacement), each on the whole path of a leaf.
_LEAVES = [
    (r"(^|/)own/", r"\1part_states/"),
    (r"^(part_states/[^/]+)/learned(?=/|$)", r"\1/params"),
    (r"^(part_states/[^/]+)/tuned(?=/|$)", r"\1/actor_params"),
    (r"^(part_states/[^/]+)/rest(?=/|$)", r"\1/extra"),
    (r"^(optimisers/[^/.]+)\.learned(?=/|$)", r"\1.params"),
    (r"^(optimisers/[^/.]+)\.tuned(?=/|$)", r"\1.actor_params"),
    (r"^part_states/sale/extra/0(?=/|$)", r"part_states/sale/extra/fixed"),
    (r"^part_states/sale/extra/1(?=/|$)", r"part_states/sale/extra/fixed_target"),
    (r"^part_states/sale/extra/2(?=/|$)", r"part_states/sale/extra/statistics"),
    (r"^part_states/asap/extra/0(?=/|$)", r"part_states/asap/extra/actor"),
    (r"^part_states/asap/extra/1(?=/|$)", r"part_states/asap/extra/head"),
    (r"(^|/)trunk(?=/|$)", r"\1torso"),
]
_TREES = {
    "replay": [(r"^rows$", "storage"), (r"^index/", "replay_state/")],
    "loop": [(r"^memory(?=/|$)", "noise_state")],
}
_LAYERS = {"edge": "adapter"}  # of the environment's snapshot


def upgrade(record: dict[str, Any]) -> dict[str, Any]:
    """The content of a format 1 `save.json`, its leaves under today's names.

    Each leaf keeps the name of its member in the archive as "member".
    """
    for tree_name, tree in record["trees"].items():
        for leaf in tree["leaves"]:
            leaf["member"] = leaf["name"]
            for pattern, replacement in [*_LEAVES, *_TREES.get(tree_name, [])]:
                leaf["name"] = re.sub(pattern, replacement, leaf["name"])
    if "edge" in record["trees"]:
        record["trees"]["environment"] = record["trees"].pop("edge")
        snapshot = record["meta"]["environment"] = record["meta"].pop("edge")
        if "layers" in snapshot:
            snapshot["layers"] = {_LAYERS.get(name, name): of for name, of in snapshot["layers"].items()}
    record["version"] = 2
    return record
