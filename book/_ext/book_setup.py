"""Local Sphinx extension: what the book needs beyond Jupyter Book's own settings."""

import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from pybtex.plugin import register_plugin
from pybtex.style.formatting import unsrt
from pybtex.style.labels import BaseLabelStyle

sys.path.insert(0, str(Path(__file__).parent))
import chinese
import editions
import execution
import notebooks

ROOT = notebooks.ROOT

# Names of other projects' documentation. A table of the few in use, since intersphinx fetches its inventories.
PYTHON = "https://docs.python.org/3/library/"
TORCH = "https://docs.pytorch.org/docs/stable/"
LINKS = {
    "bool": PYTHON + "functions.html#bool",
    "dict": PYTHON + "stdtypes.html#dict",
    "float": PYTHON + "functions.html#float",
    "int": PYTHON + "functions.html#int",
    "list": PYTHON + "stdtypes.html#list",
    "str": PYTHON + "stdtypes.html#str",
    "tuple": PYTHON + "stdtypes.html#tuple",
    "None": PYTHON + "constants.html#None",
    "callable": "https://docs.python.org/3/glossary.html#term-callable",
    "sequence": "https://docs.python.org/3/glossary.html#term-sequence",
    "NotImplementedError": PYTHON + "exceptions.html#NotImplementedError",
    "RuntimeError": PYTHON + "exceptions.html#RuntimeError",
    "TypeError": PYTHON + "exceptions.html#TypeError",
    "ValueError": PYTHON + "exceptions.html#ValueError",
    "numpy.ndarray": "https://numpy.org/doc/stable/reference/generated/numpy.ndarray.html",
    "torch.Tensor": TORCH + "tensors.html",
    "torch.overrides.TorchFunctionMode": TORCH + "torch.overrides.html",
    "torch.device": TORCH + "tensor_attributes.html#torch.device",
    "torch.dtype": TORCH + "tensor_attributes.html#torch.dtype",
    "torch.memory_format": TORCH + "tensor_attributes.html#torch.memory_format",
    "torch.nn.Module": TORCH + "generated/torch.nn.Module.html",
    "torch.nn.AdaptiveAvgPool2d": TORCH + "generated/torch.nn.AdaptiveAvgPool2d.html",
    "torch.nn.functional.adaptive_avg_pool2d": TORCH + "generated/torch.nn.functional.adaptive_avg_pool2d.html",
}

AT_LINE = {"en": ", line {}", "zh_CN": "，第 {} 行"}

CLOSING = re.compile(r"[,.;:!?)\]，。；：！？、）」”’]+")

DOWNLOAD = {"en": "Download this chapter as a notebook", "zh_CN": "下载本章的 notebook"}


class AuthorYearLabels(BaseLabelStyle):
    """Labels of the bibliography as the text refers to its entries: He et al., 2015."""

    def format_labels(self, sorted_entries):
        """Yield the label of every entry."""
        for entry in sorted_entries:
            names = [" ".join(person.last_names).strip("{}") for person in entry.persons["author"]]
            names = names if len(names) < 3 else [f"{names[0]} et al."]
            yield f"{' and '.join(names)}, {entry.fields['year']}"


class AuthorYear(unsrt.Style):
    """The bibliography in the order of its authors, with those labels."""

    default_label_style = AuthorYearLabels
    default_sorting_style = "author_year_title"


register_plugin("pybtex.style.formatting", "author_year", AuthorYear)


def key_cache(app, config):
    """Take the results of this very state of the package."""
    config.nb_execution_cache_path = execution.cache_path()


def drop_duplicate_scripts(app, pagename, templatename, context, doctree):
    """Leave out inline scripts that the theme adds twice: the second declaration of a constant is an error."""
    seen, kept = set(), []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        if not body or body not in seen:
            kept.append(script)
        seen.add(body)
    context["script_files"] = kept


def link_known_name(app, env, node, contnode):
    """Resolve a reference to a name of Python, NumPy or torch; numpydoc prefixes some of Python's names."""
    name = node["reftarget"].removeprefix("python:")
    if name not in LINKS:
        return None
    text = contnode.astext().removeprefix("python:")
    return nodes.reference("", "", nodes.literal("", text), refuri=LINKS[name], internal=False)


