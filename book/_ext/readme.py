"""Write what the two READMEs show of the package: the table from the record, and the picture of the windows.

Usage: python book/_ext/readme.py
"""

import re
from pathlib import Path

from numba_pool import pooling_windows
from numba_pool.benchmark.records import Record
from numba_pool.benchmark.report import seconds

ROOT = Path(__file__).resolve().parents[2]
RECORD = ROOT / "book" / "records" / "cpu.json"

# What each row stands for, in both languages.
CASES = {
    "doc 32 to 2": ("a small call", "小调用"),
    "resnet50 head": ("the head of ResNet-50, a batch", "ResNet-50 的分类头，一个批次"),
    "pyramid 60 to 6": ("pyramid pooling", "金字塔池化"),
    "picture to 224": ("two photographs", "两张照片"),
}
HEADERS = {
    "README.md": ("shape", "native", "numba_pool", "ratio"),
    "README.zh.md": ("形状", "原生", "numba_pool", "比值"),
}
NOTES = {
    "README.md": (
        "Forward and backward through autograd, float32, contiguous, medians; {cores} cores of {name}, "
        "torch {torch}, {date}. A ratio is native's time over numba_pool's. Only the CPU was timed."
    ),
    "README.zh.md": (
        "前向加反向（经过 autograd），float32，连续张量，中位数；{name} 的 {cores} 个核心，torch {torch}，{date}。"
        "比值是原生层的耗时除以 numba_pool 的耗时。只在 CPU 上计过时。"
    ),
}
PLACE = re.compile(r"(?<=<!-- the table of book/_ext/readme\.py -->\n\n).*?(?=\n\n<!-- its end -->)", re.DOTALL)

THEMES = {"light": ("#1f2328", "#8c959f"), "dark": ("#e6edf3", "#7d8590")}
BLUE, ORANGE = "#0072b2", "#e69f00"


def rows(record):
    """Return for each case its measurement, in the way that a training step pools: with the most threads."""
    for case in CASES:
        (found,) = record.select(
            study="cases",
            provider="numba_pool",
            case=case,
            mode="full",
            layout="NCHW",
            dtype="float32",
            threads=record.most_threads,
        )
        yield found


def table(record, name):
    """Return the table for the README file `name`, with the note on what was timed where.

    The ratio is the median of the rounds' ratios, which need not be the ratio of the medians.
    """
    lines = ["| " + " | ".join(HEADERS[name]) + " |", "|---|--:|--:|--:|"]
    for m in rows(record):
        shape = " × ".join(map(str, m.input_size)) + " → " + " × ".join(map(str, m.output_size))
        what = CASES[m.case][name == "README.zh.md"]
        title = f"{what}（{shape}）" if name == "README.zh.md" else f"{what}, {shape}"
        times = seconds(record.partner(m).median), seconds(m.median)
        lines.append(f"| {title} | {' | '.join(times)} | {record.ratio(m)[0]:.2f} |")
    machine = record.machine
    note = NOTES[name].format(
        cores=machine["cores"],
        name=machine["cpu"].partition(", L1d")[0],
        torch=machine["versions"]["torch"],
        date=machine["date"][:10],
    )
    return "\n".join(lines) + f"\n\n{note}"


def picture(theme):
    """Return an SVG of six rows and eight columns that are pooled to two rows and three columns."""
    text, line = THEMES[theme]
    (H, W), (oH, oW), cell = (6, 8), (2, 3), 34
    tops, bottoms = pooling_windows(H, oH)
    lefts, rights = pooling_windows(W, oW)
    parts = [
        (
            '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 256" width="640" height="256" role="img" '
            'font-family="system-ui, sans-serif" font-size="14" text-anchor="middle">'
        ),
        f"<title>AdaptiveAvgPool2d(({oH}, {oW})): {H} × {W} to {oH} × {oW}</title>",
    ]

    def square(x, y, size, value, fill="none", ink=text):
        parts.append(
            f'<rect x="{x}" y="{y}" width="{size}" height="{size}" fill="{fill}" stroke="{line}"/>'
            f'<text x="{x + size / 2:g}" y="{y + size / 2 + 5:g}" fill="{ink}">{value:g}</text>'
        )

    x0, y0 = 10, 36
    for r in range(H):
        for c in range(W):
            first = r < bottoms[0] and c < rights[0]
            square(x0 + cell * c, y0 + cell * r, cell, W * r + c, *((BLUE, "#ffffff") if first else ()))
    # The second window, which overlaps the first one by a column.
    parts.append(
        f'<rect x="{x0 + cell * int(lefts[1])}" y="{y0}" width="{cell * int(rights[1] - lefts[1])}" '
        f'height="{cell * int(bottoms[0])}" fill="none" stroke="{ORANGE}" stroke-width="4"/>'
    )
    x1, y1, wide = 430, 70, 64
    for i in range(oH):
        for j in range(oW):
            values = [W * r + c for r in range(tops[i], bottoms[i]) for c in range(lefts[j], rights[j])]
            colors = (BLUE, "#ffffff") if (i, j) == (0, 0) else ()
            square(x1 + wide * j, y1 + wide * i, wide, sum(values) / len(values), *colors)
    parts.append(
        f'<rect x="{x1 + wide}" y="{y1}" width="{wide}" height="{wide}" fill="none" stroke="{ORANGE}" '
        'stroke-width="4"/>'
    )
    middle = (x0 + cell * W + x1) / 2
    parts += [
        f'<path d="M{middle - 45:g} 134h80m-10 -7l12 7l-12 7" fill="none" stroke="{text}" stroke-width="2"/>',
        f'<text x="{middle:g}" y="120" fill="{text}">mean of</text>',
        f'<text x="{middle:g}" y="160" fill="{text}">each window</text>',
        f'<text x="{x0 + cell * W / 2:g}" y="24" fill="{text}">input {H} × {W}</text>',
        f'<text x="{x1 + wide * oW / 2:g}" y="58" fill="{text}">output {oH} × {oW}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def picture_path(theme):
    """Return the file of the picture for the light or the dark `theme`."""
    return ROOT / "book" / "_static" / f"readme-windows-{theme}.svg"


def main():
    """Write the pictures, and the table into both READMEs."""
    for theme in THEMES:
        picture_path(theme).write_text(picture(theme), encoding="utf-8")
    record = Record.load(RECORD)
    for name in HEADERS:
        text = (ROOT / name).read_text(encoding="utf-8")
        new, count = PLACE.subn(table(record, name).replace("\\", r"\\"), text)
        if count != 1:
            raise ValueError(f"{name} has {count} places for the table")
        (ROOT / name).write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
