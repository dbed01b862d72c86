"""The job, top to bottom: config.yaml in, a better model out.

    python train.py [--config FILE] [--dry-run] [section.key=value ...]

Exit codes: 0 done, 1 unexpected, 2 configuration, 3 a reward function failed, 4 disk or output folder,
5 the sandbox lacks a layer that `sandbox.require` names, 6 the rewards can be beaten (check.py),
7 stopped by the watchdog (`watchdog.on: stop`) with a checkpoint saved, or weights that are NaN at the end,
128 + n stopped by signal n (143 for SIGTERM) with a checkpoint saved.
"""

import argparse
import contextlib
import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import check
import config as config_room
import grpo
import model as model_room
import plan as plan_room
import watchdog
from chat import Chat
from config import Config, Lora
from job.errors import ConfigError, OutputError, exit_code_of, one_line
from plan import Plan
from reward_functions import Grader
from sandbox import Sandbox

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
PRODUCTS = {
    "final_model": "adapter and tokenizer",
    "checkpoint-*": "to resume from",
    "metrics.jsonl": "one line a logged step",
    "completions": "every completion with its rewards, Parquet",
    "runs": "TensorBoard",
    "config.yaml": "the resolved config",
}
FUSED = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")  # of experts; PEFT saves some as parameters
UNCHECKED = "warning: task.check is off for {}: nobody looked whether the rewards pay wrong or dishonest answers"
MIN_FREE_MB = 200  # room for metrics, completions and one checkpoint of an adapter


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train a model with GRPO as config.yaml says.", allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", action="append", help="its keys replace those of config.yaml")
    parser.add_argument(
        "--dry-run", action="store_true", help="check all that can be checked without the model, and stop"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="e.g. grpo.max_steps=1")
    arguments = parser.parse_intermixed_args(argv)  # overrides may stand between options
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - of several processes the first one talks; errors do all
    return exit_code_of(lambda: train_command(arguments))


def train_command(arguments: argparse.Namespace) -> int:
    config = config_room.load(arguments.config, arguments.overrides)
    return dry_run(config) if arguments.dry_run else run(config)


def run(config: Config) -> int:
    if config_room.world_size() > 1 and "RANK" not in os.environ:
        raise ConfigError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, but there is no RANK: start it by torchrun")
    chat, plan = prepare(config)
    print(plan_room.shown(plan.rows[0], chat), flush=True)
    output = output_of(config)
    checkpoint = checkpoint_to_resume(config, output)
    probe_output(output)
    with claimed(output):
        with Sandbox(config.sandbox.workers, config.sandbox, config.sandbox.require) as sandbox:
            print(sandbox)
            for options in config.tasks:
                print(check.check(options, sandbox)[1] if options.check else UNCHECKED.format(options.type))
            model, tokenizer = model_room.load(config.model, config.lora)
            prepare_output(config, output, fresh=checkpoint is None)  # what failed until here left an earlier run alone
            trainer = build_trainer(config, output, model, tokenizer, sandbox, chat, plan)
            stopped_by = train(trainer, output, checkpoint)
        if (code := exit_code(trainer, stopped_by)) == 0 and trainer.is_world_process_zero():
            save_final(trainer, tokenizer, output)
            report(config, trainer, output)
    return code


def exit_code(trainer: Any, stopped_by: int | None) -> int:
    """0 if the run came to its end with weights that are worth keeping; else another, and the reason is printed."""
    step = trainer.state.global_step
    finite = trainer.weights_are_finite()  # asked by all processes, whichever of them got a signal
    if stopped_by is not None:
        saved = steps_done(Path(trainer.args.output_dir, f"checkpoint-{step}")) == step  # not weights that are NaN
        place = "there" if saved else "the last checkpoint"
        print(f"stopped after step {step}; grpo.resume_from_checkpoint=auto goes on from {place}")
        return 128 + stopped_by
    if names := diagnosed(trainer):
        print(f"stopped after step {step} by the watchdog: {', '.join(names)}")
        print("change what the diagnosis names; grpo.resume_from_checkpoint=auto then goes on from the last checkpoint")
        return 7
    if not finite:
        print("no final_model is written: the weights are not finite; see where loss becomes null in metrics.jsonl")
        return 7
    return 0


def dry_run(config: Config) -> int:
    """Everything that can be known without the weights: the checked config, the prompts, the batches, the memory."""
    chat, plan = prepare(config)
    checkpoint_to_resume(config, output_of(config))  # for what it refuses
    for row in plan_room.first_of_each_kind(plan.rows):
        print(plan_room.shown(row, chat))
    print(model_room.estimate_memory(config, plan.prompt_tokens, plan.completion_tokens))
    print("dry run: nothing was loaded, trained or written")
    return 0


