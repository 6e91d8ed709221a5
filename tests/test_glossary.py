"""The glossary can be searched by eye: in English by the alphabet, in Chinese by the pinyin."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "book/reference/glossary.md").read_text(encoding="utf-8")

sys.path.insert(0, str(ROOT / "book" / "_ext"))

pytest.importorskip("jupytext", reason="needs the extra `book`")
pytest.importorskip("jupyter_book", reason="needs the extra `book`")
import editions  # noqa: E402


def entries(text):
    """Return the names of each entry of the glossary, in its order."""
    body = re.search(r"^```\{glossary\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[1]
    return [re.findall(r"^(?! )(.+)$", entry, re.MULTILINE) for entry in body.strip("\n").split("\n\n")]


def index(text):
    """Return the Chinese terms of the index in its order, each with the English one that it leads to."""
    return re.findall(r"([^\s:,]+) \{term\}`([^`]+)`", text.partition("(glossary-chinese)=")[2])


def pinyin(word):
    """Return a key that sorts the common characters by their pinyin, as the standard GB 2312 orders them."""
    return word.encode("gb18030")


def test_entries_are_in_the_order_of_the_alphabet():
    names = [entry[0].lower() for entry in entries(TEXT)]
    assert len(names) > 50
    assert names == sorted(names)


def test_every_name_is_there_once():
    names = [name for entry in entries(TEXT) for name in entry]
    assert len(names) == len(set(names))


def test_the_index_is_in_the_order_of_the_pinyin():
    words = [word for word, _ in index(TEXT)]
    assert words == sorted(words, key=pinyin)
    assert pinyin("池化") < pinyin("窗口") < pinyin("大页")


def test_the_index_leads_to_every_entry_that_has_a_chinese_name():
    found = {english for _, english in index(TEXT)}
    names = {name for entry in entries(TEXT) for name in entry}
    assert found <= names
    assert [entry for entry in entries(TEXT) if not found & set(entry)] == [["DLPack"]]


def test_a_chinese_name_is_the_same_in_the_entry_and_in_the_index():
    translated = editions.messages("book/reference/glossary")
    listed = set(index(TEXT))
    for entry in entries(TEXT):
        word = translated[entry[0]].partition(" · ")[0]
        assert (word, entry[0]) in listed or entry == ["DLPack"]
