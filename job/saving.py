"""How a trainer saves a checkpoint: aside and as a whole, and which older ones it deletes then."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from job import checkpoints, training_state
from job.metrics_file import read_metrics


def save_aside(trainer: Any, write: Callable[[], None]) -> None:
    """Save a checkpoint aside, and give it its name when all processes have written.

    Args:
        write: has transformers write the checkpoint into `trainer.staging`.
    """
    output = Path(trainer.args.output_dir)
    step = trainer.state.global_step
    try:
        if trainer.is_world_process_zero():
            checkpoints.begin_saving(output)
        trainer.accelerator.wait_for_everyone()
        trainer.staging = output / checkpoints.STAGING
        folder = trainer.staging / f"checkpoint-{step}"
        folder.mkdir(exist_ok=True)
        training_state.save(trainer, folder)
        note_best(trainer, output)
        write()
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            checkpoints.finish_saving(output, step)
            delete_superfluous(trainer, output)
    except Exception:
        checkpoints.remove(output / checkpoints.STAGING)  # a full disk needs the space
        raise
    finally:
        trainer.staging = None
    trainer.accelerator.wait_for_everyone()


def note_best(trainer: Any, output: Path) -> None:
    """Do what transformers does for load_best_model_at_end. It would look where it writes."""
    state = trainer.state
    best = state.best_global_step
    if best and (best == state.global_step or (output / f"checkpoint-{best}").is_dir()):
        state.best_model_checkpoint = str(output / f"checkpoint-{best}")


def delete_superfluous(trainer: Any, output: Path) -> None:
    """Keep the last and the best checkpoints."""
    limit = trainer.args.save_total_limit
    if not limit:
        return
    options = trainer.interruption.options
    steps = [step for step, _ in checkpoints.numbered(output)]
    scores = {}
    if options.keep_best:
        entries = read_metrics(output / "metrics.jsonl")
        every = trainer.state.save_steps
        scores = checkpoints.scores_of(steps, entries, options.best_metric, every)
    leaving = checkpoints.superfluous(steps, limit, options.keep_best, scores)
    if trainer.state.best_model_checkpoint:
        leaving.discard(trainer.state.best_global_step)
    checkpoints.delete(output, leaving)
