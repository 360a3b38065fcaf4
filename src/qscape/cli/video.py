"""The command `qscape video RUN`."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qscape.cli import options
from qscape.envs import EnvAdapter
from qscape.errors import BrokenEnv, CannotWrite, WrongValue, need_extra
from qscape.report.numbers import format_return
from qscape.run.evaluation import SEED, refuse_endless
from qscape.run.files import unused_name
from qscape.run.folder import one_run
from qscape.run.policy import load_policy
from qscape.run.programs import act_evaluating
from qscape.run.training import set_up_jax
from qscape.system import draw_without_screen
from qscape.types import setting

FORMATS = ".mp4", ".gif", ".webm", ".mov", ".mkv", ".avi"


@dataclasses.dataclass(frozen=True)
class VideoOptions:
    """Flags of `qscape video`."""

    mp4: str | None = setting(None, "Video file; None: video.mp4 in the run's folder.")
    episodes: int = setting(1, "Number of episodes.", within=">= 1")
    seed: int = setting(SEED, "Seed of the first episode.")
    fps: int | None = setting(None, "Frames per second; None: the environment's own.", within=">= 1")
    current: bool = setting(False, "Use the current policy even if checkpoints keep a better one.")


def main(argv: list[str]) -> int:
    """Record a video of whole episodes of a run's policy."""
    path, rest = options.positional(argv, "RUN", "qscape video")
    set_up_jax()
    given = options.parse(VideoOptions(), rest, "qscape video RUN")
    with need_extra("qscape video", "video"):
        import imageio.v2 as imageio
    folder = one_run(Path(path))
    file = Path(given.mp4) if given.mp4 else folder / "video.mp4"
    if file.suffix.lower() not in FORMATS or file.is_dir():
        raise WrongValue(
            f"--mp4 {file} is no video file; its name ends in one of {', '.join(FORMATS)}.", field="mp4"
        )
    draw_without_screen()
    loaded = load_policy(
        folder, seed=given.seed, current=given.current, env_args={"render_mode": "rgb_array"}
    )
    adapter, choose = loaded.adapter, act_evaluating(loaded.programs, loaded.acting, 1)
    fps = given.fps or adapter.env.metadata.get("render_fps", 30)
    aside, frames, returns = unused_name(file, file.suffix), 0, []
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        aside.touch()  # a folder that cannot be written is told in Python's words, not in ffmpeg's
        with warnings.catch_warnings():
            # JAX warns of forks; this fork only starts ffmpeg.
            warnings.filterwarnings("ignore", message=r"os\.fork\(\) was called")
            film: Any = imageio.get_writer(aside, fps=fps, macro_block_size=1)
            with film:
                for picture in _render_frames(adapter, choose, given.episodes, returns):
                    film.append_data(picture)
                    frames += 1
        aside.replace(file)
    except (OSError, ValueError) as problem:
        with contextlib.suppress(OSError):
            aside.unlink()
        said = getattr(problem, "strerror", None) or str(problem)
        why, _, _ = said.strip().partition("\n")  # ffmpeg's output follows
        raise CannotWrite(f"{file} cannot be written ({why}).") from problem
    print(f"{file}: {frames} frames, returns {', '.join(f'{format_return(r)}' for r in returns)}")
    return 0


def _render_frames(
    adapter: EnvAdapter, choose: Callable, episodes: int, returns: list[float]
) -> Iterator[np.ndarray]:
    """Yield the frames of whole episodes one by one; a long video would not fit into memory."""
    obs, first, made = adapter.reset(), np.ones(1, bool), 0
    while len(returns) < episodes:
        try:
            picture = adapter.render_frame()
        except (RuntimeError, ImportError, AttributeError) as problem:  # raised by MuJoCo and OpenGL
            raise BrokenEnv(
                f"{adapter.env_id} cannot render on this machine ({problem}); try MUJOCO_GL=osmesa."
            ) from problem
        odd = [(0, n % 2) for n in picture.shape[:2]]  # H.264 needs even sizes
        yield np.pad(picture, [*odd, (0, 0)], mode="edge")
        step = adapter.step(choose(obs, first, made))
        obs, first, made = step.observation, step.transition.starts_episode, made + 1
        returns += [episode.ret for episode in step.finished]
        refuse_endless(adapter, adapter.longest)
