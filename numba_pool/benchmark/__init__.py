"""Timing the layer against torch's own: ``python -m numba_pool.benchmark --help``.

``compare`` times a few functions in one line.  For the whole record, ``cases`` says what is timed and why,
``providers`` who is timed, ``timing`` how, ``studies`` runs it, ``records`` keeps the results, ``report`` and ``plots``
show them.
"""

from .compare import Comparison, Sentence, compare

__all__ = ["Comparison", "Sentence", "compare"]
