"""A trained policy as a function in the environment's units, and as files that run without qscape.

Every file is checked before it is written: the ONNX model must act like the library on 1,000 observations. A
steep policy in float32 gives different digits for one observation alone and in a batch, even in the library
itself. That difference is measured and reported, and `tolerance` allows for it.
"""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from qscape.data import RECORDED, read
from qscape.envs import EnvAdapter
from qscape.envs.build import OWN_ARGS
from qscape.envs.levels import LevelSpace
from qscape.envs.spaces import ActionBox, FactoredActions
from qscape.errors import Inexact, OutOfRange, Taken, Unexportable, need_extra
from qscape.inspect.store import write_atomically
from qscape.ops.nearest import ActionTable
from qscape.report import changed_lag
from qscape.run import saves
from qscape.run.evaluation import SEED, Rollout, rollouts
from qscape.run.folder import read_record
from qscape.run.policy import LoadedPolicy, load_policy
from qscape.run.programs import act_evaluating, evaluation_key
from qscape.tracking import track

if TYPE_CHECKING:  # of the extra `export`
    import onnx

CHECKED = 1_000  # observations on which file and library are compared
TOLERANCE = 1e-5  # largest accepted difference of an action, as a share of half its range
ROUNDINGS = 4  # of float32, when an action in [-1, 1] is put into the environment's units
FORMAT = "qscape-policy"
VERSION = 2  # 1 had other names of arrays


@dataclasses.dataclass(frozen=True, eq=False)
class PolicySource:
    """A policy to export.

    Attributes:
        folder: its run folder.
        record: run.json.
        loaded: the policy.
        episodes: the evaluation for the model card.
        seen: observations for the check, of these episodes; of the dataset if there is no environment.
    """

    folder: Path
    record: Mapping[str, Any]
    loaded: LoadedPolicy
    episodes: list[Rollout]
    seen: Float[np.ndarray, "N S"]


@dataclasses.dataclass(frozen=True)
class ExportCheck:
    """Comparison of an exported policy with the library.

    Attributes:
        difference: the largest absolute difference of an action, in the environment's units.
        rounding: the library's largest difference from itself, one observation at a time against one batch.
    """

    difference: float
    rounding: float


@dataclasses.dataclass(frozen=True)
class OnnxCheck(ExportCheck):
    """Comparison of an ONNX model with the library, and its speed.

    Attributes:
        p50: median time for one observation on one core, in milliseconds.
        p99: 99% quantile of that time.
    """

    p50: float
    p99: float


def load_source(folder: Path, episodes: int = 10, current: bool = False, seed: int = SEED) -> PolicySource:
    """Load the policy of a run's newest save and evaluate it.

    Raises:
        UsageError: `episodes` is below 1, or the agent cannot be exported.
        RunError: the run has no readable save.
    """
    if episodes < 1:
        raise OutOfRange(
            f"--episodes is {episodes}; it must be at least 1: the file is checked on their observations.",
            field="episodes",
        )
    loaded = load_policy(folder, envs=min(episodes, 10), seed=seed, current=current)
    refuse_recurrent(loaded)
    record = read_record(folder)
    if record["env"] == RECORDED:  # trained on a dataset without an environment to act in
        return PolicySource(folder, record, loaded, [], read(record["dataset"]).observation)
    try:
        done = rollouts(loaded.programs, loaded.acting, loaded.adapter, episodes, seed)
    finally:
        loaded.adapter.close()
    return PolicySource(folder, record, loaded, done, np.concatenate([r.observation for r in done]))


def refuse_recurrent(loaded: LoadedPolicy) -> None:
    """Refuse a policy with memory in evaluation. Noise with memory in exploration (OU) is accepted.

    Raises:
        UsageError: evaluation changes the policy's memory.
    """
    agent, changes = loaded.programs.agent, []

    def step(acting: Any, noise_state: Any, obs: Array) -> Array:
        action, _, after = agent.act(
            acting, noise_state, obs, jnp.zeros(1, bool), 1, evaluation_key(), "evaluate"
        )
        before = jax.tree.leaves(
            noise_state
        )  # traced: memory that is handed on unchanged stays the same object
        changes.extend(a is not b for a, b in zip(jax.tree.leaves(after), before, strict=True))
        return action

    noise_state = loaded.programs.init_noise(1)
    if noise_state is not None:
        obs = jnp.zeros((1, loaded.adapter.spec.row_size))
        jax.eval_shape(step, loaded.acting, noise_state, obs)
    if any(changes):
        raise Unexportable(
            f"{loaded.programs.agent.recipe} cannot be exported: its policy has memory from step to step."
        )


