"""One exit code for each error, and one place that prints them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from job import errors
from job.errors import (
    CheckError,
    ConfigError,
    ExportError,
    GradeError,
    JobError,
    OutputError,
    RewardError,
    exit_code_of,
)
from sandbox import SandboxError

ROOT = Path(__file__).parent.parent
SCRIPTS = ["check.py", "evaluate.py", "export.py", "generate.py", "report.py", "train.py"]


def raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    "error, exit_code",
    [
        (ConfigError("wrong"), 2),
        (RewardError("wrong"), 3),
        (OutputError("wrong"), 4),
        (SandboxError("wrong"), 5),
        (CheckError("wrong"), 6),
        (ExportError("wrong"), 8),
    ],
)
def test_each_error_is_one_line_and_its_exit_code(error, exit_code, capsys):
    assert exit_code_of(raising(error)) == exit_code
    assert capsys.readouterr().err == "error: wrong\n"
    table = dict(re.findall(r"^ *(\d) +(\w+Error)", errors.__doc__, re.MULTILINE))
    assert table[str(exit_code)] == type(error).__name__


def test_a_task_that_fails_ends_as_a_reward_function_does():
    assert exit_code_of(raising(GradeError("wrong"))) == 3


def test_the_head_of_train_py_has_the_exit_codes_of_the_table():
    def rows(text):
        return re.findall(r"^(\d|75|128 \+ n) +", text, re.MULTILINE)

    said = ast.get_docstring(ast.parse((ROOT / "train.py").read_text(encoding="utf-8")))
    assert rows(said) == rows(errors.__doc__) and len(rows(said)) == 11


def test_every_error_class_has_its_own_exit_code():
    codes = [kind.exit_code for kind in JobError.__subclasses__()] + [errors.SANDBOX_FAILED]
    assert len(set(codes)) == len(codes)
    assert not {errors.DONE, 1, errors.STOPPED_BY_WATCHDOG}.intersection(codes)


def test_each_mistake_of_a_config_is_a_line_of_its_own(capsys):
    exit_code_of(raising(ConfigError(["first", "second"])))
    assert capsys.readouterr().err == "error: first\nerror: second\n"


def test_a_result_is_passed_on_and_what_nobody_foresaw_is_not_hidden():
    assert exit_code_of(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        exit_code_of(lambda: 1 // 0)


def test_a_missing_package_is_installed_where_the_project_runs(monkeypatch):
    monkeypatch.setattr(sys, "prefix", "/opt/venv")
    assert errors.how_to_install("wandb").endswith('EXTRA_PACKAGES="wandb" bash build.sh')
    monkeypatch.setattr(sys, "prefix", str(errors.ROOT / ".venv"))
    assert errors.how_to_install("wandb").endswith(".venv/bin/python -m pip install wandb")
    monkeypatch.setattr(sys, "prefix", "/usr")
    assert errors.how_to_install("wandb") == f"install it: {sys.executable} -m pip install wandb"
    dockerfile = (errors.ROOT / "Dockerfile").read_text()
    assert f"-m venv {errors.IMAGE_PREFIX} " in dockerfile and "ARG EXTRA_PACKAGES" in dockerfile


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_python_without_the_requirements_is_told_in_one_line(script):
    command = [sys.executable, "-S", script, "--help"]  # -S: without site-packages
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    said = f"omegaconf is missing here: run it as bash train.sh --local {script} ..."
    assert (done.returncode, done.stderr) == (2, f"error: {said}\n")
