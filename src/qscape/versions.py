"""Installed versions of other packages, compared with what qscape's own metadata asks for."""

import re

OF_DEVELOPERS = ("bench", "docs", "test", "dev")  # extras that no command needs


def find_wrong_versions(*names: str) -> list[str]:
    """Return a sentence for each installed package whose version qscape does not support.

    Args:
        names: the packages to look at; none: all that qscape or one of its extras names.
    """
    # Imported where something went wrong, since both take 20 ms.
    from importlib.metadata import PackageNotFoundError, requires, version

    from packaging.requirements import Requirement

    try:
        asked = [Requirement(text) for text in requires("qscape") or []]
    except PackageNotFoundError:  # a source tree that is not installed
        return []
    found: dict[str, str] = {}
    for requirement in asked:
        extra = re.search(r"extra == ['\"](\w+)['\"]", str(requirement.marker))
        seen = requirement.name in found  # what the core asks for comes first, and an extra may ask for less
        if seen or (names and requirement.name not in names) or (extra and extra[1] in OF_DEVELOPERS):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            continue
        found[requirement.name] = ""
        if not requirement.specifier.contains(installed, prereleases=True):
            needed = f"{requirement.name}{requirement.specifier}"
            found[requirement.name] = (
                f"{requirement.name} {installed} is installed, and qscape needs {needed}: "
                f'pip install "{needed}"'
            )
    return [sentence for sentence in found.values() if sentence]