# --- the function ------------------------------------------------------------------------------------


def make_policy_function(loaded: LoadedPolicy) -> Callable[..., Any]:
    """Return the policy as a function from raw observations [B, S] to actions in the environment's units.

    Normalisation and action scaling are inside. Of a task whose critics see more than its actor, the function
    takes the actor's part. Of a task with masks it takes a further array [B, n], the masks as the environment
    gives them: an entry for each action, or for each value of each factor of a product.

    Of an agent that sees more of the past it takes, behind the observations, a memory [B, W] and where
    episodes start [B, 1], and returns (actions, the next memory): see `qscape.envs.lag.RowStack`.
    """
    agent, convert = loaded.programs.agent, make_action_map(loaded.adapter)
    spec, masks = loaded.adapter.spec, loaded.adapter.masks
    if spec.mask is not None:  # a file takes the mask as it is, not packed
        agent = dataclasses.replace(agent, spec=dataclasses.replace(spec, mask=spec.mask.unpacked))

    (whole, seen), stack = loaded.adapter.raw_sizes, loaded.adapter.stack

    def fill(obs: Float[Array, "B S"], valid: Bool[Array, "B n"] | None) -> Array:
        """Return rows with zeros for what critics alone see, and masks."""
        if whole > seen:  # the normaliser knows whole observations
            obs = jnp.concatenate([obs, jnp.zeros((obs.shape[0], whole - seen))], axis=1)
        if masks is not None:
            assert valid is not None
            obs = jnp.concatenate([obs, masks.to_rows(valid).astype(jnp.float32)], axis=1)
        return obs

    def act(rows: Array) -> Array:
        first = jnp.ones(rows.shape[0], bool)
        return agent.act(loaded.acting, None, rows, first, 0, evaluation_key(), "evaluate")[0]

    def policy(obs: Float[Array, "B S"], valid: Bool[Array, "B n"] | None = None) -> Array:
        return convert(act(fill(obs, valid)))

    def remembering(
        obs: Float[Array, "B S"],
        memory: Float[Array, "B W"],
        start: Bool[Array, "B 1"],
        valid: Bool[Array, "B n"] | None = None,
    ) -> tuple[Array, Array]:
        assert stack is not None
        rows, held = stack.see(fill(obs, valid), memory, start[:, 0], jnp)
        action = act(rows)
        chosen = make_action_map(loaded.adapter, units=False)(action)
        return convert(action), stack.remember(held, chosen, jnp)

    return policy if stack is None else remembering


def action_space(adapter: EnvAdapter) -> gym.Space:
    """Return the action space of a single environment."""
    return getattr(adapter.env, "single_action_space", None) or adapter.env.action_space  # type: ignore[union-attr]


def make_action_map(adapter: EnvAdapter, units: bool = True) -> Callable[[Array], Array]:
    """Return the map from [-1, 1]^A to the environment's actions as a jax function; float32 or int32.

    `units`: levels of a Box (`action_levels`) become numbers in its units, which the environment without them
    takes.
    """
    space, table = action_space(adapter), adapter.spec.table
    if (factored := FactoredActions.from_space(space)) is not None:
        convert = factored.from_unit if adapter.spec.factors is None else factored.from_indices
        if isinstance(space, LevelSpace) and units:
            return lambda action: space.to_units(convert(action), np.float32)
        return lambda action: convert(action).astype(jnp.int32)
    start = int(getattr(space, "start", 0))
    if table is not None:
        search = ActionTable(table)

        def to_index(action: Array) -> Array:
            found = search.nearest(action)[:, 0]
            return jnp.where(found < len(table), found, 0) + start  # of NaN the first, as in the library

        return to_index
    if not isinstance(space, gym.spaces.Box):  # the action is an index already
        return lambda action: jnp.round(action[:, 0]).astype(jnp.int32) + start
    box = ActionBox.from_space(space, np.float32)

    def to_env(action: Array) -> Array:
        units = box.to_env(action)
        return (units.astype(jnp.int32) if box.is_integer else units).reshape(-1, *space.shape)

    return to_env


def act_as_library(loaded: LoadedPolicy, obs: Float[np.ndarray, "B S"]) -> np.ndarray:
    """Choose the library's actions in the environment's units; each observation starts an episode."""
    choose = act_evaluating(loaded.programs, loaded.acting, len(obs))
    actions, space = (
        loaded.adapter.actions(choose(obs, np.ones(len(obs), bool), 0)),
        action_space(loaded.adapter),
    )
    return space.to_units(actions) if isinstance(space, LevelSpace) else actions


