"""The command line: ``python -m numba_pool.benchmark``."""

import argparse
import re
import sys
from itertools import product
from pathlib import Path

import torch
from tqdm import tqdm

import numba_pool

from . import studies
from .cases import ALL_DTYPES, CASES, LARGE, LAYOUTS, NEW_SIZES, SERIES, random_cases
from .compare import compare
from .providers import BASELINE, MODES, OURS, PROVIDERS, available_threads, memory_format
from .records import Record, describe_machine
from .report import describe
from .timing import WrongResult

STUDIES = ("cases", "scaling", "network", "first", "sizes", "random")
QUICK = {"block": 0.001, "seconds": 0.05, "rounds": (3, 7)}
BRIEF = {"block": 0.002, "seconds": 0.05}  # for shapes of which there are hundreds


def main(arguments=None):
    """Run the benchmark; return the exit status: 0, or 1 after a wrong result."""
    options = parse(arguments)
    if options.command == "compare":
        print(compare_layers(options))
        return 0
    if options.list:
        for case in CASES:
            print(f"{case.title}: {case.reason}")
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
    return 0


def names(allowed):
    """Return a reader of comma-separated names."""

    def read(text):
        found = tuple(name for name in text.split(",") if name)
        if not found or set(found) - set(allowed):
            raise argparse.ArgumentTypeError(f"{text!r}; choose from {', '.join(allowed)}")
        return found

    return read


def numbers(separator, example, counts):
    """Return a reader of positive whole numbers, of which there may be as many as a number in `counts`."""

    def read(text):
        found = text.split(separator)
        if len(found) not in counts or not all(n.isdecimal() and int(n) > 0 for n in found):
            raise argparse.ArgumentTypeError(f"{text!r}; expected positive whole numbers, such as {example}")
        return tuple(map(int, found))

    return read


def parse(arguments):
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m numba_pool.benchmark",
        description="Check every provider, then time them in turn, in one process, against torch's own op.",
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where the tensors live (default: cpu)")
    add("--studies", type=names(STUDIES), default=STUDIES, help=f"comma-separated (default: {','.join(STUDIES)})")
    add("--cases", metavar="PATTERN", default="", help="only cases whose name holds this regular expression")
    add("--modes", type=names(MODES), default=MODES, help=f"comma-separated (default: {','.join(MODES)})")
    add("--dtypes", type=names(ALL_DTYPES), default=ALL_DTYPES, help="comma-separated (default: what each case names)")
    add("--layouts", type=names(LAYOUTS), default=LAYOUTS, help="comma-separated (default: what each case names)")
    add(
        "--threads",
        type=numbers(",", "1,2", range(1, 99)),
        help="comma-separated numbers (default: one, and what torch uses)",
    )
    add("--compile", action="store_true", help="time torch.compile as well, which takes minutes")
    add("--quick", action="store_true", help="fewer cases and shorter rounds")
    add("--output", metavar="FILE", type=Path, help="save the record as JSON")
    add("--read", metavar="FILE", type=Path, help="show a saved record and run nothing")
    add("--list", action="store_true", help="list the cases with their reasons")
    commands = parser.add_subparsers(dest="command", metavar="compare SHAPE SIZE")
    both = commands.add_parser("compare", help="time the layer and torch's own on one shape")
    both.add_argument("shape", metavar="SHAPE", type=numbers("x", "1x64x32x32", (3, 4)), help="such as 1x64x32x32")
    both.add_argument("size", metavar="SIZE", type=numbers("x", "7x5", (1, 2)), help="such as 1, or 7x5")
    both.add_argument("--dtype", choices=ALL_DTYPES, default="float32")
    both.add_argument("--layout", choices=LAYOUTS[:2], default="NCHW")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not options.read and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device")
    options.threads = options.threads or tuple(sorted({1, torch.get_num_threads()}))
    try:
        re.compile(options.cases)
    except re.error as error:
        parser.error(f"--cases: {error}")
    return options


def compare_layers(options):
    """Compare the layer with torch's own on a shape of the command line."""
    input = torch.randn(options.shape, dtype=getattr(torch, options.dtype), device=options.device)
    if input.dim() == 4:
        input = input.contiguous(memory_format=memory_format(options.layout))
    size = options.size if len(options.size) == 2 else options.size[0]
    layers = {BASELINE: torch.nn.AdaptiveAvgPool2d(size), OURS: numba_pool.AdaptiveAvgPool2d(size)}
    return compare(layers, input, seconds=1)


def plan(options):
    """Return the tasks: what to prepare with which function, in what mode, layout, dtype, with how many threads."""
    wanted = re.compile(options.cases)
    every_count = tuple(sorted({2**i for i in range(available_threads().bit_length())} | {available_threads()}))
    most = max(options.threads)
    # Of what there is a lot, one number of threads tells enough.
    chosen: list[tuple] = []
    if "cases" in options.studies:
        cases = CASES + LARGE if options.device == "cuda" else CASES
        chosen += [
            (case, studies.layer_task, MODES, options.threads) for case in cases if case.quick or not options.quick
        ]
    if "scaling" in options.studies:
        for case in SERIES:
            chosen.append((case, studies.layer_task, MODES[:2], every_count if case.study == "threads" else (most,)))
    if "random" in options.studies:
        shapes = random_cases(30 if options.quick else 300)
        chosen += [(case, studies.layer_task, MODES, (min(options.threads),)) for case in shapes]
    if "network" in options.studies:
        chosen += [(case, studies.network_task, ("forward", "full"), (most,)) for case in studies.NETWORKS]
    return [
        (prepare, case, mode, layout, dtype, counts if dtype == "float32" else (most,))
        for case, prepare, modes, counts in chosen
        if wanted.search(case.name)
        for dtype in case.dtypes
        if dtype in options.dtypes
        for layout in case.layouts(dtype)
        if layout in options.layouts
        for mode in modes
        if mode in options.modes
    ]


def run(options):
    """Run what the options choose; return the record."""
    tasks = plan(options)
    # Only the cases say something on the compiler, which would take most of the time of all else.
    providers = [provider for provider in PROVIDERS.values() if provider.name != "torch.compile"]
    measurements, first_results = [], []
    threads_before = torch.get_num_threads()
    try:
        if "first" in options.studies and options.device == "cpu":
            first_results = [row for threads in options.threads for row in studies.first_results(threads)]
        if "sizes" in options.studies and options.device == "cpu":
            for case, mode, threads in product(NEW_SIZES, ("forward", "full"), options.threads):
                measurements += studies.measure_new_sizes(case, mode, providers, threads)
        with tqdm(total=sum(len(counts) for *_, counts in tasks), disable=None) as progress:
            for prepare, case, mode, layout, dtype, counts in tasks:
                task = prepare(case, mode, layout, getattr(torch, dtype), options.device)
                timing = QUICK if options.quick else BRIEF if case.study == "random" else {}
                timed = list(PROVIDERS.values()) if options.compile and case.study == "cases" else providers
                for threads in counts:
                    progress.set_description(f"{case.name}, {mode}, {layout}, {dtype}, {threads} thr.")
                    measurements += studies.measure(task, timed, threads, options.device, **timing)
                    progress.update()
    finally:
        torch.set_num_threads(threads_before)
    machine = describe_machine(options.device)
    if options.device == "cuda":
        machine["copy_gbps"] = round(studies.copy_bandwidth("cuda"), 1)
    return Record(machine, measurements, first_results)


if __name__ == "__main__":
    sys.exit(main())
