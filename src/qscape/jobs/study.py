"""A study: a TOML file that names agents × environments × seeds, and a budget for each run.

[budgets.quick]
steps = 3_000
seeds = 2

[[agents]]
recipe = "td3+lap"
lap = {alpha = 0.6}

[[environments]]
id = "Pendulum-v1"
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qscape import trusted
from qscape.agents import PRESETS, Agent, build, nearest
from qscape.data import read_origin
from qscape.envs import EnvAdapter
from qscape.envs import make as make_adapter
from qscape.envs.build import refuse_without_version
from qscape.envs.lag import NO_LAG, Lag
from qscape.errors import CannotWrite, NotFound, UnknownName, UsageError
from qscape.jobs.toml import Source, Where
from qscape.report import task_label
from qscape.run import probes
from qscape.run.adapters import adapt_to_images
from qscape.run.files import write_whole
from qscape.run.plan import Plan, anywhere, folder_name, prepare
from qscape.values import encode_args

BUDGETS = ("quick", "short", "full", "paper")
# Files of the package, which `find_study` finds by name: demonstrations and the main tables of five papers.
BUNDLED = Path(__file__).parent / "studies"
ROWS = "study.json"  # in the folder of a study
# In [[agents]]; every other key names a part.
AGENT_KEYS = ("recipe", "steps", "budgets", "preset", "envs", "overlap")
ENVIRONMENT_KEYS = ("id", "args", "dataset", "steps", "budgets", "envs", "eval_episodes")
LAG_KEYS = tuple(field.name for field in dataclasses.fields(Lag))  # further ones
# Numbers in [budgets.NAME], with their smallest allowed values.
NUMBERS = {"steps": 1, "eval_every": 0, "eval_episodes": 1, "log_every": 1, "save_every": 1}


class Row(NamedTuple):
    """One run of a study: its plan, with the label but before `prepare`, and its folder."""

    plan: Plan
    folder: Path


class Study(NamedTuple):
    """The runs of a study file for one budget.

    Attributes:
        file: the study file.
        name: name of the study, by default that of the file.
        budget: one of the file's budgets: quick, short, full or paper.
        folder: the folder of the study.
        rows: the runs, ordered by seed, so that early results cover all agents.
    """

    file: Path
    name: str
    budget: str
    folder: Path
    rows: list[Row]


class Entry(NamedTuple):
    """An entry [[agents]] or [[environments]].

    Attributes:
        path: path of the entry in the file.
        fields: fields of the plan that the entry sets.
        steps: environment steps by budget, if the entry sets them; they win over those of the budget.
        adapter: of an environment, its closed adapter.
    """

    path: Where
    fields: Mapping[str, Any]
    steps: Mapping[str, int]
    adapter: EnvAdapter | None = None


def names_of_studies() -> list[str]:
    """Return the names of the studies that come with qscape."""
    return sorted(file.stem for file in BUNDLED.glob("*.toml"))


def find_study(name: str) -> Path:
    """Return the study file that a user means.

    Args:
        name: path of a file, or the name of a study of the package, such as "demo".

    Raises:
        UsageError: there is no such file and no such study.
    """
    if name.endswith(".toml") or Path(name).is_file():
        return Path(name)
    if name not in (names := names_of_studies()):
        if (file := Path("studies", f"{name}.toml")).is_file():
            raise NotFound(f"the study {name} is no part of the package; write its file, {file}.")
        raise NotFound(
            f"there is no file {name} and no study of that name in the package; {nearest(name, names)}; "
            "more are files of the repository, studies/NAME.toml."
        )
    return BUNDLED / f"{name}.toml"


def read_study(file: Path, budget: str | None = None, runs: Path = Path("runs")) -> Study:
    """Read the runs of a study file. Code that it names must be trusted (see `qscape.trusted`).

    Args:
        file: the study file, in TOML.
        budget: one of the file's budgets: quick, short, full or paper. None: the only one, or else full.
        runs: the folder that holds the folders of studies.

    Raises:
        UsageError: the file cannot be read, or has an unknown name or value; the error names the line.
    """
    if budget not in (None, *BUDGETS):
        raise UnknownName(f"--budget is '{budget}'; it is one of {', '.join(BUDGETS)}.", field="budget")
    source = Source.read(file)
    source.check_keys((), ("name", "budgets", "agents", "environments"))
    name = source.get(("name",), str, file.stem)
    if not name or "/" in name or name.startswith("."):
        raise source.error(("name",), f"name is {name!r}; it names a folder: no / and no . in front")
    budgets = {b: _budget(source, ("budgets", b)) for b in source.table(("budgets",), BUDGETS)}
    if budget is None:
        budget = next(iter(budgets)) if len(budgets) == 1 else "full"
    if budget not in budgets:
        known = f"only {', '.join(budgets)}" if budgets else "none at all"
        raise UnknownName(
            f"{file} has no budget '{budget}', {known}; take another --budget, or add "
            f"[budgets.{budget}] with steps and seeds.",
            field="budget",
        )
    entries = [_agent(source, path) for path in _entries_of_budget(source, "agents", budget)]
    index_actions = any(build(entry.fields["recipe"]).index_actions for entry in entries)
    paths = _entries_of_budget(source, "environments", budget)
    environments = [_environment(source, path, index_actions) for path in paths]
    numbers, seeds = budgets[budget]
    groups: dict[Path, tuple[Plan, Entry, Entry]] = {}
    for environment in environments:
        for entry in entries:
            plan = _plan(source, entry, environment, budget, numbers)
            place = runs / name / _folder_of_environment(plan) / folder_name(plan.label)
            if place in groups:
                raise _duplicate(source, plan, groups[place], entry, environment)
            groups[place] = (plan, entry, environment)
    rows = [
        Row(dataclasses.replace(plan, seed=seed), place / str(seed))
        for seed in seeds
        for place, (plan, _, _) in groups.items()
    ]
    return Study(file, name, budget, runs / name, rows)


def write_rows(study: Study) -> None:
    """Write study.json into the study's folder: the runs of the budget, so that reports miss none.

    Called when the study begins or goes on. An equal file is left alone.

    Raises:
        RunError: the folder cannot be written.
    """
    runs = [
        {"folder": row.folder.relative_to(study.folder).as_posix(), "seed": row.plan.seed}
        | {"label": row.plan.label, "env": row.folder.parents[1].name, "steps": row.plan.steps}
        for row in study.rows
    ]
    about = {"name": study.name, "budget": study.budget, "runs": runs}
    text, file = (json.dumps(about, indent=1) + "\n").encode(), study.folder / ROWS
    try:
        study.folder.mkdir(parents=True, exist_ok=True)
        if not file.is_file() or file.read_bytes() != text:  # a finished study changes nothing
            write_whole(file, text)
    except OSError as problem:
        why = f"{study.folder} cannot be written ({problem.strerror}); choose another --runs."
        raise CannotWrite(why) from problem


def _budget(source: Source, path: Where) -> tuple[dict[str, Any], list[int]]:
    """Read [budgets.NAME]: the numbers and probes for plans, and the seeds."""
    source.table(path, (*NUMBERS, "probe", "seeds"))
    numbers: dict[str, Any] = {
        k: n for k, least in NUMBERS.items() if (n := source.number((*path, k), least)) is not None
    }
    if "steps" not in numbers:
        raise source.error(path, f"[budgets.{path[-1]}] needs steps")
    if probe := source.get((*path, "probe"), list):
        numbers["probe"] = tuple(map(str, probe))
        try:
            probes.check_names(numbers["probe"])
            trusted.refuse_untrusted(trusted.list_code("", {}, numbers["probe"]), source.file)
        except UsageError as problem:
            raise source.error((*path, "probe"), str(problem), problem) from problem
    seeds = source.at((*path, "seeds"))
    if type(seeds) is int:
        seeds = [*range(seeds)]
    whole = isinstance(seeds, list) and all(type(s) is int and s >= 0 for s in seeds)
    if not seeds or not whole or len(set(seeds)) < len(seeds):
        given = source.at((*path, "seeds"))
        why = "needs seeds" if given is None else f"has seeds = {given!r}"
        raise source.error(
            (*path, "seeds"), f"[budgets.{path[-1]}] {why}: give how many, or a list that names each once"
        )
    return numbers, seeds


def _entries_of_budget(source: Source, kind: str, budget: str) -> list[Where]:
    """Return the paths of the entries [[kind]] that belong to a budget: they name it, or name no budget."""
    taken: list[Where] = []
    for k in range(source.entries(kind)):
        path = (kind, k, "budgets")
        named = source.at(path)
        if named is None or (isinstance(named, list) and budget in named):
            taken.append(path[:2])
        if named is not None and not (isinstance(named, list) and {*map(str, named)} <= {*BUDGETS}):
            raise source.error(path, f"budgets is {named!r}; it must be a list of {', '.join(BUDGETS)}")
    if not taken:
        raise source.error((kind,), f"no [[{kind}]] is left for the budget '{budget}'")
    return taken


def _steps(source: Source, path: Where) -> dict[str, int]:
    """Read the steps of an entry, by budget; a single number counts for every budget."""
    if isinstance(source.at(path), dict):
        return {b: source.number((*path, b), 1) or 0 for b in source.table(path, BUDGETS)}
    steps = source.number(path, 1)
    return {} if steps is None else dict.fromkeys(BUDGETS, steps)


def _agent(source: Source, path: Where) -> Entry:
    """Read an entry [[agents]]."""
    recipe = source.get((*path, "recipe"), str)
    if recipe is None:
        raise source.error(path, '[[agents]] needs a recipe, such as recipe = "td3+lap"')
    parts = _build(source, (*path, "recipe"), recipe, {}).parts
    preset = source.get((*path, "preset"), str)
    if preset is not None and preset not in PRESETS:
        raise source.error((*path, "preset"), f"there is no preset '{preset}'; {nearest(preset, PRESETS)}")
    settings = {key: value for key, value in source.at(path).items() if key not in AGENT_KEYS}
    for part, fields in settings.items():
        if not isinstance(fields, dict):
            source.check_keys(path, (*AGENT_KEYS, "base", *parts))
            raise source.error((*path, part), f"{part} is {fields!r}; it must be a table of its fields")
    _build(source, path, recipe, settings)
    fields: dict[str, Any] = {"recipe": recipe, "settings": settings, "preset": preset}
    fields["overlap"] = source.get((*path, "overlap"), bool, False)
    if (envs := source.number((*path, "envs"), 1)) is not None:
        fields["envs"] = envs
    return Entry(path, fields, _steps(source, (*path, "steps")))


def _build(source: Source, path: Where, recipe: str, settings: Mapping[str, Any]) -> Agent:
    """Build the agent of an entry; errors name the line of the part or field at fault, below `path`."""
    try:
        return build(recipe, settings)
    except UsageError as problem:
        place = [name for name in (problem.part, problem.field) if name in settings or name == problem.field]
        raise source.error((*path, *filter(None, place)), str(problem), problem) from problem


def _environment(source: Source, path: Where, index_actions: bool) -> Entry:
    """Read an entry [[environments]]; make the environment once, to see that it exists and fits."""
    source.table(path, ENVIRONMENT_KEYS + LAG_KEYS)
    env, args = source.get((*path, "id"), str), source.get((*path, "args"), dict, {})
    if env is None:
        raise source.error(path, '[[environments]] needs an id, such as id = "Pendulum-v1"')
    lag = {key: value for key in LAG_KEYS if (value := _lag_field(source, (*path, key))) is not None}
    try:
        trusted.refuse_untrusted(trusted.list_code(env, args, ()), source.file)
        refuse_without_version(env)
        adapter = make_adapter(env, env_args=args, index_actions=index_actions, lag=Lag(**lag))
        adapter.close()
    except UsageError as problem:
        where = "args" if problem.field == "env_args" else "id"
        if problem.field in lag:
            where = str(problem.field)
            why = str(problem).replace(f"--{where.replace('_', '-')}", f"environments.{where}")
            raise source.error((*path, where), why, problem) from problem
        raise source.error((*path, where), f"environments.{where}: {problem}", problem) from problem
    numbers = {key: source.number((*path, key), 1) for key in ("envs", "eval_episodes")}
    dataset = anywhere(source.get((*path, "dataset"), str, ""))
    try:
        if dataset:
            read_origin(dataset)
    except UsageError as problem:
        raise source.error((*path, "dataset"), f"environments.dataset: {problem}", problem) from problem
    fields: dict[str, Any] = {"env": env, "env_args": args, "dataset": dataset, **lag}
    fields |= {key: n for key, n in numbers.items() if n is not None}
    return Entry(path, fields, _steps(source, (*path, "steps")), adapter)


def _lag_field(source: Source, path: Where) -> Any:
    """Read a field of `Lag`; None if it is not there."""
    usual, value = getattr(NO_LAG, str(path[-1])), source.at(path)
    if type(usual) is int:
        return source.get(path, int)
    fits = type(value) is bool if type(usual) is bool else type(value) in (int, float)
    if value is not None and not fits:
        kind = "true or false" if type(usual) is bool else "a number"
        raise source.error(path, f"{path[-1]} is {value!r}; it must be {kind}")
    return value


def _plan(source: Source, agent: Entry, environment: Entry, budget: str, numbers: Mapping[str, Any]) -> Plan:
    """Make the plan of one agent in one environment. The agent's `steps` and `envs` win."""
    steps = next((e.steps[budget] for e in (agent, environment) if budget in e.steps), numbers["steps"])
    fields: dict[str, Any] = {**numbers, **environment.fields, **agent.fields, "steps": steps}
    try:
        assert environment.adapter is not None
        plan, _ = adapt_to_images(Plan(**fields), environment.adapter)
        prepared, bound, _ = prepare(plan)
    except UsageError as problem:
        key = problem.field
        owner = next((entry for entry in (agent, environment) if key in entry.fields), None)
        if key is None or owner is None:
            raise source.error(agent.path, str(problem), problem) from problem
        why = str(problem).replace(f"--{key.replace('_', '-')}", f"{owner.path[0]}.{key}")
        raise source.error((*owner.path, key), why, problem) from problem
    typed = agent.fields.get("settings", {})
    for name, why in bound.moot_fields().items():
        part, _, field = name.partition(".")
        if field in typed.get(part, {}):
            raise source.error((*agent.path, part, field), f"{name} does nothing {why}; leave it out")
    return dataclasses.replace(plan, label=prepared.label)


def _folder_of_environment(plan: Plan) -> str:
    """Return the name of an environment's folder: its id, its arguments, and the dataset's name."""
    return folder_name(task_label(vars(plan) | {"env_args": encode_args(plan.env_args)}))


def _duplicate(
    source: Source, plan: Plan, before: tuple[Plan, Entry, Entry], agent: Entry, environment: Entry
) -> UsageError:
    """Return the error for two entries with the same agent and environment; `before`: the first of them."""
    same_agent = before[1].path == agent.path
    first, second = (before[2], environment) if same_agent else (before[1], agent)
    what = _folder_of_environment(plan) if same_agent else plan.label
    line = source.line(first.path)
    return source.error(second.path, f"{what} stands there twice, first in line {line}; leave one out")
