"""reporting.py and report.py: the report of one run and of several, in both its forms."""

import base64
import html
import io
import json
import re
import xml.etree.ElementTree

import chromium
import numpy as np
import pytest
from fake_run import completion, metrics_of, write_completions, write_run
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import report
from job.errors import OutputError
from job.report import live_report, reporting
from job.report.live_report import LiveReport
from job.report.report_pictures import MAX_POINTS, Curve, draw_curves, draw_parts, running_mean
from job.report.reporting import write_report
from job.report.run_record import RunRecord

# What a model may write to take over the page of a reader
ATTACKS = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<!--<script>",
    "]]>&lt;script&gt;",
    "{{ 7 * 7 }} {% raw %}",
    "\u2028\u2029\x00 javascript:alert(1)",
    "\ud800",  # no character: no Parquet file can hold it
]


def attacked(text, **columns):
    """A completion with this text in every place."""
    names = ("prompt", "answer", "thinking", "detail", "cheating")
    return completion(**dict.fromkeys(names, text), **columns)


def read(folder):
    return [(folder / name).read_text(encoding="utf-8") for name in reporting.NAMES]


def pictures(page):
    """The SVG files in a page, by their titles."""
    found = re.findall(r'<img src="data:image/svg\+xml;base64,(.*?)" alt="(.*?)">', page)
    return {html.unescape(title): base64.b64decode(code).decode() for code, title in found}


def data_of(page):
    """The completions as the page's script reads them."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page)[1])


@pytest.fixture
def no_pictures(monkeypatch):
    """Reports without pictures, which take most of the time."""
    monkeypatch.setattr(reporting, "top_pictures", lambda runs: [])
    monkeypatch.setattr(reporting, "more_pictures", lambda runs: [])


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The two files of a report about a run with everything."""
    folder = write_run(tmp_path_factory.mktemp("one") / "my run", steps=range(1, 61))
    with (folder / "metrics.jsonl").open("a") as file:
        said = {"watchdog": ["echo"], "diagnoses": {"echo": "step 61: answers repeat | it"}}
        file.write(json.dumps(metrics_of(61) | said) + "\n")
        file.write('{"step": 61, "eval_loss": 0, "eval_reward": 9.0}\n')
    sentence = "41 % → 63 %, +22 points [15, 29], p < 0.001, 200 problems"
    before = {"step": 0, "pass@1": {"value": 0.41, "low": 0.35, "high": 0.475}}
    content = {
        "evaluations": [before, {"step": 61, "tokens": {"mean": 60.0}}],
        "comparison": {"sentence": sentence, "worse": [{"problem": "p17", "second": 0.25}]},
    }
    (folder / "evaluation.json").write_text(json.dumps(content))
    assert report.main([str(folder)]) == 0
    return read(folder)


def test_both_files_say_what_was_trained_and_how_it_went(one):
    for text in one:
        text = html.unescape(text).replace("\\", "")
        for expected in (
            "my run", "before and after: 41 % → 63 %", "p < 0.001", "finished", "matmul",
            "61 of 20", "5.50 → 56.50", "step 61: answers repeat | it", "pass@1",
            "0.41 [0.35, 0.475]", "step 61", "tokens.mean", "p17", "a GPU, a GPU",
            "2.13.0", "61,000", "4.00 s (50%)", "grpo.beta", "reward_weights/function_works",
        ):  # fmt: skip
            assert expected in text, expected
        assert "hf_secret" not in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({}, "not evaluated"),
        ({"evaluations": [{"step": 0}]}, "evaluated, but not both before and after"),
        ({"comparison": {"sentence": "1 % → 2 %"}}, "before and after: 1 % → 2 %"),
        ({"comparison": [7], "sentence": [7], "evaluations": 7}, "evaluated, but not both"),
    ],
)
def test_the_sentence_of_an_evaluation(tmp_path, no_pictures, content, expected):
    folder = write_run(tmp_path / "run", rows=[])
    (folder / "evaluation.json").write_text(json.dumps(content))
    write_report([folder], folder)
    for text in read(folder):
        assert expected in text


