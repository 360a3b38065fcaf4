"""Landscapes of two agents and over training, and the page that shows them, in a browser too."""

import base64
import csv
import dataclasses
import io
import json
import re
import sys
import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from jaxtyping import Array
from matplotlib import image
from small import Says

import qscape as qs
from qscape import cli
from qscape.inspect.landscape import to_jsonable
from qscape.inspect.landscapes import measure_landscapes
from qscape.inspect.survey import Surveyor, pick_states
from qscape.inspect.trained_agent import load_history, load_trained_agent, make_trained_agent
from qscape.report import landscape_charts, landscapes
from qscape.report.landscape_page import render_page, to_csv
from qscape.run import saves, train
from qscape.run.plan import Plan
from qscape.types import Spec

# --- a critic that is known -------------------------------------------------------------------------------


class Bowl(eqx.Module):
    """Q(s, a) = -‖a - c‖², whatever the state."""

    centre: Array

    def __call__(self, obs, action, embeddings, context=None, key=None):
        return -jnp.square(action - self.centre).sum(-1)


@pytest.fixture(scope="module")
def bowls():
    """`bowls(c, step)`: a td3 that does (0.5, 0) and whose Q is a bowl around c."""
    agent = qs.agent("td3", tiny.settings("td3")).on(Spec(7, 2))
    acting = agent.acting(agent.init(jax.random.key(0)))
    out = lambda actor: (actor.head.out.weight, actor.head.out.bias)  # noqa: E731
    still = (jnp.zeros_like(out(acting.actor)[0]), jnp.arctanh(jnp.array([0.5, 0.0])))
    acting = acting._replace(actor=eqx.tree_at(out, acting.actor, still))

    def at(centre, step):
        subject = make_trained_agent(
            agent, acting._replace(critics=[Bowl(jnp.array(centre))]), "tiny:Rooms-v0", step
        )
        return dataclasses.replace(subject, name="bowl")

    return at


def test_every_save_and_both_agents_have_their_own_numbers_at_the_same_states(bowls):
    centres = [(0.0, 0.0), (0.5, 0.5), (0.5, 0.0)]
    history = [bowls(c, step) for c, step in zip(centres, (10, 20, 30), strict=True)]
    found = measure_landscapes(history, 4, ["0:3"], episodes=1, other=bowls((-0.5, 0.0), 5))
    gaps = [0.25, 0.25, 0.0]  # the squared distance of (0.5, 0) to each centre
    assert [moment["step"] for moment in found["over_training"]] == [10, 20, 30]
    for moment, centre, gap in zip(found["over_training"], centres, gaps, strict=True):
        np.testing.assert_allclose(moment["gap"], [gap] * 4, atol=1e-4)
        (seen,) = moment["landscapes"]
        assert (seen["place"], seen["q"].shape) == ("0:3", (61, 61))
        x, y = seen["grid"]
        np.testing.assert_allclose(
            seen["q"], -((x[:, None] - centre[0]) ** 2) - (y - centre[1]) ** 2, atol=1e-5
        )
        np.testing.assert_allclose(seen["arrows"][:, 2:], 2 * (centre - seen["arrows"][:, :2]), atol=1e-5)
        np.testing.assert_allclose(seen["optima"], [centre], atol=0.02)
    np.testing.assert_allclose(found["gap"], [0.0] * 4, atol=1e-4)  # at the top stands the newest save
    other = found["other"]
    np.testing.assert_allclose(other["gap"], [1.0] * 4, atol=1e-4)
    assert other["place"] == found["place"]
    assert (found["step"], other["step"], "over_training" in other) == (30, 5, False)
    curves = landscapes.draw_findings(found).subfigs[1].axes[0].lines
    assert [line.get_xdata().tolist() for line in curves] == [[10, 20, 30], [5]]


