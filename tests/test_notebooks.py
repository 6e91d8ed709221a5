"""Every chapter runs as the notebook that `make notebooks` writes: beside the records, and without hanging."""

import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

pytest.importorskip("jupytext", reason="needs the extra `book`")
nbclient = pytest.importorskip("nbclient", reason="needs the package nbclient")
import notebooks  # noqa: E402

# Seconds for a chapter. An idle machine needs less than one minute (the book's build status tells), a busy one more.
LIMIT = 180


def run(notebook, folder, limit=LIMIT):
    """Execute all cells of `notebook` in order, in a fresh kernel in `folder`; return the seconds it took."""
    started = time.perf_counter()
    nbclient.NotebookClient(notebook, timeout=limit, resources={"metadata": {"path": str(folder)}}).execute()
    return time.perf_counter() - started


@pytest.mark.notebooks
@pytest.mark.slow
@pytest.mark.parametrize("source", notebooks.chapters(), ids=lambda source: f"{source.parent.name}-{source.stem}")
def test_chapter_runs(source, tmp_path):
    notebooks.copy_records(tmp_path)
    folder = tmp_path / notebooks.targets()[source].parent
    folder.mkdir(exist_ok=True)
    assert run(notebooks.notebook(source), folder) < LIMIT


@pytest.mark.notebooks
def test_failing_chapter_is_noticed(tmp_path):
    source = tmp_path / "wrong.md"
    source.write_text("# Wrong\n\n```{code-cell}\nassert 1 + 1 == 3\n```\n", encoding="utf-8")
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="AssertionError"):
        run(notebooks.notebook(source), tmp_path)
