"""Leaves the puzzles to the process that simulates a GPU, which ``test_puzzles.py`` starts.

``puzzle_cells.py`` has no doctests, and its imports need the extra `book`.
"""

import os

collect_ignore = ["puzzle_cells.py"]
if os.environ.get("NUMBA_ENABLE_CUDASIM") != "1":
    collect_ignore.append("puzzles_in_simulator.py")
