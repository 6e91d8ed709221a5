"""What only a GPU can tell, in one command and less than nine minutes: ``python tests/cuda/gpu_report.py FOLDER``.

It checks the kernels, then times them, and leaves in the folder

- ``log.txt``: what every part printed;
- ``gpu.json``: how every part ended, and what it found: the machine, the bits of equal calls, hardware counters;
- ``cuda.json``, ``threads.json``: the benchmark's records of the GPU and of the processor's cores, ready for the book.

Every part is a process of its own with a time limit, so that the rest goes on when one fails or hangs.
It runs from a checkout, with what the package and its benchmark need and pytest, and downloads nothing.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
# With fewer seconds left than this, no part is started.
LEAST = 5


class Part(NamedTuple):
    """A command, how many seconds it may take, the program that it needs, and environment variables."""

    name: str
    seconds: float
    command: list[str]
    tool: str = ""
    variables: tuple[tuple[str, str], ...] = ()


def plan(folder):
    """Return groups of parts: those of a group run at the same time, and what is timed runs alone.

    What matters most comes first, as time may run out.
    """
    python = sys.executable

    def own(name, seconds, tool=""):
        return Part(name, seconds, [python, str(HERE / "gpu_parts.py"), name], tool)

    def sanitize(tool, seconds):
        # Some of torch's calls of the driver fail by design; what counts is what kernels do to memory.
        options = ["--tool", tool, "--report-api-errors", "no", "--error-exitcode", "9"]
        command = ["compute-sanitizer", *options, python, str(HERE / "gpu_parts.py"), "small"]
        # Without torch's cache every tensor is an allocation of its own, and an access beyond it is noticed.
        return Part(tool, seconds, command, command[0], (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),))

    def test(name, seconds, *selection):
        options = ["-v", "--tb=short", "--maxfail=20", "--noconftest", "-p", "no:cacheprovider", *selection]
        command = [python, "-m", "pytest", *options, str(HERE / "test_gpu.py")]
        return Part(name, seconds, command, "", (("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1"),))

    def benchmark(name, seconds, *options):
        output = str(folder / f"{name}.json")
        return Part(name, seconds, [python, "-m", "numba_pool.benchmark", *options, "--output", output])

    def cuda(name, seconds, *options):
        return benchmark(f"cuda-{name}", seconds, "--device", "cuda", "--studies", "cases", "--threads", "1", *options)

    others = ("--cases", "^(?!large)", "--dtypes", "float32")
    return [
        [own("device", 120)],
        [
            test("tests", 150, "-m", "gpu and not slow", "-k", "not stream and not graph"),
            test("streams-and-graphs", 150, "-m", "gpu", "-k", "stream or graph"),
            test("two-billion-elements", 150, "-m", "gpu and slow"),
            own("repeated", 150),
            own("small", 150),
            sanitize("memcheck", 150),
            sanitize("racecheck", 150),
        ],
        # In pieces, so that one which takes too long does not take the others with it.
        [cuda("large", 100, "--cases", "^large", "--dtypes", "float32,float16", "--modes", "forward,backward")],
        [cuda("contiguous", 110, *others, "--layouts", "NCHW")],
        [cuda("channels-last", 110, *others, "--layouts", "NHWC")],
        [own("counters", 80, "ncu")],
        [benchmark("threads", 100, "--studies", "scaling", "--cases", "planes? of", "--modes", "forward,backward")],
        [cuda("halves", 80, "--quick", "--dtypes", "float16,bfloat16")],
    ]


def main(arguments=None):
    """Run the parts; return the exit status: 0, or 1 if one of them did not pass."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    default = ROOT / "_build" / "gpu" / f"{datetime.now():%Y-%m-%d-%H%M%S}"
    parser.add_argument("folder", nargs="?", type=Path, default=default, help="empty or new (default: a new one)")
    parser.add_argument("--seconds", type=float, default=525, help="for all parts together (default: 525)")
    parser.add_argument("--only", default="", help="comma-separated names of parts")
    options = parser.parse_args(arguments)
    folder = options.folder.resolve()
    groups, only = plan(folder), set(filter(None, options.only.split(",")))
    if unknown := only - {part.name for group in groups for part in group}:
        parser.error(f"--only: there is no part {', '.join(sorted(unknown))}")
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        parser.error(f"{folder} is not empty: reports are not mixed")
    # CUDA's programs are often installed, but not on the path; and numba-cuda looks for the toolkit in CUDA_HOME.
    os.environ["PATH"] += f"{os.pathsep}/usr/local/cuda/bin"
    if compiler := shutil.which("nvcc"):
        os.environ.setdefault("CUDA_HOME", str(Path(compiler).resolve().parents[1]))
    ends = run_all([[part for part in group if not only or part.name in only] for group in groups], folder, options)
    skipped = [name for name, end in ends.items() if end["status"] == "skipped"]
    print(f"skipped: {', '.join(skipped)}\nreport: {folder}")
    return int(any(end["status"] not in ("passed", "skipped") for end in ends.values()))


