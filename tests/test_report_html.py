"""The HTML report: what it says, and how it behaves in a real browser."""

import csv
import io
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from browser import swipe
from rows import slow
from runs_on_disk import write_run

from qscape.cli import main
from qscape.report import curves, page, records, tables, words
from qscape.report.findings import collect_smoothness
from qscape.report.runs import read_runs

EVIL = "<script>alert(1)</script>"
IMAGE = '"><img src=http://127.0.0.1:9/x onerror=alert(2)>'
ENVS = ("Ant-v5", "Hopper-v5")
LABELS = ("td3", "td7", EVIL)
VERSIONS = {"versions": {"python": "3.11.7", IMAGE: "1"}, "machine": {"processor": "AMD <b>EPYC</b>"}}

# As the inspecting commands write it, in small.
LINE = {
    "title": IMAGE, "place": "2:41", "kind": "line", "grid": [[-1.0, -0.5, 0.0, 0.5, 1.0]],
    "plane": {"origin": [0.0], "axes": [[1.0]], "names": [IMAGE]}, "q": [1.0, 2.0, 0.5, 3.0, 1.0],
    "arrows": [[-0.75, 2.0], [0.25, 5.0]], "optima": [[0.5], [-0.5]], "optima_q": [3.0, 2.0],
    "prominence": [2.5, 1.0], "entries": 5,
    "survey": {
        "proposals": [[-0.5]], "proposals_q": [2.0], "action": [-0.5], "action_q": 2.0, "best": [0.5],
        "best_q": 3.0, "span": 2.5, "optima": 2.0, "all_optima": 2.0, "rank": None, "gaps": [1.0], "gap": 1.0,
    },
}  # fmt: skip
EMBEDDING = {
    "step": 1000, "rank_correlation": -0.75, "gap_scale": 2.0, "exponent": 1.5, "explained": [0.9, 0.05],
    "pairs": {"cosine": [0.9, 0.1, -0.5], "difference": [0.1, 1.0, 1.9]}, "state": [0, 7],
    "actions": {"value": [1.0, 2.0], "at": [[0.0, 0.1], [0.2, 0.3]]},
    "candidates": {
        "value": [1.5, 1.0], "at": [[0.1, 0.1], [0.2, 0.2]], "weight": [0.7, 0.3], "cosine": [0.9, 0.2]
    },
    "own": {"value": 1.7, "at": [0.1, 0.2]},
}  # fmt: skip
METRICS = "step equinorm_h equiangularity_h max_angle_h max_angle_w within_variation self_duality alignment"
COLLAPSE = {
    "history": [dict.fromkeys(METRICS.split(), step) for step in (1, 2)],
    "points": [[0.0, 1.0], [1.0, 0.0]], "actions": [0, 1], "shown": [0, 1], "rows": [[0.0, 1.0], [1.0, 0.0]],
    "means": [[0.0, 1.0], [1.0, 0.0]],
}  # fmt: skip
FOUND = {  # of (environment, label, seed)
    (ENVS[0], EVIL, 0): {"landscape": {"landscapes": [LINE, LINE], "step": 100_000}},
    (ENVS[0], EVIL, 1): {"landscape": {"landscapes": [LINE], "step": 100_000}, "embedding": EMBEDDING},
    (ENVS[1], LABELS[0], 1): {"collapse": COLLAPSE},
}


def returns(label: str, seed: int, end: float = 1000.0) -> dict[int, list[float]]:
    end += 500.0 * LABELS.index(label) + 10.0 * seed
    return {0: [0.1 + seed, -0.1], 50_000: [end / 2, end / 3], 100_000: [end, end + 1 / 3]}


def fill(root: Path) -> None:
    """Five seeds of three agents in two environments, one with a hostile name; and half a run."""
    for env in ENVS:
        for k, label in enumerate(LABELS):
            for seed in range(5):
                settings = {"base": {"discount": 0.9 + 0.01 * k, "width": 8}} | (
                    {IMAGE: {"a": 1}} if k else {}
                )
                write_run(
                    root / env / f"agent{k}" / str(seed), label=label, env=env, seed=seed,
                    found=FOUND.get((env, label, seed)), returns=returns(label, seed),
                    sm={0: 3.0, 50_000: 2.0, 100_000: 1.0 + k + 0.1 * seed},
                    record={**VERSIONS, "settings": settings, "command": f"qscape train {IMAGE}"},
                )  # fmt: skip
    (root / IMAGE.replace("/", "-") / "0").mkdir(parents=True)
    (root / IMAGE.replace("/", "-") / "0" / "run.json").write_text("{")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("report") / "runs"
    fill(root)
    return root


