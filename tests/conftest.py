"""What holds for every test: torch's threads are put back, seeds are fixed, hypothesis is bounded."""

import platform
from importlib.metadata import PackageNotFoundError, version

import hypothesis
import pytest
import torch

import numba_pool

# Bounded by count, without a deadline (the first example of a type compiles), the same examples every time.
hypothesis.settings.register_profile("bounded", max_examples=100, deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("bounded")


@pytest.fixture(autouse=True)
def same_start():
    """Start every test from the same random numbers, and leave torch's number of threads as it was."""
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session", autouse=True)
def _what_is_tested(record_testsuite_property):
    """Note in pytest's report, if it writes one, which package was tested and on what: noxfile.py reads it there."""
    record_testsuite_property("package", numba_pool.__file__)
    record_testsuite_property("system", f"{platform.system()} {platform.machine()}")
    record_testsuite_property("python", platform.python_version())
    for name in ("numba_pool", "torch", "numba", "numpy", "numba-cuda"):
        try:
            record_testsuite_property(name, version(name))
        except PackageNotFoundError:
            record_testsuite_property(name, "")
