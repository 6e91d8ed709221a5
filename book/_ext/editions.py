"""The book's Chinese edition, made from the English sources and the catalogs of messages in book/locale.

Usage: python book/_ext/editions.py build      build the edition into _build/html/zh
       python book/_ext/editions.py catalogs   bring the catalogs up to date with the English sources
"""

import functools
import io
import json
import re
import shutil
import sys
from pathlib import Path

import comments
import execution
import notebooks
import yaml
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po
from docutils import nodes
from sphinx.transforms import SphinxTransform
from sphinx.util import logging
from sphinx.util.nodes import extract_messages
from sphinx_exercise.nodes import exercise_subtitle, solution_node, solution_start_node

logger = logging.getLogger(__name__)

ROOT = notebooks.ROOT
LOCALE = ROOT / "book" / "locale"
LANGUAGE = "zh_CN"
COMMENTS = LOCALE / LANGUAGE / "comments.po"
TEMPLATES = ROOT / "_build" / "gettext" / "catalogs"
EDITION = ROOT / "_build" / "html" / "zh"

# What the Chinese edition's settings are, where they differ from _config.yml.
CHINESE = {
    "language": LANGUAGE,
    "locale_dirs": ["book/locale"],
    "gettext_compact": False,
    "html_title": "用 Numba 实现自适应平均池化",
    "author": "numba_pool 作者",
    "has_other_edition": True,
    "html_theme_options": {"search_bar_text": "搜索本书……"},
    "html_js_files": ["a11y.js", "edition.js", "zh.js"],
    "html_search_options": {"dict": str(ROOT / "book" / "_ext" / "words_zh.txt")},
    "nb_code_prompt_show": "显示代码",
    "nb_code_prompt_hide": "隐藏代码",
    "togglebutton_hint": "点击显示",
    "togglebutton_hint_hide": "点击隐藏",
}

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


class TranslateExercises(SphinxTransform):
    """Let the titles of exercises be translated, which sphinx-exercise makes without a source; name the solutions."""

    default_priority = 5  # before the translation

    def apply(self):
        """Change the document's nodes."""
        for title in list(self.document.findall(exercise_subtitle)):
            title.rawsource = title.astext()
            title.source, title.line = self.document["source"], 0
            if self.app.builder.name == "gettext":  # which sees the exercise only after the title was merged into it
                exercise = title.parent.parent
                copy = nodes.paragraph(title.rawsource, title.rawsource)
                copy.source, copy.line = title.source, title.line
                exercise.parent.insert(exercise.parent.index(exercise), copy)
        if self.config.language == LANGUAGE:
            for kind in (solution_node, solution_start_node):
                for solution in self.document.findall(kind):
                    solution["title"] = notebooks.WORDS["Solution"]


def drop_code(app, docname, source):
    """Leave nothing to execute, since the catalogs hold prose alone; but keep the texts of figures."""
    source[0] = CODE_CELL.sub(texts_of_cell, source[0])


def keep_english(app, doctree):
    """Keep formulas out of the catalogs, the changelog, and the names and types that docstrings are made of."""
    for node in doctree.findall(nodes.TextElement):
        source = node.source or ""
        changelog = source.startswith(str(ROOT / "CHANGELOG")) and node.parent.parent is not doctree
        name = isinstance(node, nodes.term | nodes.classifier) and source.startswith(str(ROOT / "numba_pool"))
        if isinstance(node, nodes.math_block) or changelog or name:
            node["translatable"] = False


def build_sphinx(folder, builder, strict, settings):
    """Build the book of _config.yml into `folder`, with other `settings`; end the program if that fails."""
    from jupyter_book.sphinx import build_sphinx

    common = {"latex_individualpages": False, "external_toc_path": str(ROOT / "_toc.yml"), "nitpicky": strict}
    result = build_sphinx(
        ROOT,
        folder,
        path_config=ROOT / "_config.yml",
        noconfig=True,
        confoverrides=common | settings,
        builder=builder,
        freshenv=not strict,
        quiet=not strict,
        warningiserror=strict,
        keep_going=True,
    )
    if result:
        sys.exit(f"Building the edition failed: {result}")


def build():
    """Execute the chapters, for both editions, and build the Chinese one."""
    execution.fill_cache()
    output = ROOT / "_build" / LANGUAGE / "html"
    build_sphinx(output, "html", True, CHINESE)
    # Myst-nb writes beside its output, so this is built elsewhere and then put among the English pages.
    shutil.rmtree(EDITION, ignore_errors=True)
    shutil.copytree(output, EDITION)


