"""What a run folder holds beside its evaluations: run.json, and what inspecting commands found of the run."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qscape.report.runs import identify_run

FINDINGS = ("smoothness", "landscape", "embedding", "collapse")  # RUN/inspect/NAME.json
# Numbers that are no setting of an agent, or that its recipe and seed say.
NO_SETTINGS = {
    "recipe",
    "label",
    "env",
    "env_args",
    "seed",
    "settings",
    "moved",  # what parts set is among the settings
    "versions",
    "machine",
    "threads",
    "command",
}
NO_VALUE = "–"


class RunRecord(NamedTuple):
    """A run folder: `record` is its run.json, `findings` what was found of it, by name."""

    folder: str
    env: str
    label: str
    seed: int
    record: Mapping[str, Any]
    findings: Mapping[str, Mapping[str, Any]]


def read_records(folders: Iterable[str]) -> tuple[list[RunRecord], list[str]]:
    """The runs in folders that hold one each, and a sentence for every finding that is broken."""
    runs, skipped = [], []
    for folder in folders:
        record = json.loads((Path(folder) / "run.json").read_text())
        findings = {}
        for name in FINDINGS:
            file = Path(folder) / "inspect" / f"{name}.json"
            if not file.exists():
                continue
            try:
                findings[name] = dict(json.loads(file.read_text()))
            except (OSError, ValueError, TypeError):
                skipped.append(f"skipped {file}: it is broken.")
        head = identify_run(folder, record)
        runs.append(RunRecord(folder, head["env"], head["label"], head["seed"], record, findings))
    return runs, skipped


def first_runs_with(runs: Sequence[RunRecord], name: str) -> list[RunRecord]:
    """The first run of each environment and label that holds a finding."""
    first: dict[tuple[str, str], RunRecord] = {}
    for run in sorted(runs, key=lambda run: (run.env, run.label, run.seed)):
        if name in run.findings:
            first.setdefault((run.env, run.label), run)
    return list(first.values())


def flatten_settings(run: RunRecord) -> dict[str, str]:
    """All that an agent was told, by name: `base.discount`, `eval_every`, `parts`."""
    parts = {
        part: fields
        for part, fields in _mapping(run.record, "settings").items()
        if isinstance(fields, Mapping)
    }
    told = {name: value for name, value in run.record.items() if name not in NO_SETTINGS}
    told |= {f"{part}.{field}": value for part, fields in parts.items() for field, value in fields.items()}
    said = {name: json.dumps(value, ensure_ascii=False).strip('"') for name, value in told.items()}
    return {"parts": ", ".join(sorted({*parts} - {"base"})) or NO_VALUE} | said


def _mapping(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of run.json, which may be anything where nobody wrote it."""
    findings = record.get(name)
    return findings if isinstance(findings, Mapping) else {}


def differing_settings(runs: Sequence[RunRecord]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of a table: settings in which agents of one environment differ, label by label.

    A field of a part is compared among the agents that have the part.
    """
    told = [(run, flatten_settings(run)) for run in runs]
    names = list(dict.fromkeys(name for _, said in told for name in said))
    labels = sorted({run.label for run in runs})
    rows = []
    for name in names:
        values: dict[str, dict[str, set[str]]] = {}  # environment -> label -> values
        for run, said in told:
            if name in said:
                values.setdefault(run.env, {}).setdefault(run.label, set()).add(said[name])
        if any(len(set().union(*of.values())) > 1 for of in values.values()):
            rows.append([name, *(_describe_values(values, label) for label in labels)])
    return ["setting", *labels], rows


def _describe_values(values: Mapping[str, Mapping[str, set[str]]], label: str) -> str:
    """The values of a label; with the environments where these differ."""
    by_env = {env: " or ".join(sorted(of[label])) for env, of in values.items() if label in of}
    if len(set(by_env.values())) > 1:
        return "; ".join(f"{value} in {env}" for env, value in by_env.items())
    return next(iter(by_env.values()), NO_VALUE)


def list_origins(runs: Sequence[RunRecord]) -> list[list[str]]:
    """Rows of name and value: versions, machine and threads; several values with the runs of each."""
    seen: dict[str, dict[str, int]] = {}
    for run in runs:
        record = run.record
        said = {**_mapping(record, "versions"), **_mapping(record, "machine")}
        said["threads"] = record.get("threads") or "not limited"
        for name, value in said.items():
            of = seen.setdefault(name, {})
            of[str(value)] = of.get(str(value), 0) + 1
    return [
        [name, next(iter(of)) if len(of) == 1 else "; ".join(f"{v} ({n} runs)" for v, n in of.items())]
        for name, of in seen.items()
    ]
