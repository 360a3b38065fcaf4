"""A grammar of command lines: recipes x flags x values. Runs are prepared, not trained."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

import hypothesis
from hypothesis import strategies as st

from faults.trial import Bench, Failed, call, check, untouched
from qscape import agents
from qscape.agents import onpolicy
from qscape.cli import COMMANDS, options, train
from qscape.errors import QscapeError

EXAMPLES = 150  # command lines of one trial
ENVS = [
    "tiny:Clock-v0",
    "Pendulum-v1",
    "CartPole-v1",
    "jax/CartPole-v1",
    "nothing-v9",
    "no_module:X-v0",
    "a:b:c",
]
NUMBERS = ["0", "1", "2", "-1", "3.5", "1e300", "1e400", "nan", "inf", "-inf", "007", "1_000", "0x10",
           "2147483647", "2147483648", "9" * 40, "٣", "1e-320", " 1", "True", "None"]  # fmt: skip
PARTS = sorted({*agents.PARTS, *onpolicy.PARTS})
BASES = ["td3", "sac", "td7", "bc", "iql", "ppo", "a2c", "reinforce", "trpo", "fast_td3"]
OTHERS = sorted(set(COMMANDS) - {"train", "list", "study", "tune"})

texts = st.one_of(
    st.text(max_size=12), st.sampled_from(["", "\0", "\x1b[2J", "../..", "/", "-", "--", "=", "%s", "💥"])
)
recipes = st.one_of(
    st.builds(
        lambda base, parts: "+".join([base, *parts]),
        st.sampled_from(BASES),
        st.lists(st.sampled_from(PARTS), max_size=3),
    ),
    st.builds("+".join, st.lists(st.sampled_from([*BASES, *PARTS, "", " ", "TD3"]), max_size=3)),
    texts,
)


def _values(hint: Any) -> st.SearchStrategy[list[str]]:
    """Return words for a flag of this type: most of them fit, some do not."""
    wild = st.one_of(st.sampled_from(NUMBERS), texts)
    if get_origin(hint) is tuple:
        return st.lists(
            st.one_of(_values(get_args(hint)[0]).map(lambda v: v[0] if v else ""), wild), max_size=3
        )
    choices = [str(choice) for choice in get_args(hint) if not isinstance(choice, type)]
    kinds = {int: st.integers(-3, 600).map(str), float: st.floats().map(str), bool: st.just("")}
    fitting = (
        st.sampled_from(choices)
        if choices
        else next((kinds[k] for k in (hint, *get_args(hint)) if isinstance(k, type) and k in kinds), wild)
    )
    return st.one_of(fitting.map(lambda v: [v] if v else []), wild.map(lambda v: [v]), st.just([]))


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """Draw the arguments after `qscape`."""
    if draw(st.integers(0, 9)) == 0:
        rest = draw(
            st.lists(
                st.one_of(texts, st.sampled_from([*COMMANDS, "--help", "--debugg", "--parts"])), max_size=4
            )
        )
        return [draw(st.sampled_from(OTHERS)), *rest] if draw(st.booleans()) else rest
    recipe = draw(recipes)
    try:
        known = options._flags(options.command_of(recipe, agents.build(recipe), options.TrainOptions()))
    except QscapeError:
        known = options._flags(options.flags_of(options.TrainOptions()))
    argv = [
        "train",
        recipe,
        "--env",
        draw(st.sampled_from(ENVS)),
        "--steps",
        draw(st.sampled_from(["40", "900", "0"])),
    ]
    for flag in draw(st.lists(st.sampled_from(sorted(known.keys() - {"--out"})), max_size=4)):
        words = draw(_values(known[flag][2]))
        if draw(st.integers(0, 19)) == 0:
            flag = draw(
                st.sampled_from([flag[:-1], flag.upper(), flag.replace("-", "_"), flag + "=", "--gamma"])
            )
        argv += [flag, *words]
    return argv


def fuzz(rng: random.Random, place: Path, bench: Bench) -> str:
    """A batch of command lines: exit code 0 or 2 (1 for files that are missing), and one sentence."""
    tried: list[Sequence[str]] = []
    run_all = train.run_all
    train.run_all = lambda *args, **kwargs: 0  # type: ignore[assignment]

    @hypothesis.seed(rng.getrandbits(32))
    @hypothesis.settings(
        max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=[*hypothesis.HealthCheck]
    )
    @hypothesis.given(command_lines())
    def one(argv: list[str]) -> None:
        if "--debug" in argv or "--trust" in argv or "push" in argv or "pull" in argv:
            return
        tried.append(argv)
        done = call(*argv)
        check(done, argv)
        if any(ord(c) < 32 and c not in "\n\t" for c in done.text):
            raise Failed(f"a control character is printed: {done.text!r}", argv)

    try:
        with untouched(place, place / "none"):
            one()
    finally:
        train.run_all = run_all
    return f"{len(tried)} command lines"