def run_all(groups, folder, options):
    """Run groups of parts until the time is over; return how each part ended, which is in ``gpu.json`` too."""
    deadline = time.monotonic() + options.seconds
    ends = {}
    with open(folder / "log.txt", "w", encoding="utf-8") as log:
        for group in groups:
            if ends.get("device", {}).get("status") == "failed":
                ends |= {part.name: {"status": "skipped", "said": "the kernels cannot run here"} for part in group}
            else:
                ends |= run(group, deadline, log)
            # After every group, in case that this process does not live to see the end.
            (folder / "gpu.json").write_text(json.dumps(ends, indent=1) + "\n", encoding="utf-8")
        try:
            merge(sorted(folder.glob("cuda-*.json")), folder / "cuda.json")
        except (ValueError, KeyError) as error:
            print(f"the records stay in pieces: {error!r}", file=log)
    return ends


def run(group, deadline, log):
    """Run parts at the same time, each to its own limit or to the deadline; return how each ended."""
    ends, running = {}, []
    for part in group:
        if part.tool and not shutil.which(part.tool):
            ends[part.name] = {"status": "skipped", "said": f"{part.tool} is not installed"}
        elif deadline - time.monotonic() < LEAST:
            ends[part.name] = {"status": "skipped", "said": "no time is left"}
        else:
            try:
                running.append((part, *start(part)))
            except OSError as error:
                ends[part.name] = {"status": "failed", "said": f"cannot be started: {error}"}
    started = time.monotonic()
    try:
        while running:
            time.sleep(0.05)
            seconds = time.monotonic() - started
            for job in list(running):
                part, process, output = job
                late = seconds > part.seconds or time.monotonic() > deadline
                if (code := process.poll()) is None and not late:
                    continue
                stop(process)
                running.remove(job)
                status = {0: "passed", None: "out of time"}.get(code, "failed")
                ends[part.name] = {"status": status, "seconds": round(seconds, 1), **tell(part, status, output, log)}
    finally:
        for _, process, _ in running:
            stop(process)
    for part in group:
        print(f"{part.name:22}{ends[part.name]['status']:13}{ends[part.name]['said']}", flush=True)
    return {part.name: ends[part.name] for part in group}


def start(part):
    """Start a part in a process group of its own; return the process, and the file that takes its output."""
    output = tempfile.TemporaryFile()  # noqa: SIM115  `tell` closes it
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **dict(part.variables)}
    options = {"cwd": ROOT, "env": environment, "stdout": output, "stderr": subprocess.STDOUT}
    return subprocess.Popen(part.command, start_new_session=True, **options), output


def stop(process):
    """End a process, and what it started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tell(part, status, output, log, most=1_000_000):
    """Write what a part printed to the log; return the last of it, and its result."""
    output.seek(0)
    text = output.read().decode(errors="replace")
    output.close()
    print(f"===== {part.name}: {status} =====\n{' '.join(part.command)}\n{text[-most:]}", file=log, flush=True)
    lines = [line.strip("= ") for line in text.splitlines() if line.strip("= ")]
    result = {}
    if lines and lines[-1].startswith("RESULT "):
        result = {"result": json.loads(lines.pop().removeprefix("RESULT "))}
    # A part that did not pass says why in its last lines.
    return {"said": "\n".join(lines[-1 if status == "passed" else -15 :]), **result}


def merge(pieces, path):
    """Put the benchmark's records of one machine together to one, and remove the pieces."""
    records = [json.loads(piece.read_text(encoding="utf-8")) for piece in pieces]
    if not records:
        return
    merged = records[0]
    for record in records[1:]:
        for name, value in record.items():
            if isinstance(value, list):
                merged[name] = merged[name] + value
    lines = ",\n".join(map(json.dumps, merged.pop("measurements")))
    head = json.dumps(merged, indent=1).removesuffix("\n}")
    path.write_text(f'{head},\n "measurements": [\n{lines}\n]\n}}\n', encoding="utf-8")
    for piece in pieces:
        piece.unlink()


if __name__ == "__main__":
    sys.exit(main())
