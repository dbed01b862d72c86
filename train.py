"""The job, top to bottom: config.yaml in, a better model out.

    python train.py [--config FILE] [--dry-run] [section.key=value ...]

It ends with the exit codes of job/errors.py:
0        done
1        an error that nobody foresaw
2        the config or the command line is wrong
3        a reward function failed
4        the output folder cannot be written, or its disk is full
5        the sandbox lacks a layer that `sandbox.require` names, or cannot start
6        the rewards pay a wrong or dishonest answer as much as an honest one
7        the watchdog stopped the run, or its weights are not finite at the end
8        an export differs from what was trained (export.py)
128 + n  signal n stopped the run (143 for SIGTERM, 130 for Ctrl-C); a checkpoint is saved
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from job import distributed, grpo_keys, watchdog
from job.batches import BATCH_SIZE
from job.chat import Chat
from job.config import Config, load_config, note
from job.errors import (
    DONE,
    STOPPED_BY_SIGNAL,
    STOPPED_BY_WATCHDOG,
    ConfigError,
    exit_code_of,
    one_line,
)
from job.grading import Grader
from job.grading_pool import GradingPool
from job.model import (
    as_written,
    check_model,
    estimate_memory,
    load_model,
    load_tokenizer,
    restore_adapter,
    trainer_settings,
)
from job.plan import Plan, first_of_each_kind, make_plan, rehearse, shown
from job.reward_check import check_rewards
from job.run_folder import RunFolder, steps_done

UNCHECKED = (
    "warning: task.check is off for {}: nobody checked whether the rewards pay wrong or dishonest "
    "answers"
)


# ---- The command line


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Train a model with GRPO as config.yaml says.", allow_abbrev=False
    )
    parser.add_argument(
        "--config", metavar="FILE", action="append", help="its keys replace those of config.yaml"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check all that can be checked without the model, and stop",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="e.g. grpo.max_steps=1"
    )
    arguments = parser.parse_intermixed_args(argv)  # overrides may come between options
    distributed.quiet_other_processes()
    return exit_code_of(lambda: train_command(arguments))


def train_command(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    if arguments.dry_run:
        return dry_run(config)
    return run(config)


# ---- The job


def run(config: Config) -> int:
    """Check, load, train, save. Returns the exit code."""
    # What can be checked without the weights
    distributed.check_started()
    folder = RunFolder(config)
    chat, plan = prepare(config)
    print(shown(plan.rows[0], chat), flush=True)
    checkpoint = folder.checkpoint_to_resume(config)

    with folder:
        with GradingPool.of(config.sandbox) as sandbox:
            # The rewards
            print(sandbox)
            for options in config.tasks:
                if options.check:
                    _, summary = check_rewards(options, sandbox)
                    print(summary)
                else:
                    print(UNCHECKED.format(options.type))

            # The model. Whatever failed before this left an earlier run in the folder alone.
            model, tokenizer = load_model(config.model, config.lora)
            folder.begin(config, fresh=checkpoint is None)
            trainer = build_trainer(config, folder, model, tokenizer, sandbox, chat, plan)

            stopped_by = train(trainer, folder, checkpoint)

        # What is left of it
        code = exit_code(trainer, folder, stopped_by)
        if code == DONE and trainer.is_world_process_zero():
            folder.save_final(trainer.accelerator.unwrap_model(trainer.model), tokenizer)
            print_report(config, trainer, folder)
    return code


def dry_run(config: Config) -> int:
    """Print all that can be known without the weights: prompts, batches, memory."""
    chat, plan = prepare(config)
    RunFolder(config).checkpoint_to_resume(config)  # refuses one that does not fit
    for row in first_of_each_kind(plan.rows):
        print(shown(row, chat))
    print(estimate_memory(config, plan.prompt_tokens, plan.completion_tokens))
    print("dry run: nothing was loaded, trained or written")
    return 0


# ---- Before the weights


def prepare(config: Config) -> tuple[Chat, Plan]:
    """Render the prompts, make the plan of the run and print it.

    Nothing is downloaded but the tokenizer and config.json. What the libraries would refuse later
    is refused here.

    Raises:
        ConfigError: if the run cannot work.
    """
    for notice in config.notices:
        note(notice)

    # How the model reads prompts
    chat = Chat(
        load_tokenizer(config.model),
        config.model.prompt_date,
        config.grpo.get("chat_template_kwargs"),
    )
    name = config.model.name
    if not chat.has_effort:
        print(f"note: {name} has no reasoning effort; task.reasoning_effort is ignored")
    for key in chat.unknown_kwargs:
        print(
            f"note: grpo.chat_template_kwargs.{key}: the chat template of {name} does not read it"
        )

    # How many prompts and completions there will be
    plan = make_plan(config, chat)
    print(*plan.lines(config), sep="\n")

    # What the libraries will say to it
    ignored = check_model(config)
    arguments, changes = grpo_config(config, plan)
    for notice in ignored + changes:
        note(notice)
    rehearse(arguments)
    return chat, plan


def grpo_config(config: Config, plan: Plan) -> tuple[Any, list[str]]:
    """The arguments of the trainer, and, in words, what the library changed in them.

    Raises:
        ConfigError: if the library refuses them.
    """
    # Imported late because Unsloth, if it is the backend, must come before it: it patches TRL.
    from trl import GRPOConfig

    with distributed.planned_processes() as processes:
        settings = trainer_settings(config.model, config.lora) | dict(config.grpo)
        settings["max_completion_length"] = plan.completion_tokens
        settings["output_dir"] = str(RunFolder(config).path)
        if not config.grpo.get("use_vllm"):
            # Sampling from weights that are NaN would raise before the watchdog sees them.
            own = config.grpo.get("generation_kwargs") or {}
            settings["generation_kwargs"] = {"remove_invalid_values": True} | own
        if processes > 1:
            for key in ("per_device_train_batch_size", "per_device_eval_batch_size"):
                settings[key] = config.grpo.get(key, BATCH_SIZE) * processes
        try:
            arguments = GRPOConfig(**as_written(config.model, settings))
        except Exception as error:  # of any type, because the values are the user's
            raise ConfigError(f"grpo: {one_line(error)}") from error
    return arguments, grpo_keys.changes(settings, arguments)


# ---- Training


def build_trainer(
    config: Config,
    folder: RunFolder,
    model: Any,
    tokenizer: Any,
    sandbox: GradingPool,
    chat: Chat,
    plan: Plan,
) -> Any:
    """The job.trainer.Trainer of the run.

    Raises:
        ConfigError: if TRL refuses what it is given.
    """
    # Imported late, after the model was loaded: Unsloth patches TRL and transformers.
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback

    from job.trainer import Trainer

    grader = Grader(config.tasks, sandbox)
    # Made a second time because Unsloth's GRPOConfig depends on the model that is loaded.
    arguments, _ = grpo_config(config, plan)
    eval_dataset = None
    if plan.eval_rows:
        eval_dataset = Dataset.from_list(plan.eval_rows)
    try:
        trainer = Trainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=grader.reward_functions(),
            args=arguments,
            train_dataset=Dataset.from_list(plan.rows),
            eval_dataset=eval_dataset,
            callbacks=make_callbacks(config, folder, grader, arguments),
            chat=chat,
            grader=grader,
            grpo_extra=config.grpo_extra,
        )
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"grpo: {one_line(error)}") from error
    for default in (PrinterCallback, ProgressCallback):  # callbacks.Progress replaces them
        trainer.remove_callback(default)
    batch = arguments.generation_batch_size // arguments.world_size
    longest_s = grader.longest_batch_s(batch)
    print(f"grading {batch} completions takes {longest_s:.0f} s at the very most")
    return trainer


def make_callbacks(config: Config, folder: RunFolder, grader: Grader, arguments: Any) -> list[Any]:
    """What happens beside training. The order counts: MetricsFile writes what Watch adds."""
    from job import callbacks

    dog = watchdog.Watchdog(config.watchdog, grader.weights, arguments.fp16)
    return [
        callbacks.Watch(dog),
        callbacks.MetricsFile(folder.metrics),
        callbacks.Progress(),
        callbacks.StopOnSignal(),
    ]


def train(trainer: Any, folder: RunFolder, checkpoint: str | None) -> int | None:
    """Train to the end. Returns the signal that stopped it early, or None.

    If training fails, a checkpoint is saved before the error goes on.
    """
    from job.callbacks import RestoreAdapter, StopOnSignal

    trainer.add_callback(RestoreAdapter(checkpoint))
    with folder.saving():
        # Trainer.train would do one step more than a finished run has
        if checkpoint and 0 < trainer.args.max_steps <= steps_done(Path(checkpoint)):
            print(f"{checkpoint} has all {trainer.args.max_steps} steps; nothing is left to train")
            restore_adapter(trainer.model, checkpoint)
            return None
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except Exception:
            if can_save(trainer, folder):
                # Trainer has no public way to save between its own saves.
                trainer._save_checkpoint(trainer.model, trial=None)
            raise
    return find_callback(trainer, StopOnSignal).received


def can_save(trainer: Any, folder: RunFolder) -> bool:
    """Whether a failed run has steps that can be saved and are not saved yet."""
    step = trainer.state.global_step
    if step == 0 or trainer.optimizer is None:
        return False
    if trainer.args.world_size > 1:  # saving needs all processes, and one has failed
        return False
    return not folder.checkpoint(step).exists()


def find_callback(trainer: Any, kind: type) -> Any:
    """The trainer's callback of this class."""
    return next(
        callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kind)
    )


