"""A record in words: tables and sentences for the terminal and for the book."""

from collections import defaultdict
from dataclasses import dataclass
from statistics import geometric_mean, median

from tabulate import tabulate

from .compare import Sentence
from .providers import BASELINE, LIMIT, OURS


@dataclass(frozen=True)
class Table:
    """Rows under headers: plain text in a terminal; on a page HTML, folded after a few rows.

    Parameters
    ----------
    headers : sequence of str
        One for each column.
    rows : list of sequence
        Cells; a float is written with two decimals, None as a dash.
    visible : int
        How many rows a page shows before the fold.
    """

    headers: tuple
    rows: list
    visible: int = 8

    def _write(self, rows, style):
        return tabulate(rows, self.headers, style, floatfmt=".2f", missingval="–")

    def __str__(self):
        return self._write(self.rows, "simple")

    __repr__ = __str__

    def _repr_html_(self):
        shown, folded = self.rows[: self.visible], self.rows[self.visible :]
        text = self._write(shown, "html")
        if folded:
            more = Sentence(f"{len(folded)} more rows", f"其余 {len(folded)} 行").as_html("summary")
            text += f"<details>{more}{self._write(folded, 'html')}</details>"
        return text


@dataclass(frozen=True)
class Group:
    """The ratios of a study's cases in one mode, layout, dtype and number of threads.

    Parameters
    ----------
    mode, layout, dtype : str
        What was timed.
    threads : int
        The number of threads given to torch.
    ratios : list of tuple
        ``(ratio, measurement)``, the smallest ratio first.
    """

    mode: str
    layout: str
    dtype: str
    threads: int
    ratios: list

    @property
    def mean(self):
        """The geometric mean of the ratios."""
        return geometric_mean(ratio for ratio, _ in self.ratios)

    def share_below(self, bound):
        """Return which part of the ratios lies below `bound`."""
        return sum(ratio < bound for ratio, _ in self.ratios) / len(self.ratios)


def summarize(record, study="cases", baseline=BASELINE):
    """Return the `Group` of each mode, layout, dtype and number of threads of a study, in the order of the record."""
    groups = defaultdict(list)
    for m in record.select(provider=OURS, study=study):
        if ratio := record.ratio(m, baseline):
            groups[m.mode, m.layout, m.dtype, m.threads].append((ratio[0], m))
    return [Group(*key, sorted(found, key=lambda pair: pair[0])) for key, found in groups.items()]


def losses(record, baseline=BASELINE, studies=("cases", "network")):
    """Return where numba_pool was slower than a baseline, the worst first: ``(measurement, (median, p20, p80))``.

    Scaling series repeat the cases, so they are not looked at.
    """
    found = [(m, record.ratio(m, baseline)) for m in record.select(provider=OURS, study=studies)]
    return sorted(((m, r) for m, r in found if r is not None and r[0] < 1), key=lambda pair: pair[1][0])


def against_limit(record, smallest=32e6, window=16):
    """Return how many times as long as the least work numba_pool took, the farthest first, as `losses` does.

    Only inputs count that no cache holds, of `smallest` bytes or more, with `window` input elements or more for each
    output element.
    """
    rows = []
    for m in record.select(provider=OURS, study="cases"):
        limit = record.partner(m, LIMIT)
        (_, _, H, W), (oH, oW) = m.input_size, m.output_size
        if limit is not None and limit.bytes_moved >= smallest and window * oH * oW <= H * W:
            rows.append((m, record.ratio(limit, OURS)))
    return sorted(rows, key=lambda pair: -pair[1][0])


def headline(record):
    """Say in one sentence how fast the record found numba_pool to be, and how often it was slower."""
    threads = record.most_threads
    groups = summarize(record)
    kinds = {"mode": "forward", "layout": "NCHW", "dtype": "float32", "threads": threads}

    def mean(**fields):
        wanted = kinds | fields
        return next(g.mean for g in groups if all(getattr(g, name) == value for name, value in wanted.items()))

    timed = len(record.select(study="cases", provider=OURS))
    slower = len(losses(record, studies=("cases",)))
    forward, backward, full = (f"{mean(mode=mode):.1f}" for mode in ("forward", "backward", "full"))
    last = f"{mean(mode='full', layout='NHWC'):.1f}"
    plural = "s" * (threads > 1)
    return Sentence(
        f"On {threads} thread{plural} of this processor, numba_pool is {forward} times as fast as the native op in the "
        f"forward pass, {backward} times in the backward pass and {full} times in both through autograd (NCHW; "
        f"{last} times in channels_last; geometric means, float32); it is slower in {slower} of {timed} "
        f"measurements.",
        f"在这个处理器的 {threads} 个线程上，numba_pool 的前向速度是原生算子的 {forward} 倍，反向是 {backward} 倍，"
        f"经过 autograd 的前向加反向是 {full} 倍（NCHW；通道在后时为 {last} 倍；float32 的几何平均值）；"
        f"在 {timed} 次测量中，有 {slower} 次更慢。",
    )


