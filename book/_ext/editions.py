"""The book in other languages than English, from the same sources and the message catalogs in book/locale.

Usage: python book/_ext/editions.py build      build the editions into _build/html/LANGUAGE
       python book/_ext/editions.py catalogs   bring the catalogs up to date with the English sources
"""

import io
import json
import re
import sys
from pathlib import Path

import yaml
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po
from docutils import nodes

ROOT = Path(__file__).resolve().parents[2]
LOCALE = ROOT / "book" / "locale"
LANGUAGE = "zh_CN"
TEMPLATES = ROOT / "_build" / "gettext" / "catalogs"

# No dates and no names: they would change with every update, and git knows them.
HEADER = rf"""msgid ""
msgstr ""
"Language: {LANGUAGE}\n"
"MIME-Version: 1.0\n"
"Content-Type: text/plain; charset=utf-8\n"
"Content-Transfer-Encoding: 8bit\n"

"""

CODE_CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
CELL_OPTIONS = re.compile(r"---\n(.*?)^---$", re.MULTILINE | re.DOTALL)


def texts_of_cell(match):
    """Return the figure that a code cell draws, as far as a translator is concerned: its alt text and its caption."""
    header = CELL_OPTIONS.match(match[1])
    options = yaml.safe_load(header[1]).get("mystnb", {}) if header else {}
    alt, figure = options.get("image", {}).get("alt"), options.get("figure", {})
    if not (alt or figure):
        return ""
    lines = ["```{figure} /book/_static/favicon.svg"]
    lines += [f":alt: {json.dumps(alt, ensure_ascii=False)}"] if alt else []
    lines += [f":name: {figure['name']}"] if "name" in figure else []
    return "\n".join([*lines, "", figure.get("caption", ""), "```"])


def drop_code(app, docname, source):
    """Leave nothing to execute, since the catalogs hold prose alone; but keep the texts of figures."""
    source[0] = CODE_CELL.sub(texts_of_cell, source[0])


def keep_english(app, doctree):
    """Keep texts from outside of the book's folder out of the catalogs: docstrings, and the changelog's entries."""
    for node in doctree.findall(nodes.TextElement):
        if node.source and not node.source.startswith(str(ROOT / "book")) and node.parent.parent is not doctree:
            node["translatable"] = False


def write_templates():
    """Write the template of every page's catalog, without executing any page."""
    from jupyter_book.sphinx import build_sphinx

    TEMPLATES.mkdir(parents=True, exist_ok=True)
    settings = {
        "latex_individualpages": False,
        "external_toc_path": str(ROOT / "_toc.yml"),
        "nb_execution_mode": "off",
        "gettext_compact": False,
        "gettext_location": False,
        # Without code, there is nothing that the references to its figures and values could find.
        "suppress_warnings": ["myst", "mystnb", "ref"],
    }
    return build_sphinx(
        ROOT,
        TEMPLATES,
        path_config=ROOT / "_config.yml",
        noconfig=True,
        confoverrides=settings,
        builder="gettext",
        freshenv=True,
        quiet=True,
    )


def catalog_of(page):
    """Return where the catalog of `page` lies."""
    return LOCALE / LANGUAGE / "LC_MESSAGES" / f"{page}.po"


def update_catalogs():
    """Bring every page's catalog up to date: new messages are empty, and changed ones marked as fuzzy."""
    for path in sorted(TEMPLATES.rglob("*.pot")):
        template = read_po(path.open("rb"))
        target = catalog_of(path.relative_to(TEMPLATES).with_suffix("").as_posix())
        catalog = read_po(target.open("rb"), LANGUAGE) if target.exists() else Catalog(LANGUAGE)
        catalog.update(template)
        for message in catalog:
            message.flags -= {"python-format", "python-brace-format"}  # guessed from Markdown's braces
        text = io.BytesIO()
        write_po(text, catalog, width=0, omit_header=True, ignore_obsolete=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(HEADER.encode() + text.getvalue())


def main(command):
    """Do what the command says."""
    if command == "catalogs":
        write_templates()
        update_catalogs()


if __name__ == "__main__":
    main(sys.argv[1])
