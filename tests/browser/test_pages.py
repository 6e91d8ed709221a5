"""The built book: every page in every view, every link, every download, the search, the picture."""

import html.parser
import re
import urllib.parse

import bs4
import nbformat
import pytest
import yaml

from .checker import CUT_OFF, PAPER, SETTLED, VIEWS, faults, view
from .conftest import HTML, ROOT

pytestmark = pytest.mark.browser

PAGES = sorted(path.relative_to(HTML).as_posix() for path in HTML.rglob("*.html") if "_static" not in path.parts)
if not PAGES:
    pytest.skip(f"needs the built book: make book writes {HTML}", allow_module_level=True)

# Words that the book certainly holds, for each language of it.
WORDS = {"en": ["window", "gradient", "DLPack"], "zh": ["窗口", "池化", "自适应平均池化", "DLPack"]}

# The Chinese words of printed tables, and the names that stay.
WORDS_ZH = yaml.safe_load((ROOT / "book/locale/zh_CN/words.yml").read_text(encoding="utf-8"))

# Words of the reference page that Chinese readers come from, and of their trade: the first hit is the right page.
ANSWERS = {
    "尺寸": "using/any_size",
    "对比": "using/comparison",
    "提示": "using/cnn",
    "函数定义": "intro",
    "参数说明": "reference/api",
    "适用场景": "using/comparison",
    "普通池化": "using/regular",
    "常见问题": "using/faq",
    "使用场景": "intro",
    "特征汇聚": "practice/cam",
    "多尺度": "practice/scales",
    "参数量": "using/cnn",
    "核大小": "using/regular",
    "步长": "using/regular",
    "全局平均池化": "practice/classification",
}

# The editions share their templates, code, pictures and style sheets. So the Chinese pages are opened on the phone,
# where they are tightest, and these in the other views too, with axe.
SAMPLE = {"zh/book/intro.html", "zh/book/how/windows.html", "zh/book/measuring/losses.html", "zh/search.html"}


class Page(html.parser.HTMLParser):
    """What the tests need of a built page: its language, links, places to link to, and whether it has code cells."""

    def __init__(self, path):
        super().__init__()
        self.lang, self.redirect, self.links, self.ids, self.executed = "", "", [], {""}, False
        self.alternates = []
        self.feed((HTML / path).read_text(encoding="utf-8"))
        if path == "index.html":
            self.redirect = "book/intro.html"  # by its script

    def handle_starttag(self, tag, attributes):
        """Take notes of one element."""
        attributes = dict(attributes)
        if tag == "html":
            self.lang = attributes.get("lang", "").partition("-")[0]
        if "hreflang" in attributes:
            self.alternates.append((tag, attributes["hreflang"], attributes["href"]))
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


def opened():
    """Return each page with the views that it is opened in."""
    for path in PAGES:
        if not PARSED[path].redirect:
            for name in VIEWS:
                if PARSED[path].lang == "en" or name == "phone" or path in SAMPLE:
                    yield pytest.param(path, name, id=f"{path}-{name}")


@pytest.mark.slow
@pytest.mark.parametrize(("path", "name"), list(opened()))
def test_page_has_no_faults(browser, book, axe, path, name):
    # The phone shows the desktop's colors, and the editions share their style sheets.
    contrast = name != "phone" and PARSED[path].lang == "en"
    thorough = PARSED[path].lang == "en" or path in SAMPLE
    with view(browser, name, book) as context:
        assert faults(context, book, path, axe if thorough else None, contrast) == []


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


def test_both_editions_are_there():
    assert {content.lang for content in PARSED.values() if not content.redirect} == {"en", "zh"}


@pytest.mark.parametrize("path", [path for path in PAGES if not PARSED[path].redirect])
def test_page_links_to_its_counterpart(path):
    language = "en" if path.startswith("zh/") else "zh-CN"
    other = path.removeprefix("zh/") if path.startswith("zh/") else f"zh/{path}"
    found = {(tag, lang, target(path, link)) for tag, lang, link in PARSED[path].alternates}
    assert found == {("link", language, (other, "")), ("a", language, (other, ""))}
    assert PARSED[other].lang == language[:2]


@pytest.mark.parametrize("name", ["desktop", "phone"])
def test_reader_changes_the_language(browser, book, name):
    with view(browser, name, book) as context:
        page = context.new_page()
        page.goto(f"{book}book/how/windows.html")
        link = page.get_by_role("link", name="中文", exact=True)
        if VIEWS[name][3]:
            link.tap()
        else:
            link.focus()
            page.keyboard.press("Enter")
        page.wait_for_url("**/zh/book/how/windows.html")
        assert page.evaluate("document.documentElement.lang") == "zh-CN"
        assert page.locator("article h1").is_visible()
        page.get_by_role("link", name="English", exact=True).click()
        page.wait_for_url(f"{book}book/how/windows.html")


@pytest.mark.parametrize(
    "path",
    [
        "book/how/cpu_kernel.html",
        "book/how/dlpack.html",
        "book/measuring/cpu.html",
        "zh/book/how/cuda_kernel.html",
    ],
)
def test_page_can_be_printed(browser, book, path):
    with view(browser, "desktop", book) as context:
        page = context.new_page()
        page.set_viewport_size(PAPER)
        page.goto(book + path)
        page.wait_for_function(SETTLED)
        assert page.evaluate(CUT_OFF) != []  # the screen scrolls what the paper cannot
        page.evaluate("dispatchEvent(new Event('beforeprint'))")  # as a browser does
        page.emulate_media(media="print")
        assert page.evaluate(CUT_OFF) == []
        for furniture in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".bd-header-article", ".toggle-button"):
            assert not any(part.is_visible() for part in page.locator(furniture).all()), furniture
        for answer in page.locator(".solution").all():
            assert answer.locator("p, pre").last.is_visible()


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
        page.locator("#search-results p").filter(has_text=re.compile("[.。]")).last.wait_for()
        assert page.locator("#search-results ul.search li").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("word", ANSWERS)
