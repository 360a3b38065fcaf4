"""The notebook of the documentation, executed in a kernel with few steps."""

from pathlib import Path

import nbformat
import numpy as np
import pytest
from tiny import environment

NAMES = {"float32": np.float32}  # in the text of an array
NOTEBOOK = Path(__file__).parent.parent / "docs/tutorials/landscape.ipynb"


def read():
    book = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(book)
    return book


def test_the_notebook_is_small_and_installs_what_the_reader_has():
    assert NOTEBOOK.stat().st_size < 300_000
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert [cell.metadata.get("tags") for cell in cells].count(["install"]) == 1
    assert all("pip install" not in cell.source for cell in cells if not cell.metadata.get("tags"))


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(tmp_path, monkeypatch):
    """All but the one that installs."""
    nbclient = pytest.importorskip("nbclient")
    for name, value in (environment() | {"QSCAPE_NOTEBOOK_STEPS": "200"}).items():
        monkeypatch.setenv(name, value)
    book = read()
    book.cells = [cell for cell in book.cells if cell.metadata.get("tags") != ["install"]]
    nbclient.NotebookClient(book, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    said = "".join(output.get("text", "") for output in outputs)
    assert said.count("local optima") == 2
    assert "largest difference from the library: " in said
    assert (tmp_path / "runs/smooth/run.json").exists()
    exported, library = eval(book.cells[-1].outputs[-1]["data"]["text/plain"], {"array": np.array, **NAMES})
    np.testing.assert_allclose(exported, library, atol=1e-4)
