"""The book's sources keep the rules of the house, and its notebooks read well outside the book."""

import ast
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import numba_pool

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
sys.path.insert(0, str(BOOK / "_ext"))

pytest.importorskip("jupytext", reason="needs the extra `book`")
pytest.importorskip("jupyter_book", reason="needs the extra `book`")
import editions  # noqa: E402
import nbformat  # noqa: E402
import notebooks  # noqa: E402
import yaml  # noqa: E402

PAGES = sorted(path for path in BOOK.rglob("*.md") if not any(part.startswith("_") for part in path.parts))
CHAPTERS = notebooks.chapters()


def name(path):
    """Return the name of a test's page."""
    return path.relative_to(BOOK).with_suffix("").as_posix()


def code_cells(source):
    """Return the code of each cell of a chapter, without IPython's magics."""
    cells = [cell.source for cell in notebooks.notebook(source).cells if cell.cell_type == "code"]
    return ["\n".join(line for line in cell.splitlines() if line[:1] not in "%!") for cell in cells]


def imported(code):
    """Return the dotted names that `code` imports."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# What a chapter takes apart, which nobody should build on.
TAKEN_APART = (
    "numba_pool.cpu.choose",
    "numba_pool.cpu.simd.",
    "numba_pool.cuda.plan.choose",
    "numba_pool.cuda.ptx",
    "numba_pool.dlpack.FLAT_TENSORS",
)


def private(dotted):
    """Tell whether an imported name of the package is none that a reader should use."""
    package, _, rest = dotted.partition(".")
    if dotted.startswith(TAKEN_APART):
        return False
    public = rest.split(".")[0] in {"", "benchmark", *numba_pool.__all__}
    return package == "numba_pool" and not public


def figures_without(source, word):
    """Return the code cells that draw a figure but lack the option `word`, and the figures that lack it."""
    text = source.read_text(encoding="utf-8")
    cells = re.findall(r"^```\{code-cell\}.*\n((?:.*\n)*?)^```$", text, re.MULTILINE)
    figures = re.findall(r"^[`:]{3,}\{(?:figure|image)\}.*\n((?:.*\n)*?)^[`:]{3,}$", text, re.MULTILINE)
    drawn = [cell for cell in cells if "plt.subplots(" in cell or "plt.figure(" in cell]
    return [part for part in drawn + figures if f"{word}:" not in part and f"def {word}" not in part]


def test_every_page_is_in_the_table_of_contents_once():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = re.findall(r"'(?:file|root)': '([^']+)'", repr(toc))
    assert len(set(listed)) == len(listed)
    assert {ROOT / f"{page}.md" for page in listed} == set(PAGES)


@pytest.mark.parametrize("source", CHAPTERS, ids=name)
def test_chapter_imports_public_names_only(source):
    assert [dotted for cell in code_cells(source) for dotted in imported(cell) if private(dotted)] == []


def test_private_import_is_noticed():
    assert private("numba_pool._dispatch.pool")
    assert private("numba_pool.kernels")
    assert private("numba_pool.cpu.runtime")
    assert not private("numba_pool")
    assert not private("numba_pool.AdaptiveAvgPool2d")
    assert not private("numba.njit")


@pytest.mark.parametrize("source", CHAPTERS, ids=name)
def test_figures_have_alt_text_and_caption(source):
    assert figures_without(source, "alt") == []
    assert [part for part in figures_without(source, "caption") if "plt." in part] == []


def test_figure_without_alt_text_is_noticed(tmp_path):
    source = tmp_path / "page.md"
    source.write_text("```{code-cell}\nplt.subplots()\n```\n\n```{figure} x.png\n:name: x\n```\n", encoding="utf-8")
    assert len(figures_without(source, "alt")) == 2


@pytest.mark.parametrize("source", PAGES, ids=name)
def test_one_sentence_a_line(source):
    text = re.sub(
        r"^---\n.*?^---$|^`{3,}.*?^`{3,}$", "", source.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    assert re.findall(r"^(?!- )[^|\n]*[a-z]{2}[.?!] [A-Z][a-z].*$", text, re.MULTILINE) == []


@pytest.mark.parametrize("source", CHAPTERS, ids=name)
def test_code_keeps_the_line_length(source):
    assert [line for cell in code_cells(source) for line in cell.splitlines() if len(line) > 120] == []


@pytest.mark.parametrize("source", CHAPTERS, ids=name)
def test_notebook_reads_outside_the_book(source):
    notebook = notebooks.notebook(source)
    nbformat.validate(notebook)
    prose = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert prose.startswith("# ")
    assert re.findall(r"^(?:`{3,}|:{3,})\{.*|\{[\w:]+\}`.*|^\([\w-]+\)=$", prose, re.MULTILINE) == []
    assert not any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")


def test_folders_list_the_notebooks_in_reading_order():
    first, *others = (target.as_posix() for target in notebooks.targets().values())
    assert first == "00_intro.ipynb"
    assert {"chapters/01_basic.ipynb", "chapters/07_windows.ipynb"} <= set(others)
    numbers = [name.removeprefix("chapters/")[:2] for name in others]
    assert numbers == sorted(numbers)


def test_every_notebook_links_the_next():
    names = [target.name for target in notebooks.targets().values()]
    first, *others, last = (notebooks.notebook(source).cells[-1].source for source in CHAPTERS)
    assert first == f"Next: [{names[1]}](chapters/{names[1]})"
    assert others == [f"Next: [{name}]({name})" for name in names[2:]]
    assert "Next" not in last


def test_links_in_notebooks_lead_to_notebooks():
    text = "[a](../how/windows.md#part) and [`b`](basic.md), [c](../reference/api.md), [d](https://x.org/a.md)"
    expected = "[a](07_windows.ipynb) and [`b`](01_basic.ipynb), c, [d](https://x.org/a.md)"
    assert notebooks.plain(text, BOOK / "using") == expected
    assert notebooks.plain("[a](../intro.md)", BOOK / "using") == "[a](../00_intro.ipynb)"
    assert notebooks.plain("[a](using/basic.md)", BOOK) == "[a](chapters/01_basic.ipynb)"


def prose_words(source):
    """Return how many words a chapter has, without its code."""
    return sum(len(cell.source.split()) for cell in notebooks.notebook(source).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("source", CHAPTERS, ids=name)
def test_no_chapter_is_too_long(source):
    assert prose_words(source) <= 2000


def test_reading_paths_keep_their_minutes():
    page = (BOOK / "intro.md").read_text(encoding="utf-8")
    paths = re.findall(r"^\*\*.+\*\*, (\d+) minutes:\n\n((?:\d+\. .+\n)+)", page, re.MULTILINE)
    assert len(paths) == 3
    for minutes, steps in paths:
        links = [BOOK / link for link in re.findall(r"\(([\w/]+\.md)\)", steps)]
        assert int(minutes) / 2 < sum(map(prose_words, links)) / 200 <= int(minutes), links


def test_directives_become_plain_markdown(tmp_path):
    (tmp_path / "code.py").write_text(
        "import x\n\n\n@x.jit\ndef f():\n    return 1\n\n\ndef g():\n    pass\n", encoding="utf-8"
    )
    markdown = """(label)=