def test_search_leads_to_the_answer(browser, book, word):
    with view(browser, "desktop", book) as context:
        page = context.new_page()
        page.goto(f"{book}zh/search.html?q={urllib.parse.quote(word)}")
        first = page.locator("#search-results ul.search li a").first
        first.wait_for()
        assert f"zh/book/{ANSWERS[word]}.html" in page.evaluate("e => e.href", first.element_handle())


def chinese_pages():
    """Return the pages of the Chinese edition that hold text."""
    return [path for path in PAGES if path.startswith("zh/book/")]


def article(path):
    """Return the text of a page as a tree, without its code and its formulas."""
    tree = bs4.BeautifulSoup((HTML / path).read_text(encoding="utf-8"), "html.parser").article
    for part in tree.select("pre, code, script, style, .math, .colon, dl.py > dt"):
        part.decompose()
    return tree


@pytest.mark.parametrize("path", chinese_pages())
def test_emphasis_is_rendered(path):
    assert re.findall(r".{0,10}\*.{0,10}", article(path).get_text()) == []


@pytest.mark.parametrize("path", chinese_pages())
def test_dots_stand_under_chinese_alone(path):
    han = re.compile("[\u3400-\u9fff]")
    marked = [(bool(han.search(e.get_text())), "han" in e.get("class", [])) for e in article(path).select("em")]
    assert all(chinese == dots for chinese, dots in marked)


@pytest.mark.parametrize("path", [path for path in chinese_pages() if not path.endswith("changelog.html")])
def test_punctuation_is_chinese(path):
    text = " ".join(article(path).get_text().split())
    assert re.findall("[\u3400-\u9fff] ?[,;:?!()] ?[\u3400-\u9fff]", text) == []


def english_words(head):
    """Return the words of a table's head that should be Chinese: all but names and units, which the table lists."""
    words = [word for word in re.split(", |，", head) if re.search("[A-Za-z]", word)]
    return [word for word in words if not re.search("[\u3400-\u9fff]", word) and word not in WORDS_ZH["kept"]]


@pytest.mark.parametrize("path", chinese_pages())
def test_heads_of_tables_are_chinese(path):
    """What is missing belongs in book/locale/zh_CN/words.yml."""
    heads = {" ".join(cell.get_text().split()) for cell in article(path).select("th, thead td")}
    assert {head: words for head in heads if (words := english_words(head))} == {}


def test_english_head_is_noticed():
    assert english_words("ratio, µs") == ["ratio"]
    assert english_words("比值，median") == ["median"]
    assert english_words("原生，µs") == english_words("20–80 %") == english_words("numba_pool, µs") == []


@pytest.mark.parametrize(
    ("languages", "edition"), [("zh-CN", "zh/book/"), ("zh-TW", "zh/book/"), ("en-US", "book/"), ("fr-FR", "book/")]
)
def test_entry_goes_to_the_language_of_the_browser(browser, book, languages, edition):
    with view(browser, "desktop", book, locale=languages) as context:
        page = context.new_page()
        page.goto(book)
        page.wait_for_url(f"{book}{edition}intro.html")


def test_entry_remembers_the_choice(browser, book):
    with view(browser, "desktop", book, locale="zh-CN") as context:
        page = context.new_page()
        page.goto(book)
        page.wait_for_url(f"{book}zh/book/intro.html")
        page.get_by_role("link", name="English", exact=True).click()
        page.wait_for_url(f"{book}book/intro.html")
        page.goto(book)
        page.wait_for_url(f"{book}book/intro.html")


def test_entry_works_from_a_file(browser):
    context = browser.new_context(locale="zh-CN")
    page = context.new_page()
    page.goto((HTML / "index.html").as_uri())
    page.wait_for_url((HTML / "zh/book/intro.html").as_uri())
    context.close()


def test_entry_without_script_offers_both(browser, book):
    with view(browser, "desktop", book, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(book)
        assert page.get_by_role("link").count() == 2


def test_language_changes_at_the_same_place(browser, book):
    with view(browser, "desktop", book) as context:
        page = context.new_page()
        page.goto(f"{book}book/how/windows.html")
        place = page.evaluate("document.querySelectorAll('article section[id]')[2].id")
        page.goto(f"{book}book/how/windows.html#{place}")
        page.get_by_role("link", name="中文", exact=True).click()
        page.wait_for_url(f"{book}zh/book/how/windows.html#{place}")
        assert page.locator(f"section[id='{place}']").count() == 1


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
        cell = cells.and_(page.locator("[data-r='1'][data-c='0']"))
        if VIEWS[name][3]:
            cell.tap()
        else:
            cell.hover()
        assert said.inner_text().startswith("y[1, 0] ")
        cell.focus()
        page.keyboard.press("ArrowUp")
        assert said.inner_text().startswith("y[0, 0] ")


@pytest.mark.parametrize("path", picture_pages())
def test_without_script_a_figure_is_shown(browser, book, path):
    with view(browser, "desktop", book, java_script_enabled=False) as context:
        page = context.new_page()
        page.goto(book + path)
        assert not page.locator(".pool-windows").is_visible()
        assert page.locator("figure img[alt]").last.is_visible()
