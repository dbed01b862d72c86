"""The job, top to bottom: config.yaml in, a better model out.

    bash train.sh --local [--config FILE] [--dry-run] [section.key=value ...]

It ends with the exit codes that docs/runs.md explains:
0        done
1        an error that nobody foresaw
2        the config or the command line is wrong
3        a reward function, or the `grade` of a task, failed
4        the output folder cannot be written, or its disk is full
5        the sandbox lacks a layer that `sandbox.require` names, or cannot start
6        the rewards pay a wrong or dishonest answer as much as an honest one
7        the watchdog stopped the run, or its weights are not finite at the end
8        an export differs from what was trained (export.py)
75       as 128 + n, where `train.requeue` is true: the run wants to be started again
128 + n  signal n stopped the run (143 for SIGTERM, 130 for Ctrl-C); a checkpoint is saved
"""

import argparse
import dataclasses
import os
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from job import distributed, grpo_keys, trackers, watchdog
from job.adapters import drop_reference
from job.batches import BATCH_SIZE
from job.chat import Chat
from job.checkpoints import steps_done
from job.config import Config, load_config, note
from job.episodes.tools import schemas_of_rows
from job.errors import (
    DONE,
    STOPPED_BY_WATCHDOG,
    UNFORESEEN,
    ConfigError,
    exit_code_of,
    one_line,
)
from job.evaluation.evaluation import Sampler
from job.evaluation.run_evaluation import RunEvaluation, plan_evaluation
from job.fetch import fetch
from job.grading import Grader
from job.grading_pool import GradingPool
from job.interruption import Interruption, Stopped, deadline_of
from job.launch import hide_other_gpus, plan_launch, start
from job.metrics_file import nothing_learned
from job.model import (
    as_written,
    check_vllm,
    estimate_memory,
    load_model,
    load_tokenizer,
    restore_adapter,
    settle_quantization,
    stay_offline_if_complete,
    trainer_settings,
)
from job.model_checks import check_model, settle_targets
from job.network import prepare_hub
from job.out_of_memory import ADVICE, is_out_of_memory
from job.plan import Plan, first_of_each_kind, make_plan, rehearse, shown
from job.preflight import preflight
from job.report.live_report import LiveReport
from job.reward_check import check_rewards, rehearse_rewards
from job.rows import has_fresh_inputs
from job.run_folder import RunFolder, shown_path

LEAVING_S = 600.0  # for the first process to write what is left, while others wait
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
        "--fetch", action="store_true", help="download what this needs, and stop; for train.sh"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="section.key=value", help="e.g. grpo.max_steps=1"
    )
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="train on N GPUs of this machine (all that are visible), a process for each",
    )
    words = sys.argv[1:] if argv is None else argv
    arguments = parser.parse_intermixed_args(words)  # overrides may come between options
    distributed.quiet_other_processes()
    return exit_code_of(lambda: train_command(arguments, words))


def train_command(arguments: argparse.Namespace, words: list[str]) -> int:
    launch = plan_launch(arguments.gpus)
    with launch.announced():  # so that the batches are planned for all processes
        config = load_config(arguments.config, arguments.overrides)
        if arguments.fetch:
            fetch([config], trains=True)
            return DONE
        if arguments.dry_run:
            return dry_run(config)
    if launch.world_size > 1:
        folder = RunFolder(config)
        if launch.nodes.rank == 0:
            with folder:  # refuses one that cannot be written, or that another run writes to
                pass
        return start(launch, [__file__, *words], folder.exit_code, config.train.grace_s)
    hide_other_gpus()
    return run_and_mark(config)


def run_and_mark(config: Config) -> int:
    """Run the job, and leave its exit code in the file `exit_code` of the output folder."""
    folder = RunFolder(config)
    folder.forget_exit_code()
    code = UNFORESEEN
    try:
        with Interruption(config.train, deadline_of(config.train, os.environ)) as interruption:
            code = exit_code_of(lambda: run_together(config, folder, interruption))
    except Stopped as stopped:  # while nothing was trained
        code = stopped.code
        if interruption.steps:
            print("stopped after the last step; grpo.resume_from_checkpoint=auto does the rest")
        else:
            print("stopped before training: nothing was learned, so nothing is lost")
    finally:
        folder.mark_exit_code(code)
    return code


def run_together(config: Config, folder: RunFolder, interruption: Interruption) -> int:
    """Run the job. Several processes fail and end together.

    The first to end would otherwise have the launcher end those that still write.
    """
    with distributed.telling_others():
        code = run(config, folder, interruption)
        distributed.wait_for_all("the end", LEAVING_S)
    return code


# ---- The job