# ---- The end


def exit_code(trainer: Any, folder: RunFolder, stopped_by: int | None) -> int:
    """0 if the run came to its end with weights worth keeping. Otherwise the reason is printed."""
    from job.callbacks import Watch

    step = trainer.state.global_step
    # All processes must ask this together, so it comes before anything that only one may know.
    finite = trainer.weights_are_finite()

    if stopped_by is not None:
        place = "the last checkpoint"  # weights that are not finite are not saved
        if folder.has_checkpoint(step):
            place = "there"
        print(f"stopped after step {step}; grpo.resume_from_checkpoint=auto continues from {place}")
        return STOPPED_BY_SIGNAL + stopped_by

    diagnoses = find_callback(trainer, Watch).stopped_by
    if diagnoses:
        print(f"stopped after step {step} by the watchdog: {', '.join(diagnoses)}")
        print(
            "change what the diagnosis names; grpo.resume_from_checkpoint=auto then continues from "
            "the last checkpoint"
        )
        return STOPPED_BY_WATCHDOG

    if not finite:
        print(
            "no final_model is written: the weights are not finite; "
            "see where loss becomes null in metrics.jsonl"
        )
        return STOPPED_BY_WATCHDOG
    return DONE


def print_report(config: Config, trainer: Any, folder: RunFolder) -> None:
    """The closing table, a reminder of what was not checked, and what the run left."""
    from job.callbacks import summary

    history = trainer.state.log_history
    if history:
        print(f"\n{summary(history)}\n")
    else:
        print()
    for options in config.tasks:
        if not options.check:
            print(UNCHECKED.format(options.type))
    print(folder.report())


if __name__ == "__main__":
    sys.exit(main())
