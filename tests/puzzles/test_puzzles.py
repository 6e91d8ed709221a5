"""The chapter of puzzles: what it promises, and (in a process where Numba simulates a GPU) what ``check`` answers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="needs the extra `book`")
from puzzle_cells import ROOT, SOURCE, name_of, signature_of, tagged

TEXT = SOURCE.read_text(encoding="utf-8")


def test_half_are_for_the_cpu_and_half_for_cuda():
    kinds = ["njit" if "@njit" in cell else "cuda" for cell in tagged("puzzle")]
    assert len(kinds) >= 10
    assert kinds.count("njit") == kinds.count("cuda")


def test_every_puzzle_is_open_and_has_stars_and_a_solution():
    puzzles, solutions = tagged("puzzle"), tagged("solution")
    assert [signature_of(cell) for cell in puzzles] == [signature_of(cell) for cell in solutions]
    assert all(cell.count("...  # FILL ME IN") == 1 for cell in puzzles)
    assert len(re.findall(r"^```\{exercise\} ★{1,3} ", TEXT, re.MULTILINE)) == len(puzzles)
    names = list(map(name_of, puzzles))
    assert len(set(names)) == len(names)


def test_every_puzzle_has_a_picture_of_its_own():
    pictures = re.findall(r"^    name: (fig-puzzle-\S+)$", TEXT, re.MULTILINE)
    labels = re.findall(r"^:label: (puzzle-\S+)$", TEXT, re.MULTILINE)
    assert pictures == [f"fig-{label}" for label in labels]


@pytest.mark.slow
@pytest.mark.simulator
def test_answers_in_the_simulator():
    pytest.importorskip("numba.cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")
    tests = Path(__file__).parent / "puzzles_in_simulator.py"
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
