"""Leaves the simulator's tests to the process that simulates: ``test_simulator.py`` starts it."""

import os

collect_ignore = [] if os.environ.get("NUMBA_ENABLE_CUDASIM") == "1" else ["in_simulator.py"]
