"""What ``check`` says of the puzzles' solutions, of puzzles that are not filled in, and of wrong answers.

``NUMBA_ENABLE_CUDASIM=1`` must be set before Numba is imported, so ``test_puzzles.py`` runs these in a process of their
own.
"""

import linecache
import re

import numpy as np
import pytest
from puzzle_cells import name_of, setup, tagged

SPACE = {}
exec(compile(setup(), "setup", "exec"), SPACE)

PUZZLES, SOLUTIONS = tagged("puzzle"), tagged("solution")

SCATTER_CUDA = """for o in range(i, O, 4):
        start, end = o * I // O, ((o + 1) * I + O - 1) // O
        for j in range(start, end):
            cuda.atomic.add(grad_in, j, grad_out[o] / (end - start))
    if False:"""

# Wrong answers: the puzzle, what is replaced in its solution, and what check says.
WRONG = {
    "a wrong value": ("average_row", ("/ row.size", "/ (row.size - 1)"), "Wrong: out[0] should be 4, but is 4.8."),
    "the last one missing": (
        "equal_windows",
        ("range(out.size)", "range(out.size - 1)"),
        "Wrong: out[3] should be 4, but was never written.",
    ),
    "rounded down": ("adaptive_row", (" + O - 1) // O", ") // O"), "Wrong: out[0] should be 2.66667, but is 2."),
    "beyond the end": (
        "adaptive_row",
        ("range(start, end)", "range(start, end + 1)"),
        "Outside: row[7] does not exist, the shape is (7,). Wrong: out[0] should be 2.66667, but is 3.33333.",
    ),
    "before the start": ("adaptive_row", ("row[i]", "row[i - 1]"), "Outside: row[-1] does not exist"),
    "everything summed": (
        "adaptive_row",
        (
            "for i in range(start, end):\n            total += row[i]",
            "for i in range(I):\n            v = row[i]\n            if start <= i < end:\n                total += v",
        ),
        "Right. Score: 21 reads and 3 writes a thread; the solution needs 9 and 3.",
    ),
    "another's output": (
        "adaptive_plane",
        ("total = 0.0", "total = 0.0 * out[0, 0]"),
        "Race: iteration 0 and iteration 1 both touch out[0, 0]",
    ),
    "one sum for all": (
        "four_parts",
        ("parts[p] = total\n    total = 0.0", "out[0] += total\n    total = 0.0"),
        "Race: iteration 0 and iteration 1 both touch out[0]",
    ),
    "a part read early": (
        "four_parts",
        ("parts[p] = total", "parts[p] = total + 0 * parts[3]"),
        "Race: iteration 0 and iteration 3 both touch parts[3]",
    ),
    "no guard": ("thread_each", ("if o < O:", "if True:"), "Outside: src[7] does not exist"),
    "one axis guarded": (
        "thread_plane",
        (" and ow < oW", ""),
        "Outside: src[0, 5] does not exist, the shape is (6, 5).",
    ),
    "half of the columns": (
        "thread_plane",
        ("(ow + 1) * W + oW - 1", "(ow + 1) * W"),
        "Wrong: out[0, 0] should be 3.5, but is 3.",
    ),
    "a barrier for some": (
        "shared_row",
        ("cuda.syncthreads()", "if t < O:\n        cuda.syncthreads()"),
        "some threads of a block pass fewer barriers than others.",
    ),
    "not atomic": (
        "atomic_mean",
        ("cuda.atomic.add(out, 0, src[i] / src.size)", "out[0] += src[i] / src.size"),
        "Race: thread 0 of block 0 and thread 1 of block 0 both touch out[0]",
    ),
    "half atomic": (
        "atomic_mean",
        ("if i < src.size:", "if i == 0:\n        out[0] = 0\n    if i < src.size:"),
        "Race: thread 0 of block 0 and thread 1 of block 0 both touch out[0]",
    ),
    "steps without a barrier": (
        "warp_windows",
        ("        cuda.syncthreads()  # for all: also those that no longer add\n", ""),
        "Race: thread 0 of block 0 and thread 1 of block 0 both touch sums[1]",
    ),
    "one barrier before all steps": (
        "warp_windows",
        (
            "    while half > 0:\n        cuda.syncthreads()",
            "    cuda.syncthreads()\n    while half > 0:\n        pass",
        ),
        "Race: thread 0 of block 0 and thread 1 of block 0 both touch sums[1]",
    ),
    "atomic scatter": (
        "gather_cuda",
        (
            "if i < I:",
            SCATTER_CUDA,
        ),
        "Wrong: the bits depend on the order of the atomic additions: grad_in[",
    ),
    "not compiled": ("average_row", ("@njit", ""), "Right, but it lacks @njit."),
    "beyond Numba": ("average_row", ("total / row.size", "eval('4')"), "Right as plain Python, but Numba does not"),
    "an unknown name": ("average_row", ("row.size", "rows.size"), "It raises NameError: name 'rows' is not defined"),
}

SCATTER = """
@njit(parallel=True)
def gather_row(grad_out, grad_in):
    O, I = grad_out.size, grad_in.size
    for i in range(I):
        grad_in[i] = 0
    for o in prange(O):
        start, end = o * I // O, ((o + 1) * I + O - 1) // O
        for i in range(start, end):
            grad_in[i] += grad_out[o] / (end - start)
"""

