"""The page as a person meets it, in a headless Chromium."""

import time

import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait as Wait

from helpers.drawing.browser import browser, errors_of
from helpers.search.index import SETTINGS, make_index, make_videos
from search.store import open_for_writing
from search.windows import encode_picture

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def driver():
    with browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory, serve):
    folder = tmp_path_factory.mktemp("page")
    root = folder / "videos"
    paths = [*make_videos(root, ["a.mp4", "more/b.mp4"]), *make_videos(root, ["c.avi"], codec="mpeg4")]
    picture = encode_picture(np.full((56, 56, 3), 120, np.uint8))
    with serve(make_index(folder / "index", root, paths, picture), root) as served:
        yield served


@pytest.fixture
def page(driver, server):
    """The page without a query, and no error in the browser's console when the test is over."""
    driver.set_window_size(1200, 900)
    driver.get_log("browser")
    driver.get(f"http://127.0.0.1:{server.port}/")
    yield driver
    assert errors_of(driver) == []


def wait(page, condition, seconds=20):
    return Wait(page, seconds, 0.05, ignored_exceptions=[Exception]).until(lambda _: condition())


def element(page, selector):
    return page.find_element(By.CSS_SELECTOR, selector)


def files(page):
    return [found.text for found in page.find_elements(By.CSS_SELECTOR, ".moment .file")]


def times(page):
    return [found.text for found in page.find_elements(By.CSS_SELECTOR, ".moment .time")]


def said(page):
    return element(page, "#status").text


def search(page, text, unlike=""):
    for name, value in (("q", text), ("not", unlike)):
        box = element(page, f"#{name}")
        box.clear()
        box.send_keys(value)
    element(page, "#q").send_keys(Keys.ENTER)
    wait(page, lambda: page.execute_script("return document.querySelector('#status.busy') === null"))


def video(page, name):
    return page.execute_script(f"return document.getElementById('video').{name}")


def test_a_query_is_typed_and_its_moment_plays(page):
    assert "Say in words" in said(page)
    search(page, "b 3")
    wait(page, lambda: files(page)[0] == "b.mp4" and times(page)[0] == "0:03–0:05")
    assert "the best first" in said(page) and "q=b+3" in page.current_url
    picture = element(page, ".moment img")
    wait(page, lambda: page.execute_script("return arguments[0].naturalWidth", picture) == 56)
    element(page, ".moment .play").click()
    wait(page, lambda: video(page, "readyState") >= 2 and not video(page, "seeking"))
    first = video(page, "currentTime")
    assert 3 <= first < 5.5 and "/video/" in video(page, "currentSrc")
    wait(page, lambda: video(page, "currentTime") > first + 0.3)
    assert video(page, "currentTime") < first + 10 and not video(page, "paused")
    # the picture is that of the time: its bits as black and white columns, read from the middle row
    page.execute_script("document.getElementById('video').pause()")
    shown = page.execute_script(
        "const v = document.getElementById('video'), c = document.createElement('canvas');"
        "c.width = 256; c.height = 128; const d = c.getContext('2d'); d.drawImage(v, 0, 0, 256, 128);"
        "let n = 0; for (let b = 0; b < 8; b++) if (d.getImageData(b * 32 + 16, 64, 1, 1).data[0] > 128) n += 1 << b;"
        "return [n, v.currentTime];"
    )
    assert abs(shown[0] / 25 - shown[1]) < 0.12
    element(page, "#close").click()
    assert video(page, "paused") and not element(page, "#player").is_displayed()


def test_more_like_this_and_back(page):
    search(page, "a 2")
    wait(page, lambda: times(page)[0] == "0:02–0:04")
    before = files(page), times(page)
    element(page, ".moment .more").click()
    wait(page, lambda: "like=" in page.current_url and "a.mp4 at 0:02" in element(page, "#like-name").text)
    wait(page, lambda: said(page) and "Searching" not in said(page))
    assert "0:02–0:04" not in [t for f, t in zip(files(page), times(page), strict=True) if f == "a.mp4"]
    assert element(page, "#q").get_attribute("value") == ""
    page.back()
    wait(page, lambda: element(page, "#q").get_attribute("value") == "a 2" and (files(page), times(page)) == before)
    page.forward()
    wait(page, lambda: "a.mp4 at 0:02" in element(page, "#like-name").text)
    element(page, "#unlike").click()
    wait(page, lambda: "like=" not in page.current_url)


def test_an_address_that_was_sent_shows_the_same(page, server):
    page.get(f"http://127.0.0.1:{server.port}/?q=b+3&folder=videos%2Fmore&min=2")
    wait(page, lambda: times(page)[0] == "0:03–0:05" and set(files(page)) == {"b.mp4"})
    wait(page, lambda: len(page.find_elements(By.CSS_SELECTOR, "#folder option")) == 3)
    values = {name: element(page, f"#{name}").get_attribute("value") for name in ("q", "not", "folder", "min", "max")}
    assert values == {"q": "b 3", "not": "", "folder": "videos/more", "min": "2", "max": ""}


