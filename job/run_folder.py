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

from job import model_card
from job.config import Config, changed_since, note, read_saved
from job.config import save as save_config
from job.distributed import is_first_process
from job.errors import ConfigError, OutputError, one_line
from job.model import check_adapter, checkpoints

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
            folder.begin(config, fresh=True)

    Raises:
        OutputError: from each method that writes, if the folder cannot be written or its disk is
            full.
    """

    def __init__(self, config: Config):
        self._config = config
        self.path = Path(config.grpo["output_dir"]).absolute()
        self._closing = contextlib.ExitStack()

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def final_model(self) -> Path:
        return self.path / "final_model"

    @property
    def evaluations(self) -> Path:
        return self.path / "evaluation.json"

    def evaluation(self, step: int) -> Path:
        return self.path / "evaluation" / f"step-{step}"

    def checkpoint(self, step: int) -> Path:
        return self.path / f"checkpoint-{step}"

    def has_checkpoint(self, step: int) -> bool:
        """Whether there is a whole checkpoint of this step."""
        return steps_done(self.checkpoint(step)) == step

    def __enter__(self) -> "RunFolder":
        self._probe()
        if is_first_process():
            self._lock()
        return self

    def __exit__(self, *_) -> None:
        self._closing.close()

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

    def begin(self, config: Config, fresh: bool) -> None:
        """Write the resolved config.

        A fresh run first moves what an earlier run left into a folder of its own. Otherwise a later
        run might resume from it by mistake.
        """
        if not is_first_process():
            return
        with self.saving():
            earlier = [path for path, _ in self.products()]
            if fresh and earlier:
                aside = self.path / time.strftime("previous-%Y%m%d-%H%M%S")
                aside.mkdir(exist_ok=True)
                for path in earlier:
                    path.rename(aside / path.name)
                print(f"what an earlier run left in {self.path} is now in {aside.name}/")
            save_config(config, self.path / "config.yaml")

    def products(self) -> list[tuple[Path, str]]:
        """(path, what it is) of everything that a run has left here."""
        found = []
        for name, what in PRODUCTS.items():
            for path in self.path.glob(name):
                found.append((path, what))
        return found

    def save_final(self, model: Any, tokenizer: Any) -> None:
        """Write the trained adapter and the tokenizer to final_model.

        Args:
            model: a PeftModel.
        """
        with self.saving():
            shutil.rmtree(self.final_model, ignore_errors=True)  # of an earlier run
            # TRL keeps the starting adapter in the model as well, as the reference of the KL
            # penalty. Only the trained one, called "default", is saved.
            model.save_pretrained(self.final_model, selected_adapters=["default"])
            tokenizer.save_pretrained(self.final_model)
            self.write_model_card()

    def write_model_card(self) -> None:
        """Write README.md of final_model, in place of PEFT's, in which nothing is filled in.

        Write it again after an evaluation: it holds the sentence on before and after.
        """
        adapter = json.loads((self.final_model / "adapter_config.json").read_text("utf-8"))
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
        model_card.save(self.final_model, facts)

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
        What has changed in the config since the checkpoint was written is printed.

        Raises:
            ConfigError: if there is no such checkpoint, or if its adapter has another shape than
                the config asks for.
        """
        wanted = config.grpo.get("resume_from_checkpoint")
        if wanted == "auto":
            wanted = self._last_checkpoint()
        if wanted is None:
            return None
        checkpoint = Path(wanted)
        if steps_done(checkpoint) < 0:
            near = self.path / str(wanted)
            hint = ""
            if steps_done(near) >= 0:
                hint = f"; did you mean {near}?"
            raise ConfigError(
                f"grpo.resume_from_checkpoint: {wanted} is neither `auto` nor a checkpoint folder"
                f"{hint}"
            )
        check_adapter(checkpoint, config.lora)
        for change in changed_since(config, checkpoint.parent / "config.yaml"):
            note(f"since {wanted} was written: {change}")
        return wanted

    def trained_in(self, config: Config) -> str | None:
        """model.quantization of the run that `grpo.resume_from_checkpoint` continues, if known."""
        wanted = config.grpo.get("resume_from_checkpoint")
        folder = None
        if wanted == "auto" and any(self.path.glob("checkpoint-*")):
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
        """The whole checkpoint with the most steps. If there is none, that is printed."""
        whole = [folder for folder in self.path.glob("checkpoint-*") if steps_done(folder) >= 0]
        if whole:
            return str(max(whole, key=steps_done))
        hint = ""
        aside = sorted(self.path.glob("previous-*/checkpoint-*"))
        if aside:
            hint = (
                f"; to resume the earlier run that was put aside, name {aside[-1]} instead of auto"
            )
        print(f"no checkpoint in {self.path}: starting from the model{hint}")
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
    whole = [place for place in checkpoints(folder) if steps_done(place) >= 0]
    if not whole:
        raise ConfigError(
            f"{folder}: nothing trained is in it, neither final_model nor a whole checkpoint"
        )
    last = whole[0]
    note(f"{folder} has no final_model; its last checkpoint is taken, {last.name}")
    return last


def steps_done(checkpoint: Path) -> int:
    """The step of a checkpoint; -1 if it is not whole. Its trainer_state.json is written last."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        return int(state["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1
