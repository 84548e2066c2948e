"""The page in a real browser: no error, no request, every chart with its data, hover and legend."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver

from vram_plan.reports.page.html import page
from vram_plan.reports.page.sections import sections, sentence

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no Chromium and chromedriver here"
)
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--window-size=1280,2000"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(BROWSER)
    for word in (*QUIET, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(DRIVER)))
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture
def opened(
    browser: Any, tmp_path: Path, several: Callable[..., list[dict[str, Any]]]
) -> Iterator[Any]:
    documents = several()
    path = tmp_path / "report.html"
    path.write_text(page("A report", sentence(documents), sections(documents)), encoding="utf-8")
    browser.get(path.as_uri())
    yield browser
    browser.set_window_size(1280, 2000)


def test_nothing_fails_and_nothing_is_fetched(opened: Any) -> None:
    assert opened.get_log("browser") == []
    assert opened.execute_script("return performance.getEntriesByType('resource')") == []
    assert opened.title == "A report"


def test_every_chart_is_there_with_its_data(opened: Any) -> None:
    charts = opened.execute_script(
        "return [...document.querySelectorAll('.js-plotly-plot')].map(one => one._fullData.map("
        "trace => Math.max((trace.x || []).length, (trace.y || []).length)))"
    )
    assert len(charts) == 6
    assert all(min(traces) > 0 for traces in charts)
    drawn = "return document.querySelectorAll('.js-plotly-plot .scatterlayer .point').length"
    assert opened.execute_script(drawn) > 24


def test_hover_says_which_configuration(opened: Any) -> None:
    opened.execute_script("Plotly.Fx.hover('figure-0', [{curveNumber: 3, pointNumber: 0}])")
    text = opened.execute_script(
        "return document.querySelector('#figure-0 .hoverlayer').textContent"
    )
    assert "measured" in text
    assert "GiB" in text


def test_the_legend_hides_a_method(opened: Any) -> None:
    click = (
        "for (const kind of ['mousedown', 'mouseup']) document.querySelectorAll("
        "'#figure-0 .legendtoggle')[2].dispatchEvent(new MouseEvent(kind, {bubbles: true}));"
    )
    opened.execute_script(click)
    hidden = "return document.getElementById('figure-0').data.some(t => t.visible == 'legendonly')"
    for _ in range(50):
        if opened.execute_script(hidden):
            return
        opened.implicitly_wait(0.1)
        opened.execute_async_script("setTimeout(arguments[0], 100)")
    pytest.fail("the legend hid nothing")


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(opened: Any, width: int) -> None:
    resized = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 800}
    opened.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", resized)
    opened.refresh()
    assert opened.execute_script("return window.innerWidth") == width
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width
    opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_tables_open_by_keyboard(opened: Any) -> None:
    summary = opened.find_element("css selector", "summary")
    summary.send_keys("\n")
    assert opened.execute_script("return document.querySelector('details').open")
