"""What the Chinese edition shows otherwise than the English one, beside what the catalogs translate."""

import hashlib
import re

import comments
import editions
import yaml
from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

LANGUAGE = editions.LANGUAGE
TABLE = editions.LOCALE / LANGUAGE / "words.yml"
WORDS = yaml.safe_load(TABLE.read_text(encoding="utf-8"))

HAN = re.compile(r"[\u3400-\u9fff]")
HTML_CELL = re.compile(r"(<t[hd][^>]*>)([^<>]+)(?=</t[hd]>)")
PYTHON = {"python", "ipython", "ipython3"}
CODE = (nodes.FixedTextElement, nodes.literal)


def digest():
    """Return a digest of the tables that Sphinx does not know of: their changes build the pages anew."""
    return hashlib.sha256(TABLE.read_bytes() + editions.COMMENTS.read_bytes()).hexdigest()


def shown(text):
    """Return what is shown for `text`, a whole cell of a table."""
    words = text.strip().split(", ")
    known = any(word in WORDS["shown"] or word in WORDS["kept"] for word in words)
    return "，".join(WORDS["shown"].get(word, word) for word in words) if known else text


def is_printed(node):
    """Tell whether a node is the output of a cell or a table, such as that of the chapters' executions."""
    return isinstance(node, nodes.table) or "cell_output" in getattr(node, "attributes", {}).get("classes", [])


def translate_output(output):
    """Replace the words that code prints in tables, Markdown's and those of HTML, and in lines of their own."""
    for raw in output.findall(nodes.raw):
        html = HTML_CELL.sub(lambda match: match[1] + shown(match[2]), raw.astext())
        raw.children = [nodes.Text(html)]
    for node in list(output.findall(nodes.Text)):
        whole = isinstance(node.parent, nodes.TextElement) and not isinstance(node.parent, CODE)
        if whole and len(node.parent.children) == 1 and shown(node) != node:
            node.parent.replace(node, nodes.Text(shown(node)))


class AddSearchWords(SphinxTransform):
    """Enter the words that lead to a page into the index, which the search looks through first."""

    default_priority = 700  # after the translation, before the index is collected

    def apply(self):
        """Put the entries behind the page's title."""
        words = WORDS["search"].get(self.env.docname, []) if self.config.language == LANGUAGE else []
        section = next(iter(self.document.findall(nodes.section)), None)
        if words and section is not None:
            entries = [("single", word, section["ids"][0], "main", None) for word in words]
            section.insert(1, addnodes.index(entries=entries))


def polish(app, doctree, docname):
    """Write the page as Chinese is written: emphasis, brackets, the words of tables, comments in code."""
    if app.config.language != LANGUAGE or app.builder.format != "html":
        return
    for output in doctree.findall(is_printed):
        translate_output(output)
    for node in doctree.findall(nodes.emphasis):
        if HAN.search(node.astext()):
            node["classes"].append("han")
    for title in doctree.findall(nodes.title):
        first, last = title.next_node(nodes.Text), title.children[-1]
        if first and first.startswith(" (") and isinstance(last, nodes.Text) and last.endswith(")"):
            title.replace(last, nodes.Text(last[:-1] + "）"))
            first = title.next_node(nodes.Text)
            first.parent.replace(first, nodes.Text("（" + first[2:]))
    for block in doctree.findall(nodes.literal_block):
        if block.get("language") in PYTHON:
            code = comments.translated(block.astext(), editions.remarks())
            block.rawsource, block.children = code, [nodes.Text(code)]
