"""Measures the report of a long run: `python benchmarks/report.py FOLDER`.

Makes the output folder of a run of 1,000 steps, with 64 completions of about 3,000 characters at
each, which takes a minute. Then it writes the report and opens it in headless Chromium.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path

import pandas

ROOT = Path(__file__).resolve().parent.parent
sys.path[0:1] = [str(ROOT), str(ROOT / "tests")]

import chromium  # noqa: E402
import fake_run  # noqa: E402

from job.report.reporting import write_report  # noqa: E402

STEPS, COMPLETIONS, GROUP = 1000, 64, 8
CHARACTERS = 3000
TRIES = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if not folder.exists():
        make_run(folder)

    write_report([folder], folder)  # the first imports matplotlib
    seconds = []
    for _ in range(TRIES):
        began = time.perf_counter()
        write_report([folder], folder)
        seconds.append(time.perf_counter() - began)
    page = folder / "report.html"
    print(f"written in {statistics.median(seconds):.2f} s, {page.stat().st_size / 1e6:.1f} MB")

    if chromium.find() is None:
        print("there is no Chromium: opening was not measured")
        return
    with tempfile.TemporaryDirectory() as profile:
        browser = chromium.Browser(profile)
        opened = [seconds_to_open(browser, page) for _ in range(TRIES)]
        print(f"opened in {statistics.median(opened):.2f} s")
        print(browser.evaluate("document.getElementById('count').textContent"))
        browser.close()


def seconds_to_open(browser: chromium.Browser, page: Path) -> float:
    """From asking for the page until it is drawn with its first groups."""
    began = time.perf_counter()
    browser.open(page.resolve().as_uri())
    browser.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done)))")
    return time.perf_counter() - began


def make_run(folder: Path) -> None:
    rng = random.Random(0)
    words = [f"{rng.randrange(10**6)} " for _ in range(5000)]
    fake_run.write_run(folder, steps=[], rows=[])
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, STEPS + 1):
            file.write(json.dumps(fake_run.metrics_of(step)) + "\n")
    for step in range(1, STEPS + 1):
        rows = []
        for i in range(COMPLETIONS):
            text = "".join(rng.choices(words, k=CHARACTERS // 14))
            row = fake_run.completion(step=step, group=i // GROUP, thinking=text, answer=text)
            rows.append(row | {"total": rng.random()})
        table = pandas.DataFrame(rows)
        (folder / "completions").mkdir(exist_ok=True)
        table.to_parquet(folder / "completions" / f"completions_{step:05d}.parquet")


if __name__ == "__main__":
    main()
