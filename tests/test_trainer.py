"""trainer.py: what the model is given and what the rewards read, on the tiny model."""

import difflib
import json
import logging
from types import SimpleNamespace

import pytest
import torch
from scripted import ScriptedRollout, harmony_call, harmony_final
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer

import reward_functions
import tasks
import train
from job import config, model
from job.config import load_config as load
from job.episodes.tool_format import ToolFormat
from job.grading_pool import GradingPool
from job.rollout import decode_all, engine
from job.run_folder import RunFolder

TINY = config.ROOT / "configs" / "tiny.yaml"
EFFORTS = ("low", "medium", "high")
SIZE = 4  # num_generations


def scripted(completions, grades, flat, **kwargs):
    return [0.0 if is_flat else float(i) for i, is_flat in enumerate(flat)]


def backends():
    cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="unsloth needs a CUDA GPU")
    return ["transformers", pytest.param("unsloth", marks=[cuda, pytest.mark.gpu])]


@pytest.fixture(scope="module")
def pool():
    with GradingPool.of(load(TINY, ["sandbox.workers=2"]).sandbox) as running:
        yield running


@pytest.fixture
def build(tmp_path, monkeypatch, pool):
    """Builds the trainer of train.py for rows of our own and overrides."""
    monkeypatch.setattr(reward_functions, "scripted", scripted, raising=False)

    def build(rows, *overrides):
        path = tmp_path / "rows.jsonl"
        path.write_text(
            "".join(json.dumps({"prompt": "Calculate 15 * 23"} | row) + "\n" for row in rows)
        )
        job = load(TINY, [
            "task.type=jsonl", f"task.data={path}", f"task.num_rows={len(rows)}",
            "task.rewards=[scripted]",
            f"grpo.num_generations={SIZE}", f"grpo.per_device_train_batch_size={SIZE * 3}",
            "grpo.max_completion_length=12", "grpo.report_to=[]",
            f"grpo.output_dir={tmp_path / 'run'}", *overrides,
        ])  # fmt: skip
        chat, plan = train.prepare(job)
        made = train.build_trainer(
            job, RunFolder(job), *model.load_model(job.model, job.lora), pool, chat, plan
        )
        made.model.train()
        return made

    return build


def batch_of(trainer, *indices):
    return [row for i in indices for row in [trainer.train_dataset[i]] * SIZE]


@pytest.mark.parametrize("backend", backends())
def test_the_effort_of_each_row_reaches_the_model(build, backend):
    rows = [{"flat": False, "reasoning_effort": effort} for effort in EFFORTS] + [{"flat": False}]
    trainer = build(rows, f"model.backend={backend}", "task.reasoning_effort=medium")
    output = trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 2, 3))
    given = [
        ids[mask.bool()]
        for ids, mask in zip(output["prompt_ids"], output["prompt_mask"], strict=True)
    ]
    low, medium, high, default = (
        trainer.processing_class.decode(given[i * SIZE]) for i in range(4)
    )
    assert all((given[i] == given[i // SIZE * SIZE]).all() for i in range(4 * SIZE))
    assert default == medium and "\nCurrent date: 2025-08-05\n" in medium
    for other, effort in ((low, "low"), (high, "high")):
        lines = difflib.ndiff(medium.splitlines(), other.splitlines())
        changed = [line for line in lines if line.startswith(("- ", "+ "))]
        assert changed == ["- Reasoning: medium", f"+ Reasoning: {effort}"]


def test_a_library_that_renders_prompts_itself_is_noticed(build, monkeypatch):
    trainer = build([{"flat": False}] * 3)
    monkeypatch.setattr(
        type(trainer),
        "_tokenize_prompts",
        lambda self, prompts: ([[1, 2]] * len(prompts), None, {}),
    )
    with pytest.raises(RuntimeError, match="was not given the prompt of its row"):
        trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 2))


def test_rewards_read_the_final_channel_and_what_was_cut_off_has_its_own_status(build, monkeypatch):
    trainer = build([{"flat": False}] * 3)
    said = [
        "<|channel|>analysis<|message|>hm<|end|>"
        "<|start|>assistant<|channel|>final<|message|>345<|return|>",
        "<|channel|>analysis<|message|>Answer: 345",
    ]
    ids = [trainer.processing_class(text, add_special_tokens=False)["input_ids"] for text in said]
    monkeypatch.setattr(
        type(trainer),
        "_generate_single_turn",
        lambda self, prompts, *args: ([ids[i % 2] for i in range(12)], None),
    )
    seen = []
    trainer.reward_funcs[0] = lambda completions, **kwargs: (
        seen.extend(completions) or [1.0] * len(completions)
    )
    trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 2))
    assert seen[0] == [{"role": "assistant", "content": "345", "thinking": "hm"}]
    cut_off = {
        "role": "assistant",
        "content": "",
        "thinking": "Answer: 345",
        "reached_final": False,
    }
    assert seen[1] == [cut_off]
    metrics = trainer._metrics["train"]
    assert metrics["completions/reached_final"] == [0.5]
    analysis = ids[0].index(trainer.processing_class.convert_tokens_to_ids("<|end|>")) + 1
    assert metrics["completions/mean_thinking_length"] == [(analysis + len(ids[1])) / 2]
    assert metrics["completions/mean_final_length"] == [(len(ids[0]) - analysis) / 2]

    (grade, cut) = trainer.grader._grades_of([seen[0], seen[1]], answer=["345", "345"])
    assert grade.status == "ok" and cut.status == "no_final" and not cut.correct


