"""The benchmark: what it refuses to time, what it computes from timings, what it keeps, what its command line does."""

import json
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import PACKAGES

import numba_pool
from numba_pool import reference
from numba_pool.benchmark import Comparison, compare, report, studies, timing
from numba_pool.benchmark import __main__ as command
from numba_pool.benchmark.cases import ALL_DTYPES, CASES, LARGE, NEW_SIZES, SERIES, Case, random_cases
from numba_pool.benchmark.compare import bound
from numba_pool.benchmark.providers import BASELINE, LIMIT, MODES, OURS, PROVIDERS, Provider, native
from numba_pool.benchmark.records import Measurement, Record, describe_machine, ratios

SMALL = Case("small", "does not divide", (2, 3, 7, 9), (3, 4), ALL_DTYPES, strided=True)
SHORT = {"block": 1e-4, "seconds": 0.0, "rounds": (2, 2)}
NATIVE = Provider(BASELINE, lambda: native, chained=True)


@pytest.fixture(autouse=True)
def same_threads():
    """Leave torch's number of threads as it was."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def measured(provider=OURS, samples=(1.0, 2.0, 4.0), **fields):
    """Return a measurement with made-up samples."""
    made = Measurement("cases", "small", (2, 3, 7, 9), (3, 4), "forward", provider, "NCHW", "float32", 1, 1000, samples)
    return replace(made, **fields)


def recorded(*measurements):
    """Return a record of an invented machine."""
    machine = {
        "device": "cpu",
        "name": None,
        "cpu": "invented",
        "cores": 2,
        "instructions": {"numba": "haswell", "torch": "AVX2"},
        "date": "2026-01-01 00:00 UTC",
        "numba_pool": "0.1.0",
        "commit": "abc",
        "versions": {"torch": "2.0", "numba": "0.60"},
        "threading_layer": "omp",
        "huge_pages": "madvise",
        "torch_huge_pages": False,
    }
    return Record(machine, list(measurements), [])


class TestCases:
    def test_at_least_forty_with_names_of_their_own_and_a_reason_each(self):
        assert len(CASES) >= 40
        names = [case.name for case in (*CASES, *LARGE, *SERIES, *studies.NETWORKS)]
        assert len(set(names)) == len(names)
        assert all(len(case.reason) > 10 for case in CASES)

    def test_every_case_is_timed_in_float32_and_both_layouts(self):
        for case in CASES:
            assert "float32" in case.dtypes
            assert set(case.dtypes) <= set(ALL_DTYPES)
            assert {"NCHW", "NHWC"} <= set(case.layouts("float32"))

    def test_a_part_is_timed_in_other_types_and_strided(self):
        assert sum(case.dtypes == ALL_DTYPES for case in CASES) >= 8
        assert sum(case.strided for case in CASES) >= 3

    def test_large_cases_are_for_gpus_and_larger_than_their_caches(self, monkeypatch):
        assert all(4 * case.input_elements > 256e6 for case in LARGE)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        for device, expected in (("cpu", set()), ("cuda", set(LARGE))):
            planned = {case for _, case, *_ in command.plan(command.parse(["--device", device]))}
            assert planned & set(LARGE) == expected

    @pytest.mark.parametrize(
        ("plane", "output_size"),
        [
            ((7, 7), (1, 1)), ((8, 8), (1, 1)), ((14, 14), (1, 1)), ((13, 13), (6, 6)), ((7, 7), (7, 7)),
            ((56, 56), (1, 1)), ((112, 112), (1, 1)), ((60, 60), (1, 1)), ((60, 60), (2, 2)), ((60, 60), (3, 3)),
            ((60, 60), (6, 6)), ((56, 56), (7, 5)), ((57, 57), (56, 56)), ((224, 224), (50, 50)),
            ((4096, 4096), (1, 1)), ((4096, 4096), (7, 7)),
        ],
    )  # fmt: skip
    def test_holds_the_shapes_that_people_use(self, plane, output_size):
        assert any(case.input_size[2:] == plane and case.output_size == output_size for case in CASES)

    def test_window_and_element_counts(self):
        case = Case("x", "y", (2, 3, 8, 6), (4, 2))
        assert (case.input_elements, case.output_elements, case.window) == (288, 48, 6.0)

    def test_titles_hold_the_sizes(self):
        assert Case("x", "y", (2, 3, 8, 6), (4, 2)).title == "x, 2×3×8×6 → 4×2"
        assert Case("x", "y", (2, 3, 8, 6), (4, 4)).title == "x, 2×3×8×6 → 4"

    def test_random_shapes_are_the_same_every_time(self):
        shapes = random_cases(20)
        assert shapes == random_cases(20)
        assert len({(case.input_size, case.output_size) for case in shapes}) == 20
        assert [case.layout for case in shapes[:4]] == ["NCHW", "NHWC", "NCHW", "NHWC"]


class TestCorrectnessFirst:
    @pytest.mark.parametrize("mode", MODES)
    def test_expected_result_is_the_reference(self, mode):
        generator = torch.Generator().manual_seed(1)
        input = torch.randn(SMALL.input_size, generator=generator)
        grad_output = torch.randn((2, 3, 3, 4), generator=generator)
        want, scale, _ = timing.expect(SMALL, mode, input, grad_output)

        def expected(input, grad_output):
            if mode == "forward":
                return reference.forward(input.double().numpy(), (3, 4))
            return reference.backward(grad_output.double().numpy(), (7, 9))

        np.testing.assert_allclose(want, expected(input, grad_output), rtol=1e-12)
        np.testing.assert_allclose(scale, expected(input.abs(), grad_output.abs()), rtol=1e-12)

    @pytest.mark.parametrize("mode", MODES)
    @pytest.mark.parametrize("dtype", ALL_DTYPES)
    @pytest.mark.parametrize("layout", SMALL.layouts("float32"))
    def test_right_results_pass(self, mode, dtype, layout):
        task = studies.layer_task(SMALL, mode, layout, getattr(torch, dtype), "cpu")
        measurements = studies.measure(task, [NATIVE, PROVIDERS[OURS]], 1, **SHORT)
        assert {m.provider for m in measurements} - {LIMIT} == {BASELINE, OURS}

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda input, size: native(input, size) * (1 + 1e-4),
            lambda input, size: native(input, size)[..., :-1],
            lambda input, size: native(input.roll(1, -1), size),
            lambda input, size: native(input, size) + float("nan"),
            lambda input, size: torch.nn.functional.interpolate(input, size, mode="bilinear"),
        ],
        ids=["scaled", "shape", "shifted", "nan", "interpolated"],
    )
    def test_a_wrong_provider_stops_the_run(self, wrong):
        task = studies.layer_task(SMALL, "forward", "NCHW", torch.float32, "cpu")
        with pytest.raises(
            timing.WrongResult, match="bad is wrong at case small, mode forward, layout NCHW, dtype float32"
        ):
            studies.measure(task, [NATIVE, Provider("bad", lambda: wrong)], 1, **SHORT)

    def test_a_wrong_gradient_stops_the_run(self):
        class Wrong(torch.autograd.Function):
            @staticmethod
            def forward(ctx, input, size):
                ctx.input_size = input.shape
                return native(input, size)

            @staticmethod
            def backward(ctx, grad_output):
                return torch.nn.functional.interpolate(grad_output, ctx.input_size[2:]), None

        for mode in ("backward", "full"):
            task = studies.layer_task(SMALL, mode, "NCHW", torch.float32, "cpu")
            with pytest.raises(timing.WrongResult, match=f"mode {mode}"):
                studies.measure(task, [Provider("bad", lambda: Wrong.apply)], 1, **SHORT)

    def test_accumulating_in_bfloat16_is_wrong_unless_chained(self):
        case = Case("upsampled", "many terms", (1, 1, 2, 2), (64, 64), ("bfloat16",))
        task = studies.layer_task(case, "backward", "NCHW", torch.bfloat16, "cpu")
        studies.measure(task, [NATIVE], 1, **SHORT)
        with pytest.raises(timing.WrongResult):
            studies.measure(task, [replace(NATIVE, chained=False)], 1, **SHORT)

    def test_the_command_stops_with_status_one(self, monkeypatch, capsys):
        bad = Provider(OURS, lambda: lambda input, size: native(input, size) * 1.01)
        monkeypatch.setitem(PROVIDERS, OURS, bad)
        assert command.main(["--quick", "--cases", "^call 8", "--modes", "forward", "--studies", "cases"]) == 1
        assert "stopped: numba_pool is wrong at case call 8 to 2" in capsys.readouterr().err


class TestInterleave:
    def made_samplers(self, log, times):
        def sampler(name):
            def sample(number):
                log.append((name, number))
                return times[name]

            return sample

        return {name: sampler(name) for name in times}

    def test_takes_turns_in_alternating_order(self):
        log = []
        samplers = self.made_samplers(log, {"a": 1.0, "b": 2.0})
        samples = timing.interleave(samplers, block=0.5, rounds=(4, 4))
        assert "".join(name for name, _ in log[2:]) == "abbaabba"
        assert samples == {"a": [1.0] * 4, "b": [2.0] * 4}

    def test_blocks_take_about_the_asked_time(self):
        log = []
        timing.interleave(self.made_samplers(log, {"a": 1e-6, "b": 3e-4, "c": 1.0}), block=6e-3, rounds=(1, 1))
        assert dict(log[-3:]) == {"a": 6000, "b": 20, "c": 1}

    def test_stops_in_time_but_not_before_the_fewest_rounds(self):
        now = [0.0]

        def sample(number):
            now[0] += 0.1
            return 1.0

        for seconds, rounds in ((0.0, 3), (0.55, 6), (99.0, 9)):
            samples = timing.interleave({"a": sample}, seconds=seconds, rounds=(3, 9), clock=lambda: now[0])
            assert len(samples["a"]) == rounds

    def test_a_sample_is_the_time_of_one_call(self):
        def call():
            total = 0
            for i in range(20_000):
                total += i
            return total

        sample = timing.cpu_sampler(call, 1)
        assert 0.2 < sample(10) / sample(20) < 5
        assert 1e-5 < sample(10) < 1e-1


class TestStatistics:
    def test_ratios_are_pairwise(self):
        baseline = measured(BASELINE, (8.0, 8.0, 16.0))
        assert ratios(baseline, measured()).tolist() == [8.0, 4.0, 4.0]

    def test_a_disturbance_of_both_leaves_the_ratio(self):
        record = recorded(measured(BASELINE, (3.0, 30.0, 3.0)), measured(samples=(1.0, 10.0, 1.0)))
        assert record.ratio(record.measurements[1]) == (3.0, 3.0, 3.0)

    def test_other_rounds_do_not_pair(self):
        with pytest.raises(ValueError, match="not from the same rounds"):
            ratios(measured(BASELINE, mode="full"), measured())
        with pytest.raises(ValueError, match="not from the same rounds"):
            ratios(measured(BASELINE, (1.0,)), measured())

    def test_median_quantiles_and_bandwidth(self):
        made = measured(samples=(5.0, 1.0, 3.0, 2.0, 4.0), bytes_moved=6_000_000_000)
        assert (made.median, made.gbps) == (3.0, 2.0)
        record = recorded(made, measured(BASELINE, (10.0, 2.0, 6.0, 4.0, 12.0)))
        assert record.ratio(made) == pytest.approx((2.0, 2.0, 2.2))

    def test_summary_has_geometric_mean_worst_case_and_the_losers(self):
        record = recorded(
            *(
                m
                for case, ours in (("fast", 1.0), ("even", 4.0), ("slow", 8.0))
                for m in (measured(BASELINE, (4.0,), case=case), measured(samples=(ours,), case=case))
            )
        )
        (group,) = report.summarize(record)
        assert group.mean == pytest.approx((4 * 1 * 0.5) ** (1 / 3))
        assert [(ratio, m.case) for ratio, m in group.ratios] == [(0.5, "slow"), (1.0, "even"), (4.0, "fast")]
        assert group.share_below(1.0) == pytest.approx(1 / 3)
        assert "1/3" in str(report.summary_table(record))
        ((loser, ratio),) = report.losses(record)
        assert (loser.case, ratio) == ("slow", (0.5, 0.5, 0.5))
        table = report.ratio_table([(loser, ratio)], [("kind", lambda m, r: f"{m.case} {r[0]}")])
        assert table.headers[-1] == "kind"
        assert table.rows[0][-1] == "slow 0.5"

    def test_groups_are_not_mixed(self):
        record = recorded(
            *(
                m
                for t in (1, 2)
                for m in (measured(BASELINE, (t * 3.0,), threads=t), measured(samples=(1.0,), threads=t))
            )
        )
        assert [(group.threads, group.mean) for group in report.summarize(record)] == [
            (1, pytest.approx(3.0)),
            (2, pytest.approx(6.0)),
        ]

    def test_the_limit_counts_for_large_inputs_and_windows_only(self):
        def pair(case, input_size, bytes_moved):
            fields = {"case": case, "input_size": input_size}
            return measured(LIMIT, (1.0,), bytes_moved=bytes_moved, **fields), measured(samples=(1.5,), **fields)

        record = recorded(
            *pair("counts", (1, 1, 12, 16), 40_000_000),
            *pair("small input", (1, 1, 12, 17), 1_000_000),
            *pair("small window", (1, 1, 12, 15), 40_000_000),
        )
        ((m, ratio),) = report.against_limit(record)
        assert (m.case, ratio) == ("counts", (1.5, 1.5, 1.5))


class TestRecord:
    def test_round_trip(self, tmp_path):
        record = recorded(
            measured(BASELINE, (0.25, 0.5)), measured(samples=(0.125, 0.5)), measured(samples=(0.5,), mode="full")
        )
        record.first_results.append({"cache": "empty", "threads": 1, "total": 4.0})
        path = tmp_path / "folder" / "record.json"
        record.save(path)
        assert Record.load(path) == record

    def test_four_digits_of_a_sample_are_kept(self, tmp_path):
        path = tmp_path / "record.json"
        recorded(measured(samples=(1.23456e-5,))).save(path)
        assert json.loads(path.read_text())["measurements"][0]["samples"] == [1.235e-05]

    def test_another_format_is_refused(self, tmp_path):
        path = tmp_path / "record.json"
        path.write_text('{"format": 99}')
        with pytest.raises(ValueError, match="format 2, found 99"):
            Record.load(path)

    def test_a_missing_record_is_named_with_what_to_do(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"python -m numba_pool\.benchmark --output .*missing\.json"):
            Record.load(tmp_path / "missing.json")

    def test_the_machine_is_described(self):
        machine = describe_machine("cpu")
        assert machine["cpu"]
        assert all(machine["instructions"].values())
        assert machine["cores"] >= 1
        assert {"torch", "numba", "numpy"} <= set(machine["versions"])
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", machine["date"])


class TestTables:
    def test_numbers_have_two_decimals_and_nothing_is_a_dash(self):
        text = str(report.Table(("name", "value"), [("a", 1.0), ("long name", None), ("b", 22.5)]))
        assert [line.split()[-1] for line in text.splitlines()[2:]] == ["1.00", "–", "22.50"]

    def test_a_page_folds_long_tables(self):
        table = report.Table(("n",), [(i,) for i in range(11)])
        before, after = table._repr_html_().split("<details>")
        assert (before.count("<td"), after.count("<td")) == (8, 3)
        assert "3 more rows" in after
        assert "其余 3 行" in after
        assert "<details>" not in report.Table(("n",), [(1,)])._repr_html_()

    @pytest.mark.parametrize(("value", "text"), [(2.0, "2 s"), (0.01234, "12.3 ms"), (5e-6, "5 µs"), (7e-9, "7 ns")])
    def test_seconds(self, value, text):
        assert report.seconds(value) == text

    def test_the_headline_is_made_of_the_record(self):
        found = []
        for mode, ours in (("forward", 1.0), ("backward", 0.5), ("full", 4.0)):
            for layout in ("NCHW", "NHWC"):
                fields = {"mode": mode, "layout": layout, "threads": 2}
                found += [measured(BASELINE, (2.0,), **fields), measured(samples=(ours,), **fields)]
        sentence = report.headline(recorded(*found))
        assert "2.0 times as fast as the native op in the forward pass, 4.0 times in the backward pass" in sentence.en
        assert "slower in 2 of 6 measurements" in sentence.en
        assert "前向速度是原生算子的 2.0 倍，反向是 4.0 倍" in sentence.zh
        assert "在 6 次测量中，有 2 次更慢" in sentence.zh


class TestCommand:
    def test_runs_and_saves(self, tmp_path):
        path = tmp_path / "record.json"
        process = subprocess.run(
            [
                *(sys.executable, "-m", "numba_pool.benchmark", "--quick", "--cases", "^call 8", "--dtypes", "float32"),
                *("--layouts", "NCHW", "--threads", "1", "--studies", "cases", "--output", path),
            ],
            cwd=PACKAGES,
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stderr
        assert "\x1b" not in process.stderr  # no progress bar; what torch's builds log there is their own
        assert "call 8 to 2, 1×64×8×8 → 2" in process.stdout
        record = Record.load(path)
        assert {(m.mode, m.provider) for m in record.measurements} >= {
            (mode, provider) for mode in MODES for provider in (BASELINE, OURS)
        }
        assert all(len(m.samples) >= 3 for m in record.measurements)
        assert record.machine["commit"] is None or len(record.machine["commit"]) >= 12

    def test_reads_a_record_back(self, tmp_path, capsys):
        path = tmp_path / "record.json"
        recorded(measured(BASELINE, (2.0,)), measured(samples=(4.0,))).save(path)
        assert command.main(["--read", str(path)]) == 0
        shown = capsys.readouterr().out
        assert "2026-01-01" in shown
        assert "where numba_pool is slower" in shown

    def test_lists_the_cases(self, capsys):
        assert command.main(["--list"]) == 0
        assert len(capsys.readouterr().out.splitlines()) == len(CASES)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--studies", "case"], "'case'; choose from"),
            (["--threads", "0"], "'0'; expected positive whole numbers, such as 1,2"),
            (["compare", "64", "1"], "'64'; expected positive whole numbers, such as 1x64x32x32"),
            (["compare", "1x64xx32", "1"], "'1x64xx32'; expected positive whole numbers"),
            (["--cases", "("], "--cases:"),
        ],
    )
    def test_refuses_what_it_cannot_do(self, arguments, message, capsys):
        with pytest.raises(SystemExit) as stop:
            command.main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err

    def test_compares_one_shape(self, capsys):
        assert command.main(["compare", "1x2x5x5", "3x2", "--layout", "NHWC"]) == 0
        assert "1×2×5×5" in capsys.readouterr().out

    def test_all_studies_are_run_and_each_shows_its_table(self, monkeypatch, capsys):
        monkeypatch.setattr(command, "NEW_SIZES", NEW_SIZES[:1])
        monkeypatch.setattr(studies.measure_new_sizes, "__defaults__", (3,))
        options = ["--quick", "--cases", "^(call 8|14x14|random 1$)", "--layouts", "NCHW,NHWC", "--threads", "1"]
        assert command.main([*options, "--studies", "cases,scaling,random,sizes", "--modes", "forward"]) == 0
        shown = capsys.readouterr().out
        for title in ("cases", "pixels", "random shapes", "sizes that never come again"):
            assert f"\n{title}\n" in shown

    def test_the_thread_series_runs_at_every_count(self):
        options = command.parse(["--studies", "scaling", "--threads", "1", "--modes", "forward", "--layouts", "NCHW"])
        counts = {case.study: threads for _, case, *_, threads in command.plan(options)}
        assert counts["pixels"] == (1,)
        assert counts["threads"][0] == 1
        assert list(counts["threads"]) == sorted(set(counts["threads"]))

    @pytest.mark.parametrize("case", studies.NETWORKS, ids=lambda case: case.name)
    def test_a_network_gives_the_same_gradient_with_either_layer(self, case):
        for mode in ("forward", "full"):
            task = studies.network_task(case, mode, "NHWC", torch.float32, "cpu")
            assert len(studies.measure(task, [NATIVE, PROVIDERS[OURS]], 1, **SHORT)) == 2
            bad = Provider("bad", lambda: lambda input, size: native(input, size) * 1.5)
            with pytest.raises(timing.WrongResult):
                studies.measure(task, [bad], 1, **SHORT)


def test_bandwidth_of_a_copy():
    assert 0.01 < studies.copy_bandwidth("cpu", 2**20) < 10_000


@pytest.mark.slow
def test_first_results_of_fresh_processes():
    empty, filled = studies.first_results(1)
    assert (empty["cache"], filled["cache"]) == ("empty", "filled")
    assert filled["total"] < empty["total"]


class TestPlots:
    @pytest.fixture
    def plots(self):
        pytest.importorskip("matplotlib")
        from numba_pool.benchmark import plots

        return plots

    def test_every_plot_is_drawn_from_a_record(self, plots):
        found = []
        for threads in (1, 2):
            for mode in MODES:
                for layout in ("NCHW", "NHWC"):
                    for study, case in (
                        ("cases", "a"),
                        ("cases", "b"),
                        ("pixels", "q"),
                        ("threads", "t"),
                    ):
                        fields = {"mode": mode, "layout": layout, "study": study, "case": case, "threads": threads}
                        found += [measured(BASELINE, **fields), measured(samples=(0.5, 1.0, 2.0), **fields)]
                        if study in ("cases", "pixels") and mode != "full":
                            found.append(measured(LIMIT, **fields))
        record = recorded(*found)
        figures = [plots.ratios(record, "forward"), plots.overview(record)]
        figures += [plots.bandwidth(record), plots.threads(record)]
        for figure in figures:
            figure.draw_without_rendering()
        labels = [label.get_text() for label in figures[0].axes[0].get_yticklabels()]
        assert labels == ["a, 2×3×7×9 → 3×4", "b, 2×3×7×9 → 3×4"]


class TestCompare:
    def made(self, ours, threads=1):
        samples = {("8×8", mode): {"native": [4.0, 2.0, 4.0], "numba_pool": times} for mode, times in ours.items()}
        return Comparison(("native", "numba_pool"), samples, threads)

    def test_ratios_are_pairwise_and_above_one_where_faster(self):
        made = self.made({"forward": [2.0, 1.0, 4.0], "full": [8.0, 4.0, 8.0]})
        assert (made.ratio(), made.ratio("full"), made.ratio("full", "native", "8×8")) == (2.0, 0.5, 1.0)

    def test_the_sentence_says_what_the_table_shows(self):
        sentence = self.made({"forward": [2.0, 1.0, 4.0], "full": [8.0, 4.0, 8.0]}, 2).sentence
        assert (
            str(sentence)
            == "numba_pool is faster than native in 1 of 2 rows; it is 0.50 to 2.00 times as fast (2 threads)."
        )
        assert (
            "2 行中有 1 行 numba_pool 比原生算子快；速度是后者的 0.50 到 2.00 倍（2 个线程）。"
            in sentence._repr_html_()
        )

    def test_equal_to_two_digits_is_not_faster(self):
        assert "in 0 of 1 rows; it is 1.00 times as fast" in str(self.made({"forward": [3.999, 1.999, 3.999]}).sentence)

    def test_takes_turns_on_every_input_and_mode(self):
        layers = {"native": torch.nn.AdaptiveAvgPool2d(2), "numba_pool": numba_pool.AdaptiveAvgPool2d(2)}
        inputs = {"small": torch.randn(1, 2, 5, 5), "large": torch.randn(1, 2, 9, 9)}
        found = compare(layers, inputs, seconds=0.0)
        assert list(found.samples) == [(name, mode) for name in inputs for mode in ("forward", "full")]
        assert all(len(times["native"]) == len(times["numba_pool"]) >= 5 for times in found.samples.values())
        assert "forward and backward" in str(found)
        assert found._repr_html_().count("<tr>") == 5

    def test_full_computes_the_gradients_of_a_models_parameters(self):
        model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.AdaptiveAvgPool2d(1))
        gradients = bound(model, torch.randn(1, 2, 4, 4), "full")()
        assert [g.shape for g in gradients] == [(1, 2, 4, 4), (3, 2, 1, 1), (3,)]
        assert not bound(model, torch.randn(1, 2, 4, 4), "forward")().requires_grad
