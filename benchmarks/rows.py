"""Measures how fast rows are read: `python benchmarks/rows.py FOLDER`.

Makes files of word problems with worked solutions in the folder, 100,000 and 1,000,000 rows of 300
bytes. Then it measures start-up, up to where a dry run ends, and two steps of training on the
stream, each in a process of its own: seconds, CPU seconds and the peak of its memory.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from job.chat import Chat  # noqa: E402
from job.config import load_config  # noqa: E402
from job.model import load_tokenizer  # noqa: E402
from job.plan import make_plan  # noqa: E402

JOB = ["--config", str(ROOT / "configs/tiny.yaml")]
KEYS = ["task.type=jsonl", "task.num_rows=null", "grpo.report_to=[]"]
STREAMED = 100_000  # rows of the large file whose prompts are measured as they come


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["HF_HUB_OFFLINE"] = "1"
    small, large = make_rows(folder, 100_000), make_rows(folder, 1_000_000)

    print(f"load {os.getloadavg()[0]:.1f}")
    measure("start-up without rows", [*JOB, "--dry-run"])
    measure("start-up, 100,000 rows", [*JOB, "--dry-run", *KEYS, f"task.data={small}"])
    measure("start-up, 1,000,000 rows", [*JOB, "--dry-run", *KEYS, f"task.data={large}"])
    with tempfile.TemporaryDirectory() as output:
        run = ["grpo.max_steps=2", f"grpo.output_dir={output}", "task.check=false"]
        measure("two steps, 1,000,000 rows", [*JOB, *KEYS, *run, f"task.data={large}"])
    print(f"streamed: {rows_a_second(large):,.0f} rows a second, each prompt measured")


def make_rows(folder: Path, count: int) -> Path:
    """A file of `count` different problems. One that is there already is left as it is."""
    path = folder / f"{count}.jsonl"
    if path.exists():
        return path
    rng = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            boxes, each, sold = (rng.randint(2, 99_999) for _ in range(3))
            question = (
                f"A shop has {boxes} boxes with {each} pencils each, and {sold} pencils are sold "
                f"on day {i}. How many pencils are left in the shop at the end of that day?"
            )
            solution = (
                f"There are {boxes} * {each} = {boxes * each} pencils.\n"
                f"{boxes * each} - {sold} = {boxes * each - sold}\n#### {boxes * each - sold}"
            )
            file.write(json.dumps({"question": question, "answer": solution}) + "\n")
    return path


def measure(what: str, arguments: list[str]) -> None:
    """Print what a process of train.py takes."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *arguments], stdout=subprocess.DEVNULL, cwd=ROOT
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{what}: exit code {process.returncode}")
    seconds, cpu_s = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
    print(f"{what}: {seconds:.0f} s, {cpu_s:.0f} s of CPU, peak {usage.ru_maxrss / 1e6:.2f} GB")


def rows_a_second(path: Path) -> float:
    """How many rows of a stream can be trained on in a second."""
    config = load_config([JOB[1]], [*KEYS, f"task.data={path}"])
    chat = Chat(load_tokenizer(config.model), config.model.prompt_date)
    stream = iter(make_plan(config, chat).stream)
    began = time.perf_counter()
    for _ in range(STREAMED):
        next(stream)
    return STREAMED / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