def columns(trainer):
    """Lengths of the columns of the table of completions."""
    logs = trainer._logs
    return {
        len(logs["prompt"]),
        *map(len, logs["rewards"].values()),
        *map(len, logs["extra"].values()),
    }


def test_groups_without_variance_are_resampled(build):
    rows = [{"flat": i < 6, "prompt": f"{i} + {i}"} for i in range(12)]
    trainer = build(rows, "grpo.zero_std_groups=resample", "grpo.max_resampling_tries=20")
    output = trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 7))
    advantages = output["advantages"].view(3, SIZE)
    assert (advantages.std(dim=1) > 0).all()
    kept = trainer.processing_class.batch_decode(output["prompt_ids"])
    assert "7 + 7" in kept[2 * SIZE] and not any(
        f"{i} + {i}<" in text for i in range(6) for text in kept
    )
    assert len(set(kept[:SIZE])) == 1, "a group is completions of one prompt"
    metrics = trainer._metrics["train"]
    assert metrics["frac_reward_zero_std"] == [0.0]
    assert (
        metrics["resampling/tries"][0] >= 1
        and 0 < metrics["resampling/frac_reward_zero_std"][0] < 1
    )
    assert columns(trainer) == {3 * SIZE}


@pytest.mark.parametrize("zero_std", ["keep", "resample"])
def test_the_table_of_completions_has_total_weights_and_group(build, zero_std):
    rows = [{"flat": i < 3} for i in range(6)]
    trainer = build(
        rows, f"grpo.zero_std_groups={zero_std}", "task.rewards={scripted: {0: 2.0, 9: 1.0}}"
    )
    trainer._generate_and_score_completions(batch_of(trainer, 3, 4, 5))
    extra = trainer._logs["extra"]
    assert list(extra["total"]) == [2.0 * i for i in trainer._logs["rewards"]["scripted"]]
    assert list(extra["weights"]) == [{"scripted": 2.0}] * 3 * SIZE
    assert list(extra["group"]) == [0] * SIZE + [1] * SIZE + [2] * SIZE
    assert columns(trainer) == {3 * SIZE}


def test_what_no_function_judges_has_no_total(build):
    trainer = build([{}] * 3, "task.rewards=[scripted]")
    trainer.reward_weights = torch.tensor([2.0])
    trainer._log_totals(torch.tensor([[torch.nan], [3.0]]))
    assert trainer._pending_extra_logs["total"] == [None, 6.0]


def test_warnings_about_what_no_function_judges_are_one_note(build, caplog, capsys):
    build([{}] * 3, "task.rewards=[scripted]")  # the filters come with a trainer
    trl = logging.getLogger(GRPOTrainer.__module__)
    transformers = logging.getLogger("transformers.integrations.integration_utils")
    tasks.note_once.cache_clear()
    for _ in range(2):
        trl.warning("All reward functions returned None for the following kwargs:\n{...}")
        transformers.warning('Trainer is attempting to log a value of "None" of type ...')
    trl.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
    assert capsys.readouterr().err.count("got no reward from any reward function") == 1


