"""The checker of pages, held to pages that are broken on purpose: each fault is found, and nothing else."""

import pytest

from .checker import VIEWS, faults, serve, view

pytestmark = pytest.mark.browser

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>A page</title><link rel="icon" href="data:,">
<meta name="viewport" content="width=device-width, initial-scale=1"></head>
<body><main><h1>A page</h1>{}</main></body></html>"""

BROKEN = {
    "<script>console.error('logged')</script>": ["console: logged page.html"],
    "<script>undefined_name</script>": ["page error: undefined_name is not defined"],
    "<img src='missing.png' alt='Nothing'>": [
        "console: Failed to load resource: the server responded with a status of 404 (File not found) missing.png"
    ],
    "<img src='http://elsewhere.invalid/a.png' alt='Nothing'>": [
        "leaves the site: http://elsewhere.invalid/a.png",
        "console: Failed to load resource: net::ERR_FAILED http://elsewhere.invalid/a.png",
    ],
    "<p style='width: 2000px'>Too wide.</p>": ["overflows: 2000 > {width}"],
    "<img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>": ["axe: image-alt at img"],
    "<p style='color: #aaa; background: #fff'>Too pale.</p>": ["axe: color-contrast at p"],
}


@pytest.fixture(scope="module")
def bench(browser, tmp_path_factory):
    """Return a function that gives the faults of a page with the given body, in the given view."""
    folder = tmp_path_factory.mktemp("broken")
    with serve(folder) as site:

        def run(name, body, axe):
            (folder / "page.html").write_text(PAGE.format(body), encoding="utf-8")
            with view(browser, name, site) as context:
                return faults(context, site, "page.html", axe)

        yield run


@pytest.mark.parametrize("name", VIEWS)
def test_good_page_has_no_faults(bench, axe, name):
    assert bench(name, "<p>All is well.</p>", axe) == []


@pytest.mark.parametrize("body", BROKEN)
@pytest.mark.parametrize("name", ["desktop", "phone"])
def test_fault_is_found(bench, axe, name, body):
    found = bench(name, body, axe)
    expected = [line.format(width=VIEWS[name][0]) for line in BROKEN[body]]
    if body.startswith("<p style='width"):  # the text's own margin adds a little
        assert len(found) == 1
        assert found[0].startswith("overflows: 20")
    else:
        assert sorted(found) == sorted(expected)


def test_tables_scroll_on_the_phone_only(bench):
    cell = "<td style='min-width: 2000px'>Wide.</td>"
    table = f"<table style='display: block; overflow-x: auto; max-width: 100%'><tr>{cell}</tr></table>"
    assert bench("desktop", table, None) == ["a table scrolls: Wide."]
    assert bench("phone", table, None) == []
