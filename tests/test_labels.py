"""Names and colours of agents on pages, and what a page says about few seeds and missing runs."""

import json

import numpy as np
import pandas as pd
import pytest
from runs_on_disk import write_run

import qscape as qs
from qscape.cli import main
from qscape.inspect.planes import share_plane
from qscape.inspect.survey import Survey
from qscape.report import charts, collapse, curves, landscape_charts, landscapes, marks, tables
from qscape.report.labels import LONGEST, describe_shared, describe_shortened, number_agents, shorten_labels
from qscape.report.marks import Mark, list_shared, name_agents, shown_names
from qscape.run.plan import Plan, prepare, to_json

LABELS = (
    "td3[base.batch_size=64,base.warmup=9]",
    "td3+pave[base.batch_size=64,pave.sigma=0.1]",
    "sac[base.batch_size=64]",
)


def test_settings_of_all_agents_leave_the_labels():
    names, shared = shorten_labels(LABELS)
    assert shared == ["base.batch_size=64"]
    assert [names[label] for label in LABELS] == ["td3[base.warmup=9]", "td3+pave[pave.sigma=0.1]", "sac"]
    assert describe_shared(shared) == "All agents have base.batch_size=64."


@pytest.mark.parametrize("labels", [["td3", "sac[base.batch_size=64]"], [LABELS[0]], ["x[1]", "y"]])
def test_other_labels_stay(labels):
    assert shorten_labels(labels) == ({label: label for label in labels}, [])


def test_agents_whose_fields_only_have_another_order_keep_their_labels():
    labels = ["td3[a.x=1,b.y=2]", "td3[b.y=2,a.x=1]", "sac[a.x=1,b.y=2]"]
    assert shorten_labels(labels) == ({label: label for label in labels}, [])


def test_a_long_name_keeps_the_settings_that_tell_agents_apart():
    many = ",".join(f"base.setting_{k}={k * 1111}" for k in range(7))
    alone = f"td3[{many},pave.sigma=0.1]"
    short = "td3[base.setting_0=0,base.setting_1=1111,pave.sigma=0.1,…]"
    assert shorten_labels([alone]) == ({alone: short}, []), "a single agent has none that tell it apart"
    assert describe_shortened({alone: short}) == [f"{short} is {alone}."]

    labels = [f"sac[{many},a.b={k}], kept policy" for k in range(2)] + ["td3"]
    names, shared = shorten_labels(labels)
    assert [*names.values()] == [f"sac[base.setting_0=0,a.b={k},…], kept policy" for k in range(2)] + ["td3"]
    assert max(len(name) for name in names.values()) <= LONGEST
    assert not shared

    equal = [f"sac[{many},a.b={'9' * 50}{k}]" for k in range(2)]
    assert [*shorten_labels([*equal, "td3"])[0].values()] == [*equal, "td3"], "else the same"


def test_names_of_policies_stay_behind_a_label():
    labels = [f"{label}, {policy} policy" for label in LABELS[1:] for policy in ("kept", "current")]
    names, shared = shorten_labels(labels)
    assert shared == ["base.batch_size=64"]
    assert [*names.values()][-1] == "sac, current policy"
    alone = labels[:2]  # two policies of one agent
    assert shorten_labels(alone) == ({label: label for label in alone}, [])


def test_an_agent_keeps_its_colour_on_every_page():
    colour = {label: charts.choose_styles([label])[label].colour for label in LABELS}
    for others in (["sac"], ["td7", "ppo"], ["a", "b"]):
        styles = charts.choose_styles([LABELS[0], *others])
        assert len({style.colour for style in styles.values()}) == len(styles)
        if colour[LABELS[0]] not in {charts.choose_styles([other])[other].colour for other in others}:
            assert styles[LABELS[0]].colour == colour[LABELS[0]]
    names = {LABELS[0]: "short"}
    assert charts.choose_styles([LABELS[0]], names)["short"].colour == colour[LABELS[0]]
    assert len({*number_agents([f"agent{k}" for k in range(20)]).values()}) == 20