def run(config: Config, folder: RunFolder, interruption: Interruption) -> int:
    """Check, load, train, save. Returns the exit code."""
    # What can be checked without the weights
    distributed.check_started()
    config = settle(config)
    chat, plan = prepare(config)
    print(shown(plan.rows[0], chat), flush=True)
    checkpoint = folder.checkpoint_to_resume(config)

    with (
        folder,
        LiveReport(folder.path) as report,
        trackers.files_in(config, folder.path),
        GradingPool.of(config.sandbox) as sandbox,
    ):
        # The rewards
        print(sandbox)
        print(rehearse_rewards(config.tasks, plan.rows, sandbox, with_programs=False))
        for options in config.tasks:
            if options.check:
                _, summary = check_rewards(options, sandbox)
                print(summary)
            else:
                print(UNCHECKED.format(options.type))

        # The other processes, if there are any
        if distributed.world_size() > 1:
            print(preflight(), flush=True)

        # The model. Whatever failed before this left an earlier run in the folder alone.
        model, tokenizer = load_model(config.model, config.lora)
        folder.begin(config, checkpoint)
        report.begin()
        trainer = build_trainer(config, folder, model, tokenizer, sandbox, chat, plan, interruption)
        evaluation = build_evaluation(config, folder, trainer, chat, plan, sandbox, checkpoint)
        keep_reporting(config, trainer, folder, report)

        began = time.monotonic()
        train(trainer, folder, checkpoint)

        # What is left of it
        code = exit_code(trainer, folder)
        if code == DONE:
            trained = trainer.accelerator.unwrap_model(trainer.model)
            weights = distributed.whole_weights(trained)
            if trainer.is_world_process_zero():
                folder.save_final(trained, tokenizer, weights)
            step = trainer.state.global_step
            if evaluation and evaluation.is_due_at_end(step):
                evaluation.evaluate(step)
                if trainer.is_world_process_zero():
                    folder.write_model_card()
        run_s = time.monotonic() - began
        interruption.end()
        report.exit_code = code

    if plan.stream is not None:
        print(plan.stream.summary())
    if code == DONE and trainer.is_world_process_zero():
        print_report(config, trainer, folder, evaluation, run_s, plan)
    return code


def dry_run(config: Config) -> int:
    """Print all that can be known without the weights: prompts, batches, memory."""
    config = settle(config)
    chat, plan = prepare(config)
    RunFolder(config).checkpoint_to_resume(config)  # refuses one that does not fit
    for row in first_of_each_kind(plan.rows):
        print(shown(row, chat))
    with GradingPool.of(dataclasses.replace(config.sandbox, workers=1)) as sandbox:
        print(rehearse_rewards(config.tasks, plan.rows, sandbox))
    print(estimate_memory(config, plan.prompt_tokens, plan.completion_tokens))
    print("dry run: nothing was loaded, trained or written")
    return 0


# ---- Before the weights


def settle(config: Config) -> Config:
    """Decide what the config leaves to this machine, and print it.

    Raises:
        ConfigError: if this machine or the model cannot do what the config says.
    """
    check_vllm(config)
    prepare_hub(config)
    config, weights = settle_quantization(config, RunFolder(config).trained_in(config))
    print(weights, flush=True)
    if stay_offline_if_complete(config.model):
        print("the model is on this machine: the Hub is not asked for it")
    config, notices = settle_targets(config)
    for notice in notices:
        note(notice)
    return config


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
        schemas_of_rows(config.tasks),
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
    print(plan_evaluation(config, plan)[1])

    # What the libraries will say to it
    ignored = check_model(config)
    arguments, changes = grpo_config(config, plan)
    for notice in ignored + changes:
        note(notice)
    rehearse(arguments)
    if arguments.fsdp:
        # As accelerate's launcher does it: the model is loaded for sharding.
        os.environ["ACCELERATE_USE_FSDP"] = "true"
    return chat, plan


