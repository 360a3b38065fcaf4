"""The picture of a learned geometry: its numbers against the saved networks, its files, what is refused."""

import json

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import spearmanr
from tiny import settings

from qscape.cli import main
from qscape.errors import UsageError
from qscape.inspect.embedding import measure_embedding
from qscape.inspect.trained_agent import load_trained_agent
from qscape.report import embeddings, interactive
from qscape.run import saves
from qscape.run.folder import newest_save
from qscape.run.plan import Plan
from qscape.run.training import train

K, TAU = 6, 0.5
SAVGO = {"candidates": K, "hidden": (16, 16), "embedding": 8, "tau": TAU, "tau_end": TAU, "uniform": 0.1}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A short run."""
    folder = tmp_path_factory.mktemp("group") / "0"
    given = settings("sac+savgo+normalise", warmup=20) | {"savgo": SAVGO}
    plan = Plan("sac+savgo+normalise", "Pendulum-v1", 60, settings=given, eval_every=0)
    assert list(train(plan, folder))
    return folder


@pytest.fixture(scope="module")
def found(run):
    return measure_embedding(run.parent, (0, 7), states=20)  # a group of one run


@pytest.fixture(scope="module")
def shown(run):
    """The observation [1, S] of step 7."""
    return load_trained_agent(run).rollouts(1)[0].observation[7:8].astype(float)


class Saved:
    """The networks of a save, in numpy."""

    def __init__(self, folder):
        self.leaves = saves.read_arrays(newest_save(folder, "state"), "state")

    def layers(self, place):
        names = sorted(n for n in self.leaves if n.startswith(place) and n.endswith("weight"))
        assert names, f"{place} is not in {sorted(self.leaves)}"
        names.sort(key=lambda n: "/out/" in n)  # the last layer last
        return [(self.leaves[n], self.leaves[n.replace("weight", "bias")]) for n in names]

    def network(self, place, x):
        *hidden, (weight, bias) = self.layers(place)
        for w, b in hidden:
            x = np.maximum(x @ w.T + b, 0.0)
        return x @ weight.T + bias

    def embed(self, place, obs, action):
        z = self.network(place, np.concatenate([obs, action], -1))
        return z / np.linalg.norm(z, axis=-1, keepdims=True)

    def value(self, obs, action):
        pair = np.concatenate([obs, action], -1)
        return np.minimum(*(self.network(f"critics_target/{i}/", pair)[:, 0] for i in range(2)))

    def seen(self, obs):
        rest = "part_states/normalise/extra/"
        return (obs - self.leaves[f"{rest}mean"]) / (np.sqrt(self.leaves[f"{rest}var"]) + 1e-8)


@pytest.mark.slow
def test_candidates_are_weighed_as_the_saved_networks_say(run, shown, found):
    saved = Saved(run)
    obs = saved.seen(shown)
    many = np.repeat(obs, K, 0)
    own, candidates = found["own"], found["candidates"]
    drawn = np.array(candidates["action"])
    assert drawn.shape == (K, 1)
    assert len(np.unique(drawn)) > 1
    here = saved.embed("part_states/savgo/params/", obs, np.array([own["action"]]))
    there = saved.embed("part_states/savgo/extra/encoder/", many, drawn)
    cosine = (here * there).sum(-1)
    np.testing.assert_allclose(candidates["cosine"], cosine, atol=1e-5)
    np.testing.assert_allclose(candidates["weight"], 0.9 * softmax(cosine / TAU) + 0.1 / K, atol=1e-5)
    np.testing.assert_allclose(candidates["value"], saved.value(many, drawn), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(own["value"], saved.value(obs, np.array([own["action"]]))[0], rtol=1e-4)
    assert found["gap_scale"] == pytest.approx(saved.leaves["part_states/savgo/extra/scale"])


def test_the_map_keeps_distances_as_far_as_two_axes_can(run, shown, found):
    saved = Saved(run)
    obs = np.repeat(saved.seen(shown), K, 0)
    z = saved.embed("part_states/savgo/params/", obs, np.array(found["candidates"]["action"]))
    x = np.array(found["candidates"]["at"])
    in_full, on_map = (np.linalg.norm(p[:, None] - p, axis=-1) for p in (z, x))
    assert (on_map <= in_full + 1e-5).all()
    first, second = found["explained"]
    assert 0 <= second <= first <= first + second <= 1 + 1e-6
    if first + second > 0.999:
        np.testing.assert_allclose(on_map, in_full, atol=0.05)
    at = np.array(found["actions"]["at"])
    np.testing.assert_allclose(at.mean(0), 0.0, atol=1e-4)
    assert np.array(found["actions"]["value"]).shape == (1_000,)


def test_rank_correlation_is_of_all_pairs(found):
    pairs = found["pairs"]
    assert len(pairs["cosine"]) == 40 * 39 / 2  # few enough to be shown, all of them
    expected = spearmanr(pairs["cosine"], pairs["difference"]).statistic
    assert found["rank_correlation"] == pytest.approx(expected, abs=2e-3)  # numbers shown have six digits


def test_the_command_writes_numbers_and_a_picture(run, tmp_path, capsys):
    argv = ["embedding", str(run), "--state-from", "0:7", "--states", "20"]
    assert main([*argv, "--json", str(tmp_path / "x.json"), "--png", str(tmp_path / "x.png")]) == 0
    said = capsys.readouterr().out
    kept = (run / "inspect" / "embedding.json").read_text()
    assert kept == (tmp_path / "x.json").read_text()
    numbers = json.loads(kept)
    assert f"rank correlation of cosine and value difference: {numbers['rank_correlation']:.3f}" in said
    assert "episode 0, step 7: the heaviest of 6 candidates" in said
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    for file in (run / "inspect" / "embedding.json", tmp_path / "x.json", tmp_path / "x.png"):
        assert f"written: {file}" in said


def test_the_picture_has_titles_units_and_legends(found):
    axes = embeddings.draw_embedding(found).axes
    panels, bars = axes[:3], axes[3:]
    assert all(ax.get_title() and ax.get_xlabel() and ax.get_ylabel() and ax.get_legend() for ax in panels)
    assert [bar.get_ylabel() for bar in bars] == ["Q (minimum of the target critics)"] * 2


def test_the_pages_charts_show_what_was_found(found):
    pairs, actions, kernel = map(interactive.render_chart, embeddings.embedding_charts(found))
    assert list(pairs.data[0].x) == found["pairs"]["difference"]
    assert list(pairs.data[0].y) == found["pairs"]["cosine"]
    assert [len(trace.x) for trace in actions.data] == [len(found["actions"]["value"]), 6, 1]
    assert list(kernel.data[0].y) == [6 * weight for weight in found["candidates"]["weight"]]


@pytest.mark.slow
def test_what_cannot_be_looked_at_is_refused(run, tmp_path, capsys):
    plan = Plan("sac", "tiny:Clock-v0", 30, settings=settings("sac", warmup=20), eval_every=0)
    assert list(train(plan, tmp_path / "0"))
    with pytest.raises(UsageError, match="without savgo and has no embedding"):
        measure_embedding(tmp_path / "0")
    for flags, why in (
        (["--state-from", "0:900"], "episode 0 has"),
        (["--state-from", "x"], "is not EPISODE:STEP"),
        (["--states", "1"], "it must be at least 2"),
    ):
        assert main(["embedding", str(run), *flags]) == 2
        assert why in capsys.readouterr().err