def fill(root, seeds=(0, 1)):
    for label in LABELS:
        for seed in seeds:
            write_run(root / label / str(seed), label=label, seed=seed, returns={0: [0.0], 10: [float(seed)]})


def test_tables_show_short_labels_and_files_keep_the_full_ones(tmp_path, capsys):
    fill(tmp_path / "runs")
    files = {kind: tmp_path / f"made.{kind}" for kind in ("csv", "json", "latex")}
    flags = [word for kind, file in files.items() for word in (f"--{kind}", str(file))]
    assert main(["compare", str(tmp_path / "runs"), *flags]) == 0
    out = capsys.readouterr().out
    assert out.startswith("All agents have base.batch_size=64.")
    assert out.count("batch_size") == 1
    assert "td3+pave[pave.sigma=0.1] > td3" in out
    assert all(label in files["csv"].read_text() for label in ("sac[base.batch_size=64]", "pave.sigma=0.1"))
    assert {row["label"] for row in json.loads(files["json"].read_text())["per_env"]} == {*LABELS}
    latex = files["latex"].read_text()
    assert "% All agents have base.batch_size=64." in latex
    assert r"\nsac & " in latex.replace("\n", r"\n")


def test_one_seed_has_no_probability_of_improvement(tmp_path):
    fill(tmp_path, seeds=(0,))
    assert tables.compare(qs.load_runs(tmp_path)).improvement.empty
    for seed in (1, 2):
        write_run(tmp_path / "sac" / str(seed), label=LABELS[2], seed=seed)
        write_run(tmp_path / "td3" / str(seed), label=LABELS[0], seed=seed)
    made = tables.compare(qs.load_runs(tmp_path)).improvement
    assert made[["x", "y"]].to_numpy().tolist() == [[LABELS[2], LABELS[0]]]


def test_one_seed_has_no_pareto_front():
    def names(seeds):
        rows = [
            {"env": "Ant-v5", "label": label, "seed": seed, "sm": k + 0.1 * seed, "return": k + 0.1 * seed}
            for k, label in enumerate("ab")
            for seed in range(seeds)
        ]
        chart = curves.pareto_chart(pd.DataFrame(rows), charts.choose_styles("ab"))
        return [trace.name for trace in chart.traces]

    assert "Pareto front" in names(2)
    assert "Pareto front" not in names(1)
    assert np.shape(names(1)) == (4,)


def test_a_record_lists_every_part_of_its_recipe():
    plan, agent, _ = prepare(Plan("td7", "Pendulum-v1", 100))
    assert to_json(plan, agent)["parts"] == ["sale", "lap", "periodic", "value_clip", "checkpoints"]


def test_a_comparison_of_a_study_says_which_runs_are_missing(tmp_path, capsys):
    root = tmp_path / "demo"
    runs = [
        {"folder": f"Ant-v5/{label}/{seed}", "label": label, "env": "Ant-v5", "seed": seed, "steps": 10}
        for label in ("td3", "sac")
        for seed in range(6)
    ]
    for run in runs[:3]:
        write_run(root / run["folder"], label=run["label"], seed=run["seed"])
    (root / "study.json").write_text(json.dumps({"name": "demo", "budget": "quick", "runs": runs}))
    said = f"{root}: 9 of the 12 runs of the study are missing: td3 on Ant-v5 seed 3, td3 on Ant-v5 seed 4,"
    for place in (root, tmp_path):
        assert main(["compare", str(place), "--html", str(tmp_path / "page.html")]) == 0
        out = capsys.readouterr().out
        assert said in out
        assert "sac on Ant-v5 seed 4 and 1 more." in out
        assert said in (tmp_path / "page.html").read_text()
    assert main(["compare", str(root / "Ant-v5" / "td3")]) == 0
    assert "3 of the 12 runs of the study are missing" in capsys.readouterr().out
    assert main(["compare", str(root / "Ant-v5" / "td3" / "0")]) == 0
    assert "missing" not in capsys.readouterr().out
    (root / "study.json").write_text("{}")
    assert main(["compare", str(root)]) == 0
    assert "study.json: it is broken" in capsys.readouterr().out


