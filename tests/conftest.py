"""What holds for every test: torch's threads are put back, seeds are fixed, hypothesis is bounded."""

import hypothesis
import pytest
import torch

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
