"""The job, top to bottom: config.yaml in, a better model out.

    python train.py [--config FILE] [--dry-run] [section.key=value ...]

Exit codes: 0 done, 1 unexpected, 2 configuration, 3 a reward function failed, 4 disk or output folder,
5 the sandbox lacks a layer that `sandbox.require` names, 6 the rewards can be beaten (check.py),
7 stopped by the watchdog (`watchdog.on: stop`) with a checkpoint saved, or weights that are NaN at the end,
128 + n stopped by signal n (143 for SIGTERM) with a checkpoint saved.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from job import distributed, grpo_keys, watchdog
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

UNCHECKED = "warning: task.check is off for {}: nobody looked whether the rewards pay wrong or dishonest answers"


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
    arguments = parser.parse_intermixed_args(argv)  # overrides may stand between options
    distributed.quiet_other_processes()
    return exit_code_of(lambda: train_command(arguments))


def train_command(arguments: argparse.Namespace) -> int:
    config = load_config(arguments.config, arguments.overrides)
    return dry_run(config) if arguments.dry_run else run(config)


def run(config: Config) -> int:
    distributed.check_started()
    folder = RunFolder(config)
    chat, plan = prepare(config)
    print(shown(plan.rows[0], chat), flush=True)
    checkpoint = folder.checkpoint_to_resume(config)
    with folder:
        with GradingPool.of(config.sandbox) as sandbox:
            print(sandbox)
            for options in config.tasks:
                print(
                    check_rewards(options, sandbox)[1]
                    if options.check
                    else UNCHECKED.format(options.type)
                )
            model, tokenizer = load_model(config.model, config.lora)
            folder.begin(
                config, fresh=checkpoint is None
            )  # what failed until here left an earlier run alone
            trainer = build_trainer(config, folder, model, tokenizer, sandbox, chat, plan)
            stopped_by = train(trainer, folder, checkpoint)
        code = exit_code(trainer, folder, stopped_by)
        if code == DONE and trainer.is_world_process_zero():
            folder.save_final(trainer.accelerator.unwrap_model(trainer.model), tokenizer)
            report(config, trainer, folder)
    return code


def exit_code(trainer: Any, folder: RunFolder, stopped_by: int | None) -> int:
    """0 if the run came to its end with weights that are worth keeping. Otherwise the reason is printed."""
    step = trainer.state.global_step
    finite = trainer.weights_are_finite()  # asked by all processes, whichever of them got a signal
    if stopped_by is not None:
        place = (
            "there" if folder.has_checkpoint(step) else "the last checkpoint"
        )  # weights with NaN are not saved
        print(f"stopped after step {step}; grpo.resume_from_checkpoint=auto goes on from {place}")
        return STOPPED_BY_SIGNAL + stopped_by
    if names := diagnosed(trainer):
        print(f"stopped after step {step} by the watchdog: {', '.join(names)}")
        print(
            "change what the diagnosis names; grpo.resume_from_checkpoint=auto then goes on from the last checkpoint"
        )
        return STOPPED_BY_WATCHDOG
    if not finite:
        print(
            "no final_model is written: the weights are not finite; see where loss becomes null in metrics.jsonl"
        )
        return STOPPED_BY_WATCHDOG
    return DONE


def dry_run(config: Config) -> int:
    """Everything that can be known without the weights: the checked config, the prompts, the batches, the memory."""
    chat, plan = prepare(config)
    RunFolder(config).checkpoint_to_resume(config)  # for what it refuses
    for row in first_of_each_kind(plan.rows):
        print(shown(row, chat))
    print(estimate_memory(config, plan.prompt_tokens, plan.completion_tokens))
    print("dry run: nothing was loaded, trained or written")
    return 0


def prepare(config: Config) -> tuple[Chat, Plan]:
    """The prompts as the model will read them and the plan of the run, printed; before any weights are fetched. What
    the libraries would refuse later is refused here."""
    for notice in config.notices:
        note(notice)
    chat = Chat(
        load_tokenizer(config.model),
        config.model.prompt_date,
        config.grpo.get("chat_template_kwargs"),
    )
    if not chat.has_effort:
        print(
            f"note: {config.model.name} has no notion of a reasoning effort; task.reasoning_effort is ignored"
        )
    for key in chat.unknown_kwargs:
        print(
            f"note: grpo.chat_template_kwargs.{key}: the chat template of {config.model.name} does not read it"
        )
    plan = make_plan(config, chat)
    print(*plan.lines(config), sep="\n")
    ignored = check_model(config)
    arguments, changes = grpo_config(config, plan)
    for notice in ignored + changes:
        note(notice)
    rehearse(arguments)
    return chat, plan


def grpo_config(config: Config, plan: Plan) -> tuple[Any, list[str]]:
    """The arguments of the trainer, and in words what the library made of them otherwise."""
    # Imported here because Unsloth, if it is the backend, must come first: it patches TRL and transformers.
    from trl import GRPOConfig

    with distributed.planned_processes() as processes:
        settings = trainer_settings(config.model, config.lora) | dict(config.grpo)
        settings |= {
            "max_completion_length": plan.completion_tokens,
            "output_dir": str(RunFolder(config).path),
        }
        if not config.grpo.get("use_vllm"):
            # Sampling from weights that are NaN would raise before the watchdog sees them.
            own = config.grpo.get("generation_kwargs") or {}
            settings["generation_kwargs"] = {"remove_invalid_values": True} | own
        if processes > 1:
            for key in ("per_device_train_batch_size", "per_device_eval_batch_size"):
                settings[key] = config.grpo.get(key, 8) * processes
        try:
            arguments = GRPOConfig(**as_written(config.model, settings))
        except Exception as error:  # of any type: what it is given are the user's values
            raise ConfigError(f"grpo: {one_line(error)}") from error
    return arguments, grpo_keys.changes(settings, arguments)


def build_trainer(
    config: Config,
    folder: RunFolder,
    model: Any,
    tokenizer: Any,
    sandbox: GradingPool,
    chat: Chat,
    plan: Plan,
) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback

    from job import callbacks
    from job.trainer import Trainer

    grader = Grader(config.tasks, sandbox)
    arguments, _ = grpo_config(
        config, plan
    )  # anew: Unsloth's pads as the model that has been loaded wants it
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
                callbacks.MetricsFile(folder.metrics),
                callbacks.Progress(),
                callbacks.StopOnSignal(),
            ],
            chat=chat,
            grader=grader,
            grpo_extra=config.grpo_extra,
        )
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"grpo: {one_line(error)}") from error
    batch = arguments.generation_batch_size // arguments.world_size
    print(
        f"grading {batch} completions takes at the very most {grader.longest_batch_s(batch):.0f} s"
    )
    for default in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(default)
    return trainer


def train(trainer: Any, folder: RunFolder, checkpoint: str | None) -> int | None:
    """Train to the end. Returns the signal that stopped it early, if one did; a failure saves a checkpoint first."""
    from job.callbacks import RestoreAdapter, StopOnSignal

    trainer.add_callback(RestoreAdapter(checkpoint))
    with folder.saving():
        if checkpoint and 0 < trainer.args.max_steps <= steps_done(Path(checkpoint)):
            print(f"{checkpoint} has all {trainer.args.max_steps} steps; nothing is left to train")
            restore_adapter(trainer.model, checkpoint)
            return None  # Trainer.train would do one step more
        try:
            trainer.train(resume_from_checkpoint=checkpoint)
        except Exception:
            # Between its own saves Trainer has no public way. Several processes cannot save when one has failed.
            step = trainer.state.global_step
            saved = folder.checkpoint(step).exists()
            if (
                trainer.optimizer is not None
                and step > 0
                and not saved
                and trainer.args.world_size == 1
            ):
                trainer._save_checkpoint(trainer.model, trial=None)
            raise
    return next(
        c.received for c in trainer.callback_handler.callbacks if isinstance(c, StopOnSignal)
    )


def diagnosed(trainer: Any) -> list[str]:
    """What the watchdog stopped the run for; empty if it did not."""
    from job.callbacks import Watch

    return next(
        callback.stopped_by
        for callback in trainer.callback_handler.callbacks
        if isinstance(callback, Watch)
    )


def report(config: Config, trainer: Any, folder: RunFolder) -> None:
    from job import callbacks

    print(
        f"\n{callbacks.summary(trainer.state.log_history)}\n" if trainer.state.log_history else ""
    )
    for options in config.tasks:
        if not options.check:
            print(UNCHECKED.format(options.type))
    print(folder.report())


if __name__ == "__main__":
    sys.exit(main())