# --- pictures of landscapes and of collapse ---------------------------------------------------------------


def test_marks_of_a_landscape_are_told_apart_and_the_star_lies_over_crosses():
    def mark(kind):
        return Mark(kind, kind, 0, np.zeros((1, 2)), np.zeros(1), np.zeros((1, 2)))

    drawn = {kind: landscapes._mark_style(mark(kind)) for kind in ("optima", "best", "action", "proposal")}
    assert drawn["optima"]["zorder"] < drawn["best"]["zorder"] < drawn["action"]["zorder"]
    assert (drawn["action"]["marker"], drawn["action"]["color"]) == ("o", marks.ORANGE)
    assert drawn["proposal"]["marker"] != "o"
    assert drawn["proposal"]["color"] != marks.ORANGE
    charts = {kind: landscape_charts._mark(mark(kind), np.zeros(1))["marker"] for kind in drawn}
    assert charts["action"]["symbol"] != charts["proposal"]["symbol"]
    assert charts["action"]["color"] != charts["proposal"]["color"]


def test_two_measured_agents_share_what_their_labels_share():
    both = {"label": LABELS[0], "name": "a", "other": {"label": LABELS[2], "name": "b"}}
    assert [*name_agents(both)] == ["td3[base.warmup=9]", "sac"]
    assert list_shared(both) == ["base.batch_size=64"]
    same = {"label": LABELS[0], "name": "a", "other": {"label": LABELS[0], "name": "b"}}
    assert [*name_agents(same)] == [f"{LABELS[0]} (a)", f"{LABELS[0]} (b)"]
    assert list_shared(same) == []
    assert shown_names(name_agents(both)) == {LABELS[0]: "td3[base.warmup=9]", LABELS[2]: "sac"}


def test_two_agents_have_one_plane_through_both_actions():
    def survey(action, best):
        rows = {name: np.zeros((1, 1)) for name in Survey._fields}
        found = {"action": np.array([action]), "best": np.array([best]), "proposals": np.array([[action]])}
        return Survey(**rows | found)

    first, second = survey([0.5, 0.0, 0.0], [0.0, 0.0, 0.9]), survey([0.0, 0.5, 0.0], [0.9, 0.9, 0.9])
    plane = share_plane(None, first, second, None)
    for point in (first.action[0], second.action[0], first.best[0]):
        np.testing.assert_allclose(plane.at(plane.coordinates(point[None]))[0], point, atol=1e-6)
    assert share_plane("0,2", first, second, None).names == ("action dimension 0", "action dimension 2")


@pytest.mark.parametrize("actions", [2, 3])
def test_metrics_that_two_actions_make_trivial_are_named(actions):
    row = dict.fromkeys(("step", *collapse.METRICS, "max_angle_w", "alignment"), 0.5) | {"classes": actions}
    record = {
        "history": [row], "label": "ppo", "env": "CartPole-v1", "seed": 0, "actions": [0],
        "points": [[0.0, 1.0]], "shown": [*range(actions)],
        "rows": [[0.0, 1.0]] * actions, "means": [[0.0, 1.0]] * actions,
    }  # fmt: skip
    note = collapse.note_trivial(record)
    assert ("equinorm h, equiangularity h and max angle h are 0 whatever is learned" in note) == (
        actions == 2
    )
    _, metrics, plane = collapse.draw_collapse([record]).axes
    assert f"Features of {actions} actions" in plane.get_title()
    assert ("whatever is learned" in metrics.get_title().replace("\n", " ")) == (actions == 2)
    assert note in collapse.collapse_charts(record)[1].title


def test_a_run_that_began_with_anothers_networks_is_another_agent():
    def labelled(**more):
        return prepare(Plan("td3", "Pendulum-v1", 600, **more)).plan.label

    assert labelled() == "td3"
    assert labelled(start="runs/a/0") == labelled(start="runs/a") == "td3[from=a]"
    assert labelled(start="runs/a", keep_data=True, overlap=False) == "td3[from=a,keep_data=True]"
    assert labelled(start="runs/b") != labelled(start="runs/a")
