"""Import TD3 and SAC policies of Stable-Baselines3 as run folders.

Only numbers and text are read from the file. Nothing is unpickled, so loading runs no code from it.
"""

import importlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import gymnasium as gym
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from qscape.agents import build
from qscape.envs import EnvAdapter
from qscape.errors import BadFile, CannotRead, Inexact, Mismatch, NotFound, need_extra
from qscape.export.policy import TOLERANCE, action_space
from qscape.run import folder as folders
from qscape.run.adapters import open_adapter
from qscape.run.engines.base import copy_buffers
from qscape.run.plan import Plan, label
from qscape.run.programs import act_evaluating
from qscape.run.training import make_session
from qscape.sealed import read_json

ACTIVATIONS = {"ReLU": "relu", "ELU": "elu", "SiLU": "silu", "Tanh": "tanh"}
CHECKED = 1_000
BOTH = {
    "discount": "gamma",
    "batch_size": "batch_size",
    "warmup": "learning_starts",
    "replay_capacity": "buffer_size",
}
SHARED = {  # fields of the base -> names in Stable-Baselines3
    "sac": BOTH,
    "td3": BOTH
    | {
        "policy_delay": "policy_delay",
        "target_noise": "target_policy_noise",
        "target_noise_clip": "target_noise_clip",
    },
}
Arrays = Mapping[str, np.ndarray]


class _Data(TypedDict, total=False):
    """What is read of a file's JSON, beside numbers that are hyperparameters."""

    num_timesteps: int | None
    policy_kwargs: dict[str, Any] | None
    action_space: dict[str, Any] | None


def convert_file(
    file: Path, env: str, folder: Path, env_args: Mapping[str, Any] | None = None, overwrite: bool = False
) -> float:
    """Write a run folder with the networks of a Stable-Baselines3 file.

    Args:
        file: the zip file.
        env: id of the environment it was trained in.
        folder: the run folder to write.
        env_args: arguments of the environment.
        overwrite: replace an existing run.

    Returns:
        The largest difference of actions on 1,000 observations, against matrix products of the file's
        numbers.

    Raises:
        UsageError: a package is missing, the file is not TD3 or SAC with vector observations, or `env` has
            other spaces.
        RunError: the file is damaged, or the policies differ.
    """
    arrays, about = _read(file)
    recipe = _find_recipe(file, arrays, about)
    agent = build(recipe, _read_settings(recipe, arrays, about))
    steps = max(int(about.get("num_timesteps") or 0), 1)
    args = dict(env_args or {})
    plan = Plan(
        recipe, env, steps, env_args=args, settings=_read_settings(recipe, arrays, about), label=label(agent)
    )
    folders.refuse_taken(folder, overwrite)
    adapter = open_adapter(plan, agent)
    _refuse_other_spaces(file, arrays, about, adapter)
    session = make_session(plan, agent, adapter)
    learner: Any = session.learner
    state = learner.state
    soft = "soft" in state.part_states and "log_ent_coef" in arrays
    learner.state = copy_buffers(
        state._replace(
            actor=_fill_actor(state.actor, arrays, "actor"),
            actor_target=None
            if state.actor_target is None
            else _fill_actor(state.actor_target, arrays, "actor_target"),
            critics=_fill_critics(state.critics, arrays, "critic"),
            critics_target=_fill_critics(state.critics_target, arrays, "critic_target"),
            part_states=state.part_states
            | (
                {"soft": state.part_states["soft"]._replace(actor_params=arrays["log_ent_coef"][0])}
                if soft
                else {}
            ),
        )
    )
    learner.env_steps, session.finished = steps, True
    learner.empty_replay()  # `resume` then fills it by the policy before it learns
    adapter.reset()
    off = _measure_difference(learner, arrays, recipe, about)
    with folders.locked(folder, new=True):
        folders.create(folder, plan, session.agent, overwrite, {"imported": "Stable-Baselines3"})
        folders.save(folder, session, milestone=False)
    adapter.close()
    return off


