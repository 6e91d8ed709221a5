"""The chapters' results: executed before the pages are built, several chapters at a time, and kept in a cache."""

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor

import notebooks
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.read import read_myst_markdown_notebook

ROOT = notebooks.ROOT
LIMIT = 300  # seconds for a cell

# What a chapter that measures time holds: it runs alone.
MEASURES = re.compile(r"perf_counter|\bcompare\(|\btimeit\b|\binterleave\b")


def sources_digest():
    """Return a digest of all that a chapter's results depend on, beside its own text."""
    files = [ROOT / "requirements.txt"]
    for folder, suffix in ((ROOT / "numba_pool", ".py"), (ROOT / "book" / "records", ".json")):
        files += sorted(folder.rglob(f"*{suffix}"))
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def cache_path():
    """Return the folder of the results of this state of the package: Jupyter's key is the chapter's text alone."""
    return str(ROOT / "_build" / ".jupyter_cache" / sources_digest())


def execute(source):
    """Execute the chapter in the file `source`; return its notebook, and how it went."""
    notebook = read_myst_markdown_notebook(source.read_text(encoding="utf-8"))
    result = single_nb_execution(notebook, cwd=str(source.parent), timeout=LIMIT, allow_errors=False)
    return notebook, result


def is_cached(cache, source):
    """Tell whether the results of the chapter are there."""
    try:
        cache.match_cache_notebook(read_myst_markdown_notebook(source.read_text(encoding="utf-8")))
    except KeyError:
        return False
    return True


def fill_cache():
    """Execute the chapters that are not in the cache; a failure is left to the build, which executes it again."""
    cache = get_cache(cache_path())
    missing = [source for source in notebooks.chapters() if not is_cached(cache, source)]
    alone = [source for source in missing if MEASURES.search(source.read_text(encoding="utf-8"))]
    together = [source for source in missing if source not in alone]
    for sources, workers in ((together, os.cpu_count() or 1), (alone, 1)):
        with ThreadPoolExecutor(workers) as pool:
            for source, (notebook, result) in zip(sources, pool.map(execute, sources), strict=True):
                print(f"{source.relative_to(ROOT)}: {result.time:.0f} s{', failed' if result.err else ''}", flush=True)
                if not result.err:
                    data = {"execution_seconds": result.time}
                    bundle = CacheBundleIn(notebook, str(source), data=data)
                    cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)
