"""What happens beside training: metrics.jsonl, progress, watchdog, report, trackers, signals."""

import contextlib
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas
from omegaconf import OmegaConf
from tqdm.auto import tqdm
from transformers import TrainerCallback

from job import metrics_file, trackers
from job.config import Config, resolved
from job.distributed import agreed
from job.evaluation.run_evaluation import RunEvaluation
from job.interruption import Interruption
from job.metrics_file import is_evaluation, is_step, two_ends
from job.model import restore_adapter
from job.report.live_report import LiveReport
from job.waiting import waiting
from job.watchdog import Watchdog

# Columns of MLflow's table of completions, where a run has them
TABLE_COLUMNS = (
    "step",
    "group",
    "prompt",
    "completion",
    "total",
    "status",
    "correct",
    "cheating",
    "detail",
    "advantage",
)


class MetricsFile(TrainerCallback):
    """metrics.jsonl: one JSON object for each logged step, with the step and all that TRL logs."""

    def __init__(self, path: Path):
        self.path = path

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            # A resumed run repeats the steps after its checkpoint.
            said = metrics_file.cut_off(self.path, state.global_step, state.log_history)
            if said:
                print(said, flush=True)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero:
            return
        if is_step(logs) or is_evaluation(logs):
            metrics_file.append(self.path, state.global_step, logs)


class Progress(TrainerCallback):
    """A progress bar with the reward on a terminal, and one line for each logged step anywhere."""

    def on_train_begin(self, args, state, control, **kwargs):
        disable = True
        if state.is_world_process_zero:
            disable = None  # tqdm then shows the bar on a terminal only
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            unit="step",
            disable=disable,
        )

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and is_step(logs):
            reward = logs.get("reward")
            if reward is None:  # TRL logs None where no function judged any completion
                reward = math.nan
            self.bar.set_postfix_str(f"reward {reward:.2f}", refresh=False)
            self.bar.write(step_line(state.global_step, state.max_steps, logs))
            sys.stdout.flush()  # so that a log file shows each step as it ends

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


class FirstStep(TrainerCallback):
    """Says that training goes on until the first step has ended: on a GPU it compiles kernels for
    minutes, and an evaluation may come before it. Use it as a context around training.

    Args:
        is_shown: whether this process prints.
    """

    def __init__(self, is_shown: bool):
        self.is_shown = is_shown
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> "FirstStep":
        if self.is_shown:
            self.stack.enter_context(waiting("the first step, which may compile kernels"))
        return self

    def __exit__(self, *raised) -> None:
        self.stack.__exit__(*raised)

    def on_step_end(self, args, state, control, **kwargs):
        self.stack.close()


class Watch(TrainerCallback):
    """Feeds the watchdog, and shows each diagnosis once when it starts.

    Under `watchdog.on: stop` it also ends the run with a checkpoint. To the logs it adds the names
    of the active diagnoses, and the paragraphs of those that start. MetricsFile writes them, so it
    must come after this callback.
    """

    def __init__(self, watchdog: Watchdog):
        self.watchdog = watchdog
        self.stopped_by: list[str] = []

    def on_train_begin(self, args, state, control, **kwargs):
        """A resumed run goes on with the windows of the run before.

        Where the watchdog has stopped that run, its windows are full of what was to be changed, so
        they begin empty.
        """
        if self.watchdog.options.on == "off":
            return
        for logs in state.log_history:
            if is_step(logs):
                self.watchdog.observe(logs["step"], logs)
        if self.watchdog.options.on == "stop" and self.watchdog.active:
            self.watchdog.forget()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.watchdog.options.on == "off" or not is_step(logs):
            return
        started = self.watchdog.observe(state.global_step, logs)
        if self.watchdog.active:
            logs["watchdog"] = list(self.watchdog.active)
        if started:
            logs["diagnoses"] = {diagnosis.name: diagnosis.paragraph for diagnosis in started}
        if state.is_world_process_zero:
            for diagnosis in started:
                tqdm.write(f"watchdog: {diagnosis.name}: {diagnosis.paragraph}")
            sys.stdout.flush()
        if self.watchdog.options.on == "stop":
            names = [diagnosis.name for diagnosis in started]
            names = agreed(names, args.world_size)
            if names:
                self.stopped_by = names
                control.should_save = control.should_training_stop = True


class ReportFile(TrainerCallback):
    """Refreshes the report of the run now and then. It must come after MetricsFile."""

    def __init__(self, report: LiveReport):
        self.report = report

    def on_log(self, args, state, control, logs=None, **kwargs):
        if is_step(logs):
            self.report.refresh_when_due()