def test_a_run_that_continued_from_an_adapter_says_so(tmp_path):
    record = RunRecord(tmp_path, "run", {"model.name": "tiny", "model.adapter": "first"})
    assert reporting.described_run(record)["model"] == "tiny, continued from first"


def test_a_run_that_has_learned_nothing_says_so(tmp_path):
    equal = {"loss": 0.0, "frac_reward_zero_std": 1.0}
    record = RunRecord(tmp_path, "run", steps=[{"step": 1} | equal, {"step": 2} | equal])
    said = "in every group all rewards were equal, so nothing was learned"
    assert reporting.sentences([record])[1].startswith(said)
    record.steps[1]["frac_reward_zero_std"] = 0.9
    assert len(reporting.sentences([record])) == 1
    record.steps.clear()
    assert len(reporting.sentences([record])) == 1


def test_the_page_is_complete_in_itself(one):
    page, _ = one
    assert re.findall(r'(?:src|href)="(?!data:)', page) == []
    assert "://" not in page and "@import" not in page
    assert len(page.encode()) < 1_000_000


def test_each_signal_has_its_picture(one):
    page, _ = one
    titles = set(pictures(page))
    assert {
        "mean reward",
        "share of correct completions",
        "share of completions that attempt to cheat",
        "function_works, before weights",
        "KL divergence from the starting model",
        "entropy of the next token",
        "how completions ended, shares",
        "time of a step, seconds",
    } <= titles
    assert "gradient norm" not in titles, "it was not logged"
    for svg in pictures(page).values():
        xml.etree.ElementTree.fromstring(svg)
    assert "held-out rows" in pictures(page)["mean reward"]


def test_several_runs_stand_side_by_side(tmp_path, monkeypatch, capsys):
    runs = [write_run(tmp_path / name / "run") for name in ("a", "b")]
    text = (runs[1] / "config.yaml").read_text().replace("0.04", "0.5")
    (runs[1] / "config.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert report.main([str(run) for run in runs]) == 0
    page, words = read(tmp_path)
    assert "2 training runs side by side" in page
    assert "The runs differ in 1 keys, which are marked." in page
    assert re.search(r'class="marked"><td>grpo.beta</td><td>0.04</td><td>0.5</td>', page)
    assert "a/run: not evaluated" in words and "b/run: not evaluated" in words
    data = data_of(page)
    assert len(data["runs"]) == 2 and {group["run"] for group in data["groups"]} == {0, 1}
    assert str(runs[0]) in pictures(page)["mean reward"]
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in reporting.NAMES]


@pytest.mark.parametrize("lost", ["metrics.jsonl", "completions", "config.yaml", "everything"])
def test_a_report_is_written_whatever_is_missing(tmp_path, no_pictures, lost):
    folder = write_run(tmp_path / "run", rows=[])
    for file in list(folder.iterdir()):
        if lost in (file.name, "everything") and file.name != "environment.json":
            file.unlink()
    write_report([folder], tmp_path / "out")
    page, words = read(tmp_path / "out")
    assert "not evaluated" in page and "not evaluated" in words
    if lost in ("metrics.jsonl", "everything"):
        assert "no step has been logged" in html.unescape(page)


def test_random_bytes_in_every_file_make_a_report_that_names_them(tmp_path, no_pictures):
    folder = write_run(tmp_path / "run")
    noise = np.random.default_rng(0).bytes(3000)
    for file in [*folder.glob("*.*"), *folder.glob("completions/*")]:
        file.write_bytes(noise)
    (folder / "evaluation.json").write_bytes(noise)
    write_report([folder], folder)
    page, _ = read(folder)
    for name in ("metrics.jsonl", "config.yaml", "evaluation.json", "completions_00020.parquet"):
        assert name in page.partition("What could not be read")[2]


