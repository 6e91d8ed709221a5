"""Runs the tests of ``in_simulator.py`` in a process where Numba simulates the GPU."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import PACKAGES

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.simulator
def test_kernels_in_the_simulator():
    pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / "in_simulator.py"), "-k"]
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "1", "PYTHONPATH": str(PACKAGES)}

    def run(which):
        return subprocess.run([*command, which], env=environment, capture_output=True, text=True, timeout=900)

    # Two halves at a time: the simulator keeps one core busy, however many threads it simulates.
    with ThreadPoolExecutor() as executor:
        for done in executor.map(run, ("backward", "not backward")):
            print(done.stdout)
            assert done.returncode == 0, done.stdout + done.stderr
