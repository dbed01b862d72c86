"""The output folder of a run: its names, its lock, its checkpoints, and earlier runs in it."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from job import checkpoints, model_card
from job.checkpoints import steps_done
from job.config import Config, changed_since, note, read_saved
from job.config import save as save_config
from job.distributed import agreed, is_first_process, world_size
from job.errors import ConfigError, OutputError, one_line
from job.model_checks import check_adapter

# What a run leaves: name in the folder -> what it is
PRODUCTS = {
    "final_model": "adapter and tokenizer",
    "checkpoint-*": "to resume from",
    "metrics.jsonl": "one line for each logged step",
    "completions": "every completion with its rewards, Parquet",
    "evaluation.json": "every evaluation on held-out rows, and what training changed",
    "evaluation": "the completions of each evaluation, Parquet",
    "runs": "TensorBoard",
    "wandb": "W&B",
    "trackio": "trackio",
    "mlflow": "MLflow",
    "exports": "made by export.py",
    "config.yaml": "the resolved config",
    "environment.json": "versions and hardware of each start, and how it ended",
    "report.md": "what the run did, in words and tables",
    "report.html": "the same with curves and completions: open it in a browser",
}
MIN_FREE_MB = 200  # enough for metrics, completions and one checkpoint of an adapter
FULL_MB = 20  # with less than this free, a failed write is put down to the full disk
# Error numbers that say that a file or folder cannot be written
DISK_ERRORS = {
    errno.ENOENT,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
}


class RunFolder:
    """The folder that `grpo.output_dir` names. Nothing is written before `with`.

        with RunFolder(config) as folder:  # makes it, checks that it can be written, and locks it
            folder.begin(config, checkpoint=None)

    Raises:
        OutputError: from each method that writes, if the folder cannot be written or its disk is
            full.
    """

    def __init__(self, config: Config):
        self._config = config
        self.path = Path(config.grpo["output_dir"]).absolute()
        self._closing = contextlib.ExitStack()
        self._is_of_another = False  # another run is writing to the folder

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def final_model(self) -> Path:
        return self.path / "final_model"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def exit_code(self) -> Path:
        return self.path / "exit_code"

    def evaluation(self, step: int) -> Path:
        return self.path / "evaluation" / f"step-{step}"

    def checkpoint(self, step: int) -> Path:
        return self.path / f"checkpoint-{step}"

    def has_checkpoint(self, step: int) -> bool:
        """Whether there is a whole checkpoint of this step."""
        return checkpoints.fault(self.checkpoint(step)) is None

    def __enter__(self) -> "RunFolder":
        self._probe()
        if is_first_process():
            self._lock()
        return self

    def __exit__(self, *_) -> None:
        self._closing.close()

    # ---- How the job ended

    def forget_exit_code(self) -> None:
        """Remove the marker of an earlier run, before anything of this one can fail."""
        if is_first_process():
            with contextlib.suppress(OSError):
                self.exit_code.unlink()

    def mark_exit_code(self, code: int) -> None:
        """Write the file `exit_code`: the number that this job ends with, and a newline.

        A launcher such as torchrun hides the exit code of its processes. Of several processes the
        first to end has the reason, because the launcher then ends the others. So the first word
        counts. A run that was killed leaves no such file.
        """
        if self._is_of_another or not self.path.is_dir():
            return
        with contextlib.suppress(OSError), self.exit_code.open("x") as file:
            file.write(f"{code}\n")

    def _probe(self) -> None:
        """Make the folder. Check that it can be written and that its disk has space."""
        with self.saving():
            self.path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.path).close()
        free_mb = shutil.disk_usage(self.path).free >> 20
        needed_mb = min_free_mb()
        if free_mb < needed_mb:
            raise OutputError(
                f"grpo.output_dir: only {free_mb} MB are free on the disk of {self.path}; "
                f"{needed_mb} MB are needed, unless MIN_FREE_GB in the environment asks for less"
            )

    def _lock(self) -> None:
        """Keep other runs out: they would move this run's files aside while it writes them."""
        with self.saving():
            lock = self._closing.enter_context((self.path / ".lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._closing.close()
            self._is_of_another = True
            raise OutputError(
                f"grpo.output_dir: another run is writing to {self.path}; name another folder"
            ) from error
        except OSError:  # a file system without locks
            pass

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Turn the many errors of a full disk or a read-only folder into one clear OutputError."""
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise OutputError(
                    f"grpo.output_dir: cannot write to {self.path}: {one_line(error)}"
                ) from error
            # safetensors and torch.save raise types of their own when the disk is full. They may
            # have removed their file since, hence the threshold.
            if self.path.is_dir() and shutil.disk_usage(self.path).free < FULL_MB << 20:
                raise OutputError(
                    f"grpo.output_dir: the disk of {self.path} is full: {one_line(error)}"
                ) from error
            raise

    def begin(self, config: Config, checkpoint: str | None) -> None:
        """Write the resolved config, and put aside what another run has left.

        For a fresh run that is all; otherwise a later run might resume from it by mistake. For a
        resumed run it is the checkpoints of steps that will be trained once more.

        Args:
            checkpoint: that the run resumes from; None: it is a fresh one.
        """
        self._config = config
        if not is_first_process():
            return
        with self.saving():
            checkpoints.remove(self.path / checkpoints.STAGING)  # of a run that was killed
            if checkpoint is None:
                self._put_aside([path for path, _ in self.products()])
            else:
                done = steps_done(Path(checkpoint))
                later = [path for step, path in checkpoints.numbered(self.path) if step > done]
                self._put_aside(later)
                self._forget_completions(done)
            save_config(config, self.path / "config.yaml")

    def _put_aside(self, paths: list[Path]) -> None:
        if not paths:
            return
        aside = self.path / time.strftime("previous-%Y%m%d-%H%M%S")
        aside.mkdir(exist_ok=True)
        for path in paths:
            path.rename(aside / path.name)
        print(f"what an earlier run left in {self.path} is now in {aside.name}/")

    def _forget_completions(self, step: int) -> None:
        """Remove the completions of steps that are repeated."""
        for file in self.path.glob("completions/completions_*.parquet"):
            number = file.stem.removeprefix("completions_")
            if number.isdecimal() and int(number) > step:
                file.unlink()

    def products(self) -> list[tuple[Path, str]]:
        """(path, what it is) of everything that a run has left here."""
        found = []
        for name, what in PRODUCTS.items():
            for path in self.path.glob(name):
                found.append((path, what))
        return found

    def save_final(self, model: Any, tokenizer: Any, weights: dict[str, Any] | None = None) -> None:
        """Write the trained adapter and the tokenizer to final_model.

        Args:
            model: a PeftModel.
            weights: of distributed.whole_weights.
        """
        with self.saving(), checkpoints.written_whole(self.final_model) as unfinished:
            # TRL keeps the starting adapter in the model as well, as the reference of the KL
            # penalty. Only the trained one, called "default", is saved.
            model.save_pretrained(unfinished, selected_adapters=["default"], state_dict=weights)
            tokenizer.save_pretrained(unfinished)
            self._write_model_card(unfinished)

    def write_model_card(self) -> None:
        """Write README.md of final_model again: it holds the sentence on before and after."""
        with self.saving():
            self._write_model_card(self.final_model)

    def _write_model_card(self, folder: Path) -> None:
        """Write README.md, in place of PEFT's, in which nothing is filled in."""
        adapter = json.loads((folder / "adapter_config.json").read_text("utf-8"))
        base = Path(self._config.model.path)
        if not base.is_dir():
            base = None
        facts = model_card.Facts(
            config=self._config,
            base=adapter["base_model_name_or_path"],
            base_folder=base,
            format="lora",
            evaluation=model_card.read_evaluation(self.path),
        )
        model_card.save(folder, facts)

    def report(self) -> str:
        """What the run left, one line for each kind. Paths are relative where they can be."""
        lines = []
        for name, what in PRODUCTS.items():
            if any(self.path.glob(name)):
                lines.append(f"{shown_path(self.path / name)}  {what}")
        return "\n".join(lines)

    def checkpoint_to_resume(self, config: Config) -> str | None:
        """The checkpoint that `grpo.resume_from_checkpoint` asks for, or None to start afresh.

        `auto` is the last whole checkpoint of this folder, if it has one. Anything else is a path.
        Which one is taken, which are skipped and why, and what has changed in the config since it
        was written is printed.

        Raises:
            ConfigError: if there is no such checkpoint, if it is not whole, or if its adapter has
                another shape than the config asks for.
        """
        wanted = config.grpo.get("resume_from_checkpoint")
        if wanted is None:
            return None
        if wanted == "auto":
            wanted = self._last_checkpoint()
        else:
            self._check_named(str(wanted))
        if wanted is None:
            return None
        checkpoint = Path(wanted)
        print(f"resuming from {shown_path(checkpoint)}, after step {steps_done(checkpoint)}")
        check_adapter(checkpoint, config.lora)
        saved_by = checkpoints.processes_of(checkpoint)
        if saved_by != world_size():
            note(
                f"{wanted} was written by {saved_by} processes, and now there are {world_size()}: "
                "other random numbers are drawn than without the interruption"
            )
        for change in changed_since(config, checkpoint.parent / "config.yaml"):
            note(f"since {wanted} was written: {change}")
        return wanted

    def _check_named(self, wanted: str) -> None:
        """
        Raises:
            ConfigError: if this path is no whole checkpoint.
        """
        checkpoint = Path(wanted)
        if not (checkpoint / checkpoints.STATE).is_file():
            near = self.path / wanted
            hint = ""
            if steps_done(near) >= 0:
                hint = f"; did you mean {near}?"
            raise ConfigError(
                f"grpo.resume_from_checkpoint: {wanted} is neither `auto` nor a checkpoint folder"
                f"{hint}"
            )
        fault = checkpoints.fault(checkpoint)
        if fault:
            raise ConfigError(
                f"grpo.resume_from_checkpoint: {wanted} cannot be resumed from: {fault}"
            )

    def trained_in(self, config: Config) -> str | None:
        """model.quantization of the run that `grpo.resume_from_checkpoint` continues, if known."""
        wanted = config.grpo.get("resume_from_checkpoint")
        folder = None
        if wanted == "auto" and checkpoints.numbered(self.path):
            folder = self.path
        elif wanted not in (None, "auto"):
            folder = Path(wanted).parent
        if folder is None:
            return None
        model = read_saved(folder / "config.yaml").get("model")
        if not isinstance(model, dict) or model.get("name") != config.model.name:
            return None
        return model.get("quantization")

    def _last_checkpoint(self) -> str | None:
        """The whole checkpoint with the most steps. If there is none, that is printed.

        The first of several processes decides, for it may begin to put others aside.
        """
        found: list[str] = []
        if is_first_process():
            for _, path in checkpoints.numbered(self.path):
                fault = checkpoints.fault(path)
                if fault is None:
                    found.append(str(path))
                    break
                print(f"{shown_path(path)} is skipped: {fault}")
        found = agreed(found, world_size())
        if found:
            return found[0]
        hint = ""
        aside = sorted(self.path.glob("previous-*/checkpoint-*"))
        if aside:
            hint = (
                f"; to resume the earlier run that was put aside, name {aside[-1]} instead of auto"
            )
        print(f"no whole checkpoint in {self.path}: starting from the model{hint}")
        return None


def min_free_mb() -> int:
    """The free disk to insist on: MIN_FREE_MB, or less if the user's MIN_FREE_GB says so."""
    wanted = os.environ.get("MIN_FREE_GB", "")
    try:
        return int(min(MIN_FREE_MB, float(wanted) * 1000))
    except ValueError:
        return MIN_FREE_MB


def shown_path(path: Path) -> Path:
    """The path as it is shown: relative to the working directory where it lies below that."""
    if path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd())
    return path


def find_adapter(folder: Path) -> Path:
    """What a run has trained: the folder itself, its final_model, or its last whole checkpoint.

    Raises:
        ConfigError: if there is no such folder, or no adapter in it.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder")
    for place in (folder, folder / "final_model"):
        if (place / "adapter_config.json").is_file():
            return place
    places = [place for _, place in checkpoints.numbered(folder)]
    whole = [place for place in places if not checkpoints.adapter_fault(place)]
    if not whole:
        raise ConfigError(
            f"{folder}: nothing trained is in it, neither final_model nor a whole checkpoint"
        )
    last = whole[0]
    note(f"{folder} has no final_model; its last checkpoint is taken, {last.name}")
    return last