See {func}`~a.b.f`, {doc}`the next page <x>` and {cite}`lin2013`, or [this](other.md#part).

```{note} Title
One line.
```

```{literalinclude} code.py
:pyobject: f
```

```{literalinclude} code.py
:pyobject: f
:start-at: return
:dedent:
```

````{exercise} Name
:label: ex
Do it:
```python
1
```
````

```{solution-end}
```"""
    plain = notebooks.plain(markdown, tmp_path)
    assert plain.startswith("See `f`, the next page and [lin2013], or this.")
    assert "> **Title**\n>\n> One line." in plain
    assert "```python\n@x.jit\ndef f():\n    return 1\n```\n\n```python\nreturn 1\n```" in plain
    assert "**Exercise: Name**\n\nDo it:\n```python\n1\n```" in plain
    assert "{" not in plain
    assert "label" not in plain


def page_of(source):
    """Return the name of a page as the catalogs have it."""
    return source.relative_to(ROOT).with_suffix("").as_posix()


def is_incomplete(message):
    """Tell whether a message of a catalog still needs its translator."""
    return bool(message.id) and (message.fuzzy or not message.string)


def markup(text):
    """Return how often each piece of markup stands in a message, of all that a translation has to keep."""
    pieces = Counter()
    text = re.sub(r":([a-z:]+):(?=`)", r"{\1}", text)  # docstrings are reStructuredText, their translations Markdown
    text = re.sub(r"\{\w+\}`numba_pool\.(?:benchmark\.)?(\w+)`", r"`\1`", text)  # which has a role without a name
    for pattern in (
        r"\{[\w:-]+\}`[^`]*`",  # roles, before code
        r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)",  # code, before formulas
        r"\$[^$]+\$",
        r"\]\([^)]*\)",  # targets of links
        r"<https?:[^>]*>",
    ):
        for match in re.finditer(pattern, text):
            piece = re.sub(r"(?<=`)[^`<]*(?=<[^`]*>`$)", "", match[0])  # the text of a role with a target is translated
            piece = re.sub(r"^\{term\}`([^`<]*)`$", r"{term}`<\1>`", piece)  # whose target can be the text
            pieces[piece] += 1
        text = re.sub(pattern, " ", text)
    return pieces


@pytest.mark.parametrize("source", PAGES, ids=name)
def test_page_is_translated(source):
    catalog = editions.read_catalog(editions.catalog_of(page_of(source)))
    assert [message.id for message in catalog if is_incomplete(message)] == []


@pytest.mark.parametrize("source", PAGES, ids=name)
def test_translation_keeps_the_markup(source):
    translated = editions.messages(page_of(source)).items()
    assert [(ours, theirs) for ours, theirs in translated if markup(ours) != markup(theirs)] == []


def test_lost_markup_is_noticed():
    text = "{cite}`a`, `x`, ``y`z``, $a_1$, [the page](other.md), {doc}`this page <other>`"
    assert sum(markup(text).values()) == 6
    assert markup(text) == markup("[这一页](other.md) `x` ``y`z`` {doc}`本页 <other>` {cite}`a` $a_1$")
    assert markup("{term}`kernel`, {term}`two <kernel>`") == markup("{term}`内核 <kernel>` {term}`两个 <kernel>`")
    assert markup("{term}`kernel`") != markup("{term}`线程 <thread>`")
    for lost in ("`x`", "$a_1$", "(other.md)", "{cite}"):
        assert markup(text) != markup(text.replace(lost, ""))


def test_unfinished_translation_is_noticed():
    message = editions.Catalog().add
    assert is_incomplete(message("one"))
    assert is_incomplete(message("two", "二", flags=["fuzzy"]))
    assert not is_incomplete(message("three", "三"))


@pytest.mark.slow
def test_catalogs_are_up_to_date(tmp_path):
    """What the sources say is what the catalogs translate; if not: make translations."""
    program = "import pathlib, sys, editions; editions.write_templates(pathlib.Path(sys.argv[1]))"
    templates = tmp_path / "templates"
    subprocess.run([sys.executable, "-c", program, templates], cwd=BOOK / "_ext", check=True)
    pages = {path.relative_to(templates).with_suffix("").as_posix(): path for path in templates.rglob("*.pot")}
    assert {page_of(source) for source in PAGES} == set(pages)
    catalogs = editions.LOCALE / editions.LANGUAGE / "LC_MESSAGES"
    assert {path.relative_to(catalogs).with_suffix("").as_posix() for path in catalogs.rglob("*.po")} == set(pages)
    for page, template in pages.items():
        messages = {message.id for message in editions.read_catalog(template)}
        assert {message.id for message in editions.read_catalog(editions.catalog_of(page))} == messages, page


@pytest.mark.parametrize("source", CHAPTERS, ids=name)
def test_notebook_is_translated(source):
    messages = editions.messages(page_of(source))
    notebook = notebooks.notebook(source, messages)
    nbformat.validate(notebook)
    prose = " ".join("\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown").split())
    left = [ours for ours, theirs in messages.items() if len(ours) > 20 and ours in prose and ours not in theirs]
    assert left == []
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    assert code == [cell.source for cell in notebooks.notebook(source).cells if cell.cell_type == "code"]


def test_every_place_of_a_message_is_translated():
    markdown = """# A title

One line,
another $x$ line.

- one item
  of two lines
1. a number

| a cell | a cell |
|---|---|

```{exercise} A name
The text.
```

One line, not this one."""
    messages = {
        "A title": "标题",
        "One line, another $x$ line.": r"一行 $x$ \alpha 另一行。",
        "one item of two lines": "一项",
        "a number": "数字",
        "a cell": "格",
        "A name": "名",
        "The text.": "正文。",
    }
    assert (
        notebooks.translated(markdown, messages)
        == r"""# 标题

一行 $x$ \alpha 另一行。

- 一项
1. 数字

| 格 | 格 |
|---|---|

```{exercise} 名
正文。
```

One line, not this one."""
    )


def test_pins_lie_in_the_ranges_of_the_package():
    requirement = pytest.importorskip("packaging.requirements").Requirement
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = {}
    for line in lines:
        if line := line.partition("#")[0].strip():
            pinned = requirement(line)
            pins[pinned.name] = str(pinned.specifier).removeprefix("==")
    extras = project["optional-dependencies"]
    used = (line for name in ("benchmark", "book", "test", "dev") for line in extras[name])
    for needed in map(requirement, (*project["dependencies"], *used)):
        if needed.name != "numba_pool":
            assert needed.specifier.contains(pins[needed.name]), needed


def test_what_is_claimed_was_tried():
    """The record that `make matrix` writes holds every version of Python, torch, Numba and NumPy that is named."""
    Version = pytest.importorskip("packaging.version").Version
    requirement = pytest.importorskip("packaging.requirements").Requirement
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    runs = json.loads((ROOT / "book/records/versions.json").read_text(encoding="utf-8")).values()
    assert not [run["failed"] for run in runs if run["failed"]]
    tried = {
        name: {Version(run[name].partition("+")[0]) for run in runs} for name in ("python", "torch", "numba", "numpy")
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    pythons = {f"{version.major}.{version.minor}" for version in tried["python"]}
    claimed = re.findall(r"Python :: (3\.\d+)", "\n".join(project["classifiers"]))
    assert set(claimed) == pythons
    assert project["requires-python"] == f">={min(pythons, key=Version)}"
    systems = {run["system"].split()[0] for run in runs}
    claimed = [name for name in project["classifiers"] if name.startswith("Operating System")]
    assert {name.rpartition(" :: ")[2] for name in claimed} == systems

    for dependency in map(requirement, project["dependencies"]):
        (oldest,) = (Version(each.version) for each in dependency.specifier if each.operator == ">=")
        assert oldest in tried[dependency.name], dependency
    pins = dict(re.findall(r"^(torch|numba|numpy)==(\S+)", (ROOT / "requirements.txt").read_text(), re.M))
    assert len(pins) == 3
    assert any(all(run[name].partition("+")[0] == pin for name, pin in pins.items()) for run in runs)
