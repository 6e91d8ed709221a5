"""A record in pictures: every function takes a record and returns a figure, and measures nothing.

Colours are from the palette of Okabe and Ito, which colour-blind readers can tell apart; shapes say the same again.
"""

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .providers import BASELINE, LIMIT
from .report import summarize

COLORS = {
    "torch": "#D55E00",
    "torch-compile": "#CC79A7",
    "numba-cpu": "#0072B2",
    "numba-cuda": "#0072B2",
    LIMIT: "#000000",
}
MARKERS = {"torch": "s", "torch-compile": "D", "numba-cpu": "o", "numba-cuda": "o", LIMIT: "_"}
LAYOUT_COLORS = {"NCHW": "#0072B2", "NHWC": "#E69F00", "strided": "#009E73"}
LAYOUT_MARKERS = {"NCHW": "o", "NHWC": "s", "strided": "^"}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def own_provider(record):
    """Return the name of the package's provider in a record."""
    return next(m.provider for m in record.measurements if m.provider.startswith("numba"))


def most_threads(record):
    """Return the largest number of threads in the cases of a record."""
    return max(m.threads for m in record.measurements if m.study in ("cases", "network"))


def ratios(record, mode, baseline=BASELINE, dtype="float32", threads=None, layouts=("NCHW", "NHWC")):
    """Draw how many times as fast as a baseline every case was, the slowest at the bottom.

    Parameters
    ----------
    record : Record
        A run.
    mode, baseline, dtype : str
        What to draw.
    threads : int, optional
        By default the most of the record.
    layouts : tuple of str
        Each gets a colour and a shape.

    Returns
    -------
    matplotlib.figure.Figure
        One row for each case; a line from the 20th to the 80th percentile lies under each mark.
    """
    provider, threads = own_provider(record), threads or most_threads(record)
    points: dict[str, dict[str, tuple[float, ...]]] = {}
    for m in record.select(
        study="cases", provider=provider, mode=mode, dtype=dtype, threads=threads, layout=tuple(layouts)
    ):
        if ratio := record.ratio(m, baseline):
            points.setdefault(m.case, {})[m.layout] = ratio
    names = sorted(points, key=lambda name: min(ratio[0] for ratio in points[name].values()))
    figure = Figure(figsize=(7, 1.2 + 0.19 * len(names)), layout="constrained")
    axes = figure.subplots()
    for layout in layouts:
        rows = [(i, points[name][layout]) for i, name in enumerate(names) if layout in points[name]]
        if not rows:
            continue
        color = LAYOUT_COLORS[layout]
        axes.hlines(
            [i for i, _ in rows], [r[1] for _, r in rows], [r[2] for _, r in rows], color=color, lw=2, alpha=0.5
        )
        axes.plot(
            [r[0] for _, r in rows], [i for i, _ in rows], LAYOUT_MARKERS[layout], color=color, ms=4.5, label=layout
        )
    axes.axvline(1, color="black", lw=1)
    axes.set_yticks(range(len(names)), names, fontsize=7.5)
    axes.set_ylim(-0.8, len(names) - 0.2)
    ratio_axis(axes.xaxis, axes.set_xscale)
    axes.set_xlabel(f"times as fast as {baseline} ({mode}, {dtype}, {threads} thread{'s' if threads > 1 else ''})")
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.legend(loc="lower right")
    return figure


