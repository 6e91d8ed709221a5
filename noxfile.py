"""The versions that the package claims to work with, tried one after the other: `make matrix`.

Every session makes an environment of its own, installs the package's wheel into it and runs the fast tests, and those
in the simulator of CUDA, against that wheel; the checkout's own `numba_pool` is out of reach.
A session whose interpreter is missing is skipped.
What came out goes into `book/records/versions.json`, from which the book makes a table; sessions that did not run keep
the entries that they have.

`make matrix ARGS="-s oldest"` runs one session, and `ARGS="-- -k windows"` some of the tests, as the record says then.
"""

import json
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "venv"
nox.options.error_on_missing_interpreters = False
nox.options.stop_on_first_error = False

ROOT = Path(__file__).parent
RECORD = ROOT / "book/records/versions.json"
PROJECT = nox.project.load_toml(ROOT / "pyproject.toml")["project"]

# These read the book and its pages, and say nothing of versions.
NOT_OF_THE_PACKAGE = ("test_book.py", "test_notebooks.py", "browser")

# What tests/conftest.py notes of the environment.
NOTED = ("package", "system", "python", "numba_pool", "torch", "numba", "numpy", "numba-cuda")


def extra(name):
    """Return the requirements of one of the package's extras; where it names another of them, those."""
    for requirement in PROJECT["optional-dependencies"][name]:
        if requirement.startswith("numba_pool["):
            yield from extra(requirement.partition("[")[2].rstrip("]"))
        else:
            yield requirement


TEST = list(extra("test"))


def oldest(requirements):
    """Return requirements with the lowest version that each allows in place of all others."""
    return [requirement.split(",")[0].replace(">=", "==") for requirement in requirements]


@nox.session(name="oldest", python="3.10")
def try_oldest(session):
    """The lowest versions that the package's metadata allow."""
    cuda = [requirement for requirement in TEST if requirement.startswith("numba-cuda")]
    others = [requirement for requirement in TEST if requirement not in cuda]
    run_tests(session, *oldest(PROJECT["dependencies"] + cuda), *others)


@nox.session(name="pinned", python="3.11")
def try_pinned(session):
    """The versions that the book was built with."""
    run_tests(session, "--requirement", str(ROOT / "requirements.txt"))


@nox.session(name="newest", python=["3.13", "3.14"])
def try_newest(session):
    """The newest versions of everything, NumPy included: the extras for CUDA would hold that back."""
    run_tests(session, *(requirement for requirement in TEST if not requirement.startswith(("numba-cuda", "numpy"))))


@nox.session(name="newest-cuda", python="3.12")
def try_newest_with_cuda(session):
    """The newest versions that numba-cuda works with; the CUDA kernels are compiled, which needs no GPU."""
    run_tests(session, "torch", *TEST)  # first: what follows may then not hold it back


def run_tests(session, *requirements):
    """Install requirements and the package's wheel, run the tests against it, and keep what came out."""
    folder = Path(session.create_tmp()).resolve()
    for kept in folder.iterdir():  # by an earlier run, but for what was compiled
        if kept.name != "cache":
            shutil.rmtree(kept) if kept.is_dir() else kept.unlink()
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "numba_pool", source / "numba_pool", ignore=ignored)
    session.run("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source))
    (wheel,) = map(str, folder.glob("*.whl"))
    session.install("--quiet", "--upgrade", *requirements, wheel)
    # The environment may be one that is used again, with an older wheel of the same version.
    session.install("--quiet", "--force-reinstall", "--no-deps", wheel)

    session.chdir(folder)  # not where the package's sources are
    results = folder / "results.xml"
    session.run(
        *("pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT), "-m", "not slow or simulator"),
        *("-p", "no:cacheprovider", "--doctest-ignore-import-errors", f"--junitxml={results}"),
        *(f"--ignore={ROOT / 'tests' / name}" for name in NOT_OF_THE_PACKAGE),
        *("--pyargs", str(ROOT / "tests"), "numba_pool", *session.posargs),
        env={"PYTHONPATH": None, "NUMBA_CACHE_DIR": str(folder / "cache")},
        success_codes=[0, 1],  # 1: tests have failed
    )
    outcome = read(results)
    if Path(outcome.pop("package")).is_relative_to(ROOT / "numba_pool"):
        session.error("the tests have found the package in the checkout, not the one that was installed")
    keep(session.name, {"selection": " ".join(session.posargs), **outcome})
    if outcome["failed"]:
        session.error(f"{len(outcome['failed'])} tests have failed")


def read(results):
    """Return what pytest has written of a run: the versions, and what became of the tests."""
    (suite,) = ElementTree.parse(results).getroot().iter("testsuite")
    properties = {each.get("name"): each.get("value") for each in suite.find("properties")}
    failed = [
        f"{case.get('classname')}.{case.get('name')}"
        for case in suite.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = int(suite.get("skipped"))
    passed = int(suite.get("tests")) - len(failed) - skipped
    noted = {name: properties[name] for name in NOTED}
    return {**noted, "passed": passed, "skipped": skipped, "failed": failed}


def keep(session_name, outcome):
    """Put what came out of a session into the record."""
    runs = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    runs[session_name] = {"date": f"{datetime.now(timezone.utc):%Y-%m-%d}", **outcome}
    text = json.dumps(runs, indent=1)
    RECORD.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit("Run it with nox: make matrix")
