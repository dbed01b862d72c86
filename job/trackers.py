"""Trackers that show a run elsewhere: TensorBoard, W&B, trackio and MLflow.

Their files lie in the output folder, so that a read-only container and a machine without a network
will do. transformers sends them the metrics, and TRL sends completions to W&B and trackio;
callbacks.TrackerExtras adds the rest.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from job.config import Config
from job.errors import ConfigError

PROJECT = "gpt-oss-grpo"


def of_config(config: Config) -> list[str]:
    """The trackers that `grpo.report_to` names."""
    named = config.grpo.get("report_to") or []
    if isinstance(named, str):
        named = [named]
    return [name for name in named if name != "none"]


def names(config: Config, folder: Path) -> dict[str, str]:
    """The keys of GRPOConfig that name the run where the config does not."""
    types = "+".join(options.type for options in config.tasks)
    return {"run_name": f"{types}-{folder.name}", "project": PROJECT}


def variables(config: Config, folder: Path) -> dict[str, str]:
    """The environment variables that keep each tracker's files in the output folder."""
    found = {}
    trackers = of_config(config)
    project = config.grpo.get("project", PROJECT)
    if "wandb" in trackers:
        own = folder / "wandb"
        found |= {
            "WANDB_DIR": str(folder),  # W&B adds the folder `wandb` itself
            "WANDB_DATA_DIR": str(own / "data"),
            "WANDB_CACHE_DIR": str(own / "cache"),
            "WANDB_CONFIG_DIR": str(own / "config"),
            "WANDB_PROJECT": project,
        }
        if not has_wandb_key():
            found["WANDB_MODE"] = "offline"
    if "trackio" in trackers:
        found["TRACKIO_DIR"] = str(folder / "trackio")
    if "mlflow" in trackers:
        found |= {
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow' / 'mlflow.db'}",
            "MLFLOW_EXPERIMENT_NAME": project,
            "MLFLOW_FLATTEN_PARAMS": "true",
        }
    return found


def has_wandb_key() -> bool:
    """Whether W&B would find a key; without one it would ask for it and wait."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return "wandb" in file.read_text(encoding="utf-8")
    except (OSError, ValueError, RuntimeError):
        return False


@contextlib.contextmanager
def files_in(config: Config, folder: Path) -> Iterator[None]:
    """Set `variables` within this context, but none that the user has set."""
    check_places(config)
    mine = {}
    for name, value in variables(config, folder).items():
        if not os.environ.get(name):
            mine[name] = value
    if mine.get("WANDB_MODE") == "offline":
        print(
            f"wandb: there is no WANDB_API_KEY, so it works offline; "
            f"`wandb sync {folder / 'wandb' / 'offline-run-*'}` sends it later"
        )
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


# Folders of the user's choice -> the tracker that writes there
PLACES = {
    "WANDB_DIR": "wandb",
    "WANDB_DATA_DIR": "wandb",
    "WANDB_CACHE_DIR": "wandb",
    "WANDB_CONFIG_DIR": "wandb",
    "TRACKIO_DIR": "trackio",
    "MLFLOW_TRACKING_URI": "mlflow",
}


def check_places(config: Config) -> None:
    """See whether the user's own places for trackers can be written.

    W&B would write to a temporary folder instead, which is gone with the container, and MLflow
    would fail after the model is loaded.

    Raises:
        ConfigError: if one cannot.
    """
    for name, tracker in PLACES.items():
        place = local_place(os.environ.get(name, ""))
        if tracker in of_config(config) and place and not is_writable(place):
            raise ConfigError(
                f"grpo.report_to: {tracker} cannot write to {place}, which {name} names; "
                "leave the variable out, and its files go to the output folder"
            )


def local_place(written: str) -> Path | None:
    """The folder or file that a variable names; None for a server, or if nothing is named."""
    scheme, found, rest = written.partition(":")
    if not written or scheme == "databricks" or (found and scheme not in ("file", "sqlite")):
        return None
    if not found:
        return Path(written)
    if scheme == "sqlite":
        return Path(rest.removeprefix("///"))  # a fourth / begins an absolute path
    return Path(rest.removeprefix("//"))


def is_writable(place: Path) -> bool:
    """Whether a file or folder can be written, or made."""
    existing = place.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    return os.access(existing, os.W_OK)


def make_mlflow_experiment(config: Config, folder: Path) -> None:
    """Make MLflow's experiment, so that its files lie beside its database.

    MLflow would put them into the current folder. Where the user's environment names another place
    for MLflow, nothing is done.
    """
    own = variables(config, folder).get("MLFLOW_TRACKING_URI")
    if own is None or os.environ.get("MLFLOW_TRACKING_URI") != own:
        return
    import mlflow

    (folder / "mlflow").mkdir(exist_ok=True)
    mlflow.set_tracking_uri(own)
    name = os.environ["MLFLOW_EXPERIMENT_NAME"]
    if mlflow.get_experiment_by_name(name) is None:
        files = (folder / "mlflow" / "artifacts").as_uri()
        mlflow.create_experiment(name, artifact_location=files)
