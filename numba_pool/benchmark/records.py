"""What a run leaves behind: measurements, the machine, and a file of both."""

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from .providers import BASELINE, available_threads

FORMAT = 1
PACKAGES = ("torch", "numba", "llvmlite", "numpy", "numba-cuda")


@dataclass(frozen=True)
class Measurement:
    """One provider's time for one case in one mode, layout, dtype and number of threads.

    Parameters
    ----------
    study, case, reason : str
        As in `Case`.
    input_size, output_size : tuple of int
        As in `Case`.
    mode, provider, layout, dtype : str
        What was timed.
    threads : int
        The number of threads given to torch.
    bytes_moved : int
        The least number of bytes to read and write.
    first_call : float
        Seconds for the very first call, compilation included.
    samples : tuple of float
        Seconds for each call, one entry for each round.
    """

    study: str
    case: str
    reason: str
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    mode: str
    provider: str
    layout: str
    dtype: str
    threads: int
    bytes_moved: int
    first_call: float
    samples: tuple[float, ...]

    @property
    def key(self):
        """What this measurement shares with the other providers' of the same rounds."""
        return self.study, self.case, self.mode, self.layout, self.dtype, self.threads

    @property
    def group(self):
        """What a summary adds up over: mode, layout, dtype and threads."""
        return self.mode, self.layout, self.dtype, self.threads

    @property
    def median(self):
        """The median of the samples, in seconds."""
        return float(np.median(self.samples))

    @property
    def gbps(self):
        """Gigabytes (1e9 bytes) moved in a second, at the median."""
        return self.bytes_moved / self.median / 1e9

    def quantile(self, q):
        """Return the seconds below which a share `q` of the samples lie."""
        return float(np.quantile(self.samples, q))

    @classmethod
    def from_dict(cls, fields: dict[str, Any]):
        """Build a measurement from a line of a record; derived values in it are computed again."""
        own: dict[str, Any] = {}
        for name in cls.__dataclass_fields__:
            own[name] = tuple(fields[name]) if isinstance(fields[name], list) else fields[name]
        return cls(**own)

    def as_dict(self, baseline=None):
        """Return the fields, and what follows from them, ready for JSON.

        Parameters
        ----------
        baseline : Measurement, optional
            The baseline's measurement of the same rounds: adds the ratio to it.
        """
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        fields["samples"] = [shorten(s) for s in self.samples]
        fields["first_call"] = shorten(self.first_call)
        fields |= {name: shorten(v) for name, v in spread(self.samples, "").items()}
        fields["gbps"] = shorten(self.gbps)
        if baseline is not None:
            fields |= {name: shorten(v) for name, v in spread(ratios(baseline, self), "ratio_").items()}
        return fields


def shorten(value):
    """Keep four significant digits, which is more than any timing holds."""
    return float(f"{value:.4g}")


def spread(values, prefix):
    """Return the median, the 20th and the 80th percentile under names that begin with `prefix`."""
    p20, median, p80 = (float(q) for q in np.quantile(values, (0.2, 0.5, 0.8)))
    return {f"{prefix}median": median, f"{prefix}p20": p20, f"{prefix}p80": p80}


def ratios(baseline, measurement):
    """Return how many times as fast as the baseline a provider was, in every round: above 1 it is faster.

    Parameters
    ----------
    baseline, measurement : Measurement
        Two providers of the same rounds.

    Returns
    -------
    numpy.ndarray
        One ratio for each round, the baseline's seconds over the provider's.

    Raises
    ------
    ValueError
        If they were not sampled in the same rounds.
    """
    if baseline.key != measurement.key or len(baseline.samples) != len(measurement.samples):
        raise ValueError(f"not from the same rounds: {baseline.key} and {measurement.key}")
    return np.asarray(baseline.samples) / np.asarray(measurement.samples)


