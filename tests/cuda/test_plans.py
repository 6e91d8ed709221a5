"""How launches are planned: no block may ask for more than it has, whatever the sizes."""

import random

import pytest

pytest.importorskip("numba.cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")

from numba_pool.config import _WARM_UP
from numba_pool.kernels import cuda as kernels
from numba_pool.windows import end_index, start_index

LENGTHS = [1, 2, 3, 4, 7, 8, 13, 14, 31, 32, 49, 56, 57, 112, 224, 511, 512, 513, 1000, 2048, 4097, 65537, 10**6]


def some_sizes(count):
    choose = random.Random(0).choice
    while count:
        sizes = tuple(choose(LENGTHS) for _ in range(4))
        if sizes[0] * sizes[1] < 10**8 and sizes[2] * sizes[3] < 10**8:
            count -= 1
            yield sizes


def span(first, count, size, other_size):
    return end_index(first + count - 1, size, other_size) - start_index(first, size, other_size)


def check_tiles(dtype, backward, blocks, arguments, room=kernels.ROOM):
    lines, sH, dH, sW, dW, group, across, across_tiles, lanes, *_ = arguments
    width = kernels.full_width(dtype)
    tiles = -(-dW // across)
    assert across_tiles == tiles
    assert blocks >= -(-lines // group) * tiles
    assert blocks % tiles == 0 or blocks == kernels.MIN_BLOCKS
    assert 1 <= group <= room.lines
    assert 1 <= across <= room.columns
    assert room.threads % lanes == 0
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
            assert kept <= kernels.pool_size(dtype, room), arguments
            if backward:
                assert max(rows / room.lines, columns / room.columns) <= 1, arguments


def check_strips(dtype, blocks, arguments, room=kernels.ROOM):
    lines, sH, dH, sW, dW, across, nx, _, part_rows, row_parts, column_parts = arguments
    assert blocks >= lines * -(-dW // across) * row_parts * column_parts
    assert 1 <= nx <= room.threads
    assert part_rows * row_parts >= max(span(line, 1, dH, sH) for line in {0, lines // 2, lines - 1})
    tiles = -(-dW // across)
    for tile in sorted({0, tiles // 2, tiles - 1}):
        outputs = min(across, dW - tile * across)
        columns = span(tile * across, outputs, dW, sW)
        assert columns <= kernels.strip_columns(dtype, room) * column_parts
        first = start_index(tile * across, dW, sW) % kernels.full_width(dtype)
        if column_parts == 1:
            assert first + columns <= nx * kernels.full_width(dtype), arguments


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_blocks_have_what_they_need(dtype, backward):
    direction = kernels.backward if backward else kernels.forward
    seen = set()
    for sizes in some_sizes(400):
        for planes in (1, 1000):
            name, blocks, arguments = direction(dtype, planes, *sizes).steps[0]
            seen.add(name)
            if name == "tiles":
                check_tiles(dtype, backward, blocks, arguments)
            else:
                check_strips(dtype, blocks, arguments)
    assert seen == {"tiles", "strips"}


def test_a_group_that_is_too_large_is_noticed():
    _, blocks, arguments = kernels.forward("float32", 1000, 57, 57, 56, 56).steps[0]
    too_many = (*arguments[:5], 2 * arguments[5], *arguments[6:])
    check_tiles("float32", False, blocks, arguments)
    with pytest.raises(AssertionError):
        check_tiles("float32", False, blocks, too_many)


def test_longest_window_is_attained():
    for size in range(1, 25):
        for other_size in range(1, 25):
            for count in (1, 2, 5):
                spans = [span(i, count, size, other_size) for i in range(3 * size)]
                assert kernels.longest_window(size, other_size, count) == max(spans)


def test_few_planes_occupy_many_blocks():
    # A device has about 130 multiprocessors, and one plane is work for all of them.
    for sizes in ((4096, 4096, 7, 7), (4096, 2048, 1, 1), (4096, 4096, 2048, 2048), (7, 7, 4096, 4096)):
        for direction in (kernels.forward, kernels.backward):
            for inner in (1, 64):
                assert direction("float32", 1, *sizes, inner).steps[0][1] >= 264


def test_the_choice_of_kernel_does_not_hang_on_batch_or_alignment():
    for sizes in some_sizes(60):
        for direction in (kernels.forward, kernels.backward):
            for inner in (1, 12):
                plans = [
                    direction("float32", *(planes, *sizes, inner, *rest))
                    for planes, rest in ((1, (0, 0, 0, 132)), (64, (1, 0, 0, 108)), (5000, (0, 3, 0, 1)))
                ]
                assert len({tuple(name for name, *_ in plan.steps) for plan in plans}) == 1


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float64"])
def test_precompile_reaches_every_kernel(dtype):
    reached = set()
    for (N, C, *input_size), output_size in _WARM_UP:
        for planes, inner in ((N * C, 1), (N, C)):
            for backward, direction in enumerate((kernels.forward, kernels.backward)):
                plan = direction(dtype, planes, *input_size, *output_size, inner)
                reached |= {(kernel, backward) for kernel in plan._kernels}
    width = kernels.full_width(dtype)
    for backward in (0, 1):
        wanted = [
            kernels.tile_kernel(dtype, backward, kernels.ROOM),
            kernels.finish_kernel(dtype, backward, kernels.ROOM),
        ]
        for factory in (kernels.strip_kernel, kernels.pixel_kernel, kernels.bundle_kernel):
            wanted += [factory(dtype, backward, columns, kernels.ROOM) for columns in (1, width)]
        for kernel in wanted:
            assert (kernel, backward) in reached, kernel.py_func.__name__
