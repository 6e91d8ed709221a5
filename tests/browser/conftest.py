"""Chromium, axe, and the built book on a local address; where one is missing, its tests are skipped with the reason."""

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

from .checker import serve

ROOT = Path(__file__).resolve().parents[2]
HTML = Path(os.environ.get("BOOK_HTML", ROOT / "_build" / "html"))


@pytest.fixture(scope="session")
def browser():
    """Return Debian's Chromium, headless."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium: install Debian's package chromium, or name one in the variable CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium,
            # Containers run as root, where Chromium's sandbox refuses to start, and give little shared memory.
            args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def axe():
    """Return the source of axe-core, which checks a page for people who use other means than a screen and a mouse."""
    found = importlib.util.find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("needs axe-core: pip install axe-playwright-python")
    return Path(found.origin).with_name("axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def book():
    """Return the address of the built book."""
    with serve(HTML) as site:
        yield site
