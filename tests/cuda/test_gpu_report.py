"""``gpu_report.py`` where there is no GPU: parts that fail, hang or are missing, and all of it in the simulator."""

import argparse
import contextlib
import json
import os
import re
import sys
import time

import gpu_parts
import gpu_report
import numpy as np
import pytest
import torch
from gpu_report import Part, plan, run_all

from numba_pool.benchmark import cases
from numba_pool.cuda.plan import choose


def python(name, code, seconds=60.0, tool=""):
    return Part(name, seconds, [sys.executable, "-c", code], tool)


def report(folder, *groups, seconds=60.0):
    ends = run_all(groups, folder, argparse.Namespace(seconds=seconds))
    assert json.loads((folder / "gpu.json").read_text()) == ends
    return ends, (folder / "log.txt").read_text()


def install(folder, monkeypatch, name, script):
    """Put a program on the path."""
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def parts(folder):
    return {part.name: part for group in plan(folder) for part in group}


# --- what can go wrong ---


def test_a_part_that_fails_is_recorded_and_the_rest_goes_on(tmp_path):
    ends, log = report(
        tmp_path,
        [python("bad", "print('first'); raise SystemExit('no such thing')"), python("crash", "import os; os.abort()")],
        [python("good", "print('fine'); print('RESULT', '[1, 2]')")],
    )
    assert [ends[name]["status"] for name in ("bad", "crash", "good")] == ["failed", "failed", "passed"]
    assert ends["bad"]["said"] == "first\nno such thing"
    assert ends["good"]["said"] == "fine"
    assert ends["good"]["result"] == [1, 2]
    assert "no such thing" in log
    assert "===== good: passed =====" in log


def test_a_part_over_its_limit_is_ended_with_all_that_it_started(tmp_path):
    child = "import time; time.sleep(1.5); open('late', 'w').close()"
    code = f"import os, subprocess, sys; os.chdir({str(tmp_path)!r}); print('begun', flush=True)\n"
    code += f"subprocess.run([sys.executable, '-c', {child!r}])"
    ends, _ = report(tmp_path, [python("slow", code, seconds=0.7)], [python("next", "print('fine')")])
    assert ends["slow"]["status"] == "out of time"
    assert ends["slow"]["said"] in ("begun", "")
    assert ends["next"]["status"] == "passed"
    time.sleep(2)
    assert not (tmp_path / "late").exists()


def test_parts_of_a_group_run_at_the_same_time(tmp_path):
    wait = "import time; from pathlib import Path; Path({mine!r}).touch()\n"
    wait += "while not Path({other!r}).exists(): time.sleep(0.05)"
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    ends, _ = report(tmp_path, [python("a", wait.format(mine=a, other=b)), python("b", wait.format(mine=b, other=a))])
    assert ends["a"]["status"] == ends["b"]["status"] == "passed"


def test_what_there_is_no_time_for_is_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report, "LEAST", 0.5)
    started = time.monotonic()
    ends, _ = report(
        tmp_path, [python("long", "import time; time.sleep(60)")], [python("next", "print('fine')")], seconds=1
    )
    assert time.monotonic() - started < 20
    assert ends["long"]["status"] == "out of time"
    assert ends["next"] == {"status": "skipped", "said": "no time is left"}


def test_a_missing_program_is_no_failure(tmp_path):
    ends, _ = report(tmp_path, [python("counters", "raise SystemExit(1)", tool="no-such-program")])
    assert ends["counters"] == {"status": "skipped", "said": "no-such-program is not installed"}


def test_a_program_that_cannot_be_started_is_a_failure(tmp_path):
    ends, _ = report(tmp_path, [Part("folder", 60, [str(tmp_path)])], [python("next", "print('fine')")])
    assert ends["folder"]["status"] == "failed"
    assert "cannot be started" in ends["folder"]["said"]
    assert ends["next"]["status"] == "passed"