AVERAGE = "@njit\ndef average_row(row, out):\n    "

OTHER_WAYS = {
    "a method": AVERAGE + "out[0] = row.mean()",
    "a function": AVERAGE + "out[0] = np.sum(row) / len(row)",
    "a slice": AVERAGE + "out[:] = row[0:6].sum() / 6",
    "a loop over values": AVERAGE + "total = 0.0\n    for v in row:\n        total += v\n    out[0] = total / 6",
    "a helper": (
        "@njit\ndef half(a):\n    return a[0:3].sum()\n\n\n" + AVERAGE + "out[0] = (half(row) + half(row[3:6])) / 6"
    ),
    "a device function": (
        "@cuda.jit(device=True)\ndef bound(o, I, O):\n    return (o * I + O - 1) // O\n\n\n"
        "@cuda.jit\ndef thread_each(src, out):\n"
        "    o, I, O = cuda.grid(1), src.size, out.size\n"
        "    if o < O:\n"
        "        held = cuda.local.array(4, np.float32)\n"
        "        start, end = o * I // O, bound(o + 1, I, O)\n"
        "        for i in range(start, end):\n"
        "            held[i - start] = src[i]\n"
        "        out[o] = held[: end - start].sum() / (end - start)"
    ),
    "a loop over the grid": (
        "@cuda.jit\ndef thread_each(src, out):\n"
        "    I, O = src.size, out.size\n"
        "    for o in range(cuda.blockIdx.x * cuda.blockDim.x + cuda.threadIdx.x, O, cuda.gridsize(1)):\n"
        "        start, end = o * I // O, ((o + 1) * I + O - 1) // O\n"
        "        out[o] = 0\n"
        "        for i in range(start, end):\n"
        "            out[o] += src[i] / (end - start)"
    ),
    "another type for shared memory": next(cell for cell in SOLUTIONS if name_of(cell) == "shared_row").replace(
        "cuda.shared.array(8, np.float32)", "cuda.shared.array(shape=(8,), dtype='float64')"
    ),
}


def verdict(code):
    """Run a cell without its last line, and return what check says of the function."""
    code = re.sub(r"^check\(.*\)$", "", code, flags=re.MULTILINE)
    space = dict(SPACE)
    linecache.cache["cell"] = len(code), None, code.splitlines(keepends=True), "cell"  # as IPython does
    exec(compile(code, "cell", "exec"), space)
    return space["check"](space[list(space)[-1]])


def solution(name):
    return next(cell for cell in SOLUTIONS if name_of(cell) == name)


@pytest.mark.parametrize("cell", SOLUTIONS, ids=name_of)
def test_solution_is_right_and_makes_the_score(cell):
    answer = verdict(cell)
    assert answer.en.startswith("Right. Score: ")
    assert ", as in the solution." in answer.en
    assert answer.zh.startswith("正确。得分：")
    assert "与解答相同" in answer.zh


@pytest.mark.parametrize("cell", PUZZLES, ids=name_of)
def test_unfilled_puzzle_is_refused(cell):
    answer = verdict(cell)
    output = list(SPACE["PUZZLES"][name_of(cell)].arguments)[-1]
    assert answer.en == f"Not filled in yet: nothing is written to {output}."
    assert answer.zh == f"尚未填写：没有向 {output} 写入任何值。"


@pytest.mark.parametrize("why", WRONG)
def test_wrong_answer_is_refused(why):
    name, (old, new), said = WRONG[why]
    cell = solution(name)
    assert old in cell
    answer = verdict(cell.replace(old, new, 1))
    assert said in answer.en
    assert ("Right. " in answer.en) == said.startswith("Right. ")
    assert answer.en.isascii()
    assert not answer.zh.isascii()


def test_scatter_races():
    said = "Race: iteration 0 and iteration 1 both touch grad_in[2], at least one of them writes"
    assert verdict(SCATTER).en.startswith(said)


def test_provoked_race_fails_every_time():
    (cell,) = tagged("provoked")
    assert cell.replace("# cuda.syncthreads() belongs here.", "cuda.syncthreads()") != cell
    for _ in range(5):
        answer = verdict(cell).en
        assert re.match(r"Race: thread 0 of block 0 and thread 1 of block 0 both touch \w+\[1\], ", answer)
        assert answer.endswith("Wrong: out[0] should be 2, but is nan.")
    whole = verdict(cell.replace("# cuda.syncthreads() belongs here.", "cuda.syncthreads()")).en
    assert whole.startswith("Right. Score: 1 read and 1 write")


def test_order_of_atomic_additions_shows():
    answer = verdict(solution("atomic_mean")).en
    one, other = re.search(r"out\[0\] is (\S+) in one order and (\S+) in another\.$", answer).groups()
    assert one != other
    assert np.isclose(float(one), float(other), rtol=1e-5)


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_other_ways_are_right(way):
    assert verdict(OTHER_WAYS[way]).en.startswith("Right. Score: ")


def test_every_puzzle_of_the_table_is_asked():
    assert list(SPACE["PUZZLES"]) == list(map(name_of, PUZZLES))
