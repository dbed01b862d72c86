"""grpo_keys.py: what the installed libraries allow, and named algorithms."""

import dataclasses
import math

import pytest

from job import config, grpo_keys
from job.config import load_config as load


def test_the_schema_is_the_installed_grpo_config_and_five_keys():
    from trl import GRPOConfig

    theirs = {field.name: field.default for field in dataclasses.fields(GRPOConfig) if field.init}
    assert {field.name for field in dataclasses.fields(grpo_keys.schema())} == theirs.keys() | set(
        grpo_keys.OWN_KEYS
    )
    for name, (_, default) in grpo_keys.config_fields().items():
        assert default is None or default == getattr(theirs[name], "value", theirs[name])


def test_enumerations_are_the_installed_ones():
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    allowed = grpo_keys.enumerations()
    assert allowed["optim"] == {member.value for member in OptimizerNames}
    assert allowed["lr_scheduler_type"] == {member.value for member in SchedulerType}
    assert allowed["loss_type"] == {
        "grpo",
        "bnpo",
        "dr_grpo",
        "dapo",
        "cispo",
        "sapo",
        "luspo",
        "vespo",
    }
    assert allowed["scale_rewards"] == {"group", "batch", "none"}
    assert allowed["importance_sampling_level"] == {"token", "sequence"}
    assert set(grpo_keys.ENUMERATIONS) <= allowed.keys()


@pytest.mark.parametrize("name", grpo_keys.ALGORITHMS)
def test_an_algorithm_sets_all_of_its_keys_over_the_defaults(name, tmp_path):
    loaded = load(config.ROOT / "configs" / "tiny.yaml", [f"grpo.algorithm={name}"])
    assert not loaded.notices
    for key, value in grpo_keys.ALGORITHMS[name].items():
        found = (
            loaded.grpo_extra.zero_std_groups if key == "zero_std_groups" else loaded.grpo.get(key)
        )
        assert found == value, key
    config.save(loaded, tmp_path / "resolved.yaml")
    assert load(tmp_path / "resolved.yaml") == loaded
    changed = load(tmp_path / "resolved.yaml", ["grpo.algorithm=bnpo"])
    assert changed.grpo["loss_type"] == "bnpo" and "epsilon_high" not in changed.grpo


def test_a_key_beside_or_after_an_algorithm_wins_with_a_notice(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("grpo:\n  algorithm: dapo\n  beta: 0.01\n  epsilon: 0.2\n")
    loaded = load(path, ["grpo.zero_std_groups=keep"])
    assert (
        loaded.grpo["beta"],
        loaded.grpo["epsilon_high"],
        loaded.grpo_extra.zero_std_groups,
    ) == (0.01, 0.28, "keep")
    assert list(loaded.notices) == [
        "grpo.beta: 0.01 wins over 0.0, which grpo.algorithm: dapo would set",
        "grpo.zero_std_groups: keep wins over resample, which grpo.algorithm: dapo would set",
    ]
    assert load(path, ["grpo.algorithm=null"]).grpo["beta"] == 0.01


def test_changes_of_a_library_are_named():
    from trl import GRPOConfig

    settings = {
        "bf16": False,
        "scale_rewards": True,
        "report_to": "none",
        "optim": "adamw_torch",
        "epsilon_high": None,
    }
    arguments = GRPOConfig(**settings)
    assert grpo_keys.changes(settings, arguments) == []
    arguments.per_device_train_batch_size, arguments.weight_decay = 16, 0.001
    assert grpo_keys.changes(settings | {"per_device_train_batch_size": 2}, arguments) == [
        "grpo.per_device_train_batch_size: 2 was changed to 16 by the library",
        "defaults that are not TRL's: weight_decay 0.001 (not 0.0)",
    ]
    assert math.isfinite(arguments.learning_rate)


@pytest.mark.parametrize(
    ("key", "value", "cure"),
    [
        ("sapo_temperature_pos", 1.1, "loss_type=sapo"),
        ("vespo_k_pos", 2.5, "loss_type=vespo"),
        ("ref_model_sync_steps", 9, None),
        ("label_smoothing_factor", 0.1, None),
        ("num_generations_eval", 8, None),
        ("entropy_target", 0.3, "use_adaptive_entropy=true"),
        ("data_seed", 1, None),
        ("trust_remote_code", "true", None),
    ],
)
def test_a_key_that_is_set_in_vain_is_named(key, value, cure):
    assert any(
        notice.startswith(f"grpo.{key}: has no effect")
        for notice in load(None, [f"grpo.{key}={value}"]).notices
    )
    if cure:
        assert load(None, [f"grpo.{key}={value}", f"grpo.{cure}"]).notices == ()
    assert load().notices == ()


def test_what_a_schedule_or_a_loss_leaves_unread_is_named():
    def noted(*overrides):
        return [
            notice.split(":")[0].removeprefix("grpo.") for notice in load(None, overrides).notices
        ]

    # config.yaml's, or one's own
    assert noted("grpo.lr_scheduler_type=constant") == ["warmup_steps"]
    assert noted("grpo.lr_scheduler_type=constant", "grpo.warmup_steps=0") == []
    schedule = [
        "grpo.lr_scheduler_type=constant_with_warmup",
        "grpo.lr_scheduler_kwargs={min_lr: 0}",
    ]
    assert noted(*schedule) == ["lr_scheduler_kwargs"]
    assert noted("grpo.delta=2", "grpo.loss_type=sapo") == ["delta"] and noted("grpo.delta=2") == []
    assert noted("grpo.loss_type=vespo", "grpo.importance_sampling_level=sequence") == [
        "importance_sampling_level"
    ]


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("fsdp=true", True),
        ("fsdp=full_shard", "full_shard"),
        ("generation_kwargs={do_sample: true, num_beams: 1}", {"do_sample": True, "num_beams": 1}),
        ("gradient_checkpointing_kwargs={debug: true}", {"debug": True}),
        ("vespo_lambda_neg=0", 0),
    ],
)
def test_what_the_libraries_take_is_let_through(override, value, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert (
        load(config.ROOT / "configs" / "tiny.yaml", [f"grpo.{override}"]).grpo[
            override.partition("=")[0]
        ]
        == value
    )
