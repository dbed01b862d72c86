"""Where rows come from: a file, several files (a glob), or a split of a data set of the Hub.

A relative path is sought where the user stands, then in the repository.
"""

import difflib
import functools
import glob
import itertools
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks import note_once
from tasks.data import formats

ROOT = Path(__file__).resolve().parents[2]
START_FOLDER = "START_FOLDER"  # train.sh says here where it was started
# Names of files, whatever else they may look like
FILE_ENDINGS = (*formats.FORMATS, ".txt", ".xls", ".xlsx", ".arrow", ".zip", ".xml")
# Configurations that are taken where a data set has several and none is named
DEFAULT_CONFIGURATIONS = ("default", "main")


@dataclass(frozen=True)
class Files:
    """Files, each with its modification time and size, so that a changed file is read again."""

    states: tuple[tuple[Path, int, int], ...]

    def rows(self, split: str) -> formats.Placed:
        for path, _, _ in self.states:
            yield from formats.read_file(path, shown(path))

    def count(self, split: str, limit: int) -> int:
        """Rows in all, counted no further than somewhat above `limit`."""
        counted = 0
        for path, _, _ in self.states:
            counted += formats.count_rows(path, limit - counted)
            if counted > limit:
                break
        return counted


@dataclass(frozen=True)
class HubDataset:
    """A data set of the Hugging Face Hub, or of the local cache of it."""

    name: str
    configuration: str | None = None
    revision: str | None = None
    streaming: bool = False  # read from the network row by row, and put nothing into the cache

    def rows(self, split: str) -> formats.Placed:
        dataset = load_split(self, split)
        try:
            for number, row in zip(itertools.count(), dataset, strict=False):
                yield f"{self.name}[{split}]:{number}", row
        except Exception as error:  # a file of it cannot be read, or the network is gone
            raise ValueError(f"data: {not_given(self, split, error)}") from error

    def count(self, split: str, limit: int) -> int:
        """Rows of the split; more than `limit` where it is streamed, since nobody knows how
        many."""
        if self.streaming:
            return limit + 1
        return len(load_split(self, split))

    def streamed_above(self, split: str, limit: int) -> "HubDataset":
        """The same data set, streamed if it says of itself that it has more than `limit` rows. It
        is asked before anything of it is downloaded."""
        if (described_rows(self, split) or 0) > limit:
            return replace(self, streaming=True)
        return self


def find(
    data: str, configuration: str | None, revision: str | None, streaming: bool
) -> Files | HubDataset:
    """What `data` means.

    Raises:
        ValueError: for a file that is not there.
    """
    found = find_files(data)
    if not found:
        return HubDataset(data, configuration, revision, streaming)
    states = []
    for path in found:
        stat = path.stat()
        states.append((path, stat.st_mtime_ns, stat.st_size))
    return Files(tuple(states))


# ---- files


def folders() -> list[Path]:
    """The folders in which a relative path is sought, in order."""
    start = Path(os.environ.get(START_FOLDER) or os.getcwd())
    return list(dict.fromkeys([start, ROOT]))


def find_files(data: str) -> list[Path]:
    """The files that `data` means; none for the id of a Hub data set.

    Raises:
        ValueError: for a file that is not there.
    """
    expanded = os.path.expanduser(data)
    for folder in folders():
        path = folder / expanded
        if path.is_file():
            return [path]
        matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
        found = [match for match in matches if match.is_file()]
        if found:
            return found
    if is_hub_id(data):
        return []
    raise ValueError(f"data: {nothing_found(data, expanded)}")


def is_of_hub(data: str) -> bool:
    """Whether `data` means a data set of the Hub, and no file of that name is here."""
    try:
        return not find_files(data)
    except ValueError:  # it is neither, which is told where it is read
        return False


def from_anywhere(data: str) -> str:
    """`data` as it can be found from any folder: a path of the user's becomes absolute, and what is
    in the repository, or on the Hub, stays as it is."""
    found = glob.glob(str(folders()[0] / os.path.expanduser(data)), recursive=True)
    if not data or not found or folders()[0] == ROOT:
        return data
    return str(folders()[0] / os.path.expanduser(data))


def nothing_found(data: str, expanded: str) -> str:
    """Why there is no file, in words."""
    sought = folders()
    if os.path.isabs(expanded):
        sought = [Path("/")]
    for folder in sought:
        if data and (folder / expanded).is_dir():
            pattern = f"{data.rstrip('/')}/*.jsonl"
            return f"{(folder / expanded).resolve()} is a folder; name its files, as in {pattern}"
    words = f"there is no file {data}"
    if not os.path.isabs(expanded):
        words += f" in {' or in '.join(map(str, sought))}"
    for folder in sought:
        near = nearest_file(folder / expanded)
        if data and near:
            return f"{words}; did you mean {Path(expanded).with_name(near)}?"
    return words