def prepare(config: Config) -> tuple[Chat, Plan]:
    """The prompts as the model will read them and the plan of the run, printed; before any weights are fetched. What
    the libraries would refuse later is refused here."""
    for notice in config.notices:
        print(f"note: {notice}", file=sys.stderr)
    chat = Chat(
        model_room.load_tokenizer(config.model), config.model.prompt_date, config.grpo.get("chat_template_kwargs")
    )
    if not chat.has_effort:
        print(f"note: {config.model.name} has no notion of a reasoning effort; task.reasoning_effort is ignored")
    for key in chat.unknown_kwargs:
        print(f"note: grpo.chat_template_kwargs.{key}: the chat template of {config.model.name} does not read it")
    plan = plan_room.make(config, chat)
    print(*plan.lines(config), sep="\n")
    ignored = model_room.check(config)
    arguments, changes = grpo_config(config, plan)
    for notice in ignored + changes:
        print(f"note: {notice}", file=sys.stderr)
    plan_room.rehearse(arguments)
    return chat, plan


def grpo_config(config: Config, plan: Plan) -> tuple[Any, list[str]]:
    """The arguments of the trainer, and in words what the library made of them otherwise."""
    # Imported here because Unsloth, if it is the backend, must come first: it patches TRL and transformers.
    from trl import GRPOConfig

    # In a dry run for processes that nobody started GRPOConfig sees one, with the batches of all of them
    planned = None if "RANK" in os.environ else os.environ.pop("WORLD_SIZE", None)
    batches = ("per_device_train_batch_size", "per_device_eval_batch_size") if planned else ()
    settings = {
        "disable_tqdm": True,  # callbacks.Progress shows the bar
        "logging_nan_inf_filter": False,  # would log a loss that is NaN as the mean of the ones before
        **model_room.trainer_settings(config.model, config.lora),
        **config.grpo,
        **{key: config.grpo.get(key, 8) * int(planned) for key in batches},
        "max_completion_length": plan.completion_tokens,
        "output_dir": str(output_of(config)),
    }
    if not config.grpo.get("use_vllm"):  # sampling from weights that are NaN would raise before the watchdog saw them
        settings["generation_kwargs"] = {"remove_invalid_values": True} | (config.grpo.get("generation_kwargs") or {})
    try:
        arguments = GRPOConfig(**model_room.as_written(config.model, settings))
    except Exception as error:  # of any type: what it is given are the user's values
        raise ConfigError(f"grpo: {one_line(error)}") from error
    finally:
        os.environ |= {"WORLD_SIZE": planned} if planned else {}
    return arguments, grpo.changes(settings, arguments)


def build_trainer(
    config: Config, output: Path, model: Any, tokenizer: Any, sandbox: Sandbox, chat: Chat, plan: Plan
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback

    import callbacks
    from trainer import Trainer

    grader = Grader(config.tasks, sandbox)
    arguments, _ = grpo_config(config, plan)  # anew: Unsloth's pads as the model that has been loaded wants it
    try:
        trainer = Trainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=grader.reward_functions(),
            args=arguments,
            train_dataset=Dataset.from_list(plan.rows),
            eval_dataset=Dataset.from_list(plan.eval_rows) if plan.eval_rows else None,
            callbacks=[  # in this order: the watchdog adds to what MetricsFile writes
                callbacks.Watch(watchdog.Watchdog(config.watchdog, grader.weights, arguments.fp16)),
                callbacks.MetricsFile(output / "metrics.jsonl"),
                callbacks.Progress(),
                callbacks.StopOnSignal(),
            ],
            chat=chat,
            grader=grader,
            rollout=config.rollout,
        )
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"grpo: {one_line(error)}") from error
    batch = arguments.generation_batch_size // arguments.world_size
    print(f"grading {batch} completions takes at the very most {grader.longest_batch_s(batch):.0f} s")
    for default in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(default)
    return trainer


def train(trainer: Any, output: Path, checkpoint: str | None) -> int | None:
    """Train to the end. Returns the signal that stopped it early, if one did; a failure saves a checkpoint first."""
    from callbacks import RestoreAdapter, StopOnSignal

    trainer.add_callback(RestoreAdapter(checkpoint))
    with saving_to(output):
        if checkpoint and 0 < trainer.args.max_steps <= steps_done(Path(checkpoint)):
            print(f"{checkpoint} has all {trainer.args.max_steps} steps; nothing is left to train")
            RestoreAdapter(checkpoint).on_train_begin(None, None, None, model=trainer.model)
            return None  # Trainer.train would do one step more
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except Exception:
            # Between its own saves Trainer has no public way. Several processes cannot save when one has failed.
            step = trainer.state.global_step
            saved = (output / f"checkpoint-{step}").exists()
            if trainer.optimizer is not None and step > 0 and not saved and trainer.args.world_size == 1:
                trainer._save_checkpoint(trainer.model, trial=None)
            raise
    return next(c.received for c in trainer.callback_handler.callbacks if isinstance(c, StopOnSignal))


def diagnosed(trainer: Any) -> list[str]:
    """What the watchdog stopped the run for; empty if it did not."""
    from callbacks import Watch

    return next(callback.stopped_by for callback in trainer.callback_handler.callbacks if isinstance(callback, Watch))


