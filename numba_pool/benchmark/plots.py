"""A record in pictures: every function takes a record and returns a figure, and measures nothing.

Colors are from the palette of Okabe and Ito, which color-blind readers can tell apart; shapes say the same again.
Figures are transparent, and their lines and letters gray, to be read on a light page and on a dark one.
"""

from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .providers import BASELINE, LIMIT, OURS
from .report import summarize

GRAY = "#808080"
# What figures of the book's chapters share, and what those below add to it.
STYLE: Any = {
    **dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none"),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), GRAY),
    "legend.frameon": False,
}
GRID: Any = {
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRAY,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "svg.fonttype": "none",
}
COLORS = {BASELINE: "#D55E00", "torch.compile": "#CC79A7", OURS: "#0072B2", LIMIT: GRAY}
MARKERS = {BASELINE: "s", "torch.compile": "D", OURS: "o", LIMIT: "_"}
LAYOUTS = {"NCHW": ("#0072B2", "o"), "NHWC": ("#E69F00", "s")}
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)


@rc_context(STYLE | GRID)
def overview(record):
    """Draw the geometric mean and the worst case of the ratios: a panel for each layout, a row for mode and type."""
    groups = [g for g in summarize(record) if g.threads == record.most_threads]
    names = list(dict.fromkeys(f"{g.dtype}, {g.mode}" for g in groups if g.layout in LAYOUTS))[::-1]
    figure = Figure(figsize=(7, 1.2 + 0.24 * len(names)), layout="constrained")
    for axes, layout in zip(figure.subplots(1, 2, sharey=True), LAYOUTS, strict=True):
        for group in groups:
            if group.layout == layout:
                y, worst = names.index(f"{group.dtype}, {group.mode}"), group.ratios[0][0]
                axes.hlines(y, worst, group.mean, color=GRAY, lw=1.5, alpha=0.6)
                axes.plot(group.mean, y, "o", color=COLORS[OURS], label="geometric mean")
                axes.plot(worst, y, "s", color=COLORS[BASELINE], ms=4, label="worst case")
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_title(layout)
        mark_ratios(axes, f"times as fast as {BASELINE}")
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles, loc="outside upper center", ncols=2)
    return figure


@rc_context(STYLE | GRID)
def ratios(record, mode, names=None, baseline=BASELINE, dtype="float32"):
    """Draw the ratio of every case, or of those in `names`; a line runs from the 20th to the 80th percentile."""
    points: dict[str, dict[str, tuple[float, ...]]] = {}
    how = {"mode": mode, "dtype": dtype, "threads": record.most_threads, "layout": tuple(LAYOUTS)}
    for m in record.select(study="cases", provider=OURS, **how):
        if (names is None or m.case in names) and (ratio := record.ratio(m, baseline)):
            points.setdefault(m.title, {})[m.layout] = ratio
    titles = sorted(points, key=lambda title: min(ratio[0] for ratio in points[title].values()))
    figure = Figure(figsize=(7, 1.1 + 0.22 * len(titles)), layout="constrained")
    axes = figure.subplots()
    for layout, (color, marker) in LAYOUTS.items():
        rows = [(y, points[title][layout]) for y, title in enumerate(titles) if layout in points[title]]
        axes.hlines(
            [y for y, _ in rows], [r[1] for _, r in rows], [r[2] for _, r in rows], color=color, lw=2, alpha=0.5
        )
        axes.plot([r[0] for _, r in rows], [y for y, _ in rows], marker, color=color, ms=5, label=layout)
    axes.set_yticks(range(len(titles)), titles, fontsize=8)
    mark_ratios(axes, f"times as fast as {baseline} ({mode}, {dtype}, {how['threads']} threads)")
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@rc_context(STYLE | GRID)
def bandwidth(record, study="pixels", layout="NCHW"):
    """Draw gigabytes a second against the bytes of the input: native, numba_pool, and the limit of the memory."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    for axes, mode in zip(figure.subplots(1, 2, sharey=True), ("forward", "backward"), strict=True):
        for provider in (LIMIT, BASELINE, OURS):
            found = record.select(study=study, provider=provider, mode=mode, layout=layout, threads=record.most_threads)
            found.sort(key=lambda m: m.bytes_moved)
            what = "reading the input" if mode == "forward" else "filling the gradient"
            label, line = (what, "--") if provider == LIMIT else (provider, "-" + MARKERS[provider])
            axes.plot(
                [m.bytes_moved for m in found], [m.gbps for m in found], line, color=COLORS[provider], label=label
            )
        axes.set(xscale="log", yscale="log", title=mode, xlabel="bytes to read and to write")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: byte_name(value)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend(fontsize=8)
    figure.axes[0].set_ylabel("gigabytes a second")
    return figure


@rc_context(STYLE | GRID)
def threads(record, layout="NCHW"):
    """Draw the gain from more threads, for one huge plane and for many planes, beside the ideal."""
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    for axes, mode in zip(figure.subplots(1, 2, sharey=True), ("forward", "backward"), strict=True):
        found = record.select(study="threads", mode=mode, layout=layout)
        counts = sorted({m.threads for m in found})
        axes.plot(counts, counts, ":", color=GRAY, label="ideal")
        for case, line in zip(dict.fromkeys(m.case for m in found), ("-", "--"), strict=False):
            for provider in (BASELINE, OURS):
                times = sorted((m.threads, m.median) for m in found if m.provider == provider and m.case == case)
                gains = [times[0][1] / seconds for _, seconds in times]
                axes.plot(counts, gains, line + MARKERS[provider], color=COLORS[provider], label=f"{provider}, {case}")
        axes.set(title=mode, xlabel="threads", xticks=counts)
    figure.axes[0].set_ylabel("times as fast as with one thread")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def mark_ratios(axes, label):
    """Give a logarithmic axis of ratios readable ticks, and a line at 1."""
    axes.axvline(1, color=GRAY, lw=1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}×"))
    axes.set_xlabel(label)


def byte_name(value):
    """Write a number of bytes as ``64 kB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"