def nearest_file(path: Path) -> str:
    """The file beside `path` whose name is nearest to it; empty if none is near."""
    if not path.parent.is_dir():
        return ""
    names = [file.name for file in path.parent.iterdir() if file.is_file()]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.8)
    return close[0] if close else ""


def is_hub_id(data: str) -> bool:
    """Whether `data` can be the id of a Hub data set: NAME or OWNER/NAME, and no name of a file."""
    if formats.endings(data)[0] in FILE_ENDINGS or data.lower().endswith((".gz", ".zst")):
        return False
    is_folder = any((folder / data).is_dir() for folder in folders())
    return not is_folder and re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", data) is not None


def shown(path: Path) -> str:
    """A path as messages show it: as the user would write it."""
    for folder in folders():
        if path.is_relative_to(folder):
            return str(path.relative_to(folder))
    return str(path)


# ---- the Hub


@functools.lru_cache(maxsize=4)
def load_split(source: HubDataset, split: str) -> Any:
    """A split as `datasets` has it: a Dataset, or an IterableDataset where it is streamed.

    Raises:
        ValueError: if it cannot be had.
    """
    from datasets import load_dataset  # here, because it is slow to import

    settings: dict[str, Any] = {"split": split}
    if source.streaming:
        settings["streaming"] = True
    try:
        dataset = ask(load_dataset, source, **settings)
        if source.revision:
            check_revision(dataset, source.revision)
        return dataset
    except Exception as error:  # of many kinds: no such id, split or network, no access
        raise ValueError(f"data: {not_given(source, split, error)}") from error


@functools.lru_cache(maxsize=4)
def described_rows(source: HubDataset, split: str) -> int | None:
    """How many rows a split has, as the data set describes itself; None if it does not say."""
    from datasets import load_dataset_builder

    try:
        splits = ask(load_dataset_builder, source).info.splits or {}
    except Exception:  # loading it will say what is wrong
        return None
    return splits[split].num_examples if split in splits else None


def ask(load: Callable[..., Any], source: HubDataset, **settings: Any) -> Any:
    """What a function of `datasets` gives, in the configuration that is named or the usual one."""
    if source.revision:
        settings["revision"] = source.revision
    if source.configuration:
        return load(source.name, source.configuration, **settings)
    try:
        return load(source.name, **settings)
    except ValueError as error:
        configuration = default_configuration(str(error))
        if configuration is None:
            raise
    note_once(f"{source.name} has several configurations; task.configuration is {configuration}")
    return load(source.name, configuration, **settings)


def check_revision(dataset: Any, revision: str) -> None:
    """Without a network `datasets` takes what the cache has, whatever revision it is asked for.

    The cache names a folder after the commit.

    Raises:
        ValueError: if nobody can say that it is this one.
    """
    from datasets import config

    if not config.HF_HUB_OFFLINE:
        return
    files = getattr(dataset, "cache_files", None)
    held = "a revision that it does not name"
    if files:
        held = Path(files[0]["filename"]).parent.name
    if not held.startswith(revision):
        raise ValueError(f"the Hub is offline (HF_HUB_OFFLINE), and the cache holds {held}")


def default_configuration(error: str) -> str | None:
    """The configuration to take, where `datasets` asks for one of several; None if it does not.

    It asks in words: "Please pick one among the available configs: ['main', 'socratic']", or, of
    those in the cache, "There are multiple 'name' configurations in the cache: main, socratic".
    """
    asks = re.search(r"available configs:|configurations in the cache:", error)
    if asks is None:
        return None
    named = re.findall(r"[\w.-]+", error[asks.end() :].split("\n")[0])
    return next((name for name in DEFAULT_CONFIGURATIONS if name in named), None)


def not_given(source: HubDataset, split: str, error: Exception) -> str:
    """What the Hub did not give, and why."""
    asked = f"split {split!r}"
    if source.configuration:
        asked += f", configuration {source.configuration!r}"
    if source.revision:
        asked += f", revision {source.revision!r}"
    reason = " ".join(str(error).split())
    sought = " or in ".join(map(str, folders()))
    return (
        f"no file {source.name}, and the Hub does not give it ({asked}): {reason}; "
        f"files were sought in {sought}"
    )
