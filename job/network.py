"""What a job needs a network for, besides fetching its model and data.

train.sh gives the container of a job neither network nor token unless something here asks for them.
The client of the Hub is told to stay offline where nothing here asks for the Hub.
"""

import os
from pathlib import Path
from typing import Any, NamedTuple

from job import hub, rewards, trackers
from job.config import Config
from job.distributed import is_first_process
from job.errors import ConfigError
from tasks.data import sources

# Keys of GRPOConfig with which a run sends something to the Hub
HUB_KEYS = {
    "push_to_hub": "uploads checkpoints",
    "log_completions_hub_repo": "uploads completions",
    "trackio_space_id": "sends metrics to a Space",
    "trackio_bucket_id": "sends metrics to a bucket",
    "trackio_static_space_id": "sends metrics to a Space",
}


class Need(NamedTuple):
    """Something that needs the network. `kind` tells train.sh which secrets it needs."""

    kind: str  # hub, wandb, mlflow or judge
    why: str


def training_needs(config: Config) -> list[Need]:
    """What training with this config needs the network for, and other jobs do not."""
    return [*hub_needs(config), *tracker_needs(config)]


def hub_needs(config: Config) -> list[Need]:
    found = []
    for key, why in HUB_KEYS.items():
        if config.grpo.get(key):
            found.append(Need("hub", f"grpo.{key} {why}"))
    return found


def tracker_needs(config: Config) -> list[Need]:
    """Trackers that send to a server."""
    found = []
    named = trackers.of_config(config)
    mode = os.environ.get("WANDB_MODE", "online")
    if "wandb" in named and mode in ("online", "shared", "run") and trackers.has_wandb_key():
        found.append(Need("wandb", "grpo.report_to: wandb is online"))
    server = os.environ.get("MLFLOW_TRACKING_URI", "")
    if "mlflow" in named and server.startswith(("http://", "https://", "databricks")):
        found.append(Need("mlflow", "grpo.report_to: mlflow sends to MLFLOW_TRACKING_URI"))
    if "trackio" in named and os.environ.get("TRACKIO_SPACE_ID"):
        found.append(Need("hub", "grpo.report_to: trackio sends to TRACKIO_SPACE_ID"))
    return found


def reward_needs(config: Config) -> list[Need]:
    """Reward functions that say `needs_network = True`, such as a judge behind HTTP."""
    found = []
    for options in config.tasks:
        for name in options.rewards or {}:
            if getattr(rewards.resolve(name), "needs_network", False):
                found.append(Need("judge", f"the reward function {name} says needs_network"))
    return found


def hub_data(config: Config) -> list[str]:
    """The data sets of the tasks that are not files on this machine."""
    names = []
    for options in config.tasks:
        data = getattr(options, "data", None)
        if isinstance(data, str) and sources.is_of_hub(data):
            names.append(data)
    return names


def prepare_hub(config: Config) -> None:
    """Let the client of the Hub work where the run sends something there, or reads its data there.

    Call this before transformers is imported: a model that is on this machine otherwise sets
    HF_HUB_OFFLINE, and then no upload is possible.

    Raises:
        ConfigError: if the user's HF_HUB_OFFLINE forbids it, or the Hub does not accept the token.
    """
    hub.forget_empty()
    if hub_data(config):
        os.environ.setdefault("HF_HUB_OFFLINE", "0")
    wanted = hub_needs(config)
    if not wanted:
        return
    offline = [name for name in hub.OFFLINE if hub.is_set(name)]
    if offline:
        raise ConfigError(f"{wanted[0].why}, but {offline[0]} is set; leave one of them out")
    os.environ["HF_HUB_OFFLINE"] = "0"
    if config.grpo.get("push_to_hub") and is_first_process():
        public = config.grpo.get("hub_private_repo") is not True
        hub.check_access(repository(config.grpo), public, "grpo.push_to_hub")


def repository(grpo: Any) -> str:
    """The repository that grpo.push_to_hub uploads to."""
    return grpo.get("hub_model_id") or Path(grpo["output_dir"]).absolute().name
