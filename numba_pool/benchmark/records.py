"""What a run leaves behind: measurements, the machine, and a file of both."""

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import torch

import numba_pool

from .cases import sizes
from .providers import BASELINE, available_threads

FORMAT = 2
PACKAGES = ("torch", "numba", "llvmlite", "numpy", "numba-cuda")


@dataclass(frozen=True)
class Measurement:
    """One provider's times for one case in one mode, layout, dtype and number of threads.

    Parameters
    ----------
    study, case : str
        As in `Case`.
    input_size, output_size : tuple of int
        As in `Case`.
    mode, provider, layout, dtype : str
        What was timed.
    threads : int
        The number of threads given to torch.
    bytes_moved : int
        The least number of bytes to read and write.
    samples : tuple of float
        Seconds for each call, one entry for each round.
    """

    study: str
    case: str
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    mode: str
    provider: str
    layout: str
    dtype: str
    threads: int
    bytes_moved: int
    samples: tuple[float, ...]

    @property
    def key(self):
        """What this measurement shares with the other providers' of the same rounds."""
        return self.study, self.case, self.mode, self.layout, self.dtype, self.threads

    @property
    def title(self):
        """The case with its sizes: ``"se 112, 16×32×112×112 → 1"``."""
        return f"{self.case}, {sizes(self.input_size, self.output_size)}"

    @property
    def median(self):
        """The median of the samples, in seconds."""
        return float(np.median(self.samples))

    @property
    def gbps(self):
        """Gigabytes (1e9 bytes) moved in a second, at the median."""
        return self.bytes_moved / self.median / 1e9


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
    """A run: the machine and the measurements.

    Parameters
    ----------
    machine : dict
        As `describe_machine` returns it.
    measurements : list of Measurement
        In the order in which they were taken.
    first_results : list of dict
        From fresh processes, as `studies.first_results` returns them.
    """

    machine: dict
    measurements: list
    first_results: list

    @cached_property
    def _by_key(self):
        return {(m.key, m.provider): m for m in self.measurements}

    @cached_property
    def most_threads(self):
        """The largest number of threads that the cases were timed with."""
        return max(m.threads for m in self.select(study="cases"))

    def partner(self, measurement, provider=BASELINE):
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
        """Return the median, the 20th and the 80th percentile of the pairwise ratios to a baseline, or None."""
        partner = self.partner(measurement, baseline)
        if partner is None:
            return None
        return tuple(float(q) for q in np.quantile(ratios(partner, measurement), (0.5, 0.2, 0.8)))

    def save(self, path):
        """Write JSON, one measurement a line, so that two records can be compared line by line."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        head = {"format": FORMAT} | {name: getattr(self, name) for name in ("machine", "first_results")}
        # Four significant digits are more than any timing holds.
        lines = [asdict(m) | {"samples": [float(f"{s:.4g}") for s in m.samples]} for m in self.measurements]
        text = json.dumps(head, indent=1)[:-2] + ',\n "measurements": [\n'
        text += ",\n".join(map(json.dumps, lines)) + "\n]\n}\n"
        path.write_text(text, encoding="utf-8")

    @classmethod
    def load(cls, path):
        """Read a record back.

        Raises
        ------
        FileNotFoundError
            If there is no file at `path`, with what to do.
        ValueError
            If the file is of another format.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"there is no record {path}: put the book's there, or measure this machine with "
                f"python -m numba_pool.benchmark --output {path}"
            ) from None
        if fields.get("format") != FORMAT:
            raise ValueError(f"{path}: expected a record of format {FORMAT}, found {fields.get('format')}")
        for line in fields["measurements"]:
            for name in ("input_size", "output_size", "samples"):
                line[name] = tuple(line[name])
        measurements = [Measurement(**line) for line in fields["measurements"]]
        return cls(fields["machine"], measurements, fields["first_results"])


def describe_machine(device):
    """Tell on what a run took place.

    Parameters
    ----------
    device : str
        ``"cpu"`` or ``"cuda"``.

    Returns
    -------
    dict
        The processor with its caches and instruction set, or the GPU; versions, the system's huge pages, whether
        torch asks for them, Numba's threading layer, commit and date.
    """
    try:
        layer = numba.threading_layer()
    except ValueError:  # no parallel kernel has run
        layer = None
    machine = {
        "device": device,
        "name": torch.cuda.get_device_name() if device == "cuda" else None,
        "cpu": processor(),
        "cores": available_threads(),
        "instructions": {
            "numba": numba.config.CPU_NAME or llvmlite.binding.get_host_cpu_name(),
            "torch": torch.backends.cpu.get_cpu_capability(),
        },
        "system": platform.platform(),
        "huge_pages": huge_pages(),
        "torch_huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1",
        "threading_layer": layer,
        "python": platform.python_version(),
        "numba_pool": numba_pool.__version__,
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
        "commit": commit(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if device == "cuda":
        machine["cuda"] = torch.version.cuda
    return machine


def processor():
    """Return vendor, name, family, model and caches of the processor, as far as the system tells them."""
    try:
        told = subprocess.run(["lscpu", "--json"], capture_output=True, text=True, check=True, env={"LC_ALL": "C"})
        lines = json.loads(told.stdout)["lscpu"]
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError):
        return platform.processor() or platform.machine()
    facts = {line["field"].rstrip(":"): line["data"] for line in lines}
    caches = [f"{level} {facts[f'{level} cache']}" for level in ("L1d", "L2", "L3") if f"{level} cache" in facts]
    family = f"family {facts.get('CPU family')}, model {facts.get('Model')}"
    return ", ".join((f"{facts.get('Vendor ID')} {facts.get('Model name')} ({family})", *caches))


def huge_pages():
    """Return the setting of transparent huge pages (``"always"``, ``"madvise"``, ``"never"``), or None."""
    try:
        text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    except OSError:
        return None
    return text[text.index("[") + 1 : text.index("]")]


def installed(name):
    """Return the version of an installed distribution, or None."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def commit():
    """Return the commit that the package was read from, marked when its files differ from it; None outside git."""
    folder = Path(numba_pool.__file__).parent

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", os.fspath(folder), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".")
        return git("rev-parse", "--short=12", "HEAD") + (" and changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