def overview(record):
    """Draw the summary: for every group of cases the geometric mean of the ratios and the worst of them."""
    provider = own_provider(record)
    studies = [study for study in ("cases", "network") if record.select(study=study)]
    rows = [
        (f"{study + ', ' if study != 'cases' else ''}{r['mode']}, {r['layout']}, {r['dtype']}, {r['threads']} thr.", r)
        for study in studies
        for r in summarize(record, provider, study=study)
    ][::-1]
    figure = Figure(figsize=(7, 1.2 + 0.2 * len(rows)), layout="constrained")
    axes = figure.subplots()
    height = range(len(rows))
    axes.hlines(height, [r["worst"] for _, r in rows], [r["mean"] for _, r in rows], color="#bbbbbb", lw=2)
    axes.plot([r["mean"] for _, r in rows], height, "o", color="#0072B2", label="geometric mean")
    axes.plot([r["worst"] for _, r in rows], height, "s", color="#D55E00", ms=4, label="worst case")
    axes.axvline(1, color="black", lw=1)
    axes.set_yticks(height, [name for name, _ in rows], fontsize=7.5)
    ratio_axis(axes.xaxis, axes.set_xscale)
    axes.set_xlabel(f"{provider}: times as fast as {BASELINE}")
    axes.grid(axis="x", color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


def bandwidth(record, mode, layout="NCHW", dtype="float32", threads=None):
    """Draw gigabytes a second against the bytes that must be moved, with the limit beside the providers.

    Parameters
    ----------
    record : Record
        A run.
    mode, layout, dtype : str
        What to draw.
    threads : int, optional
        By default the most of the record.

    Returns
    -------
    matplotlib.figure.Figure
        One mark for each case and provider.
    """
    threads = threads or most_threads(record)
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for provider in (BASELINE, own_provider(record), LIMIT):
        found = record.select(study="cases", provider=provider, mode=mode, layout=layout, dtype=dtype, threads=threads)
        what = {"forward": "reading the input", "backward": "filling the gradient"}.get(mode)
        label = what if provider == LIMIT else provider
        found.sort(key=lambda m: m.bytes_moved)
        axes.plot(
            [m.bytes_moved for m in found],
            [m.gbps for m in found],
            MARKERS[provider],
            color=COLORS[provider],
            ms=9 if provider == LIMIT else 5,
            mew=2 if provider == LIMIT else 1,
            label=label,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: byte_name(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("bytes to read and to write")
    axes.set_ylabel("gigabytes a second")
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.legend()
    return figure


def scaling(record, study, layout="NCHW"):
    """Draw a scaling series: time against planes or pixels, or the gain from more threads.

    Parameters
    ----------
    record : Record
        A run with the studies of scaling.
    study : str
        ``"planes"``, ``"pixels"`` or ``"threads"``.
    layout : str
        The memory order.

    Returns
    -------
    matplotlib.figure.Figure
        Forward and backward side by side.
    """
    figure = Figure(figsize=(7, 3.4), layout="constrained")
    for axes, mode in zip(figure.subplots(1, 2, sharey=True), ("forward", "backward"), strict=True):
        found = record.select(study=study, mode=mode, layout=layout)
        if study == "threads":
            draw_threads(axes, record, found)
        else:
            draw_sizes(axes, record, found, study)
        axes.set_title(mode, fontsize=10)
        axes.grid(color="#dddddd", lw=0.6)
        axes.set_axisbelow(True)
        axes.legend(fontsize=8)
    return figure


def draw_sizes(axes, record, found, study):
    """Draw time against size, with a line of slope one through the largest case: linear growth runs along it."""
    threads = max(m.threads for m in found)

    def size(m):
        return m.input_size[1] if study == "planes" else m.input_size[2] * m.input_size[3]

    for provider in (BASELINE, own_provider(record)):
        line = sorted((size(m), m.median * 1e6) for m in found if m.provider == provider and m.threads == threads)
        xs, ys = zip(*line, strict=True)
        axes.plot(xs, ys, MARKERS[provider] + "-", color=COLORS[provider], ms=5, label=provider)
    axes.plot(xs, [ys[-1] * x / xs[-1] for x in xs], ":", color="black", lw=1, label="linear")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_name(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(f"{study} ({threads} thread{'s' if threads > 1 else ''})")
    axes.set_ylabel("microseconds")
    axes.label_outer()


def draw_threads(axes, record, found):
    """Draw the time with one thread over the time with more, for each shape and provider."""
    shapes = list(dict.fromkeys(m.case for m in found))
    for provider in (BASELINE, own_provider(record)):
        for case, style in zip(shapes, ("-", "--"), strict=False):
            line = sorted((m.threads, m.median) for m in found if m.provider == provider and m.case == case)
            xs, ys = zip(*line, strict=True)
            label = f"{provider}, {case}"
            axes.plot(xs, [ys[0] / y for y in ys], MARKERS[provider] + style, color=COLORS[provider], ms=5, label=label)
    counts = sorted({m.threads for m in found})
    axes.plot(counts, counts, ":", color="black", lw=1, label="linear")
    axes.set_xticks(counts)
    axes.set_xlabel("threads")
    axes.set_ylabel("times as fast as with one thread")
    axes.label_outer()


def ratio_axis(axis, set_scale):
    """Give a logarithmic axis of ratios readable ticks."""
    set_scale("log")
    axis.set_major_locator(FixedLocator(TICKS))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))


def byte_name(value):
    """Write a number of bytes as ``64 kB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def count_name(value):
    """Write a count as ``64 k``."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g}"