def at_times(completions, flat, log_extra, **kwargs):
    if any(flat):
        log_extra("flat", [str(value) for value in flat])
    return [None] * len(completions)


@pytest.mark.parametrize(("sampled", "kept"), [((True, False), None), ((False, True), "True")])
def test_a_column_that_is_logged_now_and_then_stays_with_its_completions(
    build, monkeypatch, sampled, kept
):
    monkeypatch.setattr(reward_functions, "at_times", at_times, raising=False)
    trainer = build(
        [{"flat": False}] * 3, "grpo.zero_std_groups=resample", "task.rewards=[at_times]"
    )
    rows, useful = iter(sampled), iter((False, True))  # the second sample replaces all of the first
    sample = type(trainer)._sample

    def sampling(self, given):
        flat = next(rows)
        return sample(self, [row | {"flat": flat} for row in given])

    monkeypatch.setattr(type(trainer), "_sample", sampling)
    monkeypatch.setattr(type(trainer), "_have_variance", lambda self, samples: [next(useful)] * 3)
    trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 2))
    assert list(trainer._logs["extra"]["flat"]) == [kept] * 3 * SIZE


def test_resampling_gives_up_after_its_tries(build):
    trainer = build(
        [{"flat": True}] * 6, "grpo.zero_std_groups=resample", "grpo.max_resampling_tries=2"
    )
    output = trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 2))
    assert (output["advantages"] == 0).all() and columns(trainer) == {3 * SIZE}
    metrics = trainer._metrics["train"]
    assert metrics["resampling/tries"] == [2.0] and metrics["resampling/frac_reward_zero_std"] == [
        1.0
    ]


@pytest.mark.slow
def test_a_resumed_run_resamples_the_same_prompts(build, monkeypatch):
    """TRL's count of backward passes starts at 0 again then, in the middle of the run."""
    rows = [{"flat": True, "prompt": f"{i} + {i}"} for i in range(40)]
    keys = [
        "grpo.zero_std_groups=resample",
        "grpo.max_resampling_tries=2",
        "grpo.gradient_accumulation_steps=2",
    ]
    trainer, asked = build(rows, *keys), []
    sample = trainer._sample
    monkeypatch.setattr(
        trainer,
        "_sample",
        lambda rows: asked.append([row["prompt"] for row in rows]) or sample(rows),
    )

    def drawn(step, passes):
        trainer.state.global_step, trainer._step = step, passes
        asked.clear()
        trainer._resample(batch_of(trainer, *range(6)))
        return asked[1:]

    assert drawn(4, 8) == drawn(4, 0)
    assert len({str(drawn(*place)) for place in ((4, 0), (4, 1), (5, 0))}) == 3


@pytest.mark.parametrize("key", ["scale_rewards=batch", "algorithm=gdpo", "algorithm=dr_grpo"])
def test_groups_without_variance_are_counted_however_rewards_are_scaled(build, key):
    trainer = build([{"flat": i == 1} for i in range(3)], f"grpo.{key}")
    trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 2))
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [pytest.approx(1 / 3)]


def test_groups_without_variance_are_skipped(build):
    trainer = build([{"flat": i == 1} for i in range(3)], "grpo.zero_std_groups=skip")
    output = trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 2))
    counted = (output["tool_mask"] * output["completion_mask"]).view(3, -1).sum(dim=1)
    assert counted[0] > 0 and counted[1] == 0 and counted[2] > 0
    assert output["num_items_in_batch"] == counted.sum()
    assert trainer._metrics["train"]["frac_reward_zero_std"] == [pytest.approx(1 / 3)]


def test_the_spread_of_rewards_that_not_every_function_gives(build):
    trainer = build([{"flat": False}] * 3)
    trainer.num_generations, trainer.reward_weights = 2, torch.tensor([1.0, 2.0])
    nan = torch.nan
    rewards = torch.tensor(
        [[1, 1], [3, 0], [1, nan], [1, nan], [nan, nan], [5, nan], [nan, nan], [nan, nan]]
    )
    assert trainer._spread(rewards).tolist() == [0, 0, 0, 0]
    assert trainer._spread(rewards * 2 + torch.arange(8.0).unsqueeze(1)).tolist()[1] == 1
    trainer.multi_objective_aggregation = "normalize_then_sum"
    assert trainer._spread(rewards).tolist() == [2, 0, 0, 0]


SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip
MODELS = {
    "llama": {},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "router_aux_loss_coef": 0.5,
    },
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.9},
}


@pytest.mark.parametrize("model_type", MODELS)
def test_neither_a_dense_nor_a_moe_model_trains_on_a_router_loss(build, tmp_path, model_type):
    tokenizer = AutoTokenizer.from_pretrained(config.TINY_MODEL)
    tokenizer.save_pretrained(tmp_path / "model")
    sizes = (
        SMALL
        | MODELS[model_type]
        | {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    )
    AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes)).save_pretrained(
        tmp_path / "model"
    )
    trainer = build(
        [{"flat": False}] * 3,
        f"model.name={tmp_path / 'model'}",
        "lora.target_parameters=null",
        "grpo.max_steps=1",
    )
    assert not trainer.aux_loss_enabled
    trainer.train()
    assert trainer.state.global_step == 1 and "aux_loss" not in trainer.state.log_history[0]


@pytest.fixture
def graph_steps(monkeypatch):
    """The steps of the graph rollout, run one by one on this CPU."""
    monkeypatch.setattr(engine, "why_not", lambda request: None)
    monkeypatch.setattr(
        engine,
        "try_graph",
        lambda model, request: engine.make_graph_rollout(model, request, capture=False),
    )


@pytest.mark.parametrize("adapter", ["null", "[mlp.experts.gate_up_proj, mlp.experts.down_proj]"])
@pytest.mark.parametrize("zero_std_groups", ["keep", "resample"])
def test_the_rollout_samples_from_the_policy_that_is_trained(
    build, graph_steps, adapter, zero_std_groups
):
    trainer = build(
        [{"flat": False}] * 3,
        f"lora.target_parameters={adapter}",
        f"grpo.zero_std_groups={zero_std_groups}",
    )
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    with torch.no_grad():
        for weight in weights:  # an adapter that changes something
            weight += 0.05 * torch.randn_like(weight)
    output = trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 2))
    assert trainer._rollout is not None
    assert trainer._metrics["train"]["rollout/logp_difference"][-1] < 1e-5
    assert "old_per_token_logps" not in output


def test_importance_sampling_takes_the_log_probabilities_of_the_rollout(build, graph_steps):
    trainer = build([{"flat": False}] * 3, "rollout.importance_sampling=true")
    output = trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 2))
    own = output["sampling_per_token_logps"]
    assert output["old_per_token_logps"] is own
    mask = output["completion_mask"].bool()
    assert (own[mask] < 0).all() and own.shape == mask.shape


def test_without_a_graph_nothing_is_compared(build, capsys):
    trainer = build([{"flat": False}] * 3, "rollout.importance_sampling=true")
    output = trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 2))
    assert "old_per_token_logps" not in output
    assert "rollout/logp_difference" not in trainer._metrics["train"]
    assert "rollout: generate, because there is no CUDA GPU" in capsys.readouterr().out


def test_answers_that_repeat_their_prompt_are_counted(build, monkeypatch):
    trainer = build([{"flat": False}] * 3)
    said = ["calculate  15 * 23", "Answer: 345"]
    final = "<|channel|>final<|message|>{}<|return|>"
    ids = [
        trainer.processing_class(final.format(text), add_special_tokens=False)["input_ids"]
        for text in said
    ]
    monkeypatch.setattr(
        type(trainer),
        "_generate_single_turn",
        lambda self, prompts, *args: ([ids[i % 4 == 0] for i in range(12)], None),
    )
    trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 2))
    assert trainer._metrics["train"]["completions/echo"][-1] == 0.75


# ---- completions of several turns


def in_turns(trainer, scripts):
    """Lets the trainer's rollout say what is written, for each row of a batch."""
    trainer._rollout = ScriptedRollout(ToolFormat(trainer.chat), scripts)
    trainer._rollout_is_chosen = True


SUM = [{"prompt": f"{i} + 1", "answer": i + 1, "flat": False} for i in range(3)]
TOOLS = (
    "task.rewards=null",
    "task.tools=[python]",
    "model.max_seq_length=512",
    "grpo.max_completion_length=120",
)


def script(i, right):
    code = f"{i} + 1" if right else f"{i} - 1"
    last = harmony_final(f"Answer: {i + 1 if right else 0}")
    return [harmony_call("python", code=code), last]


