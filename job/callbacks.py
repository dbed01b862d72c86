"""What happens beside training: metrics.jsonl, the progress bar, stopping on a signal, the closing table."""

import itertools
import json
import math
import signal
import statistics
import sys
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback

from job.distributed import agreed
from job.model import restore_adapter
from job.watchdog import Watchdog


class MetricsFile(TrainerCallback):
    """metrics.jsonl: one JSON object for each logged step, with the step and everything that TRL logs."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            # A resumed run repeats the steps after its checkpoint; keep only what came before.
            lines = (
                self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
            )
            kept = itertools.takewhile(lambda line: step_of(line) <= state.global_step, lines)
            self.path.write_text("".join(f"{line}\n" for line in list(kept)), encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and (is_step(logs) or "eval_loss" in logs):
            values = {name: finite(value) for name, value in logs.items()}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step, **values}) + "\n")


class Progress(TrainerCallback):
    """A progress bar with the reward in it where a person is looking, and one line a logged step everywhere."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            disable=None if state.is_world_process_zero else True,  # None: only on a terminal
        )

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and is_step(logs):
            # TRL logs None where no function judged any completion
            reward = logs.get("reward")
            self.bar.set_postfix_str(
                f"reward {math.nan if reward is None else reward:.2f}", refresh=False
            )
            self.bar.write(step_line(state.global_step, state.max_steps, logs))
            sys.stdout.flush()  # a log file should show the step when it ends

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class Watch(TrainerCallback):
    """Feeds the watchdog, shows each diagnosis once when it starts and, under `watchdog.on: stop`, ends the run with a
    checkpoint. It puts the names that are active into the logs, for MetricsFile, which has to come after it."""

    def __init__(self, watchdog: Watchdog):
        self.watchdog = watchdog
        self.stopped_by: list[str] = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.watchdog.options.on == "off" or not is_step(logs):
            return
        started = self.watchdog.observe(state.global_step, logs)
        if self.watchdog.active:
            logs["watchdog"] = list(self.watchdog.active)
        if state.is_world_process_zero:
            for diagnosis in started:
                tqdm.write(f"watchdog: {diagnosis.name}: {diagnosis.paragraph}")
            sys.stdout.flush()
        names = [diagnosis.name for diagnosis in started]
        if self.watchdog.options.on == "stop" and (names := agreed(names, args.world_size)):
            self.stopped_by = names
            control.should_save = control.should_training_stop = True


class RestoreAdapter(TrainerCallback):
    """Loads the adapter of a checkpoint. Trainer itself skips the one in the checkpoint's root where another, here the
    reference adapter that TRL keeps in ref/, has a folder of its own, and would go on from a fresh adapter."""

    def __init__(self, checkpoint: str | None):
        self.checkpoint = checkpoint

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self.checkpoint:
            restore_adapter(model, self.checkpoint)


class StopOnSignal(TrainerCallback):
    """SIGTERM and Ctrl-C: finish the step, save a checkpoint, stop. A second one ends the process at once."""

    def __init__(self):
        self.received: int | None = None
        self.training = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.handle)

    def handle(self, number, frame):
        signal.signal(number, signal.SIG_DFL)
        if not self.training:
            sys.exit(128 + number)
        self.received = number
        print(
            f"{signal.Signals(number).name}: stopping with a checkpoint after this step; once more: at once, without",
            file=sys.stderr,
            flush=True,
        )

    def on_train_begin(self, args, state, control, **kwargs):
        self.training = True

    def on_step_end(self, args, state, control, **kwargs):
        if (
            args.world_size > 1
        ):  # all processes must stop together, whichever of them got the signal
            from accelerate.utils import gather_object

            self.received = max(gather_object([self.received or 0])) or None
        if self.received is not None:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self.training = False


def step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except ValueError:  # cut off when the run was killed
        return math.inf


def is_step(logs: dict[str, Any] | None) -> bool:
    return (
        bool(logs) and "loss" in logs
    )  # the closing log of a run has train_loss and times instead


def finite(value: Any) -> Any:
    return (
        None if isinstance(value, float) and not math.isfinite(value) else value
    )  # JSON has no NaN


def step_line(step: int, max_steps: int, logs: dict[str, Any]) -> str:
    def number(name: str, form: str) -> str:
        value = logs.get(name)
        return "-" if value is None else format(value, form)

    return " | ".join(
        (
            f"step {step:>{len(str(max_steps))}}/{max_steps}",
            f"reward {number('reward', '6.2f')} ± {number('reward_std', '.2f')}",
            f"correct {number('grades/correct', '4.0%')}",
            f"cheating {number('grades/cheating', '4.0%')}",
            f"kl {number('kl', '.4f')}",
            f"loss {number('loss', '.4f')}",
            f"grad_norm {number('grad_norm', '.3f')}",
            f"{number('step_time', '.1f')} s",
        )
    )


def summary(history: list[dict[str, Any]], steps: int = 10) -> str:
    """The closing table: the first and the last `steps` logged steps side by side."""
    logs = [entry for entry in history if is_step(entry)]
    steps = min(steps, (len(logs) + 1) // 2)
    rows = [
        ("mean reward", "reward", "8.2f"),
        ("correct", "grades/correct", "8.0%"),
        ("cheating", "grades/cheating", "8.0%"),
    ]
    lines = [f"{'':14}{f'first {steps} steps':>16}{f'last {steps} steps':>16}"]
    for title, name, form in rows:
        cells = [
            [entry[name] for entry in part if entry.get(name) is not None]
            for part in (logs[:steps], logs[-steps:])
        ]
        lines.append(
            f"{title:14}"
            + "".join(
                f"{format(statistics.fmean(cell), form) if cell else '-':>16}" for cell in cells
            )
        )
    return "\n".join(lines)
