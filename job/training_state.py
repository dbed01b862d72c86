"""What a trainer holds between two optimizer steps besides weights, optimizer and schedule.

That is the generated batch, what was measured and not logged yet, and the random numbers. A
checkpoint needs all of it, or the run that resumes goes on with other numbers. A step that is given
up must be undone: what it drew, and what it measured.

The attributes are TRL's and transformers' own. The pin in requirements.txt holds them, and the
tests fail if they change.
"""

import json
import random
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate.utils import send_to_device


def deserialize_on_cpu(storage: Any, place: str) -> Any:
    """Lets torch.load put what a run resumes from on "cpu:0", which it would refuse.

    That is what accelerate calls the device of each of several processes on CPUs.
    """
    if place == "cpu:0":
        return storage
    return None


torch.serialization.register_package(
    priority=100, tagger=lambda storage: None, deserializer=deserialize_on_cpu
)


class Between(NamedTuple):
    """The state of a trainer between two steps."""

    python_random: Any
    numpy_random: Any
    torch_random: torch.Tensor
    cuda_random: list[torch.Tensor]
    passes: int  # backward passes that TRL has counted
    batch: Any  # the generated one
    measured: dict[str, list[float]]  # and not logged yet
    loss: torch.Tensor  # summed since the last logged step
    tokens: float  # seen in all


def remember(trainer: Any) -> Between:
    """The state as it is now."""
    cuda = []
    if torch.cuda.is_available():
        cuda = torch.cuda.get_rng_state_all()
    return Between(
        python_random=random.getstate(),
        numpy_random=np.random.get_state(),
        torch_random=torch.get_rng_state(),
        cuda_random=cuda,
        passes=trainer._step,
        batch=trainer._buffered_inputs,
        measured={name: list(values) for name, values in trainer._metrics["train"].items()},
        loss=trainer._tr_loss.clone(),
        tokens=trainer.state.num_input_tokens_seen,
    )


def return_to(trainer: Any, state: Between) -> None:
    """Undo what has happened since `remember`, in a step that did not come to its end."""
    random.setstate(state.python_random)
    np.random.set_state(state.numpy_random)
    torch.set_rng_state(state.torch_random)
    if state.cuda_random:
        torch.cuda.set_rng_state_all(state.cuda_random)
    trainer._step = state.passes
    trainer._buffered_inputs = state.batch
    replace_metrics(trainer, state.measured)
    trainer._tr_loss = state.loss
    trainer.state.num_input_tokens_seen = state.tokens


def replace_metrics(trainer: Any, measured: dict[str, list[float]]) -> None:
    metrics = trainer._metrics["train"]
    metrics.clear()
    for name, values in measured.items():
        metrics[name].extend(values)


# ---- In a checkpoint


def save(trainer: Any, folder: Path) -> None:
    """Write what transformers does not, where there is anything. Each process writes its own."""
    passes_per_batch = trainer.args.steps_per_generation * trainer.num_iterations
    # A checkpoint that is saved after a failure may be within an optimizer step
    between_steps = trainer._step % trainer.args.gradient_accumulation_steps == 0
    if between_steps and trainer._step % passes_per_batch != 0:
        save_batch(trainer, folder)
    measured = trainer._metrics["train"]
    if measured:
        kept = {
            "measured": {name: [float(value) for value in measured[name]] for name in measured},
            "loss": trainer._tr_loss.item(),
            "last_logged": trainer._globalstep_last_logged,
        }
        torch.save(kept, unlogged_file(trainer, folder))


def save_batch(trainer: Any, folder: Path) -> None:
    """Write the generated batch that the run is in the midst of.

    That happens with num_iterations above 1, or steps_per_generation above
    gradient_accumulation_steps. TRL counts backward passes from 0 again in a resumed run, and
    forgets what it generated.
    """
    kept = {
        "shape": batch_shape(trainer),
        "step": trainer._step,
        "inputs": trainer._buffered_inputs,
        "table": plain_table(trainer._logs),
    }
    torch.save(kept, batch_file(trainer, folder))


def load_batch(trainer: Any, checkpoint: Path) -> None:
    """Take up the generated batch of a checkpoint, if it has one."""
    file = batch_file(trainer, checkpoint)
    if not file.is_file():
        return
    kept = torch.load(file, map_location="cpu", weights_only=True)
    # With another shape the run begins with a new batch
    if kept["shape"] != batch_shape(trainer):
        return
    trainer._step = kept["step"]
    trainer._buffered_inputs = send_to_device(kept["inputs"], trainer.accelerator.device)
    fill_table(trainer._logs, kept.get("table", {}))


def load_unlogged(trainer: Any, checkpoint: Path) -> None:
    """Take up what was measured and not logged, if there is any."""
    file = unlogged_file(trainer, checkpoint)
    if not file.is_file():
        return
    kept = torch.load(file, map_location="cpu", weights_only=True)
    replace_metrics(trainer, kept["measured"])
    trainer._tr_loss = trainer._tr_loss + kept["loss"]
    trainer._globalstep_last_logged = kept["last_logged"]


def plain_table(logs: dict[str, Any]) -> dict[str, Any]:
    """The table of completions of the batch, without images, as JSON can hold it."""
    columns = {}
    for name, values in logs.items():
        if isinstance(values, dict):
            columns[name] = {key: list(column) for key, column in values.items()}
        elif name != "images":
            columns[name] = list(values)
    return json.loads(json.dumps(columns, default=str))


def fill_table(logs: dict[str, Any], columns: dict[str, Any]) -> None:
    for name, values in columns.items():
        if isinstance(values, dict):
            for key, column in values.items():
                logs[name][key].extend(column)
        else:
            logs[name].extend(values)


def batch_shape(trainer: Any) -> list[int]:
    """What must be the same for a generated batch to be used after resuming."""
    return [
        trainer.num_generations,
        trainer.num_iterations,
        trainer.args.per_device_train_batch_size,
        trainer.args.gradient_accumulation_steps,
        trainer.args.steps_per_generation,
        trainer.args.world_size,
    ]


def batch_file(trainer: Any, folder: Path) -> Path:
    return folder / f"rollout_{trainer.accelerator.process_index}.pt"


def unlogged_file(trainer: Any, folder: Path) -> Path:
    return folder / f"unlogged_{trainer.accelerator.process_index}.pt"
