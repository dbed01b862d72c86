"""Kills a tiny run at random moments, resumes it each time, and compares it with a whole one.

    .venv/bin/python tests/kills.py FOLDER [KILLS] [SEED]

The run is a child of a process that has the libraries loaded already, so that a life takes seconds.
It is killed with SIGKILL, which no process can hear: while it starts, decodes, grades, updates,
logs, saves or evaluates. At the end metrics.jsonl must have each step once, with the numbers of the
run that was never interrupted; so must the completions and the evaluations, and the final adapter
must be the same to the byte.
"""

import ctypes
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

PR_SET_PDEATHSIG = 1
LONGEST_START_S = 5.0  # of every fifth process, which is killed while it starts
FEWEST_STEPS, MOST_STEPS = 2, 4  # of any other, which is killed at a random moment of the next
STEPS_A_KILL = 3
TIMES = ("step_time", "time/")  # what no two runs have in common

JOB = [
    "--config",
    "configs/tiny.yaml",
    "task.type=code",
    "task.check=false",
    "task.num_eval_rows=1",
    "evaluate.every=10",
    "evaluate.rows=2",
    "evaluate.completions=2",
    "grpo.per_device_train_batch_size=4",
    "grpo.num_generations=4",
    "grpo.max_completion_length=80",
    "grpo.num_iterations=2",
    "grpo.logging_steps=2",
    "grpo.save_steps=1",
    "grpo.save_total_limit=3",
    "grpo.report_to=[]",
    "sandbox.workers=1",
    "grpo.resume_from_checkpoint=auto",
]


def start(folder: Path, steps: int) -> int:
    """Start the job in a process of its own. Returns its id."""
    import job.callbacks  # noqa: F401 - in the parent, so that the child has what they import
    import job.trainer  # noqa: F401
    import train

    child = os.fork()
    if child:
        return child
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # end with the parent
    log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        os.chdir(ROOT)
        code = train.main([*JOB, f"grpo.max_steps={steps}", f"grpo.output_dir={folder}"])
    finally:
        os._exit(code)


def finish(folder: Path, steps: int) -> None:
    """Run to the end."""
    _, status = os.waitpid(start(folder, steps), 0)
    if status != 0:
        log = folder.with_suffix(".log").read_text(errors="replace")
        sys.exit(f"the run in {folder} ended with status {status}:\n{log[-3000:]}")


def kill_and_finish(folder: Path, steps: int, kills: int, rng: random.Random) -> int:
    """Returns how many kills found the run alive."""
    found_alive = 0
    for number in range(kills):
        folder.with_suffix(".log").unlink(missing_ok=True)
        child = start(folder, steps)
        if number % 5 == 4:
            time.sleep(rng.uniform(0, LONGEST_START_S))
        else:
            step_s = wait_for_steps(folder, rng.randint(FEWEST_STEPS, MOST_STEPS))
            time.sleep(rng.uniform(0, step_s))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        found_alive += os.WIFSIGNALED(status)
        saved = sorted(path.name for path in folder.glob("*checkpoint-*"))
        unfinished = [path.name for path in folder.glob(".saving/*")]
        print(f"kill {number + 1}: {saved}, unfinished {unfinished}", flush=True)
    finish(folder, steps)
    return found_alive


def wait_for_steps(folder: Path, count: int) -> float:
    """Wait until the process has saved so many steps, or has ended.

    Returns:
        How long the last step took, with its save.
    """
    newest = newest_checkpoint(folder)
    began, step_s = time.monotonic(), 0.0
    while os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.01)
        found = newest_checkpoint(folder)
        if found == newest:
            continue
        now = time.monotonic()
        newest, step_s, began = found, now - began, now
        count -= 1
        if count == 0:
            break
    return step_s


def newest_checkpoint(folder: Path) -> int:
    numbers = [int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")]
    return max(numbers, default=0)


def metrics(folder: Path) -> list[dict]:
    """The lines of metrics.jsonl without times."""
    lines = []
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        lines.append({key: value for key, value in entry.items() if not key.startswith(TIMES)})
    return lines


def completions(folder: Path) -> dict[str, list]:
    import pandas

    files = sorted(folder.glob("completions/*.parquet"))
    return {file.name: pandas.read_parquet(file).to_dict("records") for file in files}


def evaluations(folder: Path) -> dict[str, dict]:
    found = {}
    for file in sorted(folder.glob("evaluation/step-*/evaluation.json")):
        result = json.loads(file.read_text())
        found[file.parent.name] = {key: result[key] for key in ("correct", "reward", "pass_at")}
    return found


def differences(whole: Path, killed: Path) -> list[str]:
    """What the two runs do not have in common, in words."""
    found = []
    steps = [entry["step"] for entry in metrics(whole)]
    own = [entry["step"] for entry in metrics(killed)]
    if steps != own:
        found.append(f"steps of metrics.jsonl: {own}, not {steps}")
    for read in (metrics, completions, evaluations):
        if repr(read(whole)) != repr(read(killed)):
            found.append(f"{read.__name__} differ")
    adapter = "final_model/adapter_model.safetensors"
    if (whole / adapter).read_bytes() != (killed / adapter).read_bytes():
        found.append("the final adapters differ")
    return found


def main(folder: Path, kills: int, seed: int) -> int:
    folder.mkdir(parents=True)
    steps = STEPS_A_KILL * kills
    finish(folder / "whole", steps)
    alive = kill_and_finish(folder / "killed", steps, kills, random.Random(seed))
    found = differences(folder / "whole", folder / "killed")
    print(f"{alive} of {kills} kills found the run alive; {steps} steps; differences: {found}")
    return bool(found)


if __name__ == "__main__":
    numbers = [int(word) for word in sys.argv[2:]]
    sys.exit(main(Path(sys.argv[1]).resolve(), *(numbers + [50, 0][len(numbers) :])))
