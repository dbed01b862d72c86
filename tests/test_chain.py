"""From training to a model for others: train, evaluate, read the report, generate, export."""

import html
import json
import re

import chromium
import pytest

import evaluate
import export
import generate
import report
from job.config import ROOT

TINY = str(ROOT / "configs" / "tiny.yaml")


@pytest.mark.slow
def test_the_smoke_job_gets_better_and_says_so(tmp_path, run_job, capsys):
    # Train
    output = tmp_path / "run"
    result = run_job("--config", TINY, f"grpo.output_dir={output}", evaluate=True)
    assert result.returncode == 0, result.stderr
    sentence = result.stdout.splitlines()[-1]
    assert re.fullmatch(
        r"before and after: \d+ % → \d+ %, \+\d+ points \[\d+, \d+\], p < 0.001, 64 problems",
        sentence,
    )
    comparison = json.loads((output / "evaluation.json").read_text())["comparison"]
    assert comparison["difference"]["low"] > 0.1

    # Evaluate, from outside the run and on the same problems
    arguments = ["base", str(output), "--output", str(tmp_path / "evaluation")]
    assert evaluate.main(arguments) == 0
    said = capsys.readouterr().out.splitlines()[-1]
    assert "p < 0.001, 64 problems" in said and "points [" in said

    # Generate
    assert generate.main([str(output), "--run", "--temperature", "0"]) == 0
    said = capsys.readouterr()
    assert "def matmul" in said.out and "\ncorrect   True" in said.err

    # Read the report, where there is a browser
    assert report.main([str(output)]) == 0
    page = (output / "report.html").read_text(encoding="utf-8")
    assert html.escape(sentence.removeprefix("before and after: ")) in page
    if chromium.find() is not None:
        browser = chromium.Browser(tmp_path / "profile")
        try:
            browser.open((output / "report.html").as_uri())
            assert "points [" in browser.evaluate("document.body.innerText")
            assert browser.errors == []
        finally:
            browser.close()

    # Export, compared with what was trained in a process of its own
    for form in ("lora", "merged_16bit"):
        assert export.main([str(output), "--format", form]) == 0
        told = json.loads((output / "exports" / form / "export.json").read_text())
        assert told["verdict"]["passed"] is True
