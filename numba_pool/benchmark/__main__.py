"""The command line: ``python -m numba_pool.benchmark``."""

import argparse
import re
import sys
from itertools import product
from pathlib import Path

import torch

from . import studies
from .cases import ALL_DTYPES, CASES, LARGE, LAYOUTS, NEW_SIZES, SERIES, random_cases
from .progress import Progress
from .providers import BASELINE, MODES, PROVIDERS, available_threads, for_device
from .records import Record, describe_machine
from .report import describe
from .timing import WrongResult

STUDIES = ("cases", "scaling", "network", "first", "sizes", "random")
QUICK = {"block": 0.001, "seconds": 0.1, "rounds": (3, 7)}


def main(arguments=None):
    """Run the benchmark; return the exit status: 0, or 1 after a wrong result."""
    options = parse(arguments)
    if options.list:
        for case in CASES:
            print(f"{case.name}: {case.input_size} to {case.output_size}; {case.reason}")
        return 0
    if options.read:
        record = Record.load(options.read)
    else:
        try:
            record = run(options)
        except WrongResult as error:
            print(f"stopped: {error}", file=sys.stderr)
            return 1
    print(describe(record))
    if options.output:
        record.save(options.output)
        print(f"\nrecord: {options.output}")
    if options.plot:
        from . import plots

        plots.overview(record).savefig(options.plot, bbox_inches="tight")
        print(f"plot: {options.plot}")
    return 0


def parse(arguments):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m numba_pool.benchmark",
        description="Check every provider, then time them in turn, in one process, against torch's own op.",
    )

    def names(allowed):
        def read(text):
            found = tuple(name for name in text.split(",") if name)
            if not found or set(found) - set(allowed):
                raise argparse.ArgumentTypeError(f"{text!r}; choose from {', '.join(allowed)}")
            return found

        return read

    def counts(text):
        found = tuple(int(n) for n in text.split(","))
        if min(found) < 1:
            raise argparse.ArgumentTypeError("at least one thread")
        return found

    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the tensors live (default: cpu)")
    add("--providers", type=names(PROVIDERS), help="comma-separated (default: torch and the device's own kernels)")
    add("--modes", type=names(MODES), default=MODES, help=f"comma-separated (default: {','.join(MODES)})")
    add("--dtypes", type=names(ALL_DTYPES), default=ALL_DTYPES, help="comma-separated (default: what each case names)")
    add("--layouts", type=names(LAYOUTS), default=LAYOUTS, help="comma-separated (default: what each case names)")
    add("--threads", type=counts, help="comma-separated numbers (default: what torch uses)")
    add("--cases", metavar="PATTERN", default="", help="only cases whose name holds this regular expression")
    add("--studies", type=names(STUDIES), default=("cases",), help=f"comma-separated, from {','.join(STUDIES)}")
    add("--quick", action="store_true", help="fewer cases and shorter rounds")
    add("--output", metavar="FILE", type=Path, help="save the record as JSON")
    add("--plot", metavar="FILE", type=Path, help="save a plot of the ratios (needs matplotlib)")
    add("--read", metavar="FILE", type=Path, help="show a saved record and run nothing")
    add("--list", action="store_true", help="list the cases with their reasons")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not options.read and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    allowed = for_device(options.device)
    chosen = options.providers or tuple(name for name in allowed if name != "torch-compile")
    if set(chosen) - set(allowed):
        parser.error(f"--device {options.device} has the providers {', '.join(allowed)}")
    # The baseline is always timed, and first: without it there is no ratio.
    options.providers = [PROVIDERS[name] for name in allowed if name in chosen or name == BASELINE]
    options.threads = options.threads or (torch.get_num_threads(),)
    try:
        re.compile(options.cases)
    except re.error as error:
        parser.error(f"--cases: {error}")
    return options


def plan(options):
    """Return the tasks to prepare, each with the function that prepares it and the threads to time it with."""
    wanted = re.compile(options.cases)
    chosen = []
    if "cases" in options.studies:
        cases = CASES + LARGE if options.device == "cuda" else CASES
        chosen += [(case, studies.layer_task, options.modes) for case in cases if case.quick or not options.quick]
    if "scaling" in options.studies:
        chosen += [(case, studies.layer_task, options.modes) for case in SERIES]
    if "random" in options.studies:
        chosen += [(case, studies.layer_task, options.modes) for case in random_cases(30 if options.quick else 300)]
    if "network" in options.studies:
        modes = tuple(mode for mode in options.modes if mode != "backward")
        chosen += [(case, studies.network_task, modes) for case in studies.NETWORKS]
    every_count = tuple(sorted({2**i for i in range(available_threads().bit_length())} | {available_threads()}))
    return [
        (prepare, case, mode, layout, dtype, every_count if case.study == "threads" else options.threads)
        for case, prepare, modes in chosen
        if wanted.search(case.name)
        for dtype in case.dtypes
        if dtype in options.dtypes
        for layout in case.layouts(dtype)
        if layout in options.layouts
        for mode in modes
    ]


def run(options):
    """Run what the options choose; return the record."""
    tasks = plan(options)
    timing = QUICK if options.quick else {}
    progress = Progress(sum(len(threads) for *_, threads in tasks), sys.stderr)
    measurements, skipped, first_results = [], [], []
    threads_before = torch.get_num_threads()
    # Only the cases say something on the compiler, which would take most of the time of all else.
    uncompiled = [provider for provider in options.providers if provider.name != "torch-compile"]
    try:
        if "first" in options.studies and options.device == "cpu":
            first_results = [row for threads in options.threads for row in studies.first_results(threads)]
        if "sizes" in options.studies and options.device == "cpu":
            for case, mode, count in product(NEW_SIZES, ("forward", "full"), options.threads):
                measurements += studies.measure_new_sizes(case, mode, uncompiled, count)
        for prepare, case, mode, layout, dtype, threads in tasks:
            task = prepare(case, mode, layout, getattr(torch, dtype), options.device)
            providers = options.providers if case.study == "cases" else uncompiled
            for count in threads:
                progress.step(f"{case.name}, {mode}, {layout}, {dtype}, {count} threads")
                taken, passed = studies.measure(task, providers, count, options.device, **timing)
                measurements += taken
                skipped += passed
    finally:
        progress.close()
        torch.set_num_threads(threads_before)
    machine = describe_machine(options.device)
    if options.device == "cuda":
        machine["copy_gbps"] = round(studies.copy_bandwidth("cuda"), 1)
    return Record(machine, measurements, skipped, first_results)


if __name__ == "__main__":
    sys.exit(main())