def seconds(value):
    """Write a time with three digits and a fitting unit."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def about(m):
    """Return the cells that say what was measured."""
    return m.title, m.mode, m.layout, m.dtype, m.threads


def case_table(record, baseline=BASELINE, **fields):
    """Return the table of numba_pool's measurements beside a baseline's, with the ratio and its spread.

    `fields` are what `Record.select` takes.
    """
    rows = []
    for m in record.select(provider=OURS, **fields):
        if ratio := record.ratio(m, baseline):
            times = seconds(record.partner(m, baseline).median), seconds(m.median)
            rows.append((*about(m), *times, m.gbps, ratio[0], f"{ratio[1]:.2f}–{ratio[2]:.2f}"))
    return Table(("case", "mode", "layout", "dtype", "threads", baseline, OURS, "GB/s", "ratio", "20–80 %"), rows)


def summary_table(record, study="cases", baseline=BASELINE):
    """Return the table of `summarize`: geometric means, the worst case, and how many cases are slower."""
    rows = []
    for group in summarize(record, study, baseline):
        worst, m = group.ratios[0]
        slower = sum(ratio < 1 for ratio, _ in group.ratios)
        kind = group.mode, group.layout, group.dtype, group.threads
        rows.append((*kind, group.mean, worst, m.title, f"{slower}/{len(group.ratios)}"))
    return Table(("mode", "layout", "dtype", "threads", "mean", "worst", "worst case", "slower"), rows, 12)


def ratio_table(found, columns=(), ratio="ratio"):
    """Return the table of what `losses` or `against_limit` found.

    `ratio` heads the column of ratios; `columns` are more: pairs of a header and a function of measurement and ratio.
    """
    headers = ("case", "mode", "layout", "dtype", "threads", ratio, "20–80 %", *(name for name, _ in columns))
    rows = [(*about(m), r[0], f"{r[1]:.2f}–{r[2]:.2f}", *(tell(m, r) for _, tell in columns)) for m, r in found]
    return Table(headers, rows)


def spread_table(record, study):
    """Return the table of a study of many shapes: the mean, the median, the worst, and the share of clear losses."""
    rows = []
    for group in summarize(record, study):
        worst, m = group.ratios[0]
        kind = group.mode, group.layout, group.threads, len(group.ratios)
        middle = median(ratio for ratio, _ in group.ratios)
        rows.append((*kind, group.mean, middle, 100 * group.share_below(0.9), worst, m.title))
    headers = ("mode", "layout", "threads", "shapes", "mean", "median", "% below 0.9", "worst", "worst shape")
    return Table(headers, rows)


def sizes_table(record):
    """Return the table of the study of new sizes: each size comes once, so the ratios' spread is over the sizes."""
    rows = []
    for m in record.select(study="sizes", provider=OURS):
        (_, C, *_), ratio = m.input_size, record.ratio(m)
        rows.append((f"{C}×H×W → {m.output_size[0]}", m.mode, m.threads, len(m.samples), *ratio))
    return Table(("case", "mode", "threads", "sizes", "ratio, median", "20 %", "80 %"), rows)


def first_results_table(record):
    """Return the table of the first results of fresh processes, in seconds."""
    columns = ("cache", "threads", "import", "forward", "backward", "total")
    return Table(columns, [tuple(result[name] for name in columns) for result in record.first_results])


def machine_table(machine):
    """Return the table of a record's machine and versions."""
    asks = "asks" if machine["torch_huge_pages"] else "does not ask"
    rows = [
        ("processor", machine["cpu"]),
        *([("GPU", machine["name"])] if machine["name"] else []),
        ("cores", str(machine["cores"])),
        ("compiled for", "Numba {numba}, torch {torch}".format(**machine["instructions"])),
        ("date", machine["date"]),
        ("numba_pool", f"{machine['numba_pool']}, commit {machine['commit']}"),
        *machine["versions"].items(),
        ("threading layer", str(machine["threading_layer"])),
        ("huge pages", f"{machine['huge_pages']}; torch {asks} for them"),
    ]
    return Table(("machine", ""), rows, len(rows))


def describe(record):
    """Return the whole record as text."""
    parts = [machine_table(record.machine)]
    studies = dict.fromkeys(m.study for m in record.measurements)
    for study in studies:
        if study == "sizes":
            parts += ["sizes that never come again", sizes_table(record)]
        elif study == "random":
            parts += ["random shapes", spread_table(record, study)]
        else:
            parts += [study, case_table(record, study=study), summary_table(record, study)]
    if slower := losses(record):
        parts += ["where numba_pool is slower", ratio_table(slower)]
    if far := against_limit(record):
        parts += ["against reading the input, or filling the gradient", ratio_table(far, ratio="times the limit")]
    if record.select(provider="torch.compile"):
        parts += ["against torch.compile", summary_table(record, baseline="torch.compile")]
    if record.first_results:
        parts += ["the first result of a fresh process, in seconds", first_results_table(record)]
    return "\n\n".join(map(str, parts))