@pytest.fixture(scope="module")
def report(runs):
    """The page of these runs, beside published curves."""
    file = runs.parent / "out" / "report.html"
    argv = ["compare", str(runs), "--html", str(file), "--reference", "td3"]
    assert main([*argv, "--csv", str(runs.parent / "c.csv")]) == 0
    return file


# --- in a browser -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_is_quiet_and_whole(report, visit):
    seen = visit(report)
    titles = seen.locator("h2").all_inner_texts()
    assert titles == [
        "Summary", "Leaders", "Learning curves", "Performance profile", "Smoothness against return",
        "Landscapes of Q", "Embeddings", "Action collapse", "Settings", "Data", "Versions and machine",
    ]  # fmt: skip
    # landscapes: those of the first of two seeds that have some
    counts = {"curves": 2, "profile": 1, "smoothness": 2, "landscapes": 2, "embeddings": 3, "collapse": 3}
    assert {name: seen.locator(f"#{name} .plot.drawn").count() for name in counts} == counts
    assert "Shown: 1 of the 2 runs" in seen.locator("#landscapes").inner_text()
    assert seen.locator("#curves figcaption strong").all_inner_texts() == list(ENVS)
    assert "skipped" in seen.locator(".notes").inner_text()


def test_a_click_in_the_legend_hides_a_curve_and_its_band(report, visit):
    seen = visit(report)
    chart = seen.locator("#curves .plot").first
    lines, bands, names = (chart.locator(css) for css in (".js-line", ".js-fill", ".legendtext"))
    before = names.all_text_contents()
    assert [re.sub(r" ?\(.*", "", name) for name in before[1:]] == [
        "td3",
        "td7",
        "TD3, published: Ant-v1",  # ours is Ant-v5, which stands in the part that is cut
    ]
    shown = lines.count()
    assert bands.count() == 3
    chart.locator(".legendtoggle").nth(1).click()
    seen.wait_for_function("charts['1'].data.filter((t) => t.visible === 'legendonly').length === 2")
    assert (bands.count(), shown - lines.count()) == (2, 2)  # a band's edge is a line, too
    hidden = seen.evaluate(
        "charts['1'].data.filter((t) => t.visible === 'legendonly').map((t) => t.legendgroup)"
    )
    assert hidden == ["td3 (5 seeds)"] * 2
    seen.emulate_media(color_scheme="dark")
    seen.wait_for_function("charts['1'].layout.font.color === '#e6e9ed'")
    assert bands.count() == 2  # what was hidden stays hidden in other colours


