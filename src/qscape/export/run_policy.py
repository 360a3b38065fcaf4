"""Run an exported policy with only numpy and onnxruntime, for example on a robot or behind a web server.

    python run_policy.py policy.onnx
    python run_policy.py policy.onnx --observations observations.npy
    python run_policy.py policy.onnx --env Pendulum-v1 --episodes 5

The last line needs gymnasium too: it runs whole episodes in which the policy acts on what it sees.
The policy takes raw observations, one per row, and returns actions in the environment's units. The file
contains the normalisation, squashing and scaling.
"""

import argparse
import json
import re
import time
from typing import Any

import numpy as np
import onnxruntime as ort

LATE = ("action_delay", "observation_delay", "observation_noise", "dropout")  # what no environment does
COPIES = 10  # of an environment that episodes run in, as in `qscape evaluate`


def load(file: str) -> tuple[ort.InferenceSession, dict]:
    """Load a policy.

    Returns:
        A session on one thread, which is the fastest for a small policy, and the metadata of the policy.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return session, json.loads(session.get_modelmeta().custom_metadata_map["policy"])


def act(
    session: ort.InferenceSession, observation: np.ndarray, valid: Any = None, memory: dict | None = None
) -> np.ndarray:
    """Return the action for one observation `[S]`, or the actions for a batch `[B, S]`.

    `valid` `[n]` or `[B, n]`: which actions are valid, as the environment says it, for a policy with masks;
    without it all are. `memory`: for a policy that sees its past, an empty dict where an episode starts, and
    that same dict, which this function changes, in each of its later steps.
    """
    rows = np.atleast_2d(np.asarray(observation, np.float32))
    given = {"observation": rows}
    for one in session.get_inputs()[1:]:
        shape = len(rows), one.shape[1]
        if one.name == "memory":
            if memory is None:
                raise ValueError(
                    "this policy sees its past: pass memory={}, and that dict again in every step"
                )
            given["start"] = np.full((len(rows), 1), "past" not in memory)
            given["memory"] = memory.get("past", np.zeros(shape, np.float32))
        elif one.name == "action_mask":
            given[one.name] = (
                np.ones(shape, bool) if valid is None else np.asarray(valid, bool).reshape(shape)
            )
    actions, *past = session.run(None, given)
    if past and memory is not None:
        memory["past"] = past[0]
    actions = np.asarray(actions)
    return actions if np.ndim(observation) == 2 else actions[0]


def flatten(observation: Any, order: list[dict]) -> np.ndarray:
    """Return an observation of an environment as the numbers that the policy takes.

    `order`: the entries of a dictionary that it takes, as the metadata lists them.
    """
    rows = []
    for leaf in order:
        value = observation
        for key in leaf["path"]:
            value = value[key]
        rows.append(np.asarray(value, np.float32).ravel())
    return np.concatenate(rows)


def read_mask(session: ort.InferenceSession, about: dict, observation: Any, info: dict) -> np.ndarray | None:
    """Return which actions an environment says are valid, where training read it; None without masks."""
    masks = [one for one in session.get_inputs() if one.name == "action_mask"]
    if not masks:
        return None
    if about["mask"] == "candidates":
        rows = np.asarray(info["candidates"])
        return np.isin(np.arange(masks[0].shape[1]), rows[rows >= 0])
    return np.ravel((observation if about["mask"] == "observation" else info)["action_mask"])


def to_native(action: np.ndarray, about: dict) -> Any:
    """Return an action as the action space contains it: of its dtype, within its bounds."""
    if not action.shape:
        return action.item()
    action = action.astype(about["dtype"])
    if about["low"] is None:
        return action
    return np.clip(
        action, *(np.reshape(about[end], action.shape).astype(action.dtype) for end in ("low", "high"))
    )


def first_line(problem: Exception) -> str:
    """Return the first line of an error's text, or its type if it has none."""
    return (str(problem).splitlines() or [type(problem).__name__])[0]