def test_nothing_that_a_model_or_a_file_says_becomes_markup(tmp_path):
    rows = [attacked(text, group=i) for i, text in enumerate(ATTACKS[:-1])]
    folder = write_run(tmp_path / "run", rows=rows)
    keys = {text: text for text in ATTACKS}
    everything = " ".join(ATTACKS)
    (folder / "config.yaml").write_text(json.dumps({"task": {"type": everything} | keys}))
    evaluation = {"sentence": everything, "evaluations": [keys]}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    rewards = {f"rewards/{text}/mean": 1.0 for text in ATTACKS}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(metrics_of(21) | rewards | {"diagnoses": keys}) + "\n")
    write_report([folder], folder)
    page, words = read(folder)

    assert page.count("<script") == 2 and page.count("</script>") == 2
    assert re.findall(r"<(?:img|svg|iframe|object|embed)(?! src=\"data:)", page) == []
    assert "<!--" not in page.partition("<body>")[2] and "<" not in words
    for svg in pictures(page).values():
        xml.etree.ElementTree.fromstring(svg)
        assert "<script" not in svg
    for group, text in zip(data_of(page)["groups"], ATTACKS, strict=False):
        (shown,) = group["completions"]
        assert shown["text"] == shown["cheating"] == text


@pytest.mark.parametrize(("completions", "size"), [(40, 10**6), (2000, 20_000)])
def test_a_report_is_limited_and_says_so(tmp_path, monkeypatch, no_pictures, completions, size):
    monkeypatch.setattr(reporting, "MAX_COMPLETIONS", completions)
    monkeypatch.setattr(reporting, "MAX_JSON_BYTES", size)
    folder = write_run(tmp_path / "run", rows=[])
    for step in (1, 2, 3):
        rows = [completion(step=step, group=i // 8, answer=f"{i} " * 99) for i in range(40)]
        write_completions(folder, step, rows)
    write_report([folder], folder)
    page, _ = read(folder)
    data = data_of(page)
    shown = sum(len(group["completions"]) for group in data["groups"])
    assert 8 <= shown <= completions and len(json.dumps(data["groups"])) <= size * 1.1
    assert f"{shown} of about 120 logged completions" in page


@pytest.mark.slow
@pytest.mark.parametrize("character", ["x", "<", "漢", "\0"])
def test_a_page_stays_below_ten_megabytes_whatever_it_holds(tmp_path, no_pictures, character):
    folder = write_run(tmp_path / "run", rows=[])
    for step in (1, 2, 3):
        rows = []
        for i in range(800):
            texts = {name: character * 9000 + str(i) for name in ("answer", "thinking")}
            rows.append(completion(step=step, group=i // 8, prompt=f"{step} {i // 8}", **texts))
        write_completions(folder, step, rows)
    write_report([folder], folder)
    page, _ = read(folder)
    assert 1_000_000 < len(page.encode()) < 10_000_000
    assert data_of(page)["groups"][0]["step"] == 1 and data_of(page)["groups"][-1]["step"] == 3


# ---- Writing


def test_a_mistake_is_one_line_with_its_exit_code(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert report.main([str(tmp_path / "missing")]) == 2
    assert report.main([str(tmp_path)]) == 2
    run = write_run(tmp_path / "run")
    assert report.main([str(run), "--output", str(tmp_path / "file" / "in it")]) == 4
    lines = capsys.readouterr().err.splitlines()
    assert [line.startswith("error: ") for line in lines] == [True] * 3
    assert "no such folder" in lines[0] and "not the output folder" in lines[1]


def test_a_failed_write_leaves_the_last_report_and_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "report.md").write_text("the last one")

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reporting.Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        reporting.replace_file(tmp_path / "report.md", "the next one")
    assert [file.name for file in tmp_path.iterdir()] == ["report.md"]
    assert (tmp_path / "report.md").read_text() == "the last one"


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves on: a list with the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(live_report.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def written(monkeypatch, clock):
    """The times at which reports were written. Each takes three seconds."""
    times = []

    def write(paths, folder):
        times.append(clock[0])
        clock[0] += 3

    monkeypatch.setattr(reporting, "write_report", write)
    return times


def test_a_live_report_is_refreshed_now_and_then_and_at_the_end(tmp_path, clock, written):
    with LiveReport(tmp_path) as live:
        live.refresh_when_due()
        live.begin()
        for _ in range(400):
            clock[0] += 1
            live.refresh_when_due()
        live.exit_code = 0
    # After a minute, then so that it takes a fiftieth of the time, and at the end
    assert written == [1060, 1213, 1366, 1409]
    assert json.loads((tmp_path / "environment.json").read_text())[0]["outcome"] == "finished"


def test_a_run_that_fails_has_a_report_that_says_so(tmp_path, no_pictures):
    folder = write_run(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), LiveReport(folder) as live:
        live.begin()
        print(1 / 0)
    page, words = read(folder)
    assert "failed: ZeroDivisionError: division by zero" in page
    assert "failed: ZeroDivisionError: division by zero" in words


def test_a_run_that_never_began_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), LiveReport(tmp_path):
        print(1 / 0)
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_ends_no_run_and_is_told_once(
    tmp_path, monkeypatch, capsys
):
    def broken(paths, folder):
        raise ImportError("No module named 'matplotlib'")

    monkeypatch.setattr(reporting, "write_report", broken)
    with LiveReport(tmp_path) as live:
        live.begin()
        live.refresh()
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "warning: there is no report: No module named 'matplotlib'"


# ---- Pictures


def svg_of(picture):
    return base64.b64decode(picture.url.partition(",")[2]).decode()


@pytest.mark.parametrize(
    "values",
    [[1.0], [0.0, 0.0], [1e299, -1e299], [1.0] * 5000],
    ids=["one", "flat", "huge", "long"],
)
def test_every_curve_can_be_drawn(values):
    steps = range(len(values))
    svg = svg_of(draw_curves("a $title_{1}$", [Curve("a & b", steps, values)], marks=[0]))
    xml.etree.ElementTree.fromstring(svg)
    assert "a $title_{1}$" in svg and "a &amp; b" in svg and len(svg) < 100_000
    xml.etree.ElementTree.fromstring(svg_of(draw_parts("parts", steps, {"part": values})))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=MAX_POINTS))
def test_a_running_mean_stays_within_the_values(values):
    means = running_mean(np.array(values))
    assert len(means) == len(values)
    assert min(values) <= min(means) and max(means) <= max(values)


# ---- In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.find() is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    opened = chromium.Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def shown(browser, tmp_path_factory):
    """Opens the report of a run with many kinds of completions, at an address after "#"."""
    folder = write_run(tmp_path_factory.mktemp("shown") / "run", rows=[])
    kinds = [
        {"status": "ok", "total": 3.0},
        {"status": "crash", "total": -1.0, "correct": False},
        {"status": "crash", "total": 5.0, "correct": False, "cheating": "reads the answers"},
        {"status": "ok", "total": None, "thinking": ""},
    ]
    for step in range(1, 11):
        rows = []
        for group in range(4):
            rows += [completion(step=step, group=group) | kind for kind in kinds]
        rows += [completion(step=step, group=4, total=1.0) for _ in range(4)]
        write_completions(folder, step, rows)
    write_report([folder], folder)
    return lambda address="": browser.open(f"file://{folder}/report.html{address}")


def count(browser, selector):
    return browser.evaluate(f"document.querySelectorAll({json.dumps(selector)}).length")


def texts(browser, selector):
    script = f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent)"
    return browser.evaluate(script)


def choose(browser, name, value):
    browser.evaluate(
        f"form.elements.{name}.value = {json.dumps(value)};form.dispatchEvent(new Event('change'))"
    )


@pytest.mark.browser
def test_a_report_opens_without_errors_and_loads_nothing(browser, shown):
    shown()
    assert browser.errors == []
    (address,) = browser.requested()
    assert address.endswith("report.html")
    assert count(browser, ".group") == 40 and count(browser, ".group.flat") == 8
    assert count(browser, "details.thinking[open]") == 0
    browser.evaluate("document.getElementById('more').click()")
    assert count(browser, ".group") == 50
    assert browser.evaluate("document.getElementById('more').hidden")


@pytest.mark.browser
def test_no_picture_is_blank(browser, shown):
    shown()
    colours = browser.evaluate("""
        Promise.all([...document.images].map(async (image) => {
          await image.decode();
          const canvas = document.createElement("canvas");
          [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0);
          const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
          const blue = [];
          for (let i = 0; i < data.length; i += 4) {
            if (data[i + 3] > 200 && data[i + 2] > data[i] + 60) blue.push(i);
          }
          return blue.length;
        }))
    """)
    assert len(colours) >= 8
    assert min(colours) > 50, "the first curve or part of each picture is blue"
    with Image.open(io.BytesIO(browser.screenshot())) as screenshot:
        assert len(screenshot.convert("RGB").getcolors(1 << 24)) > 100


@pytest.mark.browser
def test_the_filter_shows_what_it_says(browser, shown):
    shown()
    choose(browser, "status", "crash")
    assert texts(browser, "#count") == ["80 completions in 40 groups"]
    choose(browser, "cheating", "yes")
    assert texts(browser, "#count") == ["40 completions in 40 groups"]
    assert set(texts(browser, ".reason")) == {"attempted to cheat: reads the answers"}
    choose(browser, "step", "7")
    assert texts(browser, "#count") == ["4 completions in 4 groups"]
    assert browser.evaluate("location.hash") == "#step=7&status=crash&cheating=yes"
    assert set(texts(browser, ".group strong")) == {"step 7"}
    choose(browser, "cheating", "no")
    choose(browser, "correct", "yes")
    assert texts(browser, "#count") == ["0 completions in 0 groups"]
    assert browser.errors == []


@pytest.mark.browser
def test_best_and_worst_come_first_and_what_has_no_total_last(browser, shown):
    shown("#order=best&step=2")
    assert texts(browser, ".group:first-child .chip.total")[0] == "total 5"
    assert count(browser, ".group:first-child .completion:last-child .chip.total") == 0
    shown("#order=worst&step=2")
    assert texts(browser, ".group:first-child .chip.total")[0] == "total -1"
    shown("#groups=flat")
    assert texts(browser, "#count") == ["40 completions in 10 groups"]
    shown("#step=none&unknown=1")
    assert texts(browser, "#count") == ["200 completions in 50 groups"]


@pytest.mark.browser
def test_what_the_model_wrote_is_text_and_never_runs(browser, tmp_path):
    attacks = ATTACKS[:-2]
    rows = [attacked(text, group=i) for i, text in enumerate(attacks)]
    folder = write_run(tmp_path / "run", rows=rows)
    (folder / "evaluation.json").write_text(json.dumps({"sentence": attacks[1]}))
    write_report([folder], folder)
    browser.open(f"file://{folder}/report.html")
    assert browser.errors == []
    assert texts(browser, "pre.text") == attacks
    assert texts(browser, ".sentence") == [f"before and after: {attacks[1]}"]
    assert count(browser, "script") == 2 and count(browser, "#groups img") == 0
    # Had one come through, the page's policy would still not run it
    browser.evaluate(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(attacks[1])})")
    browser.evaluate("new Promise((done) => setTimeout(done, 100))")
    assert not any("type" in error and error["type"] == "alert" for error in browser.errors)
    assert any("Content Security Policy" in error.get("text", "") for error in browser.errors)
