"""How launches are chosen: no block may ask for more than it has, whatever the sizes, and nothing is kept."""

import random
import tracemalloc
from functools import cache

import pytest

pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")

from cuda_support import SMALL

from numba_pool.config import _WARM_UP
from numba_pool.cuda.kernels import KERNELS
from numba_pool.cuda.limits import LIMITS, full_width, shared_size, strip_columns
from numba_pool.cuda.plan import choose, longest_window, most_neighbors
from numba_pool.windows import end_index, start_index

LENGTHS = [1, 2, 3, 4, 7, 8, 13, 14, 31, 32, 49, 56, 57, 112, 224, 511, 512, 513, 1000, 2048, 4097, 65537, 10**6]


def some_sizes(count, lengths=LENGTHS, seed=0):
    choice = random.Random(seed).choice
    while count:
        sizes = tuple(choice(lengths) for _ in range(4))
        if sizes[0] * sizes[1] < 10**8 and sizes[2] * sizes[3] < 10**8:
            count -= 1
            yield sizes


def span(first, count, size, other_size):
    return end_index(first + count - 1, size, other_size) - start_index(first, size, other_size)


def check_tiles(dtype, backward, blocks, arguments, limits=LIMITS):
    lines, sH, dH, sW, dW, group, across, across_tiles, lanes, *_ = arguments
    width = full_width(dtype)
    tiles = -(-dW // across)
    assert across_tiles == tiles
    assert blocks == -(-lines // group) * tiles
    assert 1 <= group <= limits.lines
    assert 1 <= across <= limits.columns
    assert limits.threads % lanes == 0
    for tile in sorted({0, tiles // 2, tiles - 1}):
        outputs = min(across, dW - tile * across)
        columns = span(tile * across, outputs, dW, sW)
        pitch, out_pitch = columns + (sW - columns) % width, outputs + (dW - outputs) % width
        for line0 in sorted({0, group, lines // group // 2 * group, (lines - 1) // group * group}):
            if line0 >= lines:
                continue
            count = min(group, lines - line0)
            rows = span(line0, count, dH, sH)
            kept = max(rows * pitch, count * out_pitch) + width - 1 + count * columns
            assert kept <= shared_size(dtype, limits), arguments
            if backward:
                assert max(rows / limits.lines, columns / limits.columns) <= 1, arguments


def check_strips(dtype, blocks, arguments, limits=LIMITS):
    lines, sH, dH, sW, dW, across, nx, _, part_rows, row_parts, column_parts = arguments
    assert blocks == lines * -(-dW // across) * row_parts * column_parts
    assert 1 <= nx <= limits.threads
    assert part_rows * row_parts >= max(span(line, 1, dH, sH) for line in {0, lines // 2, lines - 1})
    tiles = -(-dW // across)
    for tile in sorted({0, tiles // 2, tiles - 1}):
        outputs = min(across, dW - tile * across)
        columns = span(tile * across, outputs, dW, sW)
        assert columns <= strip_columns(dtype, limits) * column_parts
        first = start_index(tile * across, dW, sW) % full_width(dtype)
        if column_parts == 1:
            assert first + columns <= nx * full_width(dtype), arguments


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_blocks_have_what_they_need(dtype, backward):
    seen = set()
    for sizes in some_sizes(400):
        for planes in (1, 1000):
            launches, _ = choose(dtype, backward, planes, *sizes)
            name, _, blocks, arguments = launches[0]
            seen.add(name)
            if name == "tiles":
                check_tiles(dtype, backward, blocks, arguments)
            else:
                check_strips(dtype, blocks, arguments)
    assert seen == {"tiles", "strips"}


def test_a_group_that_is_too_large_is_noticed():
    (launch,), _ = choose("float32", False, 1000, 57, 57, 56, 56)
    group = launch.arguments[5]
    too_many = (*launch.arguments[:5], 2 * group, *launch.arguments[6:])
    check_tiles("float32", False, launch.blocks, launch.arguments)
    with pytest.raises(AssertionError):
        check_tiles("float32", False, -(-56_000 // (2 * group)), too_many)


def test_longest_window_is_attained():
    for size in range(1, 25):
        for other_size in range(1, 25):
            for count in (1, 2, 5):
                spans = [span(i, count, size, other_size) for i in range(3 * size)]
                assert longest_window(size, other_size, count) == max(spans)


def test_most_neighbors_is_the_largest_count_that_fits():
    for size in range(1, 25):
        for other_size in range(1, 25):
            for length in range(1, 40):
                count = most_neighbors(size, other_size, length)
                assert count < 1 or longest_window(size, other_size, count) <= length
                assert longest_window(size, other_size, max(count, 0) + 1) > length


# --- what is chosen, searched for by trying everything ---


def search_tile(dtype, backward, lines, sH, dH, sW, dW, processors, limits):
    """Return the group of lines and the outputs side by side that ``tiles`` should have, or None."""
    slack = full_width(dtype) - 1

    def fits(group, across):
        columns, rows = longest_window(dW, sW, across), longest_window(dH, sH, group)
        if across > limits.columns or (backward and (columns > limits.columns or rows > limits.lines)):
            return False
        pitch, out_pitch = (sW, dW) if across == dW else (columns + slack, across + slack)
        kept = slack + max(rows * pitch, group * out_pitch)
        return kept + group * columns <= shared_size(dtype, limits)

    choices = [(4, dW)]
    if longest_window(dH, sH) <= 8:
        breadths = [limits.columns >> k for k in range(6) if 0 < limits.columns >> k < dW]
        choices += [(group, across) for group in (4, 1) for across in breadths] + [(1, dW)]
    across = next((across for group, across in choices if fits(group, across)), None)
    if across is None:
        return None
    enough = max(1, lines * -(-dW // across) // (4 * processors))
    return max(group for group in range(1, min(enough, limits.lines) + 1) if fits(group, across)), across


def search_strip(dtype, sW, dW, limits):
    """Return the outputs side by side that ``strips`` should have."""
    most = min(dW, 4 * limits.threads)
    fitting = [n for n in range(1, most + 1) if longest_window(dW, sW, n) <= strip_columns(dtype, limits)]
    return -(-dW // -(-dW // max(fitting, default=1)))


def search_pixels(backward, lines, sH, dH, tiles, processors, limits):
    """Return the lines that a block of ``pixels`` should have."""
    most = min(32, limits.lines, max(1, lines * tiles // (16 * processors)))
    return max(n for n in range(1, most + 1) if not backward or longest_window(dH, sH, n) <= limits.lines)


@pytest.mark.parametrize("limits", [LIMITS, SMALL], ids=["real", "small"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_the_choice_is_that_of_an_exhaustive_search(dtype, backward, limits):
    seen = set()
    lengths = [*range(1, 100), *LENGTHS[:-2]] if limits is LIMITS else range(1, 40)
    for number, sizes in enumerate(some_sizes(150, lengths, 1)):
        planes, processors, C = (1, 40, 5000)[number % 3], (1, 132)[number % 2], (1, 1, 8)[number % 3]
        (launch, *_), _ = choose(dtype, backward, planes, *sizes, C, processors=processors, limits=limits)
        seen.add(launch.kernel)
        lines, sH, dH, sW, dW, *rest = launch.arguments
        if C == 1:
            tile = search_tile(dtype, backward, lines, sH, dH, sW, dW, processors, limits)
            assert tile == (tuple(rest[:2]) if launch.kernel == "tiles" else None), sizes
        if launch.kernel == "strips":
            assert rest[0] == search_strip(dtype, sW, dW, limits), sizes
        if launch.kernel == "pixels":
            tiles = -(-dW * (C // launch.options[0]) // limits.threads)
            assert rest[1] == search_pixels(backward, lines, sH, dH, tiles, processors, limits), sizes
    assert seen == {"tiles", "strips", "pixels", "bundles"}


# --- what does not follow from the sizes, and what is not kept ---


def test_few_planes_occupy_many_blocks():
    # A device has about 130 multiprocessors, and one plane is work for all of them.
    for sizes in ((4096, 4096, 7, 7), (4096, 2048, 1, 1), (4096, 4096, 2048, 2048), (7, 7, 4096, 4096)):
        for backward in (False, True):
            source, target = (sizes[2:], sizes[:2]) if backward else (sizes[:2], sizes[2:])
            for C in (1, 64):
                launches, _ = choose("float32", backward, 1, *source, *target, C)
                assert launches[0].blocks >= 264


def test_the_choice_of_kernel_does_not_depend_on_batch_or_alignment():
    for sizes in some_sizes(60):
        for backward in (False, True):
            for C in (1, 12):
                plans = [
                    choose("float32", backward, planes, *sizes, C, *rest)[0]
                    for planes, rest in ((1, (0, 0, 132)), (64, (1, 0, 108)), (5000, (0, 3, 1)))
                ]
                assert len({tuple(launch.kernel for launch in launches) for launches in plans}) == 1


def growth(function):
    """Return how many bytes more are kept after `function` has chosen for 2000 different sizes."""
    sizes = list(dict.fromkeys(some_sizes(2000, range(1, 500), 2)))
    assert len(sizes) == 2000
    for each in sizes[:20]:
        function("float32", False, 64, *each)
    tracemalloc.start()
    try:
        for each in sizes:
            function("float32", False, 64, *each)
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_choosing_keeps_nothing():
    assert growth(choose) < 10_000
    assert growth(cache(choose)) > 100_000  # so that a cache is noticed


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_precompile_reaches_every_kernel(dtype):
    reached = set()
    for (N, C, *input_size), output_size in _WARM_UP:
        for planes, channels in ((N * C, 1), (N, C)):
            for backward in (False, True):
                source, target = (output_size, input_size) if backward else (input_size, output_size)
                launches, _ = choose(dtype, backward, planes, *source, *target, channels)
                reached |= {(launch.kernel, launch.options, backward) for launch in launches}
    for name in KERNELS:
        for options in [()] if name in ("tiles", "finish") else [(1,), (full_width(dtype),)]:
            for backward in (False, True):
                assert (name, options, backward) in reached
