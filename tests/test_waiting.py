"""waiting.py: nothing is silent for long."""

import threading
from types import SimpleNamespace

import pytest

from job import waiting
from job.callbacks import FirstStep


@pytest.fixture
def told(monkeypatch):
    """(set once a line between was printed, what says how far it is)"""
    monkeypatch.setattr(waiting, "EVERY_S", 0.01)
    seen = threading.Event()

    def so_far():
        seen.set()
        return "3 of 7"

    return seen, so_far


def test_what_takes_long_says_so_and_how_far_it_is(told, capsys):
    seen, so_far = told
    with waiting.waiting("downloading", so_far):
        assert seen.wait(60)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "downloading ..."
    assert lines[1] == "... 0 s: 3 of 7"
    assert lines[-1].startswith("... done in ")


def test_what_fails_is_not_called_done(capsys):
    with pytest.raises(KeyError), waiting.waiting("loading"):
        raise KeyError
    assert capsys.readouterr().err == "loading ...\n"


def test_the_first_step_ends_the_wait_and_later_ones_say_nothing(capsys):
    first_step = FirstStep(is_shown=True)
    state = SimpleNamespace()
    with first_step:
        assert capsys.readouterr().err == "the first step, which may compile kernels ...\n"
        first_step.on_step_end(None, state, None)
        assert "done in" in capsys.readouterr().err
        first_step.on_step_end(None, state, None)
    assert capsys.readouterr().err == ""
    with FirstStep(is_shown=False):
        pass
    assert capsys.readouterr().err == ""


def test_sizes_have_a_unit_that_fits():
    assert waiting.bytes_in_words(1_520_000) == "1.5 MB"
    assert waiting.bytes_in_words(13_800_000_000) == "13.8 GB"
