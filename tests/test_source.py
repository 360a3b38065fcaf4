"""What holds for the source as a whole."""

import ast
from collections import defaultdict
from pathlib import Path

import qscape

ROOT = Path(qscape.__file__).parent
# Off-policy and on-policy agents mirror each other, and share the words for it.
MIRRORED = {
    "ActingState",
    "Agent",
    "Base",
    "Normaliser",
    "Plain",
    "Raw",
    "Scaling",
    "State",
    "StatefulPart",
}


def test_one_grep_finds_one_class():
    places = defaultdict(list)
    for file in ROOT.rglob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(file.relative_to(ROOT).parts[0])
    twice = {name: sorted(rooms) for name, rooms in places.items() if len(rooms) > 1}
    assert twice == {name: ["offpolicy", "onpolicy"] for name in MIRRORED}
