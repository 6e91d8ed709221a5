"""The picture to play with: right for all sizes; by mouse, finger and keyboard; with no script; in both languages."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from numba_pool import pooling_windows, reference

from .checker import VIEWS, faults, serve, view

pytestmark = pytest.mark.browser

STATIC = Path(__file__).resolve().parents[2] / "book" / "_static"

PAGE = """<!doctype html>
<html lang="{lang}"><head><meta charset="utf-8"><title>The picture</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="stylesheet" href="windows.css"></head>
<body><main><h1>The picture</h1><figure class="pool-windows" data-sizes="7 7 3 3"></figure></main>
<script src="windows.js"></script></body></html>"""

# Set the four sizes as a reader does, by the sliders.
SET_SIZES = """sizes => document.querySelectorAll(".pool-windows input").forEach((slider, k) => {
    slider.value = sizes[k]; slider.dispatchEvent(new Event("input")); })"""

# For every cell of the table `which` (0: input, 1: output), the cells of the other table that it is connected with.
CONNECTED = """which => {
    const tables = document.querySelectorAll(".pool-windows table");
    return [...tables[which].querySelectorAll("[role=gridcell]")].map(cell => {
        cell.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
        return [...tables[1 - which].querySelectorAll(".connected")].map(e => [+e.dataset.r, +e.dataset.c]); }); }"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("picture")
    for name in ("windows.js", "windows.css"):
        shutil.copy(STATIC / name, folder)
    for lang in ("en", "zh-CN"):
        (folder / f"{lang}.html").write_text(PAGE.format(lang=lang), encoding="utf-8")
    with serve(folder) as address:
        yield address


@pytest.fixture
def page(browser, site, request):
    """Return the English page, in the view given by an indirect parameter, or else the desktop's."""
    with view(browser, getattr(request, "param", "desktop"), site) as context:
        page = context.new_page()
        page.goto(site + "en.html")
        yield page


def cell(page, table, r, c):
    return page.locator(f".pool-windows table >> nth={table}").locator(f"[data-r='{r}'][data-c='{c}']")


def said(page):
    return page.locator(".pool-windows .said p").all_inner_texts()


def block(rows, columns):
    return [[r, c] for r in range(*rows) for c in range(*columns)]


@pytest.mark.parametrize("lang", ["en", "zh-CN"])
@pytest.mark.parametrize("name", VIEWS)
def test_no_faults(browser, site, axe, name, lang):
    with view(browser, name, site) as context:
        assert faults(context, site, f"{lang}.html", axe) == []


@pytest.mark.parametrize("page", VIEWS, indirect=True)
def test_largest_sizes_fit(page):
    page.evaluate(SET_SIZES, [9, 9, 9, 9])
    scroll, inner = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert scroll <= inner


def test_windows_are_those_of_the_package(page):
    for I in range(1, 10):
        for O in range(1, 10):
            page.evaluate(SET_SIZES, [I, 10 - I, O, 10 - O])  # rows and columns differ, so a swap would show
            rows, columns = ([*zip(*pooling_windows(*sizes), strict=True)] for sizes in ((I, O), (10 - I, 10 - O)))
            assert page.evaluate(CONNECTED, 1) == [block(r, c) for r in rows for c in columns]
            rows, columns = ([*zip(*pooling_windows(*sizes), strict=True)] for sizes in ((O, I), (10 - O, 10 - I)))
            assert page.evaluate(CONNECTED, 0) == [block(r, c) for r in rows for c in columns]


@pytest.mark.parametrize("sizes", [(7, 5, 3, 8), (4, 9, 4, 2), (3, 2, 9, 9), (6, 6, 1, 1)])
def test_numbers_are_those_of_the_reference(page, sizes):
    H, W, oH, oW = sizes
    page.evaluate(SET_SIZES, sizes)
    x = np.arange(H * W, dtype=np.float64).reshape(1, 1, H, W)
    means = reference.forward(x, (oH, oW))[0, 0]
    gradient = reference.backward(np.ones((1, 1, oH, oW)), (H, W))[0, 0]
    for oh in range(oH):
        for ow in range(oW):
            cell(page, 1, oh, ow).hover()
            assert float(said(page)[2].split()[-1]) == pytest.approx(means[oh, ow], abs=0.0051)
            assert float(cell(page, 1, oh, ow).inner_text()) == pytest.approx(means[oh, ow], abs=0.051)
    for i in range(H):
        for j in range(W):
            cell(page, 0, i, j).hover()
            assert float(said(page)[2].split()[-1].rstrip(".")) == pytest.approx(gradient[i, j], abs=0.000051)


