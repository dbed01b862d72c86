"""rules.py: a key that is added as its head says is checked like all others."""

from dataclasses import dataclass

import pytest
from omegaconf import MISSING

from job import config, interruption, rules, watchdog
from job.errors import ConfigError

# section, and the dataclass of its keys: (module, name)
SECTIONS = [
    ("model", config, "Model"),
    ("lora", config, "Lora"),
    ("sandbox", config, "SandboxOptions"),
    ("watchdog", watchdog, "Options"),
    ("train", interruption, "Options"),
]
DEFAULT = "5  # how long to wait"


def with_patience(keys):
    """The dataclass with one more key, added as the head of rules.py says."""

    @dataclass(frozen=True)
    class Extended(keys):
        patience: int = MISSING

        def __post_init__(self):
            super().__post_init__()
            if self.patience < 1:
                raise ValueError(f"patience: must be above 0, not {self.patience}")

    return Extended


@pytest.fixture(params=SECTIONS, ids=[section for section, _, _ in SECTIONS])
def section(request, tmp_path, monkeypatch):
    """A section with a new key `patience`, whose default is in a copy of config.yaml."""
    section, module, name = request.param
    monkeypatch.setattr(module, name, with_patience(getattr(module, name)))
    written = (config.ROOT / "config.yaml").read_text(encoding="utf-8")
    head, begin, keys = written.partition(f"\n{section}:")
    rest_of_line, _, keys = keys.partition("\n")
    text = f"{head}{begin}{rest_of_line}\n  patience: {DEFAULT}\n{keys}"
    (tmp_path / "config.yaml").write_text(text, encoding="utf-8")
    monkeypatch.setattr(config, "ROOT", tmp_path)
    return section


def mistakes(*overrides):
    with pytest.raises(ConfigError) as caught:
        config.load_config(None, overrides)
    return caught.value.mistakes


def test_a_new_key_has_its_default_and_can_be_set_and_saved(section, tmp_path):
    assert getattr(config.load_config(), section).patience == 5
    changed = config.load_config(None, [f"{section}.patience=7"])
    assert getattr(changed, section).patience == 7
    config.save(changed, tmp_path / "resolved.yaml")
    assert config.load_config(tmp_path / "resolved.yaml") == changed


def test_a_wrong_value_of_a_new_key_is_refused_with_its_full_name(section):
    assert mistakes(f"{section}.patience=0") == [f"{section}.patience: must be above 0, not 0"]
    (wrong_type,) = mistakes(f"{section}.patience=long")
    assert wrong_type.startswith(f"{section}.patience: Value 'long'")


def test_a_misspelt_new_key_is_suggested(section):
    expected = f"{section}.patiense: no such key; did you mean {section}.patience?"
    assert mistakes(f"{section}.patiense=7") == [expected]


def test_a_new_key_without_a_default_is_missing(section, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(file.read_text().replace(f"  patience: {DEFAULT}\n", ""))
    assert mistakes() == [f"{section}.patience: missing, and it has no default"]


@pytest.mark.parametrize(("section", "module", "name"), SECTIONS)
def test_the_head_of_rules_names_the_dataclass_of_each_section(section, module, name):
    file = module.__name__.rpartition(".")[2] + ".py"
    words = " ".join(rules.__doc__.split())
    assert name in words and file in words
