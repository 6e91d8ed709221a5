"""Without Numba's compiler, as debuggers and coverage want it, results are the same, only slowly."""

from helpers import spawn

COMPUTE = """
import torch, torch.nn.functional as F
from numba import config
from numba_pool import adaptive_avg_pool2d, precompile
assert config.DISABLE_JIT
precompile()
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    for shape, output_size in (((2, 3, 9, 8), (4, 3)), ((2, 20, 9, 8), 1), ((3, 2, 3), (5, 7)), ((2, 3, 9, 8), (9, 8))):
        for layout in (torch.contiguous_format, torch.channels_last)[: len(shape) - 2]:
            x = torch.randn(shape, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
            wide = x.detach().double().requires_grad_()
            y, expected = adaptive_avg_pool2d(x, output_size), F.adaptive_avg_pool2d(wide, output_size)
            gradients = (torch.autograd.grad(p, q, torch.ones_like(p))[0] for p, q in ((y, x), (expected, wide)))
            for actual, exact in ((y, expected), tuple(gradients)):
                assert actual.dtype == dtype
                torch.testing.assert_close(actual, exact.to(dtype))
            assert y.is_contiguous(memory_format=layout)
"""


def test_without_the_compiler():
    spawn(COMPUTE, NUMBA_DISABLE_JIT=1)