def checkpoint_to_resume(config: Config, output: Path) -> str | None:
    """`auto` is the last whole checkpoint of the output folder, or none; anything else is a path."""
    wanted = config.grpo.get("resume_from_checkpoint")
    if wanted == "auto":
        whole = [folder for folder in output.glob("checkpoint-*") if steps_done(folder) >= 0]
        wanted = str(max(whole, key=steps_done)) if whole else None
        if wanted is None:
            aside = sorted(output.glob("previous-*/checkpoint-*"))
            hint = f"; an earlier run left {aside[-1]}, to be named instead of auto" if aside else ""
            print(f"no checkpoint in {output}: starting from the model{hint}")
    elif wanted is not None and steps_done(Path(wanted)) < 0:
        near = output / str(wanted)
        hint = f"; did you mean {near}?" if steps_done(near) >= 0 else ""
        raise ConfigError(f"grpo.resume_from_checkpoint: {wanted} is neither `auto` nor a checkpoint folder{hint}")
    if wanted is not None:
        check_adapter(Path(wanted), config.lora)
        for change in config_room.changed_since(config, Path(wanted).parent / "config.yaml"):
            print(f"note: since {wanted} was written: {change}", file=sys.stderr)
    return wanted


def check_adapter(checkpoint: Path, lora: Lora) -> None:
    """Refuses a checkpoint whose adapter has another shape than the one that the config asks for."""
    file = checkpoint / "adapter_config.json"
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    for key in ("r", "target_modules", "target_parameters"):
        own, its = getattr(lora, key), saved.get(key)
        if isinstance(own, list) and isinstance(its, list):
            fused = FUSED if key == "target_modules" and saved.get("target_parameters") else ()
            own, its = (sorted(name for name in names if name not in fused) for names in (own, its))
        if its is not None and type(own) is type(its) and own != its:  # Unsloth writes its own form of the modules
            raise ConfigError(f"lora.{key}: {own}, but {checkpoint} was trained with {its}; resume with that")


def steps_done(checkpoint: Path) -> int:
    """The step of a checkpoint; -1 if it is none or was cut off while it was written: trainer_state.json comes last."""
    try:
        return int(json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["global_step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def output_of(config: Config) -> Path:
    return Path(config.grpo["output_dir"]).absolute()


def probe_output(output: Path) -> None:
    """Make the output folder and see that it can be written and has room."""
    with saving_to(output):
        output.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=output).close()
    free_mb = shutil.disk_usage(output).free >> 20
    if free_mb < MIN_FREE_MB:
        raise OutputError(
            f"grpo.output_dir: only {free_mb} MB free on the disk of {output}; {MIN_FREE_MB} MB are needed"
        )


@contextlib.contextmanager
def claimed(output: Path) -> Iterator[None]:
    """Keeps other runs out of the output folder, which would move this one's files aside under its feet."""
    if os.environ.get("RANK", "0") != "0":
        yield
        return
    with contextlib.ExitStack() as stack:
        with saving_to(output):
            lock = stack.enter_context((output / ".lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"grpo.output_dir: another run is writing to {output}; name another folder") from error
        except OSError:  # a file system without locks
            pass
        yield


def prepare_output(config: Config, output: Path, fresh: bool) -> None:
    """Write the resolved config into the output folder. A fresh run puts aside what an earlier one left, so that no
    later run resumes from it by mistake."""
    if os.environ.get("RANK", "0") != "0":
        return
    with saving_to(output):
        earlier = [path for name in PRODUCTS for path in output.glob(name)]
        if fresh and earlier:
            aside = output / time.strftime("previous-%Y%m%d-%H%M%S")
            aside.mkdir(exist_ok=True)
            for path in earlier:
                path.rename(aside / path.name)
            print(f"what an earlier run left in {output} is now in {aside.name}/")
        config_room.save(config, output / "config.yaml")


@contextlib.contextmanager
def saving_to(output: Path) -> Iterator[None]:
    """Turns what a full disk or a read-only folder makes the libraries raise into one clear OutputError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise OutputError(f"grpo.output_dir: cannot write to {output}: {one_line(error)}") from error
        # safetensors and torch.save raise types of their own when the disk is full, and may have removed their file
        if output.is_dir() and shutil.disk_usage(output).free < 20 << 20:
            raise OutputError(f"grpo.output_dir: the disk of {output} is full: {one_line(error)}") from error
        raise


def save_final(trainer: Any, tokenizer: Any, output: Path) -> None:
    with saving_to(output):
        shutil.rmtree(output / "final_model", ignore_errors=True)  # of an earlier run
        # TRL keeps the starting adapter beside the trained one, as the reference of the KL penalty; it stays behind
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(
            output / "final_model", selected_adapters=["default"]
        )
        tokenizer.save_pretrained(output / "final_model")
        (output / "final_model" / "README.md").unlink(missing_ok=True)  # PEFT's empty form


def report(config: Config, trainer: Any, output: Path) -> None:
    import callbacks

    print(f"\n{callbacks.summary(trainer.state.log_history)}\n" if trainer.state.log_history else "")
    for options in config.tasks:
        if not options.check:
            print(UNCHECKED.format(options.type))
    for name, what in PRODUCTS.items():
        if any(output.glob(name)):
            path = output / name
            print(f"{path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path}  {what}")


if __name__ == "__main__":
    sys.exit(main())
