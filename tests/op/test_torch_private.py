"""Each name that torch does not document and may go: what is done without it is right."""

import os

import pytest
from helpers import spawn

# Each way is taken in a forked process, so that torch and Numba are imported once: a name is taken away while the
# package is imported, and put back for torch itself.
PRELUDE = """
import os, sys, traceback
import numba, torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

torch.set_num_threads(1)

def check(pool):
    x, v = torch.randn(2, 3, 7, 5, dtype=torch.double), torch.randn(2, 3, 7, 5, dtype=torch.double)
    def results(f):
        f = lambda a, f=f: f(a, (3, 2))
        loss = lambda a: f(a).sin().sum()
        leaf = x.clone().requires_grad_()
        first, = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
        second, = torch.autograd.grad(first.pow(2).sum(), leaf)
        yield from (f(x), first, second, f(x[..., ::2]), f(x.to(memory_format=torch.channels_last)))
        yield from (vmap(grad(loss))(x), *jvp(grad(loss), (x,), (v,)), grad(lambda a: grad(loss)(a).pow(2).sum())(x))
        with forward_ad.dual_level():
            yield from forward_ad.unpack_dual(f(forward_ad.make_dual(x, v)))
            assert forward_ad.unpack_dual(f(x)).tangent is None
        yield torch.autograd.grad(f(leaf), leaf, torch.ones(4, 2, 3, 3, 2).double(), is_grads_batched=True)[0]
    actual, expected = list(results(pool)), list(results(F.adaptive_avg_pool2d))
    assert len(actual) == 12
    torch.testing.assert_close(actual, expected)

check(F.adaptive_avg_pool2d)  # torch imports what it needs, once for all children

def ends(work):
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def without(module, name):
    kept = getattr(module, name)
    delattr(module, name)
    try:
        from numba_pool import adaptive_avg_pool2d
    finally:
        setattr(module, name, kept)
    return adaptive_avg_pool2d
"""

FALLBACKS = """
import torch.autograd

def watched(module, name):
    def work():
        pool = without(module, name)
        from numba_pool.op import torch_private
        assert torch_private.is_watched(torch.ones(1))
        check(pool)
    return work

def tracing():
    pool = without(torch._C, "_is_tracing")
    from numba_pool.op import torch_private
    assert torch_private.is_tracing is torch.jit.is_tracing
    program = torch.jit.trace(lambda x: pool(x, 2), torch.ones(1, 3, 7, 5))
    assert "aten::adaptive_avg_pool2d" in str(program.graph)
    check(pool)

def exporting():
    pool = without(torch.compiler, "_is_exporting_flag")
    from numba_pool.op import torch_private
    assert torch_private.is_exporting is torch.compiler.is_exporting
    check(pool)

def profiling():
    pool = without(torch.autograd, "_profiler_enabled")
    from numba_pool.op import torch_private
    with torch.profiler.profile():
        assert not torch_private.profiler_enabled()
        check(pool)

def forward_mode():
    import types
    from numba_pool import adaptive_avg_pool2d
    from numba_pool.op import torch_private
    names = {name: value for name, value in vars(forward_ad).items() if name != "_current_level"}
    assert torch_private.forward_mode_level() == -1
    torch_private.forward_ad = types.SimpleNamespace(**names)
    assert torch_private.forward_mode_level() == 0
    check(adaptive_avg_pool2d)

def nothing():
    from numba_pool import adaptive_avg_pool2d
    from numba_pool.op import torch_private
    assert not torch_private.is_watched(torch.ones(1))
    check(adaptive_avg_pool2d)

def wrong():
    from numba_pool import adaptive_avg_pool2d
    from numba_pool.op import autograd
    autograd.is_watched = lambda tensor: False  # though it is: transforms see nothing of what is done
    check(adaptive_avg_pool2d)

for work in (
    nothing, tracing, exporting, profiling, forward_mode,
    watched(torch._C, "_are_functorch_transforms_active"), watched(torch._C, "_len_torch_dispatch_stack"),
    watched(torch._C._functorch, "is_functorch_wrapped_tensor"),
    watched(torch._C._functorch, "is_legacy_batchedtensor"),
    wrong,
):
    print(ends(work), work.__name__)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_without_a_private_name_results_are_right():
    printed = spawn(PRELUDE + FALLBACKS).splitlines()
    assert printed == [
        *("0 nothing", "0 tracing", "0 exporting", "0 profiling", "0 forward_mode"),
        *["0 work"] * 4,
        "1 wrong",  # the check would notice
    ]
