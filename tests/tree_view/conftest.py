"""One headless browser for all tests of the page."""

import os
import shutil
from collections.abc import Iterator

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from tests.support.browser import Shown


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    """One headless browser for all tests here."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        missing = "Chromium" if binary is None else "chromedriver"
        told = f"{missing} is not installed: nothing to show the page in"
        pytest.fail(told) if os.environ.get("CI") else pytest.skip(told)
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for switch in (
        "headless=new no-sandbox disable-gpu disable-dev-shm-usage "
        "disable-background-networking no-first-run"
    ).split():
        options.add_argument(f"--{switch}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(chromium, tmp_path) -> Iterator[Shown]:
    yield Shown(chromium, tmp_path)
    assert chromium.get_log("browser") == []
