"""The READMEs say what the record says, show the picture that the package's windows give, and their code runs."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

pytest.importorskip("tabulate", reason="needs the extra `benchmark`")
import readme  # noqa: E402

READMES = sorted(readme.HEADERS)


def text(name):
    """Return the text of a README."""
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def record():
    """Return the record that the tables are made from."""
    return readme.Record.load(readme.RECORD)


@pytest.mark.parametrize("name", READMES)
def test_the_table_is_the_records(record, name):
    """If not, after a new record: python book/_ext/readme.py."""
    assert readme.PLACE.findall(text(name)) == [readme.table(record, name)]


@pytest.mark.parametrize("name", READMES)
def test_another_record_makes_another_table(record, name):
    first = next(readme.rows(record))
    slower = [doubled(m) if m is first else m for m in record.measurements]
    assert readme.table(readme.Record(record.machine, slower, []), name) != readme.table(record, name)


def doubled(measurement):
    """Return a measurement that took twice the time."""
    fields = vars(measurement) | {"samples": tuple(2 * s for s in measurement.samples)}
    return type(measurement)(**fields)


@pytest.mark.parametrize("theme", readme.THEMES)
def test_the_picture_is_made_from_the_windows(theme):
    """If not: python book/_ext/readme.py."""
    drawn = readme.picture(theme)
    assert readme.picture_path(theme).read_text(encoding="utf-8") == drawn
    assert [float(v) for v in re.findall(r">([\d.]+)</text>", drawn)][-6:] == [9, 11.5, 14, 33, 35.5, 38]


def test_the_languages_link_to_each_other():
    for name, other in (READMES, READMES[::-1]):
        assert f"]({other})" in text(name)


@pytest.mark.parametrize("name", READMES)
def test_links_and_pictures_lead_to_files(name):
    targets = re.findall(r'\]\(([^):#]+)\)|(?:src|srcset)="([^"]+)"', text(name))
    assert len(targets) > 4
    assert [target for pair in targets for target in pair if target and not (ROOT / target).is_file()] == []


@pytest.mark.parametrize("name", READMES)
def test_commands_are_targets_of_the_makefile(name):
    named = set(re.findall(r"\bmake ([a-z]+)\b", text(name)))
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"book", "lab"} <= named <= targets


@pytest.mark.parametrize("name", READMES)
def test_the_examples_run(name, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```$", text(name), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, name, "exec"), {})
    assert capsys.readouterr().out == "torch.Size([2, 128, 4, 4])\ntorch.Size([2, 8, 3, 3])\n"


def test_both_have_the_same_code():
    blocks = [re.findall(r"^```python\n.*?^```$", text(name), re.MULTILINE | re.DOTALL) for name in READMES]
    assert blocks[0] == blocks[1]