def sample_observations(source: PolicySource, n: int = CHECKED, seed: int = 0) -> Float[np.ndarray, "n S"]:
    """Sample n observations: half of them visited, half with noise of a tenth of their spread."""
    seen = source.seen
    rng = np.random.default_rng(seed)
    picked = seen[rng.integers(len(seen), size=n)].astype(np.float32)
    half, size = picked[n // 2 :], source.loaded.adapter.spec.observation_size  # masks stay as they are
    half[:, :size] += 0.1 * seen[:, :size].std(axis=0) * rng.standard_normal((len(half), size))
    return picked


# --- ONNX --------------------------------------------------------------------------------------------


def write_onnx(source: PolicySource, file: Path, tolerance: float = TOLERANCE) -> OnnxCheck:
    """Write the policy as ONNX, if it acts like the library on 1,000 observations.

    Input "observation" float32 [batch, S], and of a task with masks "action_mask" bool [batch, n]; output
    "action" [batch, ...] in the environment's units. Of an agent that sees more of the past also "memory"
    float32 [batch, W] and "start" bool [batch, 1], and "next_memory".

    Raises:
        UsageError: a package is missing, or the policy uses an operation without a conversion.
        RunError: model and library differ by more than `tolerance`, or the file cannot be written.
    """
    with need_extra("--onnx", "export", field="onnx"):
        import onnxruntime  # noqa: F401

        model = make_onnx(source)
    data = model.SerializeToString()
    checked = check_onnx(data, source, tolerance)
    write_atomically(file, data)
    return checked


def make_onnx(source: PolicySource) -> "onnx.ModelProto":
    """Return the policy as an ONNX model; inputs and output as in `write_onnx`.

    Raises:
        ImportError: a package is missing.
        UsageError: the policy uses an operation without a conversion.
    """
    from qscape.export.convert import to_onnx

    about = {"qscape": importlib.metadata.version("qscape"), "policy": json.dumps(describe(source))}
    masks, stack = source.loaded.adapter.masks, source.loaded.adapter.stack
    actions = None if masks is None else masks.entries
    memory = None if stack is None else stack.width
    function, size = make_policy_function(source.loaded), source.loaded.adapter.raw_sizes[1]
    return to_onnx(function, size, about, actions=actions, memory=memory)


def check_onnx(data: bytes, source: PolicySource, tolerance: float = TOLERANCE) -> OnnxCheck:
    """Compare an ONNX model with the library, in one batch and one observation at a time.

    Raises:
        RunError: an action differs by more than `tolerance` times half of its range, and by more than float32
            rounds a number at its bounds.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    seconds = np.empty(CHECKED)

    def act(inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        batched = np.asarray(session.run(None, inputs)[0])
        single = np.empty_like(batched)
        for k in range(len(batched)):
            begun = time.perf_counter()
            answer, *_ = session.run(None, {name: rows[k : k + 1] for name, rows in inputs.items()})
            seconds[k] = time.perf_counter() - begun
            single[k] = np.asarray(answer)[0]
        return [batched, single]

    compared = compare(source, "ONNX model", act, tolerance)
    p50, p99 = np.percentile(seconds * 1e3, [50, 99])
    return OnnxCheck(compared.difference, compared.rounding, float(p50), float(p99))


def compare(
    source: PolicySource,
    what: str,
    act: Callable[[Mapping[str, np.ndarray]], list[np.ndarray]],
    tolerance: float = TOLERANCE,
) -> ExportCheck:
    """Compare an exported policy with the library, which sees 1,000 observations in one batch and one by one.

    Args:
        source: the policy.
        what: the name of its other form, for the error.
        act: returns the actions of that form [1000, ...], as often as it computes them, for inputs
            [1000, size] by name, those of `write_onnx`.
        tolerance: as in `check_onnx`.

    Raises:
        RunError: as `check_onnx`.
    """
    obs = sample_observations(source)
    wanted = act_as_library(source.loaded, obs).astype(np.float64)
    one_by_one = track(range(len(obs)), "observations to check")
    alone = np.concatenate([act_as_library(source.loaded, obs[k : k + 1]) for k in one_by_one])
    adapter = source.loaded.adapter
    spec, masks, stack = adapter.spec, adapter.masks, adapter.stack
    rows, memory = (obs, None) if stack is None else stack.split(obs)
    inputs = {"observation": np.ascontiguousarray(rows[:, : adapter.raw_sizes[1]])}
    if memory is not None:
        inputs |= {"memory": memory, "start": np.zeros((len(obs), 1), bool)}
    if masks is not None:
        valid = np.asarray(masks.mask.unpack(jnp.asarray(obs[:, spec.observation_size :])))
        inputs["action_mask"] = masks.from_rows(valid)
    flat = wanted.reshape(len(obs), -1)
    models = [np.abs(actions.reshape(flat.shape) - flat) for actions in act(inputs)]
    itself = np.abs(alone.reshape(flat.shape) - flat)
    half, rounded = _action_scale(source.loaded.adapter)
    off = np.maximum.reduce(models)
    if not (off <= tolerance * half + rounded).all():  # also where it is NaN
        raise Inexact(
            f"{source.folder}: the {what} differs from the library by {np.max(off / half):.2g} of half "
            f"an action's range on {len(obs):,} observations, more than --tolerance {tolerance:.2g} (the "
            f"library differs from itself, single against batched, by {np.max(itself / half):.2g}); no file "
            "was written."
        )
    return ExportCheck(float(off.max()), float(itself.max()))


def _action_scale(adapter: EnvAdapter) -> tuple[Float[np.ndarray, " A"], Float[np.ndarray, " A"]]:
    """Return half the range of each entry of an action, and what float32 rounds at its bounds.

    1 and 0 for actions without bounds; an entry of zero width has half a range of 1.
    """
    space = action_space(adapter)
    box = space.box if isinstance(space, LevelSpace) else space
    if not isinstance(box, gym.spaces.Box):
        return np.ones(1), np.zeros(1)
    low, high = (np.asarray(bound, np.float64).ravel() for bound in (box.low, box.high))
    rounded = ROUNDINGS * np.finfo(np.float32).eps * np.maximum(np.abs(low), np.abs(high))
    return np.where(high > low, (high - low) / 2, 1.0), rounded


def refuse_foreign(file: Path, mark: str) -> None:
    """Refuse to overwrite a file that was not written by an export.

    `mark`: text that an export writes within the first 200 bytes.

    Raises:
        UsageError: there is such a file.
    """
    with contextlib.suppress(OSError):
        if mark.encode() not in file.read_bytes()[:200]:
            raise Taken(f"{file} exists and was not written by an export; choose another name.")


# --- plain arrays ------------------------------------------------------------------------------------


def write_arrays(source: PolicySource, file: Path) -> Path:
    """Write the acting state as FILE.npz and its description as FILE.json; returns the latter.

    Raises:
        RunError: the files cannot be written.
    """
    arrays = saves.arrays(source.loaded.acting)  # not read from disk: the run may have saved again since
    about = {
        "format": FORMAT,
        "version": VERSION,
        **describe(source),
        "settings": source.record["settings"],
        "arrays": {name: {"shape": x.shape, "dtype": x.dtype.name} for name, x in arrays.items()},
    }
    note = file.with_suffix(".json")
    packed = io.BytesIO()
    np.savez(packed, allow_pickle=False, **arrays)
    write_atomically(file, packed.getvalue())
    write_atomically(note, (json.dumps(about, indent=1) + "\n").encode())
    return note


def describe(source: PolicySource) -> dict[str, Any]:
    """Describe task, agent and units of a policy for JSON."""
    record, loaded = source.record, source.loaded
    adapter, space = loaded.adapter, action_space(loaded.adapter)
    low, high = adapter.spec.low, adapter.spec.high
    if isinstance(space, LevelSpace):
        space = space.box
        low, high = space.low.ravel(), space.high.ravel()
    order = [
        {"key": ".".join(path), "path": list(path), "shape": list(box.shape), "size": int(np.prod(box.shape))}
        for path, box in adapter.actor_leaves
    ]
    listed = lambda x: None if x is None else np.asarray(x).tolist()  # noqa: E731
    return {
        "recipe": record["recipe"],
        "label": record["label"],
        "env": record["env"],
        "env_args": record["env_args"],
        "make_args": {k: v for k, v in record["env_args"].items() if k not in OWN_ARGS},
        "seed": record["seed"],
        "step": loaded.step,
        "policy": loaded.policy,
        "observation": {"size": adapter.raw_sizes[1], "order": order},
        "mask": None if adapter.masks is None else adapter.masks.source,
        "lag": changed_lag(record),
        "action": {
            "shape": list(space.shape or ()),
            "dtype": str(space.dtype),
            "low": listed(low),
            "high": listed(high),
            "table": listed(adapter.spec.table),
            "index_sizes": listed(adapter.spec.index_sizes),
        },
    }
