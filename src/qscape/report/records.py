"""What a page says of run folders beside their evaluations: settings, origin, inspection results."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from qscape.report.runs import RunRecord
from qscape.sealed import read_json

FINDINGS = ("smoothness", "landscape", "embedding", "collapse")  # RUN/inspect/NAME.json
# Fields of run.json that are not settings of an agent, or that recipe and seed imply.
NO_SETTINGS = {
    "recipe",
    "label",
    "env",
    "env_args",
    "seed",
    "settings",
    "parts",  # in a row of its own
    "together",
    "moved",  # fields that parts set are among the settings
    "versions",
    "source",
    "date",
    "seconds",
    "processor_seconds",
    "resumed",
    "tracking",
    "machine",
    "threads",
    "command",
    "saved",
}
NO_VALUE = "–"


def read_findings(runs: Iterable[RunRecord]) -> tuple[list[RunRecord], list[str]]:
    """Read the inspection results in run folders.

    Returns:
        The runs with their findings, and a sentence for every result file that is broken.
    """
    read, skipped = [], []
    for run in runs:
        findings = {}
        for name in FINDINGS:
            file = Path(run.folder) / "inspect" / f"{name}.json"
            if not file.exists():
                continue
            try:
                findings[name] = read_json(file.read_bytes())
            except (OSError, ValueError):
                skipped.append(f"skipped {file}: it is broken.")
        read.append(run._replace(findings=findings))
    return read, skipped


def first_runs_with(runs: Sequence[RunRecord], name: str) -> list[RunRecord]:
    """Return the first run of each environment and label that holds the result `name`."""
    first: dict[tuple[str, str], RunRecord] = {}
    for run in sorted(runs, key=lambda run: (run.env, run.label, run.seed)):
        if name in run.findings:
            first.setdefault((run.env, run.label), run)
    return list(first.values())


def flatten_settings(run: RunRecord) -> dict[str, str]:
    """Return all settings of a run by name: `base.discount`, `eval_every`, `parts`."""
    parts = {
        part: fields
        for part, fields in _mapping(run.record, "settings").items()
        if isinstance(fields, Mapping)
    }
    values = {name: value for name, value in run.record.items() if name not in NO_SETTINGS}
    values |= {f"{part}.{field}": value for part, fields in parts.items() for field, value in fields.items()}
    texts = {name: json.dumps(value, ensure_ascii=False).strip('"') for name, value in values.items()}
    return {"parts": ", ".join(_list_parts(run.record)) or NO_VALUE} | texts


def _list_parts(record: Mapping[str, Any]) -> list[str]:
    """List the parts of a run's recipe; the recipe alone if the record of an older run has none."""
    known = record.get("parts")
    return [str(part) for part in known] if isinstance(known, list) else [str(record["recipe"])]


def _mapping(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """Read a mapping of run.json; empty if the field is missing or something else."""
    value = record.get(name)
    return value if isinstance(value, Mapping) else {}


def differing_settings(runs: Sequence[RunRecord]) -> tuple[list[str], list[list[str]]]:
    """Tabulate the settings in which agents of one environment differ, one column per label.

    The first row has the parts of every agent. A field of a part is compared among the agents that have it.

    Returns:
        Column names and rows.
    """
    settings = [(run, flatten_settings(run)) for run in runs]
    names = list(dict.fromkeys(name for _, fields in settings for name in fields))
    labels = sorted({run.label for run in runs})
    rows = []
    for name in names:
        values: dict[str, dict[str, set[str]]] = {}  # environment -> label -> values
        for run, fields in settings:
            if name in fields:
                values.setdefault(run.env, {}).setdefault(run.label, set()).add(fields[name])
        if name == "parts" or any(len(set().union(*of.values())) > 1 for of in values.values()):
            rows.append([name, *(_describe_values(values, label) for label in labels)])
    return ["setting", *labels], rows


def _describe_values(values: Mapping[str, Mapping[str, set[str]]], label: str) -> str:
    """Join the values of a label, with the environments if these differ."""
    by_env = {env: " or ".join(sorted(of[label])) for env, of in values.items() if label in of}
    if len(set(by_env.values())) > 1:
        return "; ".join(f"{value} in {env}" for env, value in by_env.items())
    return next(iter(by_env.values()), NO_VALUE)


def list_origins(runs: Sequence[RunRecord]) -> list[list[str]]:
    """List versions, machine and threads: rows of name and value; unequal values get their number of runs."""
    seen: dict[str, dict[str, int]] = {}
    for run in runs:
        record = run.record
        facts = {**_mapping(record, "versions"), **_mapping(record, "machine")}
        facts["threads"] = record.get("threads") or "not limited"
        for name, value in facts.items():
            of = seen.setdefault(name, {})
            of[str(value)] = of.get(str(value), 0) + 1
    return [
        [name, next(iter(of)) if len(of) == 1 else "; ".join(f"{v} ({n} runs)" for v, n in of.items())]
        for name, of in seen.items()
    ]
