"""The comments and docstrings that the Chinese edition shows: translated, and the code around them untouched."""

import io
import re
import sys
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

pytest.importorskip("jupytext", reason="needs the extra `book`")
pytest.importorskip("jupyter_book", reason="needs the extra `book`")
import comments  # noqa: E402
import editions  # noqa: E402
import notebooks  # noqa: E402

CODE = '''%matplotlib inline
# How many rows
# there are.
rows = 3  # three
# noqa: E302
def mean(x):
    """Return the mean.

    Of all `x`.

    Parameters
    ----------
    x : array
    """
    # the sum
    return x.sum() / rows, "# no comment"
'''

TABLE = {
    "How many rows there are.": "共有多少行。",
    "three": "三行",
    "Return the mean.": "返回平均值。",
    "Of all `x`.": "对全部 `x` 求平均。",
    "the sum": "总和",
}

CHINESE = '''%matplotlib inline
# 共有多少行。
rows = 3  # 三行
# noqa: E302
def mean(x):
    """返回平均值。

    对全部 `x` 求平均。

    Parameters
    ----------
    x : array
    """
    # 总和
    return x.sum() / rows, "# no comment"
'''


def executed(code):
    """Return the tokens of `code` that are executed: no comments, no docstrings, no ends of lines."""
    kept, previous = [], tokenize.NEWLINE
    for token in tokenize.generate_tokens(io.StringIO(comments.plain_python(code)).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL):
            continue
        starts = previous in (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
        if not (token.type == tokenize.STRING and starts):
            kept.append((token.type, token.string.strip()))
        previous = token.type
    return kept


def test_messages_are_found():
    assert comments.messages_of(CODE) == [
        "How many rows there are.",
        "three",
        "Return the mean.",
        "Of all `x`.",
        "the sum",
    ]


def test_messages_are_replaced():
    assert comments.translated(CODE, TABLE) == CHINESE
    assert comments.translated(CODE, {}) == CODE
    assert executed(CHINESE) == executed(CODE)
    assert executed(CHINESE.replace("rows = 3", "rows = 4")) != executed(CODE)


def test_a_part_of_a_function_is_translated():
    assert comments.translated("x = 1  # one\n    y = (", {"one": "一"}) == "x = 1  # 一\n    y = ("


def test_a_docstring_of_one_line_stays_one():
    code = 'def f():\n    """Return one."""\n    return 1'
    assert comments.translated(code, {"Return one.": "返回一。"}) == 'def f():\n    """返回一。"""\n    return 1'


def test_long_comments_are_wrapped():
    text = "窗口的行与列，" * 12 + "`pooling_windows` 给出。"
    lines = comments.translated("    # long", {"long": text}).splitlines()
    assert len(lines) > 2
    assert all(comments.width(line) <= comments.WIDTH for line in lines)
    assert not any(line.lstrip(" #")[0] in comments.CLOSING for line in lines)
    assert "".join(line.lstrip(" #") for line in lines) == text


@pytest.mark.parametrize("source", notebooks.chapters(), ids=lambda source: f"{source.parent.name}-{source.stem}")
def test_code_is_the_same_in_both_languages(source):
    english = [cell.source for cell in notebooks.notebook(source).cells if cell.cell_type == "code"]
    translated = notebooks.notebook(source, {}, editions.remarks())
    chinese = [cell.source for cell in translated.cells if cell.cell_type == "code"]
    assert list(map(executed, chinese)) == list(map(executed, english))


@pytest.mark.parametrize("source", notebooks.chapters(), ids=lambda source: f"{source.parent.name}-{source.stem}")
def test_every_comment_is_translated(source):
    assert [text for text in editions.remarks_of(source) if text not in editions.remarks()] == []


def test_translated_comments_keep_their_code():
    def code(text):
        return sorted(re.findall(r"`+[^`]+`+", text))

    assert [ours for ours, theirs in editions.remarks().items() if code(ours) != code(theirs)] == []