def test_without_a_device_the_rest_is_skipped(tmp_path):
    ends, _ = report(tmp_path, [python("device", "raise SystemExit('no GPU')")], [python("tests", "print('fine')")])
    assert ends["device"]["said"] == "no GPU"
    assert ends["tests"] == {"status": "skipped", "said": "the kernels cannot run here"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds a CUDA device")
def test_without_a_gpu_the_command_says_so(tmp_path, capfd):
    assert gpu_report.main([str(tmp_path)]) == 1
    told = capfd.readouterr().out
    assert "torch cannot use a GPU" in told
    assert "skipped: tests, " in told
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu.json", "log.txt"]


def test_reports_are_not_mixed(tmp_path, capsys):
    (tmp_path / "cuda.json").touch()
    with pytest.raises(SystemExit):
        gpu_report.main([str(tmp_path)])
    with pytest.raises(SystemExit):
        gpu_report.main([str(tmp_path / "new"), "--only", "device,thread"])
    told = capsys.readouterr().err
    assert "is not empty" in told
    assert "there is no part thread" in told
    assert not (tmp_path / "new").exists()


def test_a_numpy_without_row_stack_comes_with_advice(monkeypatch):
    def fail(*arguments):
        raise ImportError("module 'numpy' has no attribute 'row_stack'")

    monkeypatch.setattr(gpu_parts, "SIMULATED", True)
    monkeypatch.setattr(gpu_parts, "load_kernels", fail)
    monkeypatch.setattr(np, "row_stack", None, raising=False)
    with pytest.raises(SystemExit, match="row_stack") as plain:
        gpu_parts.device()
    assert "pip" not in str(plain.value)
    monkeypatch.delattr(np, "row_stack")
    with pytest.raises(SystemExit, match=r"pip install --no-index .*\n.*PYTHONPATH=\S*/older-numpy"):
        gpu_parts.device()


# --- the parts ---


def test_the_small_cases_reach_every_kernel():
    seen = set()
    for N, C, sizes, channels_last in gpu_parts.SMALL:
        for backward in (False, True):
            source, target = (sizes[2:], sizes[:2]) if backward else (sizes[:2], sizes[2:])
            planes, channels = (N, C) if channels_last else (N * C, 1)
            launches, _ = choose("float32", backward, planes, *source, *target, channels)
            seen |= {(launch.kernel, backward) for launch in launches}
    kernels = ("tiles", "strips", "pixels", "bundles", "finish")
    assert seen == {(kernel, backward) for kernel in kernels for backward in (False, True)}


def test_the_parts_on_the_cpu(monkeypatch):
    # Line by line what runs on a GPU, with the native op in float64 in place of the kernels.
    pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")
    monkeypatch.setattr(gpu_parts, "SIMULATED", False)
    monkeypatch.setattr(gpu_parts, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_parts, "REPEATED", gpu_parts.SMALL[:2])
    monkeypatch.setattr(gpu_parts, "COUNTED", gpu_parts.SMALL[1:2])

    def exact(input, size):
        return torch.nn.functional.adaptive_avg_pool2d(input.double(), size).to(input.dtype)

    monkeypatch.setattr(gpu_parts.numba_pool, "adaptive_avg_pool2d", exact)
    called = []
    monkeypatch.setattr(torch.cuda.nvtx, "range", lambda name: contextlib.nullcontext(called.append(name)))
    assert gpu_parts.small() == 2 * len(gpu_parts.SMALL) + 6
    assert [result["different"] for result in gpu_parts.repeated()] == 4 * [{"native": 1, "numba_pool": 1}]
    gpu_parts.calls()
    assert len(called) == 4
    assert called[-1] == "numba_pool: backward, 2x8x13x11 to 6x5, channels_last"


def test_a_result_that_changes_fails(monkeypatch, capsys):
    monkeypatch.setattr(gpu_parts, "SIMULATED", True)
    monkeypatch.setattr(gpu_parts, "bind", lambda *_, **__: lambda: np.random.default_rng().random(3))
    with pytest.raises(SystemExit, match="had different results"):
        gpu_parts.repeated()
    assert "'numba_pool': 3" in capsys.readouterr().out


def test_a_wrong_result_fails(monkeypatch):
    pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")
    monkeypatch.setattr(gpu_parts, "SIMULATED", True)
    monkeypatch.setattr(gpu_parts, "bind", lambda *_, **__: lambda: np.zeros((2, 3, 6, 5)))
    with pytest.raises(AssertionError):
        gpu_parts.small()


def test_the_sanitizers_fail_with_what_they_find(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "compute-sanitizer", 'echo "$@"; exit 9')
    (tmp_path / "out").mkdir()
    ends, _ = report(tmp_path / "out", [parts(tmp_path)["memcheck"], parts(tmp_path)["racecheck"]])
    for tool in ("memcheck", "racecheck"):
        assert ends[tool]["status"] == "failed"
        assert re.fullmatch(rf"--tool {tool} .*--error-exitcode 9 \S+ \S+gpu_parts.py small", ends[tool]["said"])


def test_counters_are_read(tmp_path, monkeypatch):
    names = ["ID", "Kernel Name", *gpu_parts.METRICS]
    lines = [names, ["", "", *("byte" for _ in gpu_parts.METRICS)], ["0", "native: forward", *map(str, range(8))]]
    table = "\n".join(",".join(f'"{field}"' for field in line) for line in lines)
    install(tmp_path, monkeypatch, "ncu", f"cat <<'END'\n==PROF== Connected\n{table}\nEND")
    (row,) = gpu_parts.counters()
    assert row == dict(zip(names[1:], lines[2][1:], strict=True))


def test_counters_that_may_not_be_read_fail_with_the_reason(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "ncu", "echo '==ERROR== ERR_NVGPUCTRPERM'")
    with pytest.raises(SystemExit, match="ERR_NVGPUCTRPERM"):
        gpu_parts.counters()


def test_patterns_choose_cases(tmp_path):
    threads = parts(tmp_path)["threads"].command
    wanted = re.compile(threads[threads.index("--cases") + 1])
    assert [wanted.search(case.name) is not None for case in cases.SERIES] == [
        case.study == "threads" for case in cases.SERIES
    ]
    assert all(case.name.startswith("large") for case in cases.LARGE)
    assert not any(case.name.startswith("large") for case in cases.CASES)


# --- the record ---


def test_pieces_become_one_record(tmp_path):
    heads = [{"format": 2, "machine": {"name": "A"}, "first_results": []}, {"format": 2, "machine": {"name": "A"}}]
    for name, head, times in zip("ab", heads, ([1, 2], [3]), strict=True):
        (tmp_path / f"{name}.json").write_text(json.dumps(head | {"measurements": [{"t": t} for t in times]}))
    gpu_report.merge([tmp_path / "a.json", tmp_path / "b.json"], tmp_path / "all.json")
    merged = json.loads((tmp_path / "all.json").read_text())
    assert merged == heads[0] | {"measurements": [{"t": 1}, {"t": 2}, {"t": 3}]}
    assert [path.name for path in tmp_path.iterdir()] == ["all.json"]


def test_a_piece_that_cannot_be_read_stays_as_it_is(tmp_path):
    (tmp_path / "cuda-a.json").write_text("{")
    _, log = report(tmp_path, [python("good", "print('fine')")])
    assert "the records stay in pieces" in log
    assert (tmp_path / "cuda-a.json").exists()
    assert not (tmp_path / "cuda.json").exists()


# --- all of it ---


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="torch finds a CUDA device")
def test_in_the_simulator(tmp_path, monkeypatch, capfd):
    pytest.importorskip("numba_cuda", reason="needs numba-cuda (the extra `cuda13` or `cuda12`)")
    monkeypatch.setenv("NUMBA_ENABLE_CUDASIM", "1")
    # In place of the sanitizers: what they are given to run.
    install(tmp_path, monkeypatch, "compute-sanitizer", 'shift 6; exec "$@"')
    folder = tmp_path / "report"

    def patient(folder):
        return [[part._replace(seconds=10 * part.seconds) for part in group] for group in plan(folder)]

    monkeypatch.setattr(gpu_report, "plan", patient)  # a machine may be busy
    assert gpu_report.main([str(folder), "--seconds", "3000"]) == 1
    print(capfd.readouterr().out)
    ends = json.loads((folder / "gpu.json").read_text())
    assert list(ends) == list(parts(folder))
    statuses = {name: end["status"] for name, end in ends.items()}
    checked = ["device", "repeated", "small", "memcheck", "racecheck", "threads"]
    assert {name: statuses[name] for name in checked} == dict.fromkeys(checked, "passed")
    assert ends["small"]["result"] == ends["memcheck"]["result"] > 10
    for name in ("tests", "streams-and-graphs", "two-billion-elements"):
        assert re.match(r"\d+ skipped", ends[name]["said"]), name  # and none failed
    for name in ("cuda-large", "cuda-contiguous", "cuda-channels-last", "cuda-halves"):
        assert statuses[name] == "failed"
        assert "finds no CUDA device" in ends[name]["said"]
    assert {"gpu.json", "log.txt", "threads.json"} == {path.name for path in folder.iterdir()}
    threads = {line["threads"] for line in json.loads((folder / "threads.json").read_text())["measurements"]}
    assert 1 in threads