def test_what_tools_say_is_masked_and_what_the_model_says_is_rewarded(build):
    trainer = build(SUM, *TOOLS)
    scripts = [script(i, place % 2 == 0) for i in range(3) for place in range(SIZE)]
    in_turns(trainer, scripts)
    output = trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 2))
    for row, said in enumerate(scripts):
        ids = output["completion_ids"][row][output["completion_mask"][row].bool()]
        mask = output["tool_mask"][row][: len(ids)].bool()
        assert trainer.processing_class.decode(ids[mask]) == "".join(said)
        assert "functions.python to=assistant" in trainer.processing_class.decode(ids[~mask])
        assert mask[-1]
    assert output["advantages"][::2].gt(0).all() and output["advantages"][1::2].lt(0).all()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert (metrics["episodes/turns"], metrics["episodes/calls"]) == (2, 1)
    assert metrics["episodes/failures"] == 0 and metrics["grades/correct"] == 0.5
    assert metrics["completions/mean_length"] == output["tool_mask"].mul(
        output["completion_mask"]
    ).sum().item() / len(scripts)
    (first, *_) = trainer._logs["extra"]["transcript"]
    roles = [message["role"] for message in json.loads(first)]
    assert roles == ["assistant", "tool", "assistant"]


def test_no_gradient_comes_from_what_tools_say(build):
    """Another result of the same length changes no gradient but through what was said after it."""
    trainer = build(SUM, *TOOLS, "grpo.beta=0.0")
    scripts = [script(i, place % 2 == 0) for i in range(3) for place in range(SIZE)]
    in_turns(trainer, scripts)
    output = trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 2))
    ours = output["tool_mask"] * output["completion_mask"]
    logits_to_keep = output["completion_ids"].size(1)
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    logps = trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, logits_to_keep)[0]
    wanted = (logps * output["advantages"][:, None] * ours).sum() / ours.sum()
    wanted.backward()
    expected = [p.grad.clone() for p in trainer.model.parameters() if p.grad is not None]
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps = 1  # as Trainer.train sets it
    loss = trainer.compute_loss(trainer.model, output)
    loss.backward()
    found = [p.grad for p in trainer.model.parameters() if p.grad is not None]
    scale = loss_scale(expected, found)
    for one, other in zip(expected, found, strict=True):
        assert torch.allclose(-one * scale, other, atol=1e-6)


def loss_scale(expected, found):
    """How many times as large the trainer's loss is: it divides otherwise."""
    norms = [torch.cat([grad.flatten() for grad in grads]).norm() for grads in (expected, found)]
    return norms[1] / norms[0]


def test_resampled_groups_keep_their_masks(build):
    trainer = build(SUM, *TOOLS, "grpo.zero_std_groups=resample", "grpo.max_resampling_tries=1")
    flat = [script(0, True)] * SIZE
    mixed = [script(i, place % 2 == 0) for i in (1, 2) for place in range(SIZE)]
    # A rollout begins again from row 0 with each batch
    said = iter([[*flat, *mixed], [script(0, place % 2 == 0) for place in range(SIZE)]])
    trainer._rollout_for = lambda prompts, complete: ScriptedRollout(
        ToolFormat(trainer.chat), next(said)
    )
    output = trainer._generate_and_score_completions(batch_of(trainer, 0, 1, 2))
    assert len(output["completion_ids"]) == 3 * SIZE
    ours = output["tool_mask"] * output["completion_mask"]
    assert (ours.sum(1) < output["completion_mask"].sum(1)).all()


@pytest.mark.parametrize("reason", ["is_fsdp_enabled", "is_deepspeed_enabled"])
def test_what_cannot_take_turns_is_refused(build, reason):
    kind = type(build(SUM))
    able = {"is_fsdp_enabled": False, "is_deepspeed_enabled": False}
    kind._refuse_what_takes_no_turns(SimpleNamespace(**able))
    with pytest.raises(ValueError, match="completions with tools"):
        kind._refuse_what_takes_no_turns(SimpleNamespace(**able | {reason: True}))


# ---- what the frozen base is asked


