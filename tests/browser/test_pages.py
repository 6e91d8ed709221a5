"""The built book: every page in every view, every link, every download, the search, the picture."""

import html.parser
import urllib.parse

import nbformat
import pytest

from .checker import VIEWS, faults, view
from .conftest import HTML

pytestmark = pytest.mark.browser

PAGES = sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html") if "_static" not in path.parts)
if not PAGES:
    pytest.skip(f"needs the built book: make book writes {HTML}", allow_module_level=True)

# Words that the book certainly holds, for each language of it.
WORDS = {"en": ["window", "gradient", "DLPack"], "zh": ["窗口", "梯度", "DLPack"]}


class Page(html.parser.HTMLParser):
    """What the tests need of a built page: its language, links, places to link to, and whether it has code cells."""

    def __init__(self, path):
        super().__init__()
        self.lang, self.redirect, self.links, self.ids, self.executed = "", "", [], {""}, False
        self.feed((HTML / path).read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        """Take notes of one element."""
        attributes = dict(attributes)
        if tag == "html":
            self.lang = attributes.get("lang", "").partition("-")[0]
        self.links += [attributes[name] for name in ("href", "src") if attributes.get(name)]
        if tag == "meta" and attributes.get("http-equiv", "").lower() == "refresh":
            self.redirect = attributes["content"].partition("url=")[2]
            self.links.append(self.redirect)
        self.ids.add(attributes.get("id", ""))
        self.executed |= "cell_input" in (attributes.get("class") or "").split()


PARSED = {path: Page(path) for path in PAGES}


def target(page, link):
    """Return the path and the fragment that `link` on `page` leads to, or None if it leads out of the site."""
    parts = urllib.parse.urlsplit(urllib.parse.urljoin(f"http://site/{page}", link))
    return (urllib.parse.unquote(parts.path).lstrip("/"), parts.fragment) if parts.netloc == "site" else None


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("path", [path for path in PAGES if not PARSED[path].redirect])
def test_page_has_no_faults(browser, book, axe, path, name):
    # The phone shows the desktop's colors, and the editions share their style sheets.
    contrast = name != "phone" and PARSED[path].lang == "en"
    with view(browser, name, book) as context:
        assert faults(context, book, path, axe, contrast) == []


def test_links_lead_somewhere():
    inner, lost = 0, []
    for page, content in PARSED.items():
        for link in content.links:
            if found := target(page, link):
                path, fragment = found
                inner += 1
                if not (HTML / path).is_file():
                    lost.append(f"{page}: {link}")
                elif path in PARSED and urllib.parse.unquote(fragment) not in PARSED[path].ids:
                    lost.append(f"{page}: no such place: {link}")
    assert inner > 0
    assert lost == []


def test_every_executed_page_offers_its_notebook():
    offered = 0
    for page, content in PARSED.items():
        if not content.executed:
            continue
        links = {link for link in content.links if link.endswith(".ipynb") and target(page, link)}
        assert len(links) == 1, f"{page} offers {links}"
        notebook = nbformat.read(HTML / target(page, links.pop())[0], as_version=4)
        nbformat.validate(notebook)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert code
        assert not any(cell.outputs for cell in code)
        offered += 1
    assert offered > 0


def search_pages():
    """Return the search page of each language's edition."""
    return [path for path in PAGES if path.rpartition("/")[2] == "search.html"]


@pytest.mark.parametrize("path", search_pages())
def test_search_finds_words(browser, book, path):
    with view(browser, "desktop", book) as context:
        page = context.new_page()
        for word in WORDS[PARSED[path].lang]:
            page.goto(f"{book}{path}?q={urllib.parse.quote(word)}")
            hits = page.locator("#search-results ul.search li a")
            hits.first.wait_for()
            hits.first.click()
            assert word.lower() in page.locator("article").inner_text().lower()
        page.goto(f"{book}{path}?q=xyzzyqux")
        page.locator("#search-results p").filter(has_text=".").last.wait_for()
        assert page.locator("#search-results ul.search li").count() == 0


def picture_pages():
    """Return the pages that hold the picture to play with."""
    return [path for path in PAGES if 'class="pool-windows"' in (HTML / path).read_text(encoding="utf-8")]


def test_the_book_holds_the_picture():
    assert picture_pages()


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("path", picture_pages())
def test_picture_reacts(browser, book, path, name):
    with view(browser, name, book) as context:
        page = context.new_page()
        page.goto(book + path)
        said = page.locator(".pool-windows .said")
        cells = page.locator(".pool-windows table >> nth=1").get_by_role("gridcell")
        cell = cells.and_(page.locator("[data-r='2'][data-c='0']"))
        if VIEWS[name][3]:
            cell.tap()
        else:
            cell.hover()
        assert said.inner_text().startswith("y[2, 0] ")
        cell.focus()
        page.keyboard.press("ArrowUp")
        assert said.inner_text().startswith("y[1, 0] ")


@pytest.mark.parametrize("path", picture_pages())
def test_without_script_a_figure_is_shown(browser, book, path):
    with view(browser, "desktop", book, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(book + path)
        assert not page.locator(".pool-windows").is_visible()
        assert page.locator("figure img[alt]").last.is_visible()