def test_mouse(page):
    between = "from ⌊{}⌋ = {} up to, not including,"
    cell(page, 1, 0, 2).hover()
    assert said(page) == [
        "y[0, 2] is the mean of the window x[0:3, 4:7]: 3 × 3 = 9 elements.",
        f"Rows {between.format('0·7/3', 0)} ⌈1·7/3⌉ = 3; columns {between.format('2·7/3', 4)} ⌈3·7/3⌉ = 7.",
        "y[0, 2] = (4 + 5 + 6 + … + 20) / 9 = 108 / 9 = 12",
    ]
    cell(page, 0, 2, 3).hover()
    assert said(page) == [
        "x[2, 3] lies in 2 windows, those of y[0:2, 1:2].",
        f"Rows {between.format('2·3/7', 0)} ⌈3·3/7⌉ = 2; columns {between.format('3·3/7', 1)} ⌈4·3/7⌉ = 2.",
        "grad x[2, 3] = g[0, 1]/9 + g[1, 1]/9. With every g = 1 that is ≈ 0.2222.",
    ]


@pytest.mark.parametrize("page", ["phone"], indirect=True)
def test_finger(page):
    cell(page, 0, 6, 6).tap()
    assert said(page)[0] == "x[6, 6] lies in one window, that of y[2:3, 2:3]."
    assert page.locator(".pool-windows .pointed").count() == 1


def test_keyboard(page):
    """Tab goes over the four sliders to the input, then to the output; arrows move inside a grid, up to its border."""
    for _ in range(5):
        page.keyboard.press("Tab")
    assert said(page)[0].startswith("x[0, 0] lies in one window")
    page.keyboard.press("Tab")
    assert said(page)[0].startswith("y[1, 1] ")
    for key, name in [
        ("ArrowRight", "y[1, 2]"),
        ("ArrowRight", "y[1, 2]"),
        ("ArrowDown", "y[2, 2]"),
        ("ArrowDown", "y[2, 2]"),
        ("Home", "y[2, 0]"),
        ("ArrowLeft", "y[2, 0]"),
        ("ArrowUp", "y[1, 0]"),
        ("End", "y[1, 2]"),
    ]:
        page.keyboard.press(key)
        assert said(page)[0].startswith(name)
        assert page.evaluate("document.activeElement.className") == "pointed"
    page.keyboard.press("Shift+Tab")
    assert said(page)[0].startswith("x[0, 0]")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".pool-windows caption").all_inner_texts() == ["Input x, 7 × 7", "Output y, 3 × 2"]


def test_screen_reader(page):
    """The grids have names, their cells rows and columns, and what changes is read out."""
    assert (
        page.get_by_role("grid", name="Input x, 7 × 7").get_by_role("gridcell").count() == 7 * 7 + 1
    )  # and the corner
    assert page.get_by_role("grid", name="Output y, 3 × 3").get_by_role("gridcell").count() == 9 + 1
    assert page.get_by_role("rowheader").count() == 7 + 3
    assert page.get_by_role("slider", name="Output height oH").get_attribute("max") == "9"
    assert page.locator(".said").get_attribute("aria-live") == "polite"


def test_chinese(browser, site):
    with view(browser, "desktop", site) as context:
        page = context.new_page()
        page.goto(site + "zh-CN.html")
        assert page.locator("legend").inner_text() == "尺寸"
        assert said(page)[0] == "y[1, 1] 是窗口 x[2:5, 2:5] 的平均值：3 × 3 = 9 个元素。"
        words = page.locator(".pool-windows").inner_text()
        assert not {"Input", "Output", "Rows", "window"} & set(words.split())


def test_without_script(browser, site):
    with view(browser, "desktop", site, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(site + "en.html")
        assert not page.locator(".pool-windows").is_visible()


def test_print_keeps_the_colors_and_drops_the_sliders(page):
    page.emulate_media(media="print")
    assert not page.locator(".pool-windows fieldset").is_visible()
    color = page.locator(".pointed").evaluate(
        "e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).printColorAdjust]"
    )
    assert color == ["rgb(0, 114, 178)", "exact"]


@pytest.mark.parametrize(("preference", "duration"), [("reduce", "0s"), ("no-preference", "0.1s")])
def test_reduced_motion(page, preference, duration):
    page.emulate_media(reduced_motion=preference)
    assert page.locator(".pointed").evaluate("e => getComputedStyle(e).transitionDuration") == duration
