"""The user's own task and reward functions, named by the paths of their files."""

import sys
from pathlib import Path

import pytest

import check
import tasks
from job import config as config_module
from job import own_code, rewards
from job.config import ConfigError, load_config
from job.grading import Grader
from job.grading_pool import GradingPool

TASK = '''
"""Say the word."""

from dataclasses import dataclass

from sandbox import Status
from tasks import Grade
from tasks import Options as SharedOptions

REWARDS = ["correctness_check"]
REFERENCE = "yes"
SLOWER, WRONG, CHEAT = [], ["no"], []


@dataclass(frozen=True)
class Options(SharedOptions):
    word: str = "yes"


def rows(options):
    return [{"prompt": [{"role": "user", "content": "Say the word."}]}] * options.num_rows


def grade(completion, row, options, sandbox, rng):
    return Grade(Status.OK, correct=completion == options.word, passed=1.0)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A user's folder with a task and reward functions, where the user stands."""
    (tmp_path / "say.py").write_text(TASK)
    (tmp_path / "mine.py").write_text(
        "def half(completions):\n    return [0.5 for _ in completions]\n"
    )
    monkeypatch.setattr(tasks, "FILES", {})
    monkeypatch.setenv("START_FOLDER", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    yield tmp_path
    for name in ("tasks.say", "reward_functions.mine"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("written", ["{}/say.py", "say.py", "./say.py", "~/say.py"])
def test_a_task_is_found_by_the_path_of_its_file(folder, written):
    config = load_config(overrides=["task.word=yes", f"task.type={written.format(folder)}"])
    (options,) = config.tasks
    assert options.type == "say" and options.word == "yes"
    assert tasks.load("say").__file__ == str(folder / "say.py")


def test_a_saved_config_finds_the_files_from_anywhere(folder, monkeypatch):
    config = load_config(overrides=["task.type=say.py", "task.rewards={'mine.py:half': 2}"])
    config_module.save(config, folder / "saved.yaml")
    monkeypatch.setenv("START_FOLDER", "/")
    tasks.FILES.clear()
    again = load_config(folder / "saved.yaml")
    assert again.tasks[0].type == "say"
    assert again.tasks[0].rewards == {f"{folder}/mine.py:half": 2}
    assert config_module.changed_since(again, folder / "saved.yaml") == []
    (folder / "mine.py").unlink()  # a run goes on without it
    config_module.save(again, folder / "later.yaml")
    assert (folder / "later.yaml").read_text() == (folder / "saved.yaml").read_text()


def test_grading_processes_know_the_task(folder):
    config = load_config(overrides=["task.type=say.py", "sandbox.workers=1"])
    with GradingPool.of(config.sandbox) as pool:
        scored = Grader(config.tasks, pool).score(["yes", "no"], [{}, {}], 0)
    assert [item.grade.correct for item in scored] == [True, False]


def test_a_path_to_a_task_of_the_project_is_that_task(folder):
    assert load_config(overrides=["task.type=tasks/code.py"]).tasks[0].type == "code"


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("/nowhere/say.py", "there is no file /nowhere/say.py"),
        ("~nobody-of-this-name/say.py", "there is no file ~nobody-of-this-name/say.py in "),
        (f"{'long' * 99}.py", "there is no file longlong"),
        ("sya.py", "there is no file sya.py in {folder} or in "),
        ("code.py", "{folder}/code.py has the name of tasks/code; rename the file"),
        ("data.py", "{folder}/data.py has the name of tasks/data; rename the file"),
        ("other/say.py", "{folder}/other/say.py has the name of {folder}/say.py; rename the file"),
        ("my-task.py", "my-task.py: a module is called like my_module.py, not my-task.py"),
        ("raises.py", "{folder}/raises.py cannot be imported: NameError"),
        ("empty.py", "{folder}/empty.py lacks Options, REWARDS, rows, grade"),
        ("rev.py", "{folder}/rev.py lacks REFERENCE, SLOWER, WRONG, CHEAT; known_answers(row, opt"),
    ],
)
def test_a_file_that_is_no_task_is_one_mistake(folder, written, said):
    load_config(overrides=["task.type=say.py"])
    for name in ("code", "data", "my-task", "raises", "empty"):
        (folder / f"{name}.py").write_text("nobody" if name == "raises" else "")
    (folder / "rev.py").write_text(
        TASK.replace('REFERENCE = "yes"\nSLOWER, WRONG, CHEAT', "a, b, c")
    )
    (folder / "other").mkdir()
    (folder / "other/say.py").write_text(TASK)
    with pytest.raises(ConfigError) as error:
        load_config(overrides=[f"task.type={written}", "task.num_rows=2"])
    (mistake,) = error.value.mistakes
    assert mistake.startswith(f"task.type: {said.format(folder=folder)}")


def test_an_option_of_the_command_line_names_a_file_as_well(folder, capsys):
    (folder / "in.jsonl").write_text('{"completion": "yes"}\n')
    assert check.main(["grade", str(folder / "in.jsonl"), "--task", "say.py"]) == 0
    assert '"correct": true' in capsys.readouterr().out
    assert check.main(["grade", str(folder / "in.jsonl"), "--task", "sya.py"]) == 2
    assert "error: --task: there is no file sya.py in" in capsys.readouterr().err


def test_reward_functions_are_found_by_path(folder, monkeypatch):
    for written in ("mine.py:half", f"{folder}/mine.py:half", "~/mine.py:half"):
        assert rewards.resolve(written)(completions=["a", "b"]) == [0.5, 0.5]
    (folder / "other").mkdir()
    (folder / "other/mine.py").touch()
    with pytest.raises(ValueError, match=r"other/mine.py has the name of .*/mine.py; rename one"):
        rewards.resolve("other/mine.py:half")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("half", "there is no function 'half' in reward_functions; write it there, or name one "),
        ("mine:half", r"No module named 'mine' \(sought in .* and PYTHONPATH; path/to/file.py:"),
        ("nix.py:half", "there is no file nix.py in "),
        ("mine.py:hafl", "there is no function 'hafl' in mine.py; did you mean half"),
    ],
)
def test_a_reward_function_that_is_not_there_is_told_with_the_ways_to_name_one(folder, name, said):
    with pytest.raises(ValueError, match=said):
        rewards.resolve(name)


def test_names_of_modules_stay_as_they_are():
    assert own_code.rewards_as_written(["correctness_check", "a.b:c"]) == [
        "correctness_check",
        "a.b:c",
    ]
    assert own_code.task_as_written("code") == "code"
    assert Path(own_code.find_file("train.py")).is_absolute()
