"""A headless Chromium for the tests of the page, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMED = "DYLORA_BROWSER"
"""Environment variable that names the browser; where it is set, no test is skipped."""
KNOWN = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


def browser_path() -> str:
    """The browser's program; skips the test where there is none and none was promised."""
    named = os.environ.get(NAMED)
    if named:
        # Playwright takes a path, people a name.
        path = shutil.which(named)
        assert path, f"{NAMED} is {named}, and there is no such program"
        return path
    found = next((path for name in KNOWN if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no Chromium; install one, or name it in {NAMED}")
    return found


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for as long as the block lasts."""
    path = browser_path()
    with sync_playwright() as playwright:
        # Its own sandbox needs rights that containers and root have not; it opens this page alone.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()
