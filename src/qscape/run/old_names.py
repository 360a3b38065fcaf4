"""Translates the names of arrays in saves of format 1 to those of today; used by `saves`."""

import re
from typing import Any

# (pattern, replacement), applied in this order to the whole path of a leaf.
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
_LAYERS = {"edge": "adapter"}  # names of layers in the environment's snapshot


def upgrade(record: dict[str, Any]) -> dict[str, Any]:
    """Rewrite the content of a `save.json` of format 1 to today's names, and return it.

    Every leaf gets its old name as "member", since the archive still uses that.
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
