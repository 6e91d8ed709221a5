"""Timing the layer against torch's own: ``python -m numba_pool.benchmark --help``.

``cases`` says what is timed and why, ``providers`` who is timed, ``timing`` how, ``studies`` runs it,
``records`` keeps the results, ``report`` and ``plots`` show them.
"""