def grpo_config(config: Config, plan: Plan) -> tuple[Any, list[str]]:
    """The arguments of the trainer, and, in words, what the library changed in them.

    Raises:
        ConfigError: if the library refuses them.
    """
    # Imported late because Unsloth, if it is the backend, must come before it: it patches TRL.
    from trl import GRPOConfig

    with distributed.planned_processes() as processes:
        settings = trainer_settings(config.model, config.lora)
        settings |= trackers.names(config, RunFolder(config).path) | dict(config.grpo)
        settings["max_completion_length"] = plan.completion_tokens
        settings["output_dir"] = str(RunFolder(config).path)
        if not config.grpo.get("use_vllm"):
            # Sampling from weights that are NaN would raise before the watchdog sees them.
            own = config.grpo.get("generation_kwargs") or {}
            settings["generation_kwargs"] = {"remove_invalid_values": True} | own
        settings |= plan.batches.of_one_process(config.grpo)
        if processes > 1:
            for key in ("per_device_train_batch_size", "per_device_eval_batch_size"):
                settings[key] = settings.get(key, BATCH_SIZE) * processes
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
    interruption: Interruption | None = None,
) -> Any:
    """The job.trainer.Trainer of the run.

    Args:
        interruption: None: nothing interrupts it.

    Raises:
        ConfigError: if TRL refuses what it is given.
    """
    # Imported late, after the model was loaded: Unsloth patches TRL and transformers.
    from datasets import Dataset
    from transformers import PrinterCallback, ProgressCallback

    from job.trainer import Trainer

    interruption = interruption or Interruption(config.train)
    grader = Grader(config.tasks, sandbox, reward_timeout_s=config.train.reward_timeout_s)
    # Made a second time because Unsloth's GRPOConfig depends on the model that is loaded.
    arguments, _ = grpo_config(config, plan)
    batch = arguments.generation_batch_size // arguments.world_size
    longest_s = grader.longest_batch_s(batch)
    limit_s = longest_s + arguments.ddp_timeout
    eval_dataset = None
    if plan.eval_rows:
        eval_dataset = Dataset.from_list(plan.eval_rows)
    try:
        trainer = Trainer(
            model=model,
            processing_class=tokenizer,
            reward_funcs=distributed.then_wait(grader.reward_functions(), limit_s),
            args=arguments,
            train_dataset=plan.training_set(),
            eval_dataset=eval_dataset,
            callbacks=make_callbacks(config, folder, grader, arguments, interruption),
            chat=chat,
            grader=grader,
            grpo_extra=config.grpo_extra,
            rollout=config.rollout,
            prompt_tokens=plan.prompt_tokens,
            max_seq_length=config.model.max_seq_length,
            interruption=interruption,
        )
    except (ValueError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"grpo: {one_line(error)}") from error
    if config.model.reference == "base":
        drop_reference(trainer.accelerator.unwrap_model(trainer.model))
    for default in (PrinterCallback, ProgressCallback):  # callbacks.Progress replaces them
        trainer.remove_callback(default)
    print(
        f"grading {batch} completions is stopped after {longest_s:.0f} s at the latest: so long it "
        "takes only if each one reaches all its time limits"
    )
    return trainer


def make_callbacks(
    config: Config,
    folder: RunFolder,
    grader: Grader,
    arguments: Any,
    interruption: Interruption,
) -> list[Any]:
    """What happens beside training. The order counts: MetricsFile writes what Watch adds."""
    from job import callbacks

    dog = watchdog.Watchdog(config.watchdog, grader.weights, arguments.fp16)
    return [
        callbacks.Interrupts(interruption),
        callbacks.Watch(dog),
        callbacks.MetricsFile(folder.metrics),
        callbacks.Progress(),
    ]


def build_evaluation(
    config: Config,
    folder: RunFolder,
    trainer: Any,
    chat: Chat,
    plan: Plan,
    sandbox: GradingPool,
    checkpoint: str | None,
) -> RunEvaluation | None:
    """The evaluations of the run, of which the trainer is told; None if there are to be none."""
    from job.callbacks import Evaluate

    evaluation_plan, _ = plan_evaluation(config, plan)
    if evaluation_plan is None:
        return None

    def log(metrics: dict[str, float]) -> None:
        # Not Trainer.log, with which TRL closes the metrics of the training step.
        trainer.callback_handler.on_log(trainer.args, trainer.state, trainer.control, metrics)

    arguments = trainer.args
    sampler = Sampler(
        complete=trainer.complete,
        batch=arguments.generation_batch_size // arguments.world_size,
        max_tokens=arguments.max_completion_length,
        play=trainer.play,
    )
    evaluation = RunEvaluation(evaluation_plan, config, folder, chat, sandbox, sampler, log)
    if checkpoint:
        evaluation.resume(steps_done(Path(checkpoint)), Path(checkpoint).absolute().parent)
    trainer.add_callback(Evaluate(evaluation, trainer.interruption))
    return evaluation


def keep_reporting(config: Config, trainer: Any, folder: RunFolder, report: LiveReport) -> None:
    """Let the trainer refresh the report and tell the trackers about the run."""
    from job.callbacks import ReportFile, TrackerExtras

    trainer.add_callback(ReportFile(report))
    if trackers.of_config(config):
        if trainer.is_world_process_zero():
            trackers.make_mlflow_experiment(config, folder.path)
        others = trainer.callback_handler.callbacks
        trainer.add_callback(TrackerExtras(config, folder.path, others))


