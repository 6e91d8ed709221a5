"""Comments and docstrings of the code that chapters show: found, and replaced by their translations.

What is executed stays as it is: a translation is for the eye alone.
"""

import ast
import inspect
import io
import re
import tokenize
import unicodedata
from dataclasses import dataclass

WIDTH = 79

# Remarks for tools, and text that is no sentence: a heading of numpydoc, an example.
NOT_FOR_READERS = re.compile(r"noqa|type: ignore|pragma:|%%|!|^\W*$")
NO_SENTENCE = re.compile(r"^\s*(?:-{3,}|>>>)", re.MULTILINE)

# What a line is broken between: words, and Chinese characters with the punctuation that belongs to them.
OPENING, CLOSING, HAN = "（《“‘", "，。；：、！？）》”’", r"\u3400-\u9fff"
UNIT = re.compile(rf"\s+|[{OPENING}]*(?:[{HAN}]|[^\s{HAN}{OPENING}{CLOSING}]+)?[{CLOSING}]*")


@dataclass(frozen=True)
class Remark:
    """A comment or a docstring: its lines ``first`` to ``last`` (from 0), its first column, its texts."""

    first: int
    last: int
    column: int
    texts: tuple[str, ...]
    opening: str  # what stands before the text: "# ", '"""'


def plain_python(code):
    """Return `code` with IPython's magics, which are no Python, as empty lines."""
    return re.sub(r"^[%!].*$", "", code, flags=re.MULTILINE)


def comments_of(code):
    """Yield the comments of `code`: neighboring lines of their own are one."""
    lines = code.splitlines()
    found: list[tokenize.TokenInfo] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(code).readline):
            if token.type == tokenize.COMMENT:
                found.append(token)
    except (tokenize.TokenError, IndentationError):
        pass  # a part of a function: what was found counts
    block: list[tokenize.TokenInfo] = []
    for token in found:
        row, column = token.start
        own = not lines[row - 1][:column].strip()
        if block and own and block[-1].start == (row - 1, column):
            block.append(token)
            continue
        yield from comment(block)
        block = [token] if own else []
        if not own:
            yield from comment([token])
    yield from comment(block)


def comment(tokens):
    """Yield the comment that stands in `tokens`, one a line, if it is for readers."""
    text = " ".join(token.string.lstrip("#").strip() for token in tokens)
    if tokens and not NOT_FOR_READERS.match(text):
        first, column = tokens[0].start
        yield Remark(first - 1, tokens[-1].start[0] - 1, column, (text,), "# ")


def docstrings_of(code):
    """Yield the docstrings of `code`, each with its paragraphs."""
    try:
        tree = ast.parse(code)
    except SyntaxError:
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) or not node.body:
            continue
        string = getattr(node.body[0], "value", None)
        if isinstance(string, ast.Constant) and isinstance(string.value, str):
            opening = re.match(r"\w*(\"\"\"|''')", code.splitlines()[string.lineno - 1][string.col_offset :])
            if opening:
                texts = tuple(re.split(r"\n\s*\n", inspect.cleandoc(string.value)))
                yield Remark(string.lineno - 1, (string.end_lineno or 1) - 1, string.col_offset, texts, opening[0])


def remarks(code):
    """Return all comments and docstrings of `code`, in order."""
    code = plain_python(code)
    return sorted([*comments_of(code), *docstrings_of(code)], key=lambda remark: (remark.first, remark.column))


def message(text):
    """Return `text` as it stands in the catalog: on one line."""
    return " ".join(text.split())


def messages_of(code):
    """Return what there is to translate in `code`."""
    return [message(text) for remark in remarks(code) for text in remark.texts if not NO_SENTENCE.search(text)]


def width(text):
    """Return how many columns `text` takes: two for every Chinese character."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def wrapped(text, room):
    """Return `text` as lines of at most `room` columns, broken as Chinese is."""
    lines = [""]
    for unit in UNIT.findall(text):
        if width(lines[-1] + unit.rstrip()) > room and lines[-1].strip():
            lines[-1] = lines[-1].rstrip()
            lines.append("")
        lines[-1] += unit.lstrip() if not lines[-1] else unit
    return [line.rstrip() for line in lines]


def translated(code, messages):
    """Return `code` with the comments and docstrings that the table `messages` knows in Chinese."""
    lines = code.split("\n")
    for remark in reversed(remarks(code)):
        found = [messages.get(message(text)) for text in remark.texts]
        if not any(found):
            continue
        before = lines[remark.first][: remark.column]
        indent = " " * remark.column
        room = max(WIDTH - remark.column, 30)
        if remark.opening == "# ":
            own = not before.strip()
            text = wrapped(found[0], room - 2) if own else [found[0]]
            new = [f"{indent if i else before}# {line}" for i, line in enumerate(text)]
        else:
            quotes = remark.opening[-3:]
            new = []
            for i, (old, ours) in enumerate(zip(remark.texts, found, strict=True)):
                new += [""] if i else []
                text = wrapped(ours, room - 3 * (not i)) if ours else old.split("\n")
                new += [indent + line if line else "" for line in text]
            new[0] = before + remark.opening + new[0][remark.column :]
            tail = lines[remark.last][lines[remark.last].rindex(quotes) :]
            if remark.first == remark.last or lines[remark.last].strip() != quotes:
                new[-1] += tail
            else:
                new.append(indent + tail)
        lines[remark.first : remark.last + 1] = new
    return "\n".join(lines)