@dataclass(frozen=True)
class Record:
    """A run: the machine, the measurements, what was skipped and why.

    Parameters
    ----------
    machine : dict
        As `describe_machine` returns it.
    measurements : list of Measurement
        In the order in which they were taken.
    skipped : list of dict
        Each with ``provider``, ``case`` and ``reason``.
    first_results : list of dict
        From fresh processes, as `studies.first_results` returns them.
    """

    machine: dict
    measurements: list
    skipped: list
    first_results: list

    @cached_property
    def _by_key(self):
        return {(m.key, m.provider): m for m in self.measurements}

    def partner(self, measurement, provider):
        """Return another provider's measurement of the same rounds, or None."""
        return self._by_key.get((measurement.key, provider))

    def select(self, **fields):
        """Return the measurements whose fields have the given values; a tuple or list names alternatives."""
        return [
            m
            for m in self.measurements
            if all(
                getattr(m, name) in value if isinstance(value, (tuple, list)) else getattr(m, name) == value
                for name, value in fields.items()
            )
        ]

    def ratio(self, measurement, baseline=BASELINE):
        """Return ``(median, p20, p80)`` of the pairwise ratios to a baseline, or None where it was not timed."""
        partner = self.partner(measurement, baseline)
        return None if partner is None else tuple(spread(ratios(partner, measurement), "").values())

    def save(self, path):
        """Write JSON, one measurement a line, so that two records can be compared line by line."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [m.as_dict(self.partner(m, BASELINE)) for m in self.measurements]
        head = {
            "format": FORMAT,
            "machine": self.machine,
            "skipped": self.skipped,
            "first_results": self.first_results,
        }
        text = json.dumps(head, indent=1)[:-2] + ',\n "measurements": [\n'
        text += ",\n".join(json.dumps(line) for line in lines) + "\n]\n}\n"
        path.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path):
        """Read a record back.

        Raises
        ------
        FileNotFoundError
            If there is no file at `path`.
        ValueError
            If the file is of another format.
        """
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        if fields.get("format") != FORMAT:
            raise ValueError(f"{path}: expected a record of format {FORMAT}, found {fields.get('format')}")
        return cls(
            fields["machine"],
            [Measurement.from_dict(m) for m in fields["measurements"]],
            fields["skipped"],
            fields["first_results"],
        )


def find(name, start=None):
    """Find a record that the book keeps, from a chapter's folder, a notebook's, or any other inside the repository.

    Parameters
    ----------
    name : str
        The record's name, such as ``"cpu"``.
    start : path-like, optional
        Where to look first, by default the current folder; then come the folders above it.

    Returns
    -------
    pathlib.Path
        ``NAME.json`` in one of these folders, or in ``book/records`` below one of them or below the checkout that an
        editable installation runs from.

    Raises
    ------
    FileNotFoundError
        If there is none, with what to do.
    """
    start = Path(start or Path.cwd()).resolve()
    checkout = Path(__file__).resolve().parents[2]  # where the package is installed from, if editable
    for folder in (start, *start.parents, checkout):
        for path in (folder / f"{name}.json", folder / "book" / "records" / f"{name}.json"):
            if path.is_file():
                return path
    raise FileNotFoundError(
        f"no {name}.json in {start}, above it or in book/records. Put the repository's book/records/{name}.json beside "
        f"this notebook, or measure here: python -m numba_pool.benchmark --studies cases,scaling,network,first "
        f"--output {name}.json"
    )


def describe_machine(device):
    """Tell on what a run took place.

    Parameters
    ----------
    device : str
        ``"cpu"`` or ``"cuda"``.

    Returns
    -------
    dict
        Device name, cores, versions, the system's huge pages, Numba's threading layer, commit and date.
    """
    import torch

    import numba_pool

    machine = {
        "device": device,
        "name": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "cpu": cpu_name(),
        "cores": available_threads(),
        "system": platform.platform(),
        "huge_pages": huge_pages(),
        "threading_layer": threading_layer(),
        "python": platform.python_version(),
        "numba_pool": numba_pool.__version__,
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if device == "cuda":
        machine["cuda"] = torch.version.cuda
    return machine


def cpu_name():
    """Return the processor's name as the system tells it, with its family and model where the name says little."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    name = facts.get("model name") or platform.machine()
    return f"{name} (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else name


def huge_pages():
    """Return the setting of transparent huge pages (``"always"``, ``"madvise"``, ``"never"``), or None."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    return text[text.index("[") + 1 : text.index("]")]


def threading_layer():
    """Return the name of the threading layer that Numba has chosen, or None before any parallel kernel ran."""
    import numba

    try:
        return numba.threading_layer()
    except ValueError:
        return None


def installed(name):
    """Return the version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit():
    """Return the commit that the package was read from, marked when its files differ from it; None outside git."""
    folder = Path(__file__).resolve().parents[1]

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", os.fspath(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            " and changes" if git("status", "--porcelain", "--", ".") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