def train(trainer: Any, folder: RunFolder, checkpoint: str | None) -> None:
    """Train to the end, or until a signal or a deadline.

    If training fails, a checkpoint is saved before the error goes on.

    Raises:
        ConfigError: if the GPU's memory does not suffice.
        OutputError: if the output folder cannot be written.
    """
    from job.callbacks import FirstStep, RestoreAdapter

    trainer.add_callback(RestoreAdapter(checkpoint))
    with folder.saving():
        # Trainer.train would do one step more than a finished run has
        if checkpoint and 0 < trainer.args.max_steps <= steps_done(Path(checkpoint)):
            print(f"{checkpoint} has all {trainer.args.max_steps} steps; nothing is left to train")
            restore_adapter(trainer.model, checkpoint)
            trainer.state.global_step = steps_done(Path(checkpoint))
            return
        first_step = FirstStep(trainer.is_world_process_zero())
        trainer.add_callback(first_step)
        try:
            with first_step:
                trainer.train(resume_from_checkpoint=checkpoint)
        except Stopped:  # a step was given up
            trainer.interruption.end()
            if can_save(trainer, folder):
                trainer.save_last_step(within_another=True)
            trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
        except Exception as error:
            if can_save(trainer, folder):
                trainer.save_last_step(within_another=trainer.interruption.can_give_up)
            if is_out_of_memory(error):
                raise ConfigError(ADVICE.format(step=trainer.state.global_step + 1)) from error
            raise


def can_save(trainer: Any, folder: RunFolder) -> bool:
    """Whether a run that ended early has steps that can be saved and are not saved yet."""
    interruption = trainer.interruption
    if interruption.steps == 0 or not interruption.weights_are_whole:
        return False
    if trainer.args.world_size > 1:  # saving needs all processes, and they are not at one place
        return False
    return not folder.has_checkpoint(trainer.state.global_step)


def find_callback(trainer: Any, kind: type) -> Any:
    """The trainer's callback of this class."""
    return next(
        callback for callback in trainer.callback_handler.callbacks if isinstance(callback, kind)
    )


# ---- The end


def exit_code(trainer: Any, folder: RunFolder) -> int:
    """0 if the run came to its end with weights worth keeping. Otherwise the reason is printed."""
    from job.callbacks import Watch

    step = trainer.state.global_step
    interruption = trainer.interruption
    if interruption.received is not None:
        print(stopped_at(folder, step, interruption.steps))
        return interruption.exit_code()

    # All processes must ask this together, so it comes before anything that only one may know.
    finite = trainer.weights_are_finite()

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


def stopped_at(folder: RunFolder, step: int, own_steps: int) -> str:
    """What a run that was ended has done, and what to do next.

    Args:
        own_steps: of `step`, those since it was started.
    """
    if step == 0:
        return "stopped before the first step was done: nothing was learned, so nothing is lost"
    place = "the last checkpoint"  # weights that are not finite are not saved
    if own_steps == 0 or folder.has_checkpoint(step):
        place = "there"
    return f"stopped after step {step}; grpo.resume_from_checkpoint=auto continues from {place}"


def print_report(
    config: Config,
    trainer: Any,
    folder: RunFolder,
    evaluation: RunEvaluation | None,
    seconds: float,
    plan: Plan,
) -> None:
    """The closing tables, a reminder of what was not checked, what the run left, and its result.

    Args:
        seconds: that training and evaluation took.
    """
    from job.callbacks import summary

    # What happened in training, and what the held-out rows say
    print()
    history = trainer.state.log_history
    if history:
        print(f"{summary(history)}\n")
    nothing = nothing_learned(history)
    if nothing:
        print(f"{nothing}\n")
    evaluated = evaluation.report() if evaluation else ""
    if evaluated:
        share = evaluation.spent_s / seconds
        print(f"{evaluated}\nevaluation took {evaluation.spent_s:.0f} s, {share:.0%} of the run\n")
    for options in config.tasks:
        if not options.check:
            print(UNCHECKED.format(options.type))

    # What is left, what to do with it, and the result in a sentence
    print(folder.report())
    can_evaluate = bool(plan.eval_rows) or has_fresh_inputs(plan.rows, config.tasks[0])
    print(next_commands(folder, can_evaluate))
    comparison = evaluation.comparison() if evaluation else None
    if comparison:
        print(f"\nbefore and after: {comparison.sentence}")


def next_commands(folder: RunFolder, can_evaluate: bool) -> str:
    """Commands that go on from here, as train.sh or Python take them.

    Args:
        can_evaluate: whether there are rows that were not trained on.
    """
    start = os.environ.get("START_COMMAND", "python")
    path = shlex.quote(str(shown_path(folder.path)))
    evaluate = f"{start} evaluate.py base {path} --rows 200"
    commands = {
        f"{start} generate.py {path} --run": "an answer of the trained model, and its grade",
        evaluate: "before and after, on more problems",
        f"{start} check.py --config {path}/config.yaml": "what right and wrong answers are paid",
    }
    if not can_evaluate:
        del commands[evaluate]
    width = max(map(len, commands))
    lines = [f"  {command:{width}}  # {what}" for command, what in commands.items()]
    return "\n".join(["next:", *lines])


if __name__ == "__main__":
    sys.exit(main())
