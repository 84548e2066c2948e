"""How long a history of 10,000 runs and a page of 500 take: ``python tests/benchmarks/reports.py``.

Prints seconds beside the targets: ``bench check`` 1 s with its index made, the page 10 s, its load
in Chromium 3 s.
"""

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vram_plan.bench.measurement import Instant, Measurement
from vram_plan.bench.regression.simulate import Machine

RUNS, SERIES, LAST = 10_000, 50, 500


def fill(folder: Path) -> None:
    """Runs of many configurations, as a sweep stores them."""
    machines = [Machine(0.01, random.Random(number)) for number in range(SERIES)]
    (folder / "runs").mkdir(parents=True)
    for number in range(RUNS):
        series = number % SERIES
        identity = {"id": f"{number:06d}", "key": str(number), "series": str(series), "job": {}}
        document = Measurement(
            outcome="ok",
            device="cpu",
            config={"method": "lora", "engine": "torch", "micro_batch": 1, "seq_len": series},
            model={"name": "small"},
            instants=(Instant(name="loss", bytes=10**9),),
            step_seconds=(machines[series].run(),),
            environment={"libraries": {"torch": "2.13.0"}},
            run=identity,
            plan={"allocated_bytes": 10**9},
        ).to_document()
        (folder / "runs" / f"{number:06d}.json").write_text(json.dumps(document))


def seconds(work: Callable[[], Any]) -> float:
    """Of the wall."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def command(*arguments: str | Path) -> Callable[[], Any]:
    """A fresh process of the command line."""
    words = [sys.executable, "-m", "vram_plan.app", *map(str, arguments)]
    return lambda: subprocess.run(words, check=False, capture_output=True)


def load_seconds(page: Path) -> float | None:
    """Until the page's load event, in Chromium; None where there is none."""
    import shutil

    from selenium import webdriver

    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        return None
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for word in ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"):
        options.add_argument(word)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.get(page.as_uri())
        timing = "return performance.getEntriesByType('navigation')[0].loadEventEnd"
        return float(browser.execute_script(timing)) / 1000
    finally:
        browser.quit()


def main() -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as place:
        store, page = Path(place) / "store", Path(place) / "page.html"
        fill(store)
        check = command("bench", "check", "--store", store)
        print(f"bench check of {RUNS:,} runs, index to be made: {seconds(check):.2f} s")
        print(f"bench check of {RUNS:,} runs: {seconds(check):.2f} s (target 1 s)")
        report = command("report", "--store", store, "--last", str(LAST), "--output", page)
        print(f"report of the last {LAST}: {seconds(report):.2f} s (target 10 s)")
        print(f"page: {page.stat().st_size / 1e6:.2f} MB (target 6 MB)")
        loaded = load_seconds(page)
        print(f"page loaded: {loaded:.2f} s (target 3 s)" if loaded else "no Chromium here")


if __name__ == "__main__":
    main()
