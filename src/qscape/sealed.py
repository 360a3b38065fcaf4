"""JSON files: their reader, and those with a checksum of themselves, run.json and save.json.

The checksum is the CRC-32 of the content as `json.dumps` formats it, so line breaks and indents do not count.
It detects damage and edits by hand; it does not prove who wrote the file.
"""

import json
from collections.abc import Mapping
from typing import Any, get_type_hints, is_typeddict
from zlib import crc32

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

KEY = "crc32"


def read_json(data: bytes | str, form: Any = dict[str, Any]) -> Any:
    """Return the content of a JSON file, whoever wrote it.

    Args:
        data: the file.
        form: the type of the content. Of a TypedDict, the content may have further keys.

    Raises:
        ValueError: the file is no JSON, is nested too deeply, or its content is of another type.
    """
    try:
        content = json.loads(data)
        known = content
        if is_typeddict(form) and isinstance(content, dict):
            known = {name: content[name] for name in get_type_hints(form) if name in content}
        check_type(known, form, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        return content
    except RecursionError as problem:
        raise ValueError("it is nested too deeply") from problem
    except TypeCheckError as problem:
        raise ValueError(str(problem).splitlines()[0]) from problem


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
    content = read_json(data)
    if not required and KEY not in content:
        return content
    try:
        checksum = _checksum({name: value for name, value in content.items() if name != KEY})
    except RecursionError as problem:
        raise ValueError("it is nested too deeply") from problem
    if content.pop(KEY, None) != checksum:
        edited = "" if required else f'; if it was edited by hand, delete its line "{KEY}"'
        raise ValueError(f"its checksum does not match{edited}")
    return content


def _checksum(content: Mapping[str, Any]) -> int:
    return crc32(json.dumps(content).encode())