def talk(*overrides):
    """A config whose opponents are played by the base."""
    return load(TINY, [
        "task.type=prompt_injection_talk", "task.opponent=base", "task.opponent_tokens=8",
        "task.messages=2", "task.num_rows=3", "task.num_eval_rows=0", "task.policies=[polite]",
        "model.max_seq_length=640", "grpo.report_to=[]", "grpo.max_completion_length=200",
        f"grpo.num_generations={SIZE}", f"grpo.per_device_train_batch_size={SIZE * 3}",
        *overrides,
    ])  # fmt: skip


@pytest.fixture
def talking(tmp_path, pool):
    job = talk(f"grpo.output_dir={tmp_path / 'run'}")
    chat, plan = train.prepare(job)
    loaded = model.load_model(job.model, job.lora)
    trainer = train.build_trainer(job, RunFolder(job), *loaded, pool, chat, plan)
    trainer.model.train()
    return trainer


def perturb(trainer):
    """Make the adapter one that changes what the model says."""
    torch.manual_seed(1)
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(std=0.5)


def logits_of(trainer, ids):
    with torch.no_grad():
        return trainer.model(input_ids=torch.tensor([ids])).logits


def test_the_base_is_the_model_without_its_adapter_which_is_active_again(talking):
    ids = talking.chat.ids("How much is 15 * 23?")
    trained = trained_in(talking)
    limit = talking.generation_config.max_new_tokens
    plain = logits_of(talking, ids)

    def said_by_base():
        torch.manual_seed(0)
        rollout = talking._base().rollout(8)
        return [row.completion_ids for row in decode_all(rollout, [ids, ids[:5]])]

    before = said_by_base()
    assert all(len(said) <= 8 for said in before)
    perturb(talking)
    changed = logits_of(talking, ids)
    assert not torch.allclose(plain, changed)
    assert said_by_base() == before

    # Also where decoding fails
    def fail(prompts):
        raise KeyError("lost")

    failing = engine.base_rollout(talking.model, fail)
    failing.add(ids)
    with pytest.raises(KeyError):
        failing.step()
    assert torch.equal(logits_of(talking, ids), changed)
    assert trained_in(talking) == trained and talking.generation_config.max_new_tokens == limit


def test_what_the_base_says_is_masked_and_never_learned_from(talking, monkeypatch):
    asked, trained = [], trained_in(talking)
    of_trl = GRPOTrainer._generate_single_turn

    def watched(self, prompts, *others):
        asked.extend(self.processing_class.batch_decode(prompts))
        assert trained_in(self) == []  # PEFT switches its layers off
        return of_trl(self, prompts, *others)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", watched)
    said = [harmony_final("Hello."), harmony_final("Well?")]
    in_turns(talking, [said] * (3 * SIZE))
    output = talking._generate_and_score_completions(batch_of(talking, 0, 1, 2))
    for row in range(3 * SIZE):
        ids = output["completion_ids"][row][output["completion_mask"][row].bool()]
        mask = output["tool_mask"][row][: len(ids)].bool()
        assert talking.processing_class.decode(ids[mask]) == "".join(said)
        assert "<|start|>user" in talking.processing_class.decode(ids[~mask])
    # Each row asks twice; the second time the base has also its own first answer before it
    assert len(asked) == 2 * 3 * SIZE and sum("Well?" in prompt for prompt in asked) == 3 * SIZE
    assert all("Your secret code is" in prompt for prompt in asked)
    assert trained_in(talking) == trained


@pytest.mark.slow  # trains the tiny model for two steps
def test_a_run_trains_against_the_base(tmp_path, run_job, monkeypatch):
    asked = []
    of_base = engine.base_rollout

    def base_rollout(model, complete):
        return of_base(model, lambda prompts: asked.append(len(prompts)) or complete(prompts))

    monkeypatch.setattr(engine, "base_rollout", base_rollout)
    done = run_job(
        *("--config", TINY, "task.type=prompt_injection_talk", "task.opponent=base"),
        *("task.opponent_tokens=16", "task.messages=2", "task.num_eval_rows=0"),
        *("model.max_seq_length=640", "grpo.max_completion_length=200", "grpo.max_steps=2"),
        *("grpo.report_to=[]", f"grpo.output_dir={tmp_path / 'run'}"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if "episodes/turns" in line]
    assert len(steps) == 2 and asked and max(asked) > 1
    assert any(line["episodes/turns"] > 1 for line in steps)


def trained_in(trainer):
    named = trainer.model.named_parameters()
    return [name for name, weight in named if weight.requires_grad]
