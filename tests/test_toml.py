"""TOML files: the lines that errors name."""

import time

import pytest

from qscape.jobs.toml import Source

TEXT = '''\
# name = "no", [[agents]] {
name = "a # [ b"

[budgets.quick]
probe = [  # ]
  "one",
  "two]",
]
seeds = [0, 1]
note = """
[budgets.full]
steps = 3 \\""" {
five quotes: """""
path = \'\'\'
 C:\\ ' [\'\'\'
last = {a = [1,
  2], "b.c".d = '}'}

[[agents]]
recipe = "td3"
lap.alpha = 1
lap.min_priority = 2

  [agents.base]
  hidden = [
    [1, 2],
  ]

[[agents]]
recipe = 'sac\\'
[[agents.variants]]
seed = 1
[[agents.variants]]
[agents.variants.base]
seed = 2
["quoted . ] key"]
"a]".b = ""
"end" = 1'''

LINES = {
    (): "#",
    ("name",): "name",
    ("budgets",): "[budgets.quick]",
    ("budgets", "quick"): "[budgets.quick]",
    ("budgets", "quick", "probe"): "probe",
    ("budgets", "quick", "probe", 1): "probe",  # the line of the statement
    ("budgets", "quick", "seeds"): "seeds",
    ("budgets", "quick", "note"): "note",
    ("budgets", "quick", "path"): "path",
    ("budgets", "quick", "last", "a", 1): "last",
    ("budgets", "quick", "last", "b.c", "d"): "last",
    ("agents",): "[[agents]]",
    ("agents", 0): "[[agents]]",
    ("agents", 0, "recipe"): 'recipe = "td3"',
    ("agents", 0, "lap"): "lap.alpha",
    ("agents", 0, "lap", "alpha"): "lap.alpha",
    ("agents", 0, "lap", "min_priority"): "lap.min_priority",
    ("agents", 0, "base"): "  [agents.base]",
    ("agents", 0, "base", "hidden", 0, 1): "  hidden",
    ("agents", 1): "[[agents]]\nrecipe = 'sac",
    ("agents", 1, "recipe"): "recipe = 'sac",
    ("agents", 1, "variants"): "[[agents.variants]]",
    ("agents", 1, "variants", 0, "seed"): "seed = 1",
    ("agents", 1, "variants", 1): "[[agents.variants]]\n[",
    ("agents", 1, "variants", 1, "base", "seed"): "seed = 2",
    ("quoted . ] key",): '["quoted',
    ("quoted . ] key", "a]", "b"): '"a]"',
    ("quoted . ] key", "end"): '"end"',
}


@pytest.fixture
def source(tmp_path):
    (tmp_path / "x.toml").write_text(TEXT)
    return Source.read(tmp_path / "x.toml")


def line_of(begin):
    """The first line of the text that begins so."""
    text = "\n" + TEXT
    return text[: text.index("\n" + begin)].count("\n") + 1


@pytest.mark.parametrize(("path", "begin"), LINES.items(), ids=lambda x: ".".join(map(str, x))[:40])
def test_the_line_of_a_value(source, path, begin):
    assert source.at(path) is not None
    assert source.line(path) == line_of(begin)


def test_a_missing_value_has_the_line_of_its_parent(source):
    error = source.error(("agents", 1, "base", "warmup"), "why")
    assert f"line {line_of(LINES['agents', 1])}: why." in str(error)


def test_a_long_file_is_read_once(tmp_path):
    file = tmp_path / "x.toml"
    file.write_text("".join(f"[[agents]]\nrecipe = {k}\n" for k in range(5_000)))
    source, start = Source.read(file), time.perf_counter()
    assert source.line(("agents", 4_999, "recipe")) == 10_000
    assert time.perf_counter() - start < 5