class TrackerExtras(TrainerCallback):
    """Sends the config to each tracker, and to MLflow a table of completions at each logged step.

    Args:
        callbacks: of the trainer; one of them has TensorBoard's writer.
    """

    def __init__(self, config: Config, folder: Path, callbacks: Sequence[TrainerCallback]):
        self.trackers = trackers.of_config(config)
        self.folder = folder
        self.callbacks = callbacks
        self.config: dict[str, Any] = OmegaConf.to_container(resolved(config))
        self.config["grpo"].pop("hub_token", None)
        self.sent: set[Path] = set()  # tables

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        if "tensorboard" in self.trackers:
            text = f"```yaml\n{OmegaConf.to_yaml(self.config)}\n```"
            for callback in self.callbacks:
                if getattr(callback, "tb_writer", None) is not None:
                    callback.tb_writer.add_text("config", text)
        if "wandb" in self.trackers:
            import wandb

            wandb.config.update({"job": self.config}, allow_val_change=True)
        if "trackio" in self.trackers:
            import trackio

            trackio.config.update({"job": self.config}, allow_val_change=True)
        if "mlflow" in self.trackers:
            import mlflow

            mlflow.log_dict(self.config, "config.yaml")

    # TRL writes the completions of a step after the last call of on_log. The next step or the last
    # checkpoint, whichever comes first, finds them.

    def on_step_begin(self, args, state, control, **kwargs):
        self._send_table(state)

    def on_save(self, args, state, control, **kwargs):
        self._send_table(state)

    def _send_table(self, state: Any) -> None:
        """Send the completions of this step to MLflow, once."""
        if "mlflow" not in self.trackers or not state.is_world_process_zero:
            return
        name = f"completions_{state.global_step:05d}"
        file = self.folder / "completions" / f"{name}.parquet"
        if file in self.sent or not file.is_file():
            return
        import mlflow

        table = pandas.read_parquet(file)
        columns = [column for column in TABLE_COLUMNS if column in table.columns]
        mlflow.log_table(table[columns], f"completions/{name}.json")
        self.sent.add(file)


class RestoreAdapter(TrainerCallback):
    """Loads the adapter of a checkpoint, or nothing if there is no checkpoint.

    transformers' Trainer fails to do it: if a checkpoint has a subfolder with an adapter, it
    ignores the adapter in the checkpoint's root. TRL keeps its reference adapter in such a
    subfolder, `ref`. Without this callback a resumed run would train a fresh adapter.
    """

    def __init__(self, checkpoint: str | None):
        self.checkpoint = checkpoint

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        if self.checkpoint:
            restore_adapter(model, self.checkpoint)


class Interrupts(TrainerCallback):
    """Tells `interruption` what training is doing, and ends it after the step when that is wanted.

    It must come first: what other callbacks do before a step may be given up.
    """

    def __init__(self, interruption: Interruption):
        self.interruption = interruption

    def on_step_begin(self, args, state, control, **kwargs):
        self.interruption.begin_step()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.interruption.begin_update()

    def on_step_end(self, args, state, control, **kwargs):
        self.interruption.end_step()
        # All processes must stop together.
        self.interruption.received = first_of_all(self.interruption.received, args.world_size)
        if self.interruption.received is not None:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        self.interruption.end_training()


def first_of_all(received: int | None, world_size: int) -> int | None:
    """The signal that any process received."""
    if world_size == 1:
        return received
    from accelerate.utils import gather_object

    return max(gather_object([received or 0])) or None


class Evaluate(TrainerCallback):
    """Evaluates between two steps, when the step before is logged and saved.

    It must come after Interrupts. The evaluation after the last step is the job's, because
    final_model is saved first.
    """

    def __init__(self, evaluation: RunEvaluation, interruption: Interruption):
        self.evaluation, self.interruption = evaluation, interruption

    def on_step_begin(self, args, state, control, **kwargs):
        if self.evaluation.is_due(state.global_step):
            self.evaluation.evaluate(state.global_step, self._is_stopped(args))
            if args.world_size == 1:
                self.interruption.stop_here()

    def _is_stopped(self, args) -> Callable[[], bool]:
        """Whether a signal has come. Several processes go on together to the end."""
        if args.world_size > 1:
            return lambda: False
        return lambda: self.interruption.received is not None


def step_line(step: int, max_steps: int, logs: dict[str, Any]) -> str:
    """The line that is printed for a logged step. A metric that was not logged is a dash."""

    def number(name: str, form: str) -> str:
        value = logs.get(name)
        if value is None:
            return "-"
        return format(value, form)

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
    """The closing table: the first and the last `steps` logged steps side by side.

    No step counts for both: of fewer than twice as many, each half counts for one end. A single
    step has a column of its own.
    """
    logs = [entry for entry in history if is_step(entry)]
    ends = two_ends(logs, steps)
    titles = [f"first {len(ends[0])} steps", f"last {len(ends[-1])} steps"]
    if len(ends[0]) == 1:
        titles = ["first step", "last step"]
    if len(ends) == 1:
        titles = ["the only step"]
    rows = [
        ("mean reward", "reward", "8.2f"),
        ("correct", "grades/correct", "8.0%"),
        ("cheating", "grades/cheating", "8.0%"),
    ]
    lines = [" " * 14 + "".join(f"{title:>16}" for title in titles)]
    for title, name, form in rows:
        cells = [mean_cell(end, name, form) for end in ends]
        lines.append(f"{title:14}" + "".join(f"{cell:>16}" for cell in cells))
    return "\n".join(lines)


def mean_cell(logs: list[dict[str, Any]], name: str, form: str) -> str:
    """The mean of a metric over the steps that logged it, or a dash if none did."""
    values = [entry[name] for entry in logs if entry.get(name) is not None]
    if not values:
        return "-"
    return format(statistics.fmean(values), form)