@pytest.mark.slow
def test_downloads_hold_the_numbers(report, runs, visit):
    seen = visit(report)

    def downloaded(name: str) -> str:
        with seen.expect_download() as waiting:
            seen.locator(f'[data-download="{name}"]').click()
        assert waiting.value.suggested_filename == name
        return Path(waiting.value.path()).read_text()

    assert downloaded("comparison.csv") == (runs.parent / "c.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(downloaded("evaluations.csv"))))
    assert len(rows) == len(ENVS) * len(LABELS) * 5 * 3 * 2
    ours = [r for r in rows if (r["env"], r["label"], r["seed"]) == ("Hopper-v5", EVIL, "3")]
    wanted = [value for values in returns(EVIL, 3).values() for value in values]
    assert [float(r["return"]) for r in ours] == wanted
    assert [float(r["sm"]) for r in ours] == [3.0, 3.0, 2.0, 2.0, 3.3, 3.3]
    assert len(json.loads(downloaded("comparison.json"))["per_env"]) == 6


def test_what_comes_from_runs_is_text(report, visit):
    seen = visit(report)
    leader = seen.locator("#leaders tbody tr.best td").first
    assert leader.inner_text() == EVIL
    assert f"{EVIL} (5 seeds)" in seen.locator("#curves .legendtext").all_text_contents()
    assert IMAGE in seen.locator("#origin").inner_text()
    seen.locator("summary").click()
    assert f"qscape train {IMAGE}" in seen.locator("details").inner_text()
    assert seen.locator("img").count() == 0
    assert seen.evaluate("[...document.scripts].filter((s) => s.textContent.includes('alert(')).every("
                         "(s) => s.type === 'application/json')")  # fmt: skip


def test_a_finger_scrolls_over_charts_and_captions_fit_a_phone(report, visit):
    seen = visit(report, 390, phone=True)
    before = seen.evaluate("JSON.stringify(charts['1'].layout.xaxis.range)")
    assert swipe(seen, "#chart-1") > 100
    assert seen.evaluate("JSON.stringify(charts['1'].layout.xaxis.range)") == before
    ends = seen.evaluate(
        "[...document.querySelectorAll('figcaption')].map((e) => e.getBoundingClientRect().right)"
    )
    assert len(ends) > 5
    assert max(ends) <= 390


def test_a_desktop_page_uses_the_width_and_a_mouse_still_zooms(report, visit):
    seen = visit(report, 1600)
    assert seen.evaluate("document.body.getBoundingClientRect().width") == 1600
    assert seen.evaluate("charts['1']._fullLayout.dragmode") == "zoom"


@pytest.mark.parametrize("dark", [False, slow(True)])
def test_a_phone_shows_it_without_sideways_scrolling(report, visit, dark):
    seen = visit(report, 375, dark)
    assert seen.evaluate("document.documentElement.scrollWidth") == 375
    whole = "!e.closest('.scroll, .plot') && e.getBoundingClientRect().right > 375.5"
    beyond = f"[...document.querySelectorAll('body *')].filter((e) => {whole}).map((e) => e.outerHTML)"
    assert seen.evaluate(beyond) == []
    widths = seen.evaluate(
        "[...document.querySelectorAll('.legend')].map((e) => e.getBoundingClientRect().right)"
    )
    assert max(widths) <= 375.5
    assert contrast(seen, "body") > 7
    assert min(contrast(seen, css) for css in (".quiet", "thead th", "nav a", ".notes li", ".download")) > 4.5
    ink = seen.evaluate("getComputedStyle(document.querySelector('.legendtext')).fill")
    paper = seen.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ratio(ink, paper) > 7
    assert (luminance(paper) < 0.1) == dark


def contrast(seen, css: str) -> float:
    """Of the first element's text with what is behind it."""
    return ratio(*seen.evaluate(
        """(css) => {
          const element = document.querySelector(css);
          let behind = element;
          const paint = () => getComputedStyle(behind).backgroundColor;
          while (paint() === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
          return [getComputedStyle(element).color, paint()];
        }""", css
    ))  # fmt: skip


def ratio(one: str, other: str) -> float:
    """WCAG's contrast ratio of two colours."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    """WCAG's relative luminance of "rgb(r, g, b)"."""
    srgb = np.array([float(x) for x in re.findall(r"[\d.]+", colour)[:3]]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.slow
def test_paper_is_light(report, visit):
    seen = visit(report, dark=True)
    seen.evaluate("dispatchEvent(new Event('beforeprint'))")
    seen.wait_for_function("charts['1'].layout.font.color === '#1c2128'")
    assert luminance(seen.evaluate("getComputedStyle(document.body).backgroundColor")) == 1.0
    seen.evaluate("dispatchEvent(new Event('afterprint'))")
    seen.wait_for_function("charts['1'].layout.font.color === '#e6e9ed'")


# --- what it says -------------------------------------------------------------------------------------


def compared(root: Path, **given) -> tables.Comparison:
    return tables.compare(read_runs(root).frame, **given)


def test_best_evaluations_stand_beside_final_ones(tmp_path):
    for seed in range(2):
        write_run(tmp_path / "runs" / str(seed), env=ENVS[0], seed=seed, returns={0: [9.0], 100_000: [1.0]})
    argv = ["compare", str(tmp_path / "runs"), "--reference", "td3", "--best", "--html"]
    assert main([*argv, str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text()
    leaders = re.search(r"<table>.*?</table>", text[text.index('id="leaders"') :], re.DOTALL)[0]
    head, ours, published = (re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in leaders.split("<tr")[1:])
    assert head[1::3][:2] == ["best IQM", "final IQM"]
    assert ours[1::3][:2] == ["9.00", "1.00"]
    assert published[1:5] == ["–", "–", "–", "580.0"]


def test_words_say_who_leads_and_whether_it_means_anything(tmp_path):
    for seed in range(5):
        write_run(tmp_path / f"a{seed}", label="a", seed=seed, returns={10: [100.0 + seed]})
        write_run(tmp_path / f"b{seed}", label="b", seed=seed, returns={10: [50.0 + seed]})
        write_run(
            tmp_path / f"c{seed}", label="c", env="Hopper-v5", seed=seed, returns={10: [1.0 + 9 * seed]}
        )
        write_run(
            tmp_path / f"d{seed}", label="d", env="Hopper-v5", seed=seed, returns={10: [2.0 + 9 * seed]}
        )
    write_run(tmp_path / "e", label="e", env="Swimmer-v5", returns={10: [7.0]})
    write_run(tmp_path / "f", label="f", env="Swimmer-v5", returns={10: [6.0]})
    write_run(tmp_path / "g", label="g", env="Walker2d-v5", returns={10: [0.25]})
    ant, hopper, swimmer, walker = words.summarise_comparison(compared(tmp_path))
    # interquartile means of 100 ... 104 and of 50 ... 54: one is cut at each end
    assert re.fullmatch(
        r"Ant-v5: a has the highest score, 102\.0 \(5 seeds, 95% interval 100\.0 to 104\.0\); "
        r"next is b with 52\.0 \(.*\)\. It is better: a run of it scores higher with probability 1\.00 "
        r"\(95% interval 0\.62 to 1\.00\)\.",
        ant,
    )
    assert hopper.startswith("Hopper-v5: d has the highest score, 20.0")
    assert "These runs do not separate the two: a run of the first scores higher with probab" in hopper
    assert swimmer.endswith(
        "with 6.00 (1 seed, no interval). A single seed does not predict the next one: no claim."
    )
    assert walker == "Walker2d-v5: g reaches 0.250 (1 seed, no interval)."


def test_words_over_environments_and_of_few_seeds(tmp_path):
    for env in ENVS:
        for seed in range(3):
            write_run(
                tmp_path / env / f"a{seed}", label="a", env=env, seed=seed, returns={10: [3000.0 + seed]}
            )
            write_run(
                tmp_path / env / f"b{seed}", label="b", env=env, seed=seed, returns={10: [1000.0 + seed]}
            )
    said = words.summarise_comparison(compared(tmp_path))
    assert "a has the highest score, 3,001.0 (3 seeds, from 3,000.0 to 3,002.0); next" in said[0]
    assert said[0].endswith("Fewer than 5 seeds do not support a claim.")
    assert said[2].startswith("Over all 2 environments: a has the highest normalised interquartile mean, ")


def test_words_over_environments_of_enough_seeds(tmp_path):
    for env in ENVS:
        for seed in range(5):
            for label, last in (("a", 3000.0), ("b", 1000.0)):
                folder = tmp_path / env / f"{label}{seed}"
                write_run(folder, label=label, env=env, seed=seed, returns={10: [last + seed]})
    *_, said = words.summarise_comparison(compared(tmp_path))
    assert re.search(r"interquartile mean, \S+ \(5 seeds, 95% interval \S+ to \S+\); next is b", said)
    assert "It is better: a run of it scores higher with probability 1.00 (95% interval 0.7" in said


def test_settings_that_differ(tmp_path):
    base = {"discount": 0.99, "warmup": 10}
    parts = {"a": [], "b": ["lap"], "c": ["lap", "periodic"]}  # periodic has no fields
    told = {
        "a": {"base": base, "polyak": {"rate": 0.1}},
        "b": {"base": {**base, "discount": 0.98}, "lap": {"alpha": 0.4}},
        "c": {"base": base, "lap": {"alpha": 0.4, "prioritised": [1, "x"]}},
    }
    for label, settings in told.items():
        known = {"eval_every": 5, "together": [0], "date": label, "seconds": 1.0, "parts": parts[label]}
        write_run(tmp_path / label, label=label, record={"settings": settings, **known})
        more = {**settings, "base": {**settings["base"], "warmup": 99}}
        write_run(tmp_path / f"{label}-2", label=label, env="Hopper-v5", record={"settings": more, **known})
    columns, rows = records.differing_settings(sorted(read_runs(tmp_path).runs))
    assert columns == ["setting", "a", "b", "c"]
    # warm-ups differ between environments, not between agents; lap.alpha is equal where there is lap
    assert rows == [["parts", "–", "lap", "lap, periodic"], ["base.discount", "0.99", "0.98", "0.99"]]


def test_smoothness_is_measured_or_else_probed(tmp_path):
    found = {"per_episode": {"sm": [0.5, 1.5], "return": [10.0, 30.0]}, "policy": "current"}
    own, earlier = ({"smoothness": found | {"step": step}} for step in (10, 0))
    write_run(tmp_path / "0", returns={0: [1.0], 10: [2.0]}, sm={0: 9.0, 10: 8.0}, found=own)
    write_run(tmp_path / "1", seed=1, returns={0: [1.0], 10: [2.0, 4.0]}, sm={0: 9.0, 10: 8.0})
    write_run(tmp_path / "2", seed=2, found=earlier)
    write_run(tmp_path / "3", seed=3, kept={0: [1.0], 10: [5.0]}, found=own)
    made = compared(tmp_path)
    found, _ = records.read_findings(sorted(read_runs(tmp_path).runs))
    points = collect_smoothness(made.rows, found)
    assert points[["seed", "sm", "return"]].to_numpy().tolist() == [[0, 1.0, 20.0], [1, 8.0, 3.0]]
    assert main(["compare", str(tmp_path), "--html", str(tmp_path / "r.html")]) == 0
    told = re.findall(
        r"left out of smoothness: \S*/(\d)/inspect/smoothness.json", (tmp_path / "r.html").read_text()
    )
    assert told == ["2", "3"], "of another step, of another policy, and no probe"
    smoothed = compared(tmp_path, smooth=0.9)
    again = collect_smoothness(smoothed.rows, found)
    assert again.equals(points)


def test_the_pareto_front_has_those_that_nobody_beats_in_both():
    ends = {
        "rough": [9.0, 5.0],
        "best": [3.0, 5.0],
        "smooth": [1.0, 1.0],
        "poor": [2.0, 0.5],
        "worst": [9.5, 0.0],
    }
    assert curves.find_pareto_front({k: np.array(v) for k, v in ends.items()}) == ["smooth", "best"]


def test_findings_that_are_broken_are_named(runs, tmp_path, capsys):
    for kind, text in (("smoothness", "{"), ("landscape", '{"landscapes": [{}]}'), ("collapse", "[1]")):
        write_run(tmp_path / kind)
        (tmp_path / kind / "inspect").mkdir()
        (tmp_path / kind / "inspect" / f"{kind}.json").write_text(text)
        assert main(["compare", str(tmp_path / kind), "--html", str(tmp_path / "r.html")]) == 0
        assert f"skipped {tmp_path / kind}/inspect/{kind}.json: it is" in (tmp_path / "r.html").read_text()


def test_a_page_reads_every_file_of_a_run_once(tmp_path, monkeypatch):
    own = {"per_episode": {"sm": [0.5], "return": [10.0]}, "policy": "current", "step": 10}
    for seed in range(2):
        write_run(tmp_path / str(seed), seed=seed, returns={10: [2.0]}, found={"smoothness": own})
    opened: Counter[str] = Counter()
    usual = {how: getattr(Path, how) for how in ("read_text", "read_bytes")}

    def reader(how):
        def read(path, *args, **kwargs):
            if path.is_relative_to(tmp_path):
                opened[str(path.relative_to(tmp_path))] += 1
            return usual[how](path, *args, **kwargs)

        return read

    for how in usual:
        monkeypatch.setattr(Path, how, reader(how))
    from qscape.report import html

    made = read_runs(tmp_path)
    assert "sm" in html.render_report(tables.compare(made.frame), made.runs)
    files = ("run.json", "evaluations.csv", "inspect/smoothness.json")
    assert opened == {f"{seed}/{file}": 1 for seed in range(2) for file in files}


def test_a_record_that_nobody_of_us_wrote(tmp_path):
    strange = {"settings": {"base": 5, "lap": {"alpha": {"a": [None]}}}, "versions": [1], "machine": "x"}
    write_run(tmp_path / "0", record={**strange, "threads": {}, "command": None})
    write_run(tmp_path / "1", seed=1, record={"settings": None})
    assert main(["compare", str(tmp_path), "--html", str(tmp_path / "r.html")]) == 0


def test_large_comparisons_hold_a_row_for_each_evaluation(runs, monkeypatch):
    from qscape.report import draft, html

    monkeypatch.setattr(html, "LARGEST", 3)
    text, row = html.evaluations_csv(
        draft.begin_draft(compared(runs, smooth=0.9), read_runs(runs).runs, ())
    )  # raw data are never smoothed
    rows = list(csv.DictReader(io.StringIO(text)))
    assert (row, len(rows)) == ("an evaluation", len(ENVS) * len(LABELS) * 5 * 3)
    assert float(rows[-1]["return"]) == np.mean(returns("td7", 4)[100_000])


def test_labels_fit_a_phone_and_stay_text():
    name = "sac+savgo[base.warmup=500,base.actor_hidden=16x16,base.critic_hidden=16x16]"
    lines = page.wrap_for_plotly(name).split("<br>")
    assert "".join(lines) == name
    assert max(map(len, lines)) <= 40
    assert page.wrap_for_plotly(f"{EVIL} & so") == "&lt;script&gt;alert(1)&lt;/script&gt; &amp; so"
    assert page.wrap_for_plotly("x" * 90, 40) == f"{'x' * 40}<br>{'x' * 40}<br>{'x' * 10}"
