"""A record in words: tables for the terminal and for the book."""

from collections import defaultdict
from statistics import geometric_mean

from .providers import BASELINE, LIMIT


def summarize(record, provider, baseline=BASELINE, study="cases"):
    """Sum up how many times as fast as a baseline a provider was.

    Parameters
    ----------
    record : Record
        A run.
    provider, baseline : str
        Names of two providers.
    study : str
        The cases to sum up.

    Returns
    -------
    list of dict
        For every mode, layout, dtype and number of threads: ``cases`` (how many), ``mean`` (the geometric mean of the
        median ratios), ``worst`` (the smallest of them), ``worst_case`` (its name) and ``losing`` (the names of the
        cases whose ratio is below 1, the worst first).
    """
    groups = defaultdict(list)
    for measurement in record.select(provider=provider, study=study):
        ratio = record.ratio(measurement, baseline)
        if ratio is not None:
            groups[measurement.group].append((ratio[0], measurement.case))
    rows = []
    for (mode, layout, dtype, threads), found in groups.items():
        found.sort()
        rows.append(
            {
                "mode": mode,
                "layout": layout,
                "dtype": dtype,
                "threads": threads,
                "cases": len(found),
                "mean": geometric_mean(ratio for ratio, _ in found),
                "worst": found[0][0],
                "worst_case": found[0][1],
                "losing": [name for ratio, name in found if ratio < 1],
            }
        )
    return rows


def losses(record, provider, baseline=BASELINE, studies=("cases", "network")):
    """Return the measurements of a provider that were slower than the baseline's, each with its ratio, the worst first.

    Parameters
    ----------
    record : Record
        A run.
    provider, baseline : str
        Names of two providers.
    studies : tuple of str
        Where to look; a scaling series repeats the cases.

    Returns
    -------
    list of tuple
        ``(measurement, (median, p20, p80))``.
    """
    found = [(m, record.ratio(m, baseline)) for m in record.select(provider=provider, study=studies)]
    return sorted(((m, r) for m, r in found if r is not None and r[0] < 1), key=lambda pair: pair[1][0])


def against_limit(record, provider, smallest=32e6, window=16):
    """Return how many times as long as the least work a provider took, on inputs that no cache holds.

    Parameters
    ----------
    record : Record
        A run.
    provider : str
        The name of a provider.
    smallest : float
        The fewest bytes of the input.
    window : float
        The fewest input elements for each output element.

    Returns
    -------
    list of tuple
        ``(measurement, (median, p20, p80))``, the farthest from the limit first.
    """
    rows = []
    for measurement in record.select(provider=provider, study="cases"):
        partner = record.partner(measurement, LIMIT)
        if partner is None or partner.bytes_moved < smallest or window_of(measurement) < window:
            continue
        median, p20, p80 = record.ratio(partner, provider)
        rows.append((measurement, (median, p20, p80)))
    return sorted(rows, key=lambda pair: -pair[1][0])


def window_of(measurement):
    """Return the mean number of input elements for each output element."""
    (_, _, H, W), (oH, oW) = measurement.input_size, measurement.output_size
    return H * W / (oH * oW)


def seconds(value):
    """Write a time with three digits and a fitting unit."""
    for unit, factor in (("s", 1), ("ms", 1e3), ("µs", 1e6)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e9:.3g} ns"


def shape(size):
    """Write ``(8, 64, 56, 56)`` as ``8×64×56×56``."""
    return "×".join(str(n) for n in size)


def table(headers, rows, markdown=False):
    """Write rows under headers: numbers to the right, words to the left.

    Parameters
    ----------
    headers : sequence of str
        One for each column.
    rows : sequence of sequence
        Cells; a float is written with two decimals, None as a dash.
    markdown : bool
        Whether to write a Markdown table.

    Returns
    -------
    str
        The table, without a newline at its end.
    """
    numeric = [
        bool(rows) and all(isinstance(row[i], (int, float)) or row[i] is None for row in rows)
        for i in range(len(headers))
    ]
    cells = [[f"{c:.2f}" if isinstance(c, float) else "–" if c is None else str(c) for c in row] for row in rows]
    least = 3 if markdown else 0  # a column of Markdown needs three dashes
    widths = [max(least, *(len(row[i]) for row in [list(headers), *cells])) for i in range(len(headers))]

    def line(row):
        return [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)]

    if markdown:
        rule = ["-" * (w - 1) + (":" if right else "-") for w, right in zip(widths, numeric, strict=True)]
        return "\n".join("| " + " | ".join(row) + " |" for row in (line(headers), rule, *map(line, cells)))
    return "\n".join("  ".join(row).rstrip() for row in (line(headers), ["-" * w for w in widths], *map(line, cells)))