def test_the_slope_of_a_line():
    agent = qs.agent("td3", tiny.settings("td3")).on(Spec(3, 1))
    acting = agent.acting(agent.init(jax.random.key(0)))._replace(critics=[Bowl(jnp.array([0.25]))])
    found = measure_landscapes(make_trained_agent(agent, acting, "tiny:Clock-v0"), 1, episodes=1, points=11)
    at, slope = found["landscapes"][0]["arrows"].T
    np.testing.assert_allclose(slope, 2 * (0.25 - at), atol=1e-5)
    assert len(at) == 201


# --- runs -------------------------------------------------------------------------------------------------


def trained(folder, recipe="td3", env="tiny:Rooms-v0", **more):
    plan = Plan(
        recipe, env, **{"steps": 60, "settings": tiny.settings(recipe, warmup=20), "eval_every": 0} | more
    )
    for _ in train(plan, folder):
        pass
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two short runs with two action dimensions, each with a save every 20 steps."""
    place = tmp_path_factory.mktemp("runs")
    return [
        trained(place / "a" / "0", save_every=20, milestones=1 / 3),
        trained(place / "b" / "1", seed=1, save_every=20, milestones=1 / 3),
    ]


@pytest.fixture(scope="module")
def files(runs, tmp_path_factory):
    """What the command makes of both over training: JSON, picture and page."""
    place = tmp_path_factory.mktemp("made")
    made = {kind: place / "new" / f"x.{kind}" for kind in ("json", "png", "html")}
    flags = [part for kind, file in made.items() for part in (f"--{kind}", str(file))]
    argv = ["landscape", *map(str, runs), "--over-training", "--states", "5", "--episodes", "2"]
    assert cli.main([*argv, "--state-from", "0:3", "1:7", *flags]) == 0
    return made


@pytest.fixture(scope="module")
def found(files):
    return json.loads(files["json"].read_text())


@pytest.mark.slow
def test_a_save_is_measured_as_if_it_were_all_there_is(runs, found):
    places = [saves.names(run / "saves") for run in runs]
    assert places == [["000000020", "000000040", "000000060"]] * 2
    newest = load_trained_agent(runs[0])
    visited = newest.rollouts(2)
    obs = pick_states(visited, 5)[1]
    looked = [visited[0].observation[3], visited[1].observation[7]]
    for run, agent in zip(runs, (found, found["other"]), strict=True):
        subject = load_trained_agent(run)
        like = jax.eval_shape(lambda s=subject: s.acting)
        assert [moment["step"] for moment in agent["over_training"]] == [20, 40, 60]
        for moment, name in zip(agent["over_training"], saves.names(run / "saves"), strict=True):
            acting = saves.read(run / "saves" / name, {"acting": like})[0]["acting"]
            alone = Surveyor(subject.agent)(acting, obs)
            np.testing.assert_allclose(moment["gap"], alone.gap, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(moment["optima"], alone.optima)
            q = dataclasses.replace(subject, acting=acting).q
            for seen, at in zip(moment["landscapes"], looked, strict=True):
                x, y = seen["grid"]
                grid = np.stack(np.meshgrid(x, y, indexing="ij"), -1).reshape(-1, 2)
                by_hand = q(np.repeat(at[None], len(grid), 0), np.float32(grid))[0]
                np.testing.assert_allclose(np.ravel(seen["q"]), by_hand, rtol=1e-4, atol=1e-5)
    gaps = [moment["gap"] for moment in found["over_training"]]
    assert gaps[0] != gaps[1] != gaps[2], "the saves differ"


def test_the_newest_save_stands_where_it_always_stood(runs, found):
    argv = ["landscape", str(runs[0]), "--states", "5", "--episodes", "2", "--state-from", "0:3", "1:7"]
    assert cli.main([*argv, "--grid", "61"]) == 0
    alone = json.loads((runs[0] / "inspect" / "landscape.json").read_text())
    assert {key: found[key] for key in alone} == alone
    assert set(found) - set(alone) == {"over_training", "other"}
    assert found["over_training"][-1]["landscapes"] == found["landscapes"]


def test_one_program_serves_all_saves(runs, monkeypatch):
    made = []
    begin = Surveyor.__init__
    monkeypatch.setattr(Surveyor, "__init__", lambda self, *args: (begin(self, *args), made.append(self))[0])
    measure_landscapes(load_history(load_trained_agent(runs[0])), 3, episodes=1, points=9)
    (surveyor,) = made
    counts = [p._cache_size() for p in (surveyor._measure_jit, surveyor._values, surveyor._slopes)]
    assert counts == [1, 1, 1]


def test_the_picture_shows_moments_and_curves(files, found):
    figure = landscapes.draw_findings(found)
    panels = [ax for part in figure.subfigs[0].subfigs or [figure.subfigs[0]] for ax in part.axes]
    titles = [ax.get_title().replace("\n", " ") for ax in panels if ax.get_title()]
    assert len(titles) == 2 * 2 * 3, "states, agents, moments"
    assert [re.search(r"step (\d+)", title)[1] for title in titles[:6]] == ["20", "40", "60"] * 2
    assert all(ax.get_xlabel().endswith("scaled to [−1, 1]") for ax in panels if ax.get_title())
    gap, optima = figure.subfigs[1].axes
    for line, agent in zip(gap.lines, (found, found["other"]), strict=True):
        shares = [100 * np.mean(moment["gap_share"]) for moment in agent["over_training"]]
        np.testing.assert_allclose(line.get_xydata(), np.transpose([[20, 40, 60], shares]), rtol=1e-4)
    for line, agent in zip(optima.lines, (found, found["other"]), strict=True):
        np.testing.assert_allclose(
            line.get_ydata(), [np.mean(m["optima"]) for m in agent["over_training"]], rtol=1e-4
        )
    assert image.imread(files["png"]).std() > 0.05  # not blank
    pair = landscapes.draw_findings({k: v for k, v in found.items() if k != "over_training"} | {
        "other": {k: v for k, v in found["other"].items() if k != "over_training"}
    })  # fmt: skip
    assert sum(bool(ax.get_title()) for ax in pair.subfigs[0].axes) == 4


def test_the_file_of_numbers(found):
    rows = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert len(rows) == 2 * 3 * 5
    assert len({row["agent"] for row in rows}) == 2
    for agent, share in zip((found, found["other"]), (rows[:15], rows[15:]), strict=True):
        assert [float(row["gap"]) for row in share[5:10]] == agent["over_training"][1]["gap"]
        assert {int(row["step"]) for row in share[5:10]} == {40}


# --- what is refused --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Runs that cannot be shown, or not beside those of two dimensions."""
    place = tmp_path_factory.mktemp("others")
    small = {"base": {"actor_hidden": (8,), "critic_hidden": (8,), "rollout": 32, "batch_size": 32}}
    return {
        "line": trained(place / "line", env="tiny:Clock-v0", steps=30, milestones=1.0, save_every=30),
        "ppo": trained(place / "ppo", "ppo", "CartPole-v1", steps=64, settings=small),
    }


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["line", "--plane", "0,1"], "have one dimension"),
        (["line", "--plane", "pca"], "have one dimension"),
        (["line", "--over-training"], "one save only, of step 30"),
        (["line", "--state-from", "0:9999"], "episode 0 has "),
        (["ppo"], "has no Q(s, a)"),
        (["ppo", "--over-training"], "has no Q(s, a)"),
        (["a", "line"], "acts in tiny:Rooms-v0 and"),
        (["a", "ppo"], "has no Q(s, a)"),
        (["a", "b", "line"], "one run, or two to compare, not 3"),
    ],
)
def test_what_the_command_refuses(runs, others, argv, says, capsys):
    folders = {"a": runs[0], "b": runs[1]} | others
    assert cli.main(["landscape", *(str(folders.get(word, word)) for word in argv)]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_folder_of_two_runs_shows_both(runs, tmp_path, capsys):
    file = tmp_path / "found.json"
    argv = ["landscape", str(runs[0].parents[1]), "--states", "4", "--episodes", "1", "--json", str(file)]
    assert cli.main([*argv, "--png", str(tmp_path / "p.png")]) == 0
    found = json.loads(file.read_text())
    assert [found["name"], found["other"]["name"]] == [str(run) for run in runs]
    assert capsys.readouterr().out.count("gap: best Q found") == 2


def test_runs_with_other_actions_do_not_stand_side_by_side(bowls):
    here = bowls((0.0, 0.0), 1)
    wide = here.agent.on(Spec(7, 2, low=np.float32([-9, -9]), high=np.float32([9, 9])))
    with pytest.raises(qs.UsageError, match="have different actions"):
        measure_landscapes(here, other=dataclasses.replace(here, agent=wide))
    more = here.agent.on(Spec(8, 2))
    with pytest.raises(qs.UsageError, match="sees 7 numbers and bowl 8"):
        measure_landscapes(here, other=dataclasses.replace(here, agent=more))


def test_runs_with_other_environment_arguments_do_not_stand_side_by_side(bowls):
    """As `compare` has it: other arguments are another task."""
    here = bowls((0.0, 0.0), 1)
    short, long = (
        dataclasses.replace(here, record={"env": "tiny:Rooms-v0", "env_args": {"rooms": n}}) for n in (2, 3)
    )
    with pytest.raises(qs.UsageError, match=r"acts in tiny:Rooms-v0\(rooms=2\) and bowl in .*rooms=3"):
        measure_landscapes(short, other=long)
    told = measure_landscapes(short, 2, episodes=1)
    assert told["env"] == "tiny:Rooms-v0(rooms=2)"


def test_a_page_without_plotly(runs, monkeypatch, capsys):
    pages = [f"qscape.report.{name}" for name in ("page", "landscape_page", "landscape_charts")]
    for name in [name for name in sys.modules if name in pages or name.startswith("plotly.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert cli.main(["landscape", str(runs[0]), "--html", "x.html"]) == 2
    assert 'Pages need the extra: pip install "qscape[report]"' in capsys.readouterr().err


def test_a_page_that_cannot_be_written(runs, tmp_path, capsys):
    (tmp_path / "taken").write_text("a file, not a folder")
    argv = ["landscape", str(runs[0]), "--states", "2", "--episodes", "1", "--grid", "5"]
    assert cli.main([*argv, "--html", str(tmp_path / "taken" / "x.html")]) == 1
    assert "cannot be written" in capsys.readouterr().err


# --- the page ---------------------------------------------------------------------------------------------

SHOWN = """([chart, x, y]) => {
    const { z } = charts[chart]._fullData[0];
    return Math.abs(z[0][0] - x) < 1e-4 && Math.abs(z.at(-1).at(-1) - y) < 1e-4;
}"""


def corners(seen):
    """Q in two corners of a plane, by which a landscape is known."""
    return [seen["q"][0][0], seen["q"][-1][-1]]


def until(page, true, arg=None):
    """Waits until JavaScript says so. (Playwright's own way is forbidden by the page's security policy.)"""
    deadline = time.monotonic() + 10
    while not page.evaluate(true, arg):
        assert time.monotonic() < deadline, true
        page.wait_for_timeout(20)


def shows(page, chart, seen):
    """Waits until a chart shows a landscape."""
    until(page, SHOWN, [chart, *corners(seen)])


def test_the_page_is_small_and_alone(files):
    text = files["html"].read_text()
    assert len(text) < 3e6
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)


@pytest.mark.slow
def test_the_slider_and_the_chooser_move_the_landscape(files, found, visit):
    page = visit(files["html"])
    both = [agent["over_training"] for agent in (found, found["other"])]
    assert len({tuple(corners(seen)) for one in both for m in one for seen in m["landscapes"]}) == 2 * 3 * 2

    def is_shown(save, state):
        for a, moments in enumerate(both):
            seen, said = moments[save]["landscapes"][state], page.locator(f"#said-{a}")
            shows(page, f"landscape-{a}", seen)
            share = seen["survey"]["gap"] / seen["survey"]["span"]
            assert f"At step {20 * (save + 1)} the action lies {share:.1%} of Q's range" in said.inner_text()
            assert f"{int(seen['survey']['optima'])} local optim" in said.inner_text()
        assert page.locator("#step").inner_text() == f"step {20 * (save + 1)}"

    is_shown(2, 0)
    page.locator("#save").fill("0")
    is_shown(0, 0)
    page.locator("#state").select_option("episode 1, step 7")
    is_shown(0, 1)
    page.locator("#save").focus()
    page.keyboard.press("ArrowRight")
    is_shown(1, 1)
    until(page, "charts['training-gap'].layout.shapes[0].x0 === 40")
    page.emulate_media(color_scheme="dark")  # everything is drawn anew, and stays where it was
    ink = "getComputedStyle(charts['landscape-0'].querySelector('.xtick text')).fill"
    until(page, f"{ink} === 'rgb(230, 233, 237)'")
    is_shown(1, 1)


def test_marks_arrows_and_what_hovering_says(files, found, visit):
    page = visit(files["html"])
    names = page.evaluate("charts['landscape-0'].data.map((trace) => trace.name)")
    assert {"gradient field", "local optima", "best found", "the agent's action"} <= set(names)
    seen = found["landscapes"][0]
    at = page.evaluate("charts['landscape-0'].data.find((t) => t.name === \"the agent's action\")")
    np.testing.assert_allclose([at["x"][0], at["y"][0]], seen["survey"]["action"], atol=1e-5)
    tails = page.evaluate("Array.from(charts['landscape-0']._fullData[1].x).map(Number)")
    arrows = np.array(seen["arrows"])
    assert len(tails) == 3 * (np.linalg.norm(arrows[:, 2:], axis=1) > 0).sum()
    drawn = np.array(tails, float).reshape(-1, 3)
    np.testing.assert_allclose(drawn[:, :2].mean(1), arrows[:, 0], atol=1e-5)
    assert (np.sign(drawn[:, 1] - drawn[:, 0]) == np.sign(arrows[:, 2])).all(), "they point uphill"
    assert page.locator("#chart-landscape-0 .scatterlayer .trace path.js-line").count() > 99
    page.locator("#chart-landscape-0 .legendtoggle").first.click()  # the gradient field
    until(page, "!document.querySelector('#chart-landscape-0 .scatterlayer .trace path.js-line')")
    plot = page.locator("#chart-landscape-0 .nsewdrag").bounding_box()
    page.mouse.move(plot["x"] + 0.2 * plot["width"], plot["y"] + 0.2 * plot["height"])
    said = page.locator("#chart-landscape-0 .hoverlayer .hovertext").first.text_content(timeout=5_000)
    assert "action dimension 0 " in said
    assert "Q " in said


@pytest.mark.slow
def test_a_phone_shows_one_column_and_never_scrolls_sideways(files, visit):
    for width, columns in ((375, 1), (1200, 2)):
        page = visit(files["html"], width=width)
        places = [page.locator(f"#chart-landscape-{a}").bounding_box() for a in (0, 1)]
        assert (places[0]["y"] < places[1]["y"]) == (columns == 1)
        assert (places[0]["x"] < places[1]["x"]) == (columns == 2)
        page.locator("summary").first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_lines_and_tables_have_pages_too(bowls, tmp_path, visit):
    evil = "<script>alert(1)</script><img src=x onerror=alert(1)>"
    hill = measure_landscapes(bowls((0.3, 0.3), 7), 2, ["0:1"], "0", episodes=1, points=21)
    (tmp_path / "line.html").write_text(render_page(to_jsonable(hill) | {"label": evil, "env": evil}))
    page = visit(tmp_path / "line.html", width=375, dark=True)
    traces = page.evaluate("charts['landscape-0']._fullData.slice(0, 2).map((t) => [[...t.x], [...t.y]])")
    np.testing.assert_allclose(traces[0][1], -((np.array(traces[0][0]) - 0.3) ** 2) - 0.09, atol=1e-5)
    np.testing.assert_allclose(traces[1][1], -2 * (np.array(traces[1][0]) - 0.3), atol=1e-5)
    assert evil in page.locator("h1").inner_text()
    assert page.locator("#save").count() == 0, "nothing to slide over"
    assert page.evaluate("document.documentElement.scrollWidth") <= 375

    table = np.random.default_rng(3).uniform(-1, 1, (5000, 2)).astype(np.float32)
    one = bowls((0.3, 0.3), 7)
    agent = dataclasses.replace(one.agent, spec=Spec(7, 2, table=table))
    made = measure_landscapes(dataclasses.replace(one, agent=agent), 2, ["0:1"], episodes=1)
    (tmp_path / "table.html").write_text(render_page(to_jsonable(made)))
    page = visit(tmp_path / "table.html")
    x, y, q = page.evaluate(
        "(([t]) => [t.x, t.y, t.marker.color].map((a) => [...a]))(charts['landscape-0']._fullData)"
    )
    assert len(x) == landscape_charts.ENTRIES
    assert q == sorted(q), "the high ones on top"
    plane = made["landscapes"][0]["plane"]
    action = plane["origin"] + np.transpose([x, y]) @ plane["axes"]
    np.testing.assert_allclose(q, -np.square(action - 0.3).sum(1), atol=1e-4)
    assert "the action ranks" in page.locator("#said-0").inner_text()


def test_invalid_entries_of_a_table_are_below_all_others(monkeypatch):
    monkeypatch.setattr(landscape_charts, "_axis_titles", lambda fields: ["a"])
    fields = {"q": [0.1, np.nan, 0.9, 0.5], "grid": [[0.0, 1.0, 2.0, 3.0]]}
    (dots,), _ = landscape_charts._table(fields)
    drawn = np.frombuffer(base64.b64decode(dots["x"]["bdata"]), "<f4")
    assert drawn.tolist() == [1.0, 0.0, 3.0, 2.0]


def test_what_the_environment_accepts_is_shaded(bowls, tmp_path, visit):
    hill = to_jsonable(measure_landscapes(bowls((0.3, 0.3), 7), 2, ["0:1"], "0", episodes=1, points=21))
    assert "Shaded" not in render_page(hill)
    hill["landscapes"][0]["valid"] = [[-0.5, -0.25], [0.5, 1.0]]
    (tmp_path / "valid.html").write_text(render_page(hill))
    page = visit(tmp_path / "valid.html")
    assert (
        "The shaded actions are those that the environment accepts."
        in page.locator("details p").text_content()
    )
    shaded = page.evaluate("charts['landscape-0']._fullLayout.shapes.map((s) => [s.x0, s.x1])")
    assert shaded == [[-0.5, -0.25], [0.5, 1.0]]


@pytest.mark.slow
def test_what_savos_actors_climb_is_a_click_away(bowls, tmp_path, visit):
    hill = to_jsonable(measure_landscapes(bowls((0.3, 0.3), 7), 2, ["0:1"], "0", episodes=1, points=21))
    assert "Ψ" not in render_page(hill)
    q = np.array(hill["landscapes"][0]["q"])
    hill["landscapes"][0]["surrogates"] = [
        {"floor": -0.2, "exact": np.maximum(q, -0.2).tolist(), "learned": (q + 1).tolist()},
        {"floor": -0.1, "exact": np.maximum(q, -0.1).tolist(), "learned": None},
    ]
    (tmp_path / "climbed.html").write_text(render_page(hill))
    page = visit(tmp_path / "climbed.html")
    named = "charts['landscape-0']._fullData.filter((t) => t.name.includes('Ψ'))"
    shown = page.evaluate(f"{named}.map((t) => [t.visible, [...t.y]])")
    assert [visible for visible, _ in shown] == ["legendonly"] * 3
    expected = (np.maximum(q, -0.2), q + 1, np.maximum(q, -0.1))
    for (_, y), told in zip(shown, expected, strict=True):
        np.testing.assert_allclose(y, told, atol=1e-5)
    page.locator(".legendtoggle").first.click()  # one click, not two
    page.wait_for_function(
        "charts['landscape-0']._fullData.some((t) => t.name.includes('Ψ') && t.visible === true)"
    )
    assert "A click on a Ψ" in page.locator("details p").text_content()


@pytest.mark.slow
def test_cuts_tell_the_whole_action_and_agents_of_other_saves_share_the_slider(bowls, tmp_path, visit):
    saves = [bowls((0.0, 0.0), 10), bowls((0.2, 0.0), 30)]
    found = to_jsonable(measure_landscapes(saves, 2, ["0:1"], "0", episodes=1,
                             other=[bowls((0.5, 0.0), 20), bowls((0.7, 0.0), 40)], points=21))  # fmt: skip
    file = tmp_path / "x.html"
    file.write_text(render_page(found))
    page = visit(file)
    top = """([chart, x]) => {
        const [line] = charts[chart]._fullData;
        return Math.abs(line.x[[...line.y].indexOf(Math.max(...line.y))] - x) < 0.01;
    }"""
    for k, (step, *tops) in enumerate([(10, 0.0, 0.5), (20, 0.0, 0.5), (30, 0.2, 0.5), (40, 0.2, 0.7)]):
        page.locator("#save").fill(str(k))
        until(page, f"document.getElementById('step').value === 'step {step}'")
        for a in (0, 1):
            until(page, top, [f"landscape-{a}", tops[a]])
    plot = page.locator("#chart-landscape-0 .nsewdrag").first.bounding_box()
    page.mouse.move(plot["x"] + 0.5 * plot["width"], plot["y"] + 0.5 * plot["height"])
    until(page, "document.getElementById('readout-0').textContent")
    assert re.fullmatch(r"Action \(−?0\.\d\d, 0\.00\)", page.locator("#readout-0").inner_text())


def test_gaps_of_a_flat_q_are_no_share_of_it_on_the_page_either(bowls):
    flat = bowls((0.0, 0.0), 10)
    q = Says(lambda obs, a: 1e6 + 0.1 * jnp.sin(9 * a[..., 0]))
    flat = dataclasses.replace(flat, acting=flat.acting._replace(critics=[q]))
    found = measure_landscapes(flat, 2, ["0:1"], episodes=1, points=21)
    assert found["landscapes"][0]["survey"]["gap"] > 0.05
    assert (
        re.findall(r"<td class=number>([\d.]+%)</td>", render_page(found).split("<template")[1]) == ["0%"] * 2
    )


def test_the_page_says_whose_cut_it_shows(bowls):
    def page(**other):
        found = measure_landscapes(
            [bowls((0.0, 0.0), k) for k in (10, 20)], 2, ["0:1"], "0", episodes=1, points=21, **other
        )
        return render_page(found)

    assert "more dimensions, through the actions of its own save;" in page()
    assert "more dimensions, the same one in all plots of a state;" in page(other=bowls((0.5, 0.0), 20))


def test_curves_over_training_count_updates_on_datasets_and_no_optima_of_indices(bowls):
    history = [bowls((0.0, 0.0), step) for step in (10, 20)]
    history[-1] = dataclasses.replace(
        history[-1], record={"env": "Hopper-v5", "dataset": "hopper.hdf5", "label": "td3"}
    )
    found = to_jsonable(measure_landscapes(history, 2, ["0:1"], "0", episodes=1, points=21))
    for moment in (found, *found["over_training"]):
        moment["summary"] = {**moment["summary"], "optima": None}
    text, figure = render_page(found), landscapes.draw_findings(found)
    assert "training-gap" in text
    assert 'id="figure-training-optima"' not in text
    assert 'id="chart-training-optima"' not in text
    assert '"title":{"text":"updates"}' in text
    (gap,) = figure.subfigs[1].axes
    assert gap.get_xlabel() == "updates"
    found["dataset"] = None
    assert landscapes.draw_findings(found).subfigs[1].axes[0].get_xlabel() == "environment steps"


def test_agents_of_other_steps_stand_side_by_side_without_their_past(bowls):
    found = to_jsonable(measure_landscapes(bowls((0.0, 0.0), 10), 2, ["0:1"], "0", episodes=1, points=21,
                             other=bowls((0.5, 0.0), 20)))  # fmt: skip
    text = render_page(found)
    assert '<input id="save"' not in text
    assert text.count('<template id="said-') == 2
