"""The cells of the chapter of puzzles."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "book" / "how" / "puzzles.md"
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import notebooks  # noqa: E402

CELLS = [cell for cell in notebooks.notebook(SOURCE).cells if cell.cell_type == "code"]


def tagged(tag):
    """Return the code of the cells that have a tag."""
    return [cell.source for cell in CELLS if tag in cell.metadata.get("tags", [])]


def setup():
    """Return the code that comes before the first puzzle, without IPython's magics."""
    first = next(i for i, cell in enumerate(CELLS) if "puzzle" in cell.metadata.get("tags", []))
    code = [cell.source for cell in CELLS[: first - 1]]  # the last one draws the puzzle's picture
    return "\n".join(line for cell in code for line in cell.splitlines() if not line.startswith("%"))


def name_of(cell):
    """Return the name of the function that a cell defines."""
    return next(node.name for node in ast.parse(cell).body if isinstance(node, ast.FunctionDef))


def signature_of(cell):
    """Return the decorators, the name and the arguments of the function that a cell defines."""
    function = next(node for node in ast.parse(cell).body if isinstance(node, ast.FunctionDef))
    return [*map(ast.unparse, function.decorator_list), function.name, ast.unparse(function.args)]