def test_what_is_not_there_is_said_and_the_nearest_shown_where_asked(page):
    search(page, "nothing like this")
    wait(page, lambda: "Nothing stands out" in said(page))
    assert files(page) == []
    element(page, "#show-all").click()
    wait(page, lambda: files(page) and "Nothing stands out; the nearest" in said(page))


def test_what_should_not_be_is_not_first(page):
    search(page, "b 3", "b 3")
    wait(page, lambda: "not=b+3" in page.current_url and "Nothing" in said(page))


def test_what_this_browser_does_not_play_plays_as_a_clip(page):
    search(page, "c 3")
    wait(page, lambda: files(page)[0] == "c.avi")
    element(page, ".moment .play").click()
    wait(page, lambda: video(page, "readyState") >= 2)
    assert "/clip/" in video(page, "currentSrc")
    wait(page, lambda: video(page, "currentTime") > 0.2)
    assert "0:03" in element(page, "#player-time").text
    page.find_element(By.CSS_SELECTOR, "body").send_keys(Keys.ESCAPE)
    wait(page, lambda: not element(page, "#player").is_displayed())


def test_an_index_that_grows_is_said_to(page, server):
    with open_for_writing(server.index_dir, SETTINGS) as store:
        store.set(done=1, total=4)
        search(page, "b 4")
        wait(page, lambda: element(page, "#growing").text == "The index is still growing: 1 of 4 videos.")
    wait(page, lambda: not element(page, "#growing").is_displayed())


def test_the_keyboard_is_enough(page):
    search(page, "b 3")
    wait(page, lambda: times(page)[0] == "0:03–0:05")
    for _ in range(40):
        page.switch_to.active_element.send_keys(Keys.TAB)
        if page.switch_to.active_element.get_attribute("class") == "play":
            break
    assert "Play b.mp4, 0:03–0:05" in page.switch_to.active_element.get_attribute("aria-label")
    outline = page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"
    page.switch_to.active_element.send_keys(Keys.ENTER)
    wait(page, lambda: video(page, "currentTime") > 3)
    page.switch_to.active_element.send_keys(Keys.ESCAPE)
    wait(page, lambda: not element(page, "#player").is_displayed())
    assert page.switch_to.active_element.get_attribute("class") == "play"
    page.switch_to.active_element.send_keys("/")
    assert page.switch_to.active_element.get_attribute("id") == "q"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_and_it_can_be_read(page, scheme):
    size = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", features)
    try:
        search(page, "b 3")
        wait(page, lambda: files(page)[0] == "b.mp4")
        assert page.execute_script("return [innerWidth, document.documentElement.scrollWidth]") == [360, 360]
        for button in page.find_elements(By.CSS_SELECTOR, "button, input, select"):
            if button.is_displayed():
                place = page.execute_script("return arguments[0].getBoundingClientRect().toJSON()", button)
                assert place["left"] >= 0 and place["right"] <= 360 and place["height"] >= 32
        for selector in ("body", ".file", ".score", "#go", "#status", ".more", ".time", "#holds"):
            assert contrast(page, selector) >= 4.5, selector
        element(page, ".moment .play").click()
        wait(page, lambda: video(page, "readyState") >= 2)
        assert page.execute_script("return document.getElementById('player').getBoundingClientRect().right") <= 360
        element(page, "#close").click()
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(page, selector):
    """The contrast of an element's text with what is behind it, as WCAG 2 has it."""
    colours = page.execute_script(
        "let e = document.querySelector(arguments[0]); const ink = getComputedStyle(e).color; let back;"
        "do { back = getComputedStyle(e).backgroundColor; e = e.parentElement; }"
        "while (e && /, 0\\)$|transparent/.test(back)); return [ink, back];",
        selector,
    )

    def luminance(colour):
        numbers = [float(part) / 255 for part in colour.split("(")[1].rstrip(")").replace("/", ",").split(",")[:3]]
        linear = [n / 12.92 if n <= 0.03928 else ((n + 0.055) / 1.055) ** 2.4 for n in numbers]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted(map(luminance, colours))
    return (high + 0.05) / (low + 0.05)


def test_a_server_that_is_gone_is_said_to_be(driver, tmp_path, serve):
    root = tmp_path / "videos"
    with serve(make_index(tmp_path / "index", root, make_videos(root, ["a.mp4"])), root) as served:
        driver.get(f"http://127.0.0.1:{served.port}/")
        time.sleep(0.2)
    search(driver, "a 1")
    wait(driver, lambda: "does not answer" in said(driver))
