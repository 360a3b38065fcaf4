"""`qscape video RUN`."""

import contextlib
import dataclasses
import os
import warnings
from pathlib import Path

import numpy as np

from qscape.cli import options
from qscape.errors import RunError, UsageError
from qscape.run.evaluation import SEED
from qscape.run.folder import one_run
from qscape.run.policy import load_policy
from qscape.run.programs import act_evaluating
from qscape.run.training import set_up_jax
from qscape.types import setting


@dataclasses.dataclass(frozen=True)
class Options:
    """Flags of `qscape video`."""

    mp4: str | None = setting(None, "The film; None: video.mp4 in the run's folder.")
    episodes: int = setting(1, "Episodes filmed.")
    seed: int = setting(SEED, "Seed of the first episode.")
    fps: int | None = setting(None, "Frames per second; None: the environment's own.")
    current: bool = setting(False, "The current policy, where checkpoints keep a better one.")


def main(argv: list[str]) -> int:
    """Film whole episodes of a run's policy."""
    path, rest = options.positional(argv, "RUN", "qscape video")
    set_up_jax()
    given = options.parse(options.flags_of(Options()), rest, "qscape video RUN")
    if given.episodes < 1:
        raise UsageError(f"--episodes is {given.episodes}; it must be at least 1.")
    if given.fps is not None and given.fps < 1:
        raise UsageError(f"--fps is {given.fps}; it must be at least 1.")
    try:
        import imageio.v3 as imageio
    except ImportError as problem:
        raise UsageError('qscape video needs the extra: pip install "qscape[video]".') from problem
    folder = one_run(Path(path))
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # draw without a screen
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    loaded = load_policy(
        folder, seed=given.seed, current=given.current, env_args={"render_mode": "rgb_array"}
    )
    edge, choose = loaded.edge, act_evaluating(loaded.programs, loaded.acting, 1)
    obs, first, frames, returns = edge.reset(), np.ones(1, bool), [], []
    while len(returns) < given.episodes:
        try:
            frames.append(edge.render_frame())
        except RuntimeError as problem:
            raise RunError(
                f"{edge.env_id} cannot draw on this machine ({problem}); try MUJOCO_GL=osmesa."
            ) from problem
        step = edge.step(choose(obs, first, len(frames)))
        obs, first = step.observation, step.terminated | step.truncated
        returns += [e.ret for e in step.finished]
    file = Path(given.mp4) if given.mp4 else folder / "video.mp4"
    fps = given.fps or edge.env.metadata.get("render_fps", 30)
    film, aside = np.stack(frames), file.with_stem(f"{file.stem}.new")
    odd = [(0, 0), *((0, n % 2) for n in film.shape[1:3]), (0, 0)]  # H.264 films even sizes only
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            # JAX warns of forks; what is forked here runs ffmpeg at once.
            warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
            imageio.imwrite(aside, np.pad(film, odd, mode="edge"), fps=fps, macro_block_size=1)
        aside.replace(file)
    except (OSError, ValueError) as problem:
        with contextlib.suppress(OSError):
            aside.unlink()
        why, _, _ = str(problem).strip().partition("\n")  # ffmpeg's own words follow
        raise RunError(f"{file} cannot be written ({why}).") from problem
    print(f"{file}: {len(frames)} frames, returns {', '.join(f'{r:,.1f}' for r in returns)}")
    return 0