def _read(file: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read the tensors of a file by name, and its JSON."""
    with need_extra("a file of Stable-Baselines3", "sb3"):
        torch: Any = importlib.import_module("torch")

    def tensors(archive: zipfile.ZipFile, name: str) -> dict[str, np.ndarray]:
        weights = torch.load(io.BytesIO(archive.read(name)), map_location="cpu", weights_only=True)
        return {key: np.array(value.detach().numpy(), np.float32) for key, value in weights.items()}

    try:
        with zipfile.ZipFile(file) as archive:
            size = file.stat().st_size
            if any(m.compress_type != zipfile.ZIP_STORED or m.file_size > size for m in archive.infolist()):
                raise ValueError("a member is compressed or larger than the file, as SB3 never writes one")
            arrays = tensors(archive, "policy.pth")
            if "pytorch_variables.pth" in archive.namelist():
                arrays |= tensors(archive, "pytorch_variables.pth")
            return arrays, read_json(archive.read("data"), _Data)
    except FileNotFoundError as problem:
        raise NotFound(f"{file} does not exist.") from problem
    except Exception as problem:  # a damaged archive makes zipfile and torch raise nearly anything
        raise CannotRead(f"{file} cannot be read as a Stable-Baselines3 file ({problem}).") from problem


def _find_recipe(file: Path, arrays: Arrays, about: Mapping[str, Any]) -> str:
    """Return td3 or sac, by the layers."""
    networks = [name for name in arrays if name.startswith(("actor.", "critic."))]
    known = ("actor.mu.", "actor.latent_pi.", "actor.log_std.", "critic.qf")
    critic = _layer_names(arrays, "critic.qf0")
    # The layers of TQC have the names of SAC's, but its critics give quantiles; those of CrossQ have norms.
    linear = all(
        name.startswith(known) and (name.endswith(".bias") or arrays[name].ndim == 2) for name in networks
    )
    if about.get("use_sde") or not linear or not critic or len(arrays[f"{critic[-1]}.bias"]) > 1:
        raise BadFile(
            f"{file} holds no TD3 or SAC with an MlpPolicy and without gSDE; only those can be imported."
        )
    return "sac" if "actor.log_std.weight" in arrays else "td3"


def _layer_names(arrays: Arrays, prefix: str) -> list[str]:
    """List the linear layers below a prefix, in order; torch's Sequential numbers activations too."""
    numbers = sorted(
        {int(name[len(prefix) :].split(".")[1]) for name in arrays if name.startswith(f"{prefix}.")}
    )
    return [f"{prefix}.{k}" for k in numbers]


def _hidden_sizes(arrays: Arrays, layers: list[str]) -> tuple[int, ...]:
    return tuple(len(arrays[f"{name}.bias"]) for name in layers)


def _activation(about: Mapping[str, Any]) -> str:
    text = str((about.get("policy_kwargs") or {}).get("activation_fn", "ReLU"))
    name = text.rstrip("'>").rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise BadFile(f"the policy's activation {name} is not supported; only {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


def _read_settings(recipe: str, arrays: Arrays, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the file's sizes and hyperparameters as fields of parts."""
    actor = _layer_names(arrays, "actor.latent_pi" if recipe == "sac" else "actor.mu")
    critics = sum(name.endswith(".0.weight") for name in arrays if name.startswith("critic.qf"))
    base: dict[str, Any] = {
        "actor_hidden": _hidden_sizes(arrays, actor if recipe == "sac" else actor[:-1]),
        "critic_hidden": _hidden_sizes(arrays, _layer_names(arrays, "critic.qf0")[:-1]),
        "critics": critics,
        "actor_activation": _activation(about),
        "critic_activation": _activation(about),
    }
    for field, key in SHARED[recipe].items():
        if isinstance(about.get(key), int | float):
            base[field] = about[key]
    if isinstance(about.get("learning_rate"), float):
        base |= dict.fromkeys(("actor_learning_rate", "critic_learning_rate"), about["learning_rate"])
    settings = {"base": base} | ({"polyak": {"rate": about["tau"]}} if "tau" in about else {})
    if recipe == "sac":
        base |= {"log_std_min": -20.0, "log_std_max": 2.0}
        soft = {"temperature": about.get("ent_coef"), "target_entropy": about.get("target_entropy")}
        settings["soft"] = {name: float(x) for name, x in soft.items() if isinstance(x, int | float)}
    return settings


def _refuse_other_spaces(file: Path, arrays: Arrays, about: Mapping[str, Any], adapter: EnvAdapter) -> None:
    """Refuse an environment with other sizes, or with another action range if the file records its own."""
    spec = adapter.spec
    if spec.actor_size is not None:
        raise Mismatch(
            f"critics see more than actors in {adapter.env_id}, and those of Stable-Baselines3 see the same: "
            "name the environment it was trained in."
        )
    first = "actor.latent_pi.0.weight" if "actor.log_std.weight" in arrays else "actor.mu.0.weight"
    seen, both = arrays[first].shape[1], arrays["critic.qf0.0.weight"].shape[1]
    if (seen, both - seen) != (spec.observation_size, spec.action_size):
        raise Mismatch(
            f"{file} observes {seen} numbers and acts with {both - seen}; {adapter.env_id} has "
            f"{spec.observation_size} and {spec.action_size}: name the environment it was trained in."
        )
    space, recorded = action_space(adapter), about.get("action_space") or {}
    for name in ("low", "high"):
        text = str(recorded.get(name, ""))
        numbers = text.replace("[", " ").replace("]", " ").split()
        there = np.array(numbers, float) if numbers and "..." not in text else None
        if isinstance(space, gym.spaces.Box) and there is not None:
            here = getattr(space, name).ravel()
            if len(there) == len(here) and not np.allclose(there, here):
                raise Mismatch(
                    f"{file} takes actions whose {name} is {there}, {adapter.env_id} has {here}: name the "
                    "environment it was trained in."
                )


def _fill_layers(module: PyTree, where: Mapping[str, str], arrays: Arrays) -> PyTree:
    """Return a module with the numbers of the file's layers; `where` maps layers to names in the file."""

    def leaf(path: Any, array: Array) -> Array:
        layer, _, kind = jax.tree_util.keystr(path, simple=True, separator="/").rpartition("/")
        return jnp.asarray(arrays[f"{where[layer]}.{kind}"].reshape(array.shape))

    return jax.tree_util.tree_map_with_path(leaf, module)


def _fill_actor(actor: PyTree, arrays: Arrays, prefix: str) -> PyTree:
    if f"{prefix}.log_std.weight" in arrays:
        hidden = _layer_names(arrays, f"{prefix}.latent_pi")
        top = {"head/mean": f"{prefix}.mu", "head/log_std": f"{prefix}.log_std"}
    else:
        *hidden, last = _layer_names(arrays, f"{prefix}.mu")
        top = {"head/out": last}
    return _fill_layers(actor, {f"torso/layers/{k}": name for k, name in enumerate(hidden)} | top, arrays)


def _fill_critics(critics: list[PyTree], arrays: Arrays, prefix: str) -> list[PyTree]:
    made = []
    for i, critic in enumerate(critics):
        *hidden, last = _layer_names(arrays, f"{prefix}.qf{i}")
        where = {f"body/torso/layers/{k}": name for k, name in enumerate(hidden)} | {"body/out": last}
        made.append(_fill_layers(critic, where, arrays))
    return made


def _measure_difference(learner: Any, arrays: Arrays, recipe: str, about: Mapping[str, Any]) -> float:
    """Measure the largest difference of actions in [-1, 1] between the run and the file's numbers."""
    size, rng = learner.agent.task.observation_size, np.random.default_rng(0)
    obs = rng.normal(size=(CHECKED, size)).astype(np.float32)
    layers = _layer_names(arrays, "actor.latent_pi" if recipe == "sac" else "actor.mu")
    hidden, last = (layers, "actor.mu") if recipe == "sac" else (layers[:-1], layers[-1])
    act = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh, "silu": lambda x: x / (1 + np.exp(-x)),
           "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0)))}[_activation(about)]  # fmt: skip
    x = obs.astype(np.float64)
    for name in hidden:
        x = act(x @ arrays[f"{name}.weight"].T + arrays[f"{name}.bias"])
    wanted = np.tanh(x @ arrays[f"{last}.weight"].T + arrays[f"{last}.bias"])
    choose = act_evaluating(learner.programs, learner.acting, CHECKED)
    off = float(np.abs(choose(obs, np.ones(CHECKED, bool), 0) - wanted).max())
    if not off <= TOLERANCE:
        raise Inexact(f"the imported policy differs from the file's by {off:.2g}; nothing was written.")
    return off
