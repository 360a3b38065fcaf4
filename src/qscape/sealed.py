"""JSON files with a checksum of themselves: run.json and save.json.

The checksum is the CRC-32 of the content as `json.dumps` formats it, so line breaks and indents do not count.
It detects damage and edits by hand; it does not prove who wrote the file.
"""

import json
from collections.abc import Mapping
from typing import Any
from zlib import crc32

KEY = "crc32"


def seal(content: Mapping[str, Any]) -> bytes:
    """Return the file of a JSON object, with its checksum as the first key: its line can be deleted."""
    content = {name: value for name, value in content.items() if name != KEY}
    return (json.dumps({KEY: _checksum(content), **content}, indent=1) + "\n").encode()


def unseal(data: bytes, required: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file, without its checksum.

    Args:
        data: the file.
        required: whether a file without a checksum is refused. Version 0.1 wrote run.json without one.

    Raises:
        ValueError: the file is no JSON object, or the checksum does not match.
    """
    try:
        content = json.loads(data)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")
    if not required and KEY not in content:
        return content
    if content.pop(KEY, None) != _checksum(content):
        edited = "" if required else f'; if it was edited by hand, delete its line "{KEY}"'
        raise ValueError(f"its checksum does not match{edited}")
    return content


def _checksum(content: Mapping[str, Any]) -> int:
    return crc32(json.dumps(content).encode())