def offer_notebook(app, doctree, pagename):
    """Put a link to the page's own notebook under its title."""
    target = notebooks.targets().get(Path(app.env.doc2path(pagename)))
    if app.builder.format != "html" or not target:
        return
    up = "../" * pagename.count("/")
    url = f"{up}notebooks/{target.as_posix()}"
    link = nodes.reference("", DOWNLOAD[app.config.language], refuri=url, classes=["download-notebook"])
    title = next(iter(doctree.findall(nodes.title)))
    title.parent.insert(title.parent.index(title) + 1, nodes.paragraph("", "", link, classes=["download-notebook"]))


def write_notebooks(app, exception):
    """Write every executable page's notebook beside the pages."""
    if exception or app.builder.format != "html":
        return
    for source in notebooks.targets():
        page = app.env.path2doc(source)
        chinese_edition = app.config.language == editions.LANGUAGE
        tables = (editions.messages(page), editions.remarks()) if chinese_edition else ()
        notebooks.write(source, Path(app.outdir) / "notebooks", *tables)
    notebooks.copy_records(Path(app.outdir) / "notebooks")


def write_entry(app, exception):
    """Write the page that a visit begins with: it goes on to the edition in the language of the browser."""
    if not exception and app.builder.name == "html" and app.config.language != editions.LANGUAGE:
        shutil.copyfile(ROOT / "book" / "_static" / "entry.html", Path(app.outdir) / "index.html")


def keep_together(app, doctree, docname):
    """Keep a formula and the punctuation after it on one line."""
    for math in list(doctree.findall(nodes.math)):
        after = math.next_node(descend=False, siblings=True)
        if isinstance(after, nodes.Text) and (found := CLOSING.match(after)):
            math.parent.replace(after, nodes.Text(after[found.end() :]))
            math.replace_self(nodes.inline("", "", math.deepcopy(), nodes.Text(found[0]), classes=["together"]))


def name_listings(app, doctree):
    """Say above code of the package which file it stands in, and in which line."""
    for block in list(doctree.findall(nodes.literal_block)):
        source = Path(block.get("source", ""))
        if not source.is_relative_to(ROOT / "numba_pool"):
            continue
        block["language"] = "python"  # which the translation of comments looks for
        first = block.astext().partition("\n")[0].strip()
        lines = source.read_text(encoding="utf-8").splitlines()
        number = next((i for i, line in enumerate(lines, 1) if line.strip() == first), None)
        text = source.relative_to(ROOT).as_posix() + (AT_LINE[app.config.language].format(number) if number else "")
        block.replace_self([nodes.paragraph("", "", nodes.literal("", text), classes=["listing"]), block])


def prepare_catalogs(app):
    """Let the builder of the translators' catalogs see prose only."""
    if app.builder.name == "gettext":
        app.connect("source-read", editions.drop_code)
        app.connect("doctree-read", editions.keep_english)


def setup(app):
    """Register the hooks."""
    app.connect("builder-inited", prepare_catalogs)
    app.add_config_value("executed_sources_digest", execution.sources_digest(), "env")
    app.add_config_value("tables_digest", chinese.digest(), "env")
    app.add_transform(editions.TranslateExercises)
    app.add_transform(chinese.AddSearchWords)
    # The English pages are written again as soon as the Chinese ones are there to be linked to.
    app.add_config_value("has_other_edition", editions.EDITION.exists(), "html")
    app.connect("config-inited", key_cache, priority=1)
    app.connect("config-inited", editions.translate_captions, priority=999)  # after the table of contents was read
    app.connect("doctree-read", editions.report_lost)
    app.connect("html-page-context", editions.link_editions)
    app.connect("html-page-context", drop_duplicate_scripts, priority=900)
    app.connect("missing-reference", link_known_name)
    app.connect("doctree-resolved", offer_notebook)
    app.connect("doctree-resolved", chinese.polish)
    app.connect("doctree-resolved", keep_together)
    app.connect("doctree-read", name_listings)
    app.connect("build-finished", write_entry)
    app.connect("build-finished", write_notebooks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