def case_table(record):
    """Return the table of every measurement: time, bandwidth, and the ratio to the baseline with its spread."""
    rows = []
    for m in record.measurements:
        ratio = record.ratio(m) if m.provider != BASELINE else None
        rows.append(
            (
                m.case,
                shape(m.input_size),
                "×".join(map(str, m.output_size)),
                m.mode,
                m.layout,
                m.dtype,
                m.threads,
                m.provider,
                seconds(m.median),
                m.gbps,
                f"{ratio[0]:.2f} ({ratio[1]:.2f}–{ratio[2]:.2f})" if ratio else None,
            )
        )
    headers = ("case", "input", "output", "mode", "layout", "dtype", "threads", "provider", "time", "GB/s", "× torch")
    return table(headers, rows)


def summary_table(record, provider, baseline=BASELINE, study="cases", markdown=False):
    """Return the table of `summarize`."""
    rows = [
        (
            row["mode"],
            row["layout"],
            row["dtype"],
            row["threads"],
            row["cases"],
            row["mean"],
            row["worst"],
            row["worst_case"],
            len(row["losing"]),
        )
        for row in summarize(record, provider, baseline, study)
    ]
    headers = ("mode", "layout", "dtype", "threads", "cases", "mean", "worst", "worst case", "slower")
    return table(headers, rows, markdown)


def describe(record):
    """Return the whole record as text: the machine, the measurements, summaries, losses, and what was skipped."""
    names = list(dict.fromkeys(m.provider for m in record.measurements))
    own = [name for name in names if name.startswith("numba")]
    others = [name for name in names if name not in (*own, LIMIT)]
    parts = [describe_machine(record.machine), case_table(record)]
    for study in dict.fromkeys(m.study for m in record.measurements):
        for provider in own:
            for baseline in others:
                if summarize(record, provider, baseline, study):
                    title = f"How many times as fast as {baseline} is {provider}? ({study})"
                    parts.append(title + "\n" + summary_table(record, provider, baseline, study))
    for provider in own:
        slower = [(m, baseline, r) for baseline in others for m, r in losses(record, provider, baseline)]
        if slower:
            headers = ("case", "mode", "layout", "dtype", "threads", "against", "ratio", "p20", "p80")
            rows = [(m.case, m.mode, m.layout, m.dtype, m.threads, baseline, *r) for m, baseline, r in slower]
            parts.append(f"Where {provider} is slower\n" + table(headers, rows))
        if far := against_limit(record, provider):
            title = f"{provider} against reading the input, or filling the gradient"
            parts.append(title + "\n" + limit_table(far))
    if record.first_results:
        columns = ("cache", "threads", "import", "forward", "backward", "total")
        rows = [tuple(result[name] for name in columns) for result in record.first_results]
        parts.append("The first result of a fresh process, in seconds\n" + table(columns, rows))
    if record.skipped:
        fields = ("provider", "case", "mode", "layout", "dtype", "reason")
        parts.append("Skipped\n" + table(fields, [[entry[name] for name in fields] for entry in record.skipped]))
    return "\n\n".join(parts)


def limit_table(rows, markdown=False):
    """Return the table of what `against_limit` found."""
    headers = ("case", "mode", "layout", "dtype", "threads", "× limit", "p20", "p80")
    return table(headers, [(m.case, m.mode, m.layout, m.dtype, m.threads, *r) for m, r in rows], markdown)


def describe_machine(machine):
    """Return the machine, the versions and the date of a record in one line."""
    versions = ", ".join(f"{name} {found}" for name, found in machine["versions"].items())
    return (
        f"{machine['name']}, {machine['cores']} cores; {machine['date']}; "
        f"numba_pool {machine['numba_pool']} at commit {machine['commit']}; {versions}; "
        f"threading layer {machine['threading_layer']}, huge pages {machine['huge_pages']}"
    )