def write_templates(folder):
    """Write the template of every page's catalog into `folder`, without executing any page."""
    settings = {
        "nb_execution_mode": "off",
        "gettext_compact": False,
        "gettext_location": False,
        # Without code, there is nothing that the references to its figures could find.
        "suppress_warnings": ["myst", "mystnb", "ref"],
    }
    build_sphinx(folder, "gettext", False, settings)


def catalog_of(page):
    """Return where the catalog of `page` lies."""
    return LOCALE / LANGUAGE / "LC_MESSAGES" / f"{page}.po"


def read_catalog(path):
    """Return the catalog or the template in the file `path`."""
    with path.open("rb") as file:
        return read_po(file, LANGUAGE)


def messages(page):
    """Return the translated messages of `page`, from English to Chinese."""
    catalog = read_catalog(catalog_of(page))
    return {message.id: message.string for message in catalog if message.id and message.string and not message.fuzzy}


@functools.cache
def remarks():
    """Return the translated comments and docstrings of the chapters' code, from English to Chinese."""
    return {entry.id: entry.string for entry in read_catalog(COMMENTS) if entry.id and entry.string}


def remarks_of(source):
    """Return the comments and docstrings of the code that the chapter in the file `source` shows."""
    found = []
    for cell in notebooks.notebook(source).cells:
        listings = [part[1] for part in notebooks.LISTING.findall(cell.source)]
        for code in [cell.source] if cell.cell_type == "code" else listings:
            found += comments.messages_of(code)
    return found


def report_lost(app, doctree):
    """Warn of translations that Sphinx drops in silence, because they are no single paragraph."""
    if app.config.language == LANGUAGE:
        translated = messages(app.env.docname)
        for node, message in extract_messages(doctree):
            dropped = node.get("translated") is False and not isinstance(node, nodes.image)
            if dropped and translated.get(message, message) != message:
                logger.warning("this translation cannot be used: %s", translated[message], location=node)


def translate_captions(app, config):
    """Translate the captions of the table of contents, whose messages stand in the catalog of the first page."""
    if config.language == LANGUAGE:
        translated = messages(config.external_site_map.root.docname)
        for part in config.external_site_map.root.subtrees:
            part.caption = translated.get(part.caption, part.caption)


def link_editions(app, pagename, templatename, context, doctree):
    """Let every page link to its counterpart in the other language, if that edition is there."""
    up = "../" * pagename.count("/")
    if app.config.language == LANGUAGE:
        other, name, url = "en", "English", f"../{up}{pagename}.html"
    else:
        other, name, url = "zh-CN", "中文", f"{up}zh/{pagename}.html"
        if not (Path(app.outdir) / "zh" / f"{pagename}.html").exists():
            return
    context["other_edition"] = {"language": other, "name": name, "url": url}
    context["metatags"] = context.get("metatags", "") + f'<link rel="alternate" hreflang="{other}" href="{url}">\n'


def write_catalog(catalog, target):
    """Write `catalog` into the file `target`, without what changes by itself."""
    for message in catalog:
        message.flags -= {"python-format", "python-brace-format"}  # guessed from Markdown's braces
    text = io.BytesIO()
    write_po(text, catalog, width=0, omit_header=True, ignore_obsolete=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(HEADER.encode() + text.getvalue())


def update_catalogs():
    """Bring every page's catalog up to date: new messages are empty, and changed ones marked as fuzzy."""
    for path in sorted(TEMPLATES.rglob("*.pot")):
        target = catalog_of(path.relative_to(TEMPLATES).with_suffix("").as_posix())
        catalog = read_catalog(target) if target.exists() else Catalog(LANGUAGE)
        catalog.update(read_catalog(path))
        write_catalog(catalog, target)


def update_remarks():
    """Bring the catalog of the code's comments up to date: new messages are empty, and old ones leave."""
    known, catalog = remarks(), Catalog(LANGUAGE)
    for source in notebooks.chapters():
        for text in remarks_of(source):
            catalog.add(text, known.get(text, ""))
    write_catalog(catalog, COMMENTS)


def main(command):
    """Do what the command says."""
    if command == "build":
        build()
    else:
        shutil.rmtree(TEMPLATES, ignore_errors=True)
        write_templates(TEMPLATES)
        update_catalogs()
        update_remarks()


if __name__ == "__main__":
    if sys.argv[1:] not in (["build"], ["catalogs"]):
        sys.exit(__doc__)
    main(sys.argv[1])
