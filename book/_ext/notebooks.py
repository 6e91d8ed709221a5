"""Write the book's executable chapters as notebooks without outputs, one `.ipynb` for each MyST source.

Usage: python book/_ext/notebooks.py FOLDER
"""

import ast
import functools
import itertools
import os
import re
import shutil
import sys
import textwrap
from pathlib import Path

import comments
import jupytext
import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[2]

DIRECTIVE = re.compile(
    r"^(?P<fence>`{3,}|:{3,})\{(?P<name>[\w:-]+)\}[ ]?(?P<argument>.*)\n"
    r"(?P<options>(?::[\w-]+:.*\n)*)(?P<body>(?:.*\n)*?)(?P=fence)[ ]*$",
    re.MULTILINE,
)
OPTION = re.compile(r"^:([\w-]+): ?(.*)$", re.MULTILINE)
ROLE = re.compile(r"\{([\w:-]+)\}(`+)(.+?)\2", re.DOTALL)
LABEL = re.compile(r"^\([\w-]+\)=\n", re.MULTILINE)
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s:]+\.md)(?:#[^)]*)?\)")

# Python code that the text includes.
LISTING = re.compile(r"^(```python\n)(.*?)(^```$)", re.MULTILINE | re.DOTALL)

# What stands before a message on its line: markers, a number, the bar of a table, a directive or one of its options.
BEFORE_MESSAGE = r"^[^\w\n|]*|^[ ]*\d+\. |\|[ ]*|^[`:]+\{[\w:-]+\} |^:[\w-]+: "

WORDS = {"Exercise": "练习", "Solution": "解答", "Next": "下一章", ": ": "："}

CODE_ROLES = {"class", "func", "meth", "mod", "attr", "data", "exc", "obj"}


@functools.cache
def targets():
    """Return the notebooks' paths by executable source, in the order of the table of contents.

    Names begin with the chapters' numbers, so that folders list them in this order. A page that has no number takes the
    one before it. As in the book, the first page lies beside the folder of records, and the chapters one folder below.
    """
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    found, number = {}, 0
    for part in [{"chapters": [{"file": toc["root"]}]}, *toc["parts"]]:
        for chapter in part["chapters"]:
            source = ROOT / f"{chapter['file']}.md"
            number += part.get("numbered", False)
            if is_executable(source):
                found[source] = folder_of(source.parent) / f"{number:02}_{source.stem}.ipynb"
    return found


def folder_of(folder):
    """Return where the notebooks of the sources in `folder` lie, relative to all notebooks."""
    return Path() if folder == ROOT / "book" else Path("chapters")


def link_to(target, folder):
    """Return the path of the notebook `target` as one of a source in `folder` links it."""
    return Path(os.path.relpath(target, folder_of(folder))).as_posix()


def chapters():
    """Return the book's executable sources, in the order of the table of contents."""
    return list(targets())


def is_executable(source):
    """Tell whether the file `source` is a MyST notebook."""
    return source.suffix == ".md" and "\n```{code-cell}" in source.read_text(encoding="utf-8")


def source_of(path, name, start="", end=""):
    """Return the source text of the function or class `name` in the file `path`, or its lines from `start` to `end`."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lines = text.splitlines()[first - 1 : node.end_lineno]
            begin = next(i for i, line in enumerate(lines) if start in line)
            last = next(i for i, line in enumerate(lines) if i >= begin and end in line) if end else len(lines)
            return textwrap.dedent("\n".join(lines[begin : last + 1]))
    raise LookupError(f"{path} defines no {name}")


def translated(markdown, messages):
    """Return `markdown` with each of its messages replaced by the translation.

    A message is a heading, a paragraph, an item of a list, a cell of a table or a directive's title. Its lines are
    joined by spaces.
    """
    for message in sorted(messages, key=len, reverse=True):
        text = r"\s+".join(map(re.escape, message.split()))
        pattern = rf"({BEFORE_MESSAGE}){text}(?=[ ]*(?:$|\|))"
        after = messages[message].replace("\\", r"\\")
        markdown = re.sub(pattern, rf"\g<1>{after}", markdown, flags=re.MULTILINE)
    return markdown


def plain(markdown, folder, words=None):
    """Return MyST `markdown` of a chapter in `folder` as the plain Markdown that Jupyter renders.

    The table `words` translates the titles of directives.
    """
    words = words or {}
    colon = words.get(": ", ": ")

    def directive(match):
        name, argument = match["name"], match["argument"].strip()
        options = dict(OPTION.findall(match["options"]))
        body = plain(match["body"].strip("\n"), folder, words)
        if name == "literalinclude":
            lines = options.get("start-at", ""), options.get("end-at", "")
            return f"```python\n{source_of(folder / argument, options['pyobject'], *lines)}\n```"
        if name == "math":
            return f"$$\n{body}\n$$"
        if name == "raw" or not (body or argument):
            return ""
        if name == "figure":
            return f"![{options.get('alt', '')}]({argument})\n\n*{body}*"
        if name == "solution":
            return f"<details><summary>{words.get('Solution', 'Solution')}</summary>\n\n{body}\n\n</details>"
        if name.startswith(("solution", "exercise")):
            title = name.split("-")[0].capitalize()
            title = words.get(title, title) + (colon + argument if name.startswith("exercise") and argument else "")
            return "" if name.endswith("-end") else f"**{title}**\n\n{body}"
        title = argument or name.split(":")[-1].capitalize()
        return "\n".join(f"> {line}".rstrip() for line in f"**{title}**\n\n{body}".splitlines())

    def role(match):
        text = match[3].partition(" <")[0].lstrip("~")
        kind = match[1].split(":")[-1]
        if kind in CODE_ROLES:
            return f"`{text.rpartition('.')[2] if match[3].startswith('~') else text}`"
        return f"${text}$" if kind == "math" else f"[{text}]" if kind.startswith("cite") else text

    def link(match):
        # Only executable pages have notebooks, and Jupyter names the sections of one in its own way.
        target = targets().get((folder / match[2]).resolve())
        return f"[{match[1]}]({link_to(target, folder)})" if target else match[1]

    markdown = DIRECTIVE.sub(directive, LABEL.sub("", markdown + "\n"))
    return LINK.sub(link, ROLE.sub(role, markdown)).strip("\n")


def notebook(source, messages=None, remarks=None):
    """Return the chapter in the file `source` as a notebook without outputs, which links the next one.

    The table `messages` translates its text, the table `remarks` the comments and docstrings of its code.
    """
    words = WORDS if messages else {}
    result = jupytext.read(source, fmt="md:myst")
    for cell in result.cells:
        if cell.cell_type == "markdown":
            text = translated(cell.source, messages) if messages else cell.source
            cell.source = plain(text, source.parent, words)
            if remarks:
                cell.source = LISTING.sub(
                    lambda match: match[1] + comments.translated(match[2], remarks) + match[3], cell.source
                )
        elif remarks and cell.cell_type == "code":
            cell.source = comments.translated(cell.source, remarks)
    result.cells = [cell for cell in result.cells if cell.source]
    if following := dict(itertools.pairwise(chapters())).get(source):
        label, target = words.get("Next", "Next") + words.get(": ", ": "), targets()[following]
        text = f"{label}[{target.name}]({link_to(target, source.parent)})"
        result.cells.append(nbformat.v4.new_markdown_cell(text))
    result.metadata = nbformat.from_dict(
        {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    )
    return result


def write(source, folder, messages=None, remarks=None):
    """Write the chapter in the file `source`, translated as in `notebook`, below `folder`; return its path."""
    target = Path(folder) / targets()[source]
    target.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook(source, messages, remarks), target)
    return target


def copy_records(folder):
    """Put the records beside the notebooks, where these look for them."""
    shutil.copytree(ROOT / "book" / "records", Path(folder) / "records", dirs_exist_ok=True)


def main(folder):
    """Write every chapter's notebook below `folder`, and print its path."""
    for source in chapters():
        print(write(source, folder))
    copy_records(folder)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