def make_env(about: dict, env_id: str) -> Any:
    """Make a Gymnasium environment for a policy with this metadata.

    Raises:
        ValueError: gymnasium is missing or cannot make it, or it has other observations or actions.
    """
    kwargs = about.get("make_args", about["env_args"]) if env_id == about["env"] else {}
    lag = {name: value for name, value in about.get("lag", {}).items() if name in LATE}
    if lag:
        said = ", ".join(f"{name} {value}" for name, value in lag.items())
        raise ValueError(
            f"in training {about['env']} had {said}, and gymnasium alone makes it without: evaluate the run "
            "with qscape, or call `act` where the world lags by itself"
        )
    if re.search(r'{"\$\w+":', json.dumps(kwargs)):  # such as tuples and paths
        raise ValueError(f"{env_id} needs {kwargs}, which JSON cannot hold: make it yourself, and call `act`")
    try:
        import gymnasium as gym

        env = gym.make(env_id, **kwargs)
    except Exception as problem:  # of the registry, of a package or of the environment
        said = f" with {kwargs}" if kwargs else ""
        raise ValueError(
            f"{env_id} cannot be made{said} by gymnasium alone ({first_line(problem)})"
        ) from problem
    wanted = about["observation"]["size"], about["action"]["shape"]
    try:
        size = flatten(env.observation_space.sample(), about["observation"]["order"]).size
    except (LookupError, TypeError, ValueError):  # its observation lacks an entry
        size = None
    if (size, list(env.action_space.shape or ())) != wanted:
        here = f"observations of {size} numbers" if size is not None else "other observations"
        raise ValueError(
            f"the policy takes {wanted[0]} numbers and gives actions of shape {wanted[1]}, but {env_id} has "
            f"{here} and actions of shape {list(env.action_space.shape or ())}"
        )
    return env


def run_episodes(
    session: ort.InferenceSession, about: dict, envs: list, episodes: int, seed: int
) -> list[float]:
    """Run whole episodes in copies of an environment, which take turns, and return their returns.

    The first episode of the k-th copy has seed + k, the others go on with its random numbers.
    """
    returns = []
    for episode in range(episodes):
        env = envs[episode % len(envs)]
        observation, info = env.reset(seed=seed + episode if episode < len(envs) else None)
        total, steps, over, memory = 0.0, 0, False, {}
        while not over:
            valid = read_mask(session, about, observation, info)
            action = act(session, flatten(observation, about["observation"]["order"]), valid, memory)
            observation, reward, terminated, truncated, info = env.step(to_native(action, about["action"]))
            total, steps, over = total + float(reward), steps + 1, terminated or truncated
        returns.append(total)
        print(f"episode {episode}: return {total:.1f} in {steps} steps")
    for env in envs:
        env.close()
    return returns


def main() -> None:
    parser = argparse.ArgumentParser(description="Run an exported policy.")
    parser.add_argument("file")
    parser.add_argument("--observations", help="a .npy file [B, S]; without it zeros")
    parser.add_argument("--env", help="a Gymnasium id: run episodes in it")
    parser.add_argument("--episodes", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1000, help="of the first episode")
    given = parser.parse_args()
    if given.episodes < 1:
        parser.exit(2, f"{parser.prog}: --episodes is {given.episodes}; it must be at least 1.\n")
    try:
        session, about = load(given.file)
    except Exception as problem:  # onnxruntime has a class for every cause, and they share no base
        parser.exit(
            2, f"{parser.prog}: {given.file} is no policy of qscape export ({first_line(problem)}).\n"
        )
    size = about["observation"]["size"]
    print(f"{about['label']} on {about['env']}: {size} numbers in, action {about['action']['shape']} out")
    if given.env:
        try:
            envs = [make_env(about, given.env) for _ in range(min(given.episodes, COPIES))]
        except ValueError as problem:
            parser.exit(2, f"{parser.prog}: {problem}.\n")
        returns = run_episodes(session, about, envs, given.episodes, given.seed)
        print(f"mean return {np.mean(returns):.1f} over {len(returns)} episodes")
        return
    try:
        rows = np.load(given.observations) if given.observations else np.zeros((3, size), np.float32)
        if np.shape(rows)[1:] != (size,) or not len(rows) or rows.dtype.kind not in "biuf":
            raise ValueError(f"it holds no rows of {size} numbers")
    except (OSError, ValueError, EOFError) as problem:
        parser.exit(2, f"{parser.prog}: {given.observations} cannot be read ({first_line(problem)}).\n")
    for row, action in zip(
        rows, act(session, rows, memory={}), strict=True
    ):  # each as the first of an episode
        print(np.round(row, 3), "->", action)
    seconds, memory = [], {}
    for _ in range(1_000):
        start = time.perf_counter()
        act(session, rows[0], memory=memory)
        seconds.append(time.perf_counter() - start)
    print(f"one action takes {1e3 * np.median(seconds):.3f} ms")


if __name__ == "__main__":
    main()
