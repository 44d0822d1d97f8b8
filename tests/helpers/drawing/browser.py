"""A headless Chromium: Debian's package with its driver, where they are installed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900")


@contextmanager
def browser() -> Iterator[Chrome]:
    """The browser, whose console can be read; skips the test, saying so, where there is none."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("there is no Chromium with its driver here: install Debian's chromium-driver")
    options = ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = Chrome(options=options, service=Service(driver))
    try:
        opened.set_page_load_timeout(30)
        yield opened
    finally:
        opened.quit()


def errors_of(opened: Chrome) -> list[dict]:
    """What the console has said of errors since it was last asked."""
    return [entry for entry in opened.get_log("browser") if entry["level"] == "SEVERE"]


def resize(opened: Chrome, width: int, height: int) -> None:
    """Give the page so many pixels, also fewer than a window may have."""
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
    )
