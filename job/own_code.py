"""The user's own code outside this project: a task, or reward functions, named by its file's path.

A relative path is sought where the user stands, then in the repository, as data is. A file is
imported under its stem. It may import this project, what is installed, and what PYTHONPATH has.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import tasks
from job.errors import ConfigError
from tasks.data import sources


def is_path(name: str) -> bool:
    """Whether a name is written as the path of a file."""
    return "/" in name or name.endswith(".py")


def find_file(written: str) -> Path:
    """The Python file that a path means, as an absolute path.

    Raises:
        ValueError: if there is none, or its name cannot be that of a module.
    """
    expanded = Path(os.path.expanduser(written))
    candidates = [expanded]
    if not expanded.is_absolute():
        candidates = [folder / expanded for folder in sources.folders()]
    for path in candidates:
        if not os.path.isfile(path):  # Path.is_file raises where a folder may not be read
            continue
        if path.suffix != ".py" or not path.stem.isidentifier():
            raise ValueError(f"{written}: a module is called like my_module.py, not {path.name}")
        return Path(os.path.abspath(path))
    words = f"there is no file {written}"
    if not expanded.is_absolute():
        words += f" in {' or in '.join(map(str, sources.folders()))}"
    raise ValueError(words)


def task_name(written: str) -> str:
    """The name of a task that is given by its name or by the path of its file. From here on
    `tasks.load` finds the task by that name.

    Raises:
        ValueError: if there is no such file, or its name is that of another task.
    """
    if not is_path(written):
        return written
    path = find_file(written)
    if str(path.parent) in tasks.__path__:
        return path.stem
    tasks.add_file(path)
    return path.stem


def chosen_task(written: str) -> str:
    """The name of the task that --task names, by its name or by the path of its file.

    Raises:
        ConfigError: if it cannot be used.
    """
    try:
        name = task_name(written)
    except ValueError as error:
        raise ConfigError(f"--task: {error}") from error
    if name not in tasks.names():
        raise ConfigError(f"--task: no task {name!r}; there are {tasks.names()}")
    mistakes = [f"--task: {mistake}" for mistake in tasks.contract_mistakes(name)]
    if mistakes:
        raise ConfigError(mistakes)
    return name


def task_as_written(name: str) -> str:
    """How a config names a task so that it is found from any folder."""
    return str(tasks.FILES.get(name, name))


def rewards_as_written(rewards: Any) -> Any:
    """The same, of the names or weights of reward functions."""
    if isinstance(rewards, Mapping):
        return {reward_as_written(name): weight for name, weight in rewards.items()}
    return [reward_as_written(name) for name in rewards]


def reward_as_written(name: str) -> str:
    module, colon, function = name.rpartition(":")
    if not is_path(module):
        return name
    try:
        return f"{find_file(module)}{colon}{function}"
    except ValueError:  # it was there when the run began
        return name


def rewards_module(written: str) -> ModuleType:
    """The module with reward functions in the file of this path. It is run once in a process.

    Raises:
        ValueError: if there is no such file, or another one has its name.
        Exception: of any type, from the file itself.
    """
    path = find_file(written)
    # Behind a prefix, so that json.py does not take the place of Python's own json
    module = tasks.import_file(f"reward_functions.{path.stem}", path)
    if module.__file__ != str(path):
        raise ValueError(f"{path} has the name of {module.__file__}; rename one of them")
    return module
