"""The fetch step: downloads what a job needs, so that the job itself can do without a network.

train.sh runs it in a container of its own, with the network and the user's tokens. What it does is
said on standard error. Standard output has one line for each thing that the job itself needs the
network for: a kind, a tab and a sentence (job/network.py).
"""

import contextlib
import fnmatch
import os
import shutil
import sys
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Any

from job import network
from job.config import Config, Model
from job.errors import ConfigError, OutputError
from job.model import (
    LOADING_ERRORS,
    cannot_be_loaded,
    hub_cache,
    hub_is_off,
    in_cache,
    repositories,
    settle_quantization,
)
from job.rows import mixed_rows
from job.run_folder import RunFolder
from job.waiting import bytes_in_words, waiting

# What from_pretrained reads. Folders below hold other formats of the same weights.
PATTERNS = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt")
OTHER_FORMATS = ("*/*", "consolidated*")


def fetch(configs: Sequence[Config], *, trains: bool = False, with_models: bool = True) -> None:
    """Fetch models and data of a job, and say what it will need the network for.

    Args:
        configs: one for each model of the job.
        trains: whether the job trains. Only then does it report to trackers and upload.

    Raises:
        ConfigError: if something is not there, or may not be downloaded.
        OutputError: if the disk of the cache has too little space.
    """
    with contextlib.redirect_stdout(sys.stderr):
        for config in configs:
            if trains:
                network.prepare_hub(config)
            fetch_data(config)
            if with_models:
                config, weights = settle_quantization(config, RunFolder(config).trained_in(config))
                print(weights)
                fetch_model(config.model)
    needs = []
    for config in configs:
        needs += network.reward_needs(config)
        if trains:
            needs += network.training_needs(config)
    for need in dict.fromkeys(needs):
        print(f"{need.kind}\t{need.why}", flush=True)


# ---- The model


def fetch_model(model: Model) -> None:
    """Bring every file of the model into the Hub's cache, unless it is on this machine."""
    if Path(model.path).is_dir():
        print(f"model: {model.name} is on this machine")
        return
    name = repositories(model)[0]
    if in_cache(name):
        print(f"model: {name} is in the cache")
        return
    if hub_is_off():
        raise ConfigError(
            f"model.name: {name} is not in the cache ({hub_cache()}), and HF_HUB_OFFLINE is set"
        )
    import httpx

    try:
        download(name)
    except (*LOADING_ERRORS, httpx.HTTPError) as error:
        raise cannot_be_loaded(model, error) from error


def download(name: str) -> None:
    """Download a model of the Hub. What is there of an earlier download is kept."""
    from huggingface_hub import HfApi, snapshot_download

    found = HfApi().model_info(name, files_metadata=True)
    files = wanted_files(found.siblings)
    names = [file.rfilename for file in files]
    size = sum(file.size or 0 for file in files)
    cache = hub_cache()
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"models--{name.replace('/', '--')}" / "blobs"
    free = shutil.disk_usage(cache).free + bytes_in(folder)
    all_of_it = bytes_in_words(size)
    if free < size:
        raise OutputError(
            f"{name} has {all_of_it}, and the disk of {cache} has {bytes_in_words(free)} free; "
            "make space, or set HF_HOME to a folder elsewhere"
        )
    what = f"model: downloading {name}: {len(names)} files, {all_of_it}, to {cache}"
    with waiting(what, lambda: f"{bytes_in_words(bytes_in(folder))} of {all_of_it} are here"):
        # The commit that was listed: the repository may change meanwhile
        snapshot_download(name, allow_patterns=names, revision=found.sha)


def wanted_files(siblings: Sequence[Any]) -> list[Any]:
    """The files of a repository that from_pretrained reads."""
    patterns = PATTERNS
    if not any(file.rfilename.endswith(".safetensors") for file in siblings):
        patterns = (*PATTERNS, "*.bin")
    wanted = [file for file in siblings if fits(file.rfilename, patterns)]
    return [file for file in wanted if not fits(file.rfilename, OTHER_FORMATS)]


def fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def bytes_in(folder: Path) -> int:
    """What a download has written so far, unfinished files included."""
    size = 0
    for path in glob(str(folder / "*")):
        with contextlib.suppress(OSError):  # a file that was renamed just now
            size += os.stat(path).st_blocks * 512
    return size


# ---- The data


def fetch_data(config: Config) -> None:
    """Bring data sets of the Hub into the cache. The rows of files are left to the job."""
    names = network.hub_data(config)
    if not names:
        return
    try:
        with waiting(f"data: fetching {', '.join(names)}"):
            mixed_rows(config.tasks)
    except ValueError as error:
        raise ConfigError(f"task: {error}") from error
