"""job/rollout: the decoders, the sampling and the graph rollout, without a graph on a CPU."""

import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GenerationConfig,
    GptOssConfig,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from job.config import TINY_MODEL
from job.errors import ConfigError
from job.mxfp4 import E2M1, unpack_mxfp4
from job.rollout import decode_all, engine, functional
from job.rollout.any_model import ModelDecoder, calls_super
from job.rollout.cache import KeyValueCache, LayerShape, Prompts
from job.rollout.gpt_oss import CannotDecode, DenseExperts, GptOssDecoder, PackedExperts, tile_rows
from job.rollout.graph import GraphRollout, cut, fill
from job.rollout.sampling import Sampling, from_generation_config

EXACT = 1e-5
NEGATIVE = tuple(-value for value in E2M1)
SIZES = {
    "vocab_size": 500,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 2,
}
WINDOWS = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=32),
    "qwen3_moe": Qwen3MoeConfig(
        **SIZES, head_dim=32, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2
    ),
    "gemma2": Gemma2Config(**SIZES, head_dim=32, sliding_window=16),
    "gemma3": Gemma3TextConfig(**SIZES, **WINDOWS, head_dim=32),
    "mistral": MistralConfig(**SIZES, sliding_window=16),
    "phi3": Phi3Config(**SIZES),
    "gpt_oss": GptOssConfig(
        **SIZES, **WINDOWS, head_dim=32, num_local_experts=4, num_experts_per_tok=2,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
}  # fmt: skip


def adapted(model, seed=0):
    """With an adapter whose B is not 0."""
    torch.manual_seed(seed)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return model.eval()


@pytest.fixture(scope="module")
def tiny():
    return adapted(AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32))


def prompts_of(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 400, (length,), generator=generator).tolist() for length in lengths]


def rollout_of(decoder, sampling=None, **changed):
    options = {"stop_ids": [], "pad_id": 0, "rows": 3, "tokens": 64, "max_new_tokens": 24}
    options["capture"] = False
    return GraphRollout(decoder, sampling or Sampling(), **(options | changed))


def largest_difference(model, prompts, rows):
    """Between the rollout's log-probabilities and those of a whole forward."""
    worst = 0.0
    for prompt, row in zip(prompts, rows, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + row.completion_ids])).logits
        wanted = logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        wanted = wanted.gather(1, torch.tensor(row.completion_ids)[:, None]).squeeze(1)
        worst = max(worst, (wanted - torch.tensor(row.logprobs)).abs().max().item())
    return worst


# ---- the same policy


@pytest.mark.parametrize("kind", [GptOssDecoder, ModelDecoder])
def test_the_tiny_model_is_decoded_exactly(tiny, kind):
    prompts = prompts_of(150, 1, 37, 150)
    rows = decode_all(rollout_of(kind(tiny), max_new_tokens=90), prompts)
    assert [len(row.completion_ids) for row in rows] == [90] * 4
    assert largest_difference(tiny, prompts, rows) < EXACT


@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_decoded_exactly(family):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    implementation = model.config._attn_implementation
    prompts = prompts_of(40, 7, 1)
    rows = decode_all(rollout_of(ModelDecoder(model)), prompts)
    assert largest_difference(model, prompts, rows) < EXACT
    assert model.config._attn_implementation == implementation


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_a_forward_that_a_library_has_replaced_is_not_used(family, monkeypatch):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    prompts = prompts_of(20, 3)
    with torch.no_grad():
        wanted = model(input_ids=torch.tensor(prompts[:1])).logits
    monkeypatch.setitem(sys.modules, "unsloth", object())
    for module in list(model.modules()):
        kind = type(module)
        if kind.__module__.startswith("transformers.models") and not calls_super(kind.forward):
            monkeypatch.setattr(kind, "forward", lambda *a, **k: 1 / 0)
    decoder = ModelDecoder(model)
    rows = decode_all(rollout_of(decoder), prompts)
    with pytest.raises(ZeroDivisionError):
        model(input_ids=torch.tensor(prompts[:1]))
    monkeypatch.undo()
    assert largest_difference(model, prompts, rows) < EXACT
    with torch.no_grad():
        assert torch.equal(model(input_ids=torch.tensor(prompts[:1])).logits, wanted)


def test_what_is_trained_is_decoded_with_in_the_next_rollout(tiny):
    prompts = prompts_of(9)
    for kind in (GptOssDecoder, ModelDecoder):
        rollout = rollout_of(kind(tiny))
        decode_all(rollout, prompts)
        with torch.no_grad():
            for name, weight in tiny.named_parameters():
                if "lora_" in name:
                    weight += 0.05 * torch.randn_like(weight)
        rows = decode_all(rollout, prompts)
        assert largest_difference(tiny, prompts, rows) < EXACT


def test_the_model_trains_as_before_after_its_weights_were_joined():
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    ids = torch.tensor(prompts_of(20))
    before = model(input_ids=ids, labels=ids)
    before.loss.backward()
    gradient = model.model.layers[0].self_attn.k_proj.weight.grad.clone()
    GptOssDecoder(model)
    model.zero_grad()
    after = model(input_ids=ids, labels=ids)
    after.loss.backward()
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(gradient, model.model.layers[0].self_attn.k_proj.weight.grad)


def test_what_cannot_be_decoded_is_said(tiny):
    with pytest.raises(CannotDecode, match="llama is not gpt_oss"):
        GptOssDecoder(AutoModelForCausalLM.from_config(FAMILIES["llama"]))
    base = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.float32)
    parameters = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    with_experts = get_peft_model(base, LoraConfig(r=4, target_parameters=parameters))
    with pytest.raises(CannotDecode, match="experts have an adapter"):
        GptOssDecoder(with_experts)
    prompts = prompts_of(12)
    rows = decode_all(rollout_of(ModelDecoder(with_experts.eval())), prompts)
    assert largest_difference(with_experts, prompts, rows) < EXACT


def test_packed_experts_are_unpacked_as_transformers_does():
    blocks = torch.randint(0, 256, (2, 6, 3, 16), dtype=torch.uint8)
    scales = torch.randint(110, 130, (2, 6, 3), dtype=torch.uint8)
    own = unpack_mxfp4(blocks, scales, torch.bfloat16)
    theirs = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    assert torch.equal(own.transpose(1, 2), theirs)


def test_packed_experts_mix_as_dense_ones_do():
    torch.manual_seed(0)
    hidden, wide, count = 64, 32, 4
    shapes = {"up": (count, 2 * wide, hidden // 32), "down": (count, hidden, wide // 32)}
    packed, dense = [], []
    for shape in shapes.values():
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8)
        scales = torch.randint(118, 124, shape, dtype=torch.uint8)
        bias = torch.randn(shape[:2])
        packed += [blocks, scales, bias]
        weights = unpack_mxfp4(blocks, scales, torch.float32).transpose(1, 2)
        dense += [weights, bias]
    x, experts = torch.randn(5, hidden), torch.tensor([[0, 1], [1, 2], [3, 0], [2, 3], [0, 2]])
    shares = torch.rand(5, 2)
    one = functional.mix_experts(x, experts, shares, PackedExperts(*packed, 1.702, 7.0))
    other = functional.mix_experts(x, experts, shares, DenseExperts(*dense, 1.702, 7.0))
    assert torch.allclose(one, other, rtol=1e-4, atol=1e-4)


@given(st.floats(0, 1000))
def test_an_expert_mostly_needs_one_tile(rows):
    size = tile_rows(rows)
    assert size in (16, 32, 64, 128) and (2 * rows <= size or size == 128)


# ---- rows come and go


def test_rows_wait_end_and_are_handed_back_in_any_number(tiny):
    prompts = prompts_of(5, 30, 1, 12, 12, 3, 44, 2)
    rollout = rollout_of(GptOssDecoder(tiny), Sampling(do_sample=False), rows=3)
    alone = [decode_all(rollout, [prompt])[0] for prompt in prompts]
    together = decode_all(rollout, prompts)
    assert [row.completion_ids for row in together] == [row.completion_ids for row in alone]
    assert rollout.unfinished == 0 and rollout.step() == []


def test_a_row_ends_with_its_stop_token_and_the_others_go_on(tiny):
    prompts = prompts_of(8, 9, 10, 11)
    greedy = Sampling(do_sample=False)
    whole = decode_all(rollout_of(GptOssDecoder(tiny), greedy), prompts)
    stop = whole[0].completion_ids[5]
    rows = decode_all(rollout_of(GptOssDecoder(tiny), greedy, stop_ids=[stop]), prompts)
    for before, after in zip(whole, rows, strict=True):
        ids = before.completion_ids
        end = ids.index(stop) + 1 if stop in ids else len(ids)
        assert after.completion_ids == ids[:end]
        assert len(after.logprobs) == end


def test_rows_may_be_added_while_others_are_decoded(tiny):
    first, second = prompts_of(6, 20)
    rollout = rollout_of(GptOssDecoder(tiny), Sampling(do_sample=False))
    wanted = [row.completion_ids for row in decode_all(rollout, [first, second])]
    numbers = [rollout.add(first)]
    assert rollout.step(5) == []
    numbers.append(rollout.add(second))
    found = {}
    while rollout.unfinished:
        found |= {row.row: row.completion_ids for row in rollout.step(5)}
    assert [found[number] for number in numbers] == wanted


def test_a_longer_prompt_than_planned_makes_the_buffers_grow(tiny):
    prompts = prompts_of(6, 120)
    rollout = rollout_of(GptOssDecoder(tiny), tokens=40)
    rows = decode_all(rollout, prompts)
    assert largest_difference(tiny, prompts, rows) < EXACT
    rollout.release()
    assert largest_difference(tiny, prompts, decode_all(rollout, prompts)) < EXACT


def test_a_cancelled_rollout_is_empty_and_works(tiny):
    rollout = rollout_of(GptOssDecoder(tiny), Sampling(do_sample=False))
    wanted = decode_all(rollout, prompts_of(6))[0].completion_ids
    for prompt in prompts_of(5, 5, 5, 5, seed=1):
        rollout.add(prompt)
    rollout.step(2)
    rollout.cancel()
    assert rollout.unfinished == 0
    assert decode_all(rollout, prompts_of(6))[0].completion_ids == wanted
    with pytest.raises(ValueError, match="must have a token"):
        rollout.add([])


def test_weights_that_are_nan_end_in_tokens_not_in_an_error(tiny):
    weight = tiny.get_base_model().lm_head.weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.fill_(math.nan)
        rows = decode_all(rollout_of(GptOssDecoder(tiny)), prompts_of(4))
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    assert len(rows[0].completion_ids) == 24 and math.isnan(rows[0].logprobs[0])


@given(st.lists(st.integers(1, 50), max_size=20), st.integers(1, 100))
def test_prompts_are_cut_into_pieces_that_fit(lengths, tokens):
    groups = [((0,) * length, [place]) for place, length in enumerate(sorted(lengths))]
    found = cut(groups, tokens)
    assert [group for piece in found for group in piece] == groups
    for piece in found:
        assert len(piece) == 1 or len(piece) * len(piece[-1][0]) <= tokens


@given(st.data())
def test_as_few_rows_as_possible_move(data):
    places = range(*sorted(data.draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))))
    count = len(places)
    sources = data.draw(st.lists(st.integers(0, 20), min_size=count, max_size=count, unique=True))
    found = fill(sources, places)
    assert sorted(found) == sorted(sources)
    for place, source in zip(places, found, strict=True):
        assert source == place or place not in sources


# ---- rows of several turns


def in_turns(rollout, prompts, follow, turns):
    """Each row's (ids that it was given and drew, log-probabilities of what it drew, else None).

    A row is extended as soon as its turn has ended, but for the rows with odd numbers, which wait
    until nothing else can be decoded.
    """
    rows = [rollout.add(prompt, stays=True) for prompt in prompts]
    said = {row: ([], []) for row in rows}
    left = dict.fromkeys(rows, turns - 1)
    late = []
    while rollout.unfinished or late:
        finished = rollout.step()
        for done in finished:
            ids, logprobs = said[done.row]
            ids += done.completion_ids
            logprobs += done.logprobs
            if left[done.row] == 0:
                rollout.drop(done.row)
            elif done.row % 2:
                late.append(done.row)
            else:
                late.insert(0, done.row)
        while late and (late[0] % 2 == 0 or not finished):
            row = late.pop(0)
            left[row] -= 1
            ids, logprobs = said[row]
            ids += follow(row)
            logprobs += [None] * len(follow(row))
            rollout.extend(row, follow(row), 1 + (row + left[row]) % 24)
    return [said[row] for row in rows]


def differences(model, prompts, rows):
    """Between the log-probabilities of turns and those of a whole forward."""
    found = []
    for prompt, (ids, logprobs) in zip(prompts, rows, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + ids], device=model.device)).logits
        wanted = logits[0, len(prompt) - 1 : -1].float().log_softmax(-1).cpu()
        wanted = wanted.gather(1, torch.tensor(ids)[:, None]).squeeze(1)
        for place, own in enumerate(logprobs):
            if own is not None:
                found.append(abs(own - wanted[place].item()))
    return found


def assert_same_policy(model, prompts, rows):
    assert max(differences(model, prompts, rows)) < EXACT


@pytest.mark.parametrize("kind", [GptOssDecoder, ModelDecoder])
@pytest.mark.parametrize("rows", [2, 3, 8])
def test_turns_are_decoded_exactly_behind_what_was_there(tiny, kind, rows):
    prompts = prompts_of(150, 1, 37, 100, 5)
    follow = [prompts_of(length)[0] for length in (1, 200, 3, 130, 40)]  # the window has 128
    rollout = rollout_of(kind(tiny), rows=rows, tokens=700)
    found = in_turns(rollout, prompts, lambda row: follow[row], turns=3)
    assert rollout.unfinished == 0
    assert_same_policy(tiny, prompts, found)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gpt_oss"])
def test_families_take_turns_exactly(family):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval()
    prompts = prompts_of(40, 7, 1)
    follow = [prompts_of(length)[0] for length in (1, 30, 9)]
    rollout = rollout_of(ModelDecoder(model), rows=2, tokens=200)
    found = in_turns(rollout, prompts, lambda row: follow[row], turns=3)
    assert_same_policy(model, prompts, found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3"])
def test_captured_turns_are_exact(family):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(FAMILIES[family]).eval().cuda()
    prompts = prompts_of(40, 7, 1, 90, 3)
    follow = [prompts_of(length)[0] for length in (1, 30, 9, 17, 2)]
    rollout = rollout_of(ModelDecoder(model), rows=4, tokens=300, capture=True)
    found = in_turns(rollout, prompts, lambda row: follow[row], turns=4)
    assert max(differences(model, prompts, found)) < 1e-3


def packed(weight):
    """The (experts, in, out) matrices of a model, as blocks and scales of MXFP4.

    The weights become what is packed.
    """
    groups = weight.data.float().transpose(1, 2).unflatten(2, (-1, 32))
    power = groups.abs().amax(-1).clamp(min=2.0**-20).log2().floor() - 2
    near = (groups / power.exp2()[..., None])[..., None] - torch.tensor(E2M1 + NEGATIVE).cuda()
    codes = near.abs().argmin(-1).to(torch.uint8)
    blocks = codes[..., ::2] | codes[..., 1::2] << 4
    scales = (power + 127).to(torch.uint8)
    weight.data.copy_(unpack_mxfp4(blocks, scales).transpose(1, 2))
    parameter = torch.nn.Parameter(blocks.contiguous(), requires_grad=False)
    parameter.mxfp4_scales, parameter.mxfp4_transposed = scales, True
    return parameter


def decoder_of_packed(model):
    """A decoder of a model whose experts are packed, as Unsloth packs them."""
    dense = {}
    for layer in model.get_base_model().model.layers:
        experts = layer.mlp.experts
        for name in ("gate_up_proj", "down_proj"):
            dense[experts, name] = getattr(experts, name)
            setattr(experts, name, packed(dense[experts, name]))
    decoder = GptOssDecoder(model)
    for (experts, name), weight in dense.items():
        setattr(experts, name, weight)
    return decoder


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_captured_turns_of_gpt_oss_differ_by_rounding_alone():
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL, dtype=torch.bfloat16)
    model = adapted(model.cuda())
    prompts = prompts_of(150, 1, 37, 100, 5)
    follow = [prompts_of(length)[0] for length in (1, 200, 3, 130, 40)]  # the window has 128
    rollout = rollout_of(decoder_of_packed(model), rows=4, tokens=700, capture=True)
    found = in_turns(rollout, prompts, lambda row: follow[row], turns=4)
    differs = differences(model, prompts, found)
    # Keys or values of another row or place change it by whole units
    assert sum(differs) / len(differs) < 0.05


def test_buffers_grow_when_no_row_stays_in_them(tiny):
    rollout = rollout_of(GptOssDecoder(tiny), rows=2, tokens=30)
    first = rollout.add(prompts_of(4)[0], 24, stays=True)
    while not (done := rollout.step()):
        pass
    longer = rollout.add(prompts_of(60)[0], 24)
    assert rollout.step() == [] and rollout.unfinished == 1  # the first one stays
    rollout.drop(first)
    found = []
    while rollout.unfinished:
        found += rollout.step()
    assert [row.row for row in found] == [longer] and done[0].row == first


def test_a_rollout_that_is_cancelled_begins_anew(tiny):
    rollout = rollout_of(GptOssDecoder(tiny), rows=3, tokens=100)
    for prompt in prompts_of(4, 5, 6, 7):
        rollout.add(prompt, 5, stays=True)
    rollout.step()
    rollout.cancel()
    prompts = prompts_of(30, 2)
    rows = decode_all(rollout, prompts)
    assert largest_difference(tiny, prompts, rows) < EXACT


def test_a_ring_keeps_the_newest_positions():
    shape = LayerShape(kv_heads=1, head_dim=1, window=4)
    cache = KeyValueCache([shape], rows=2, tokens=10, dtype=torch.float32, device="cpu")
    positions = torch.arange(7.0).view(1, 1, 7, 1)
    ids = torch.zeros((1, 7), dtype=torch.int64)
    both = Prompts(ids, *(torch.tensor(x) for x in ([6], [0, 0], [1, 0])))
    cache.write_prompts(0, positions, -positions, both)
    assert cache.keys[0][1].flatten().tolist() == [4, 5, 2, 3]
    assert cache.values[0][0].flatten().tolist() == [-4, -5, -2, -3]
    assert sum(b.nbytes for b in cache.keys + cache.values) == 2 * (2 * 1 * 4 * 1) * 4


# ---- sampling


def test_greedy_decoding_is_that_of_transformers(tiny):
    ids = torch.tensor(prompts_of(20))
    keys = {"max_new_tokens": 20, "repetition_penalty": 1.3, "do_sample": False}
    wanted = tiny.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(**keys, pad_token_id=0, eos_token_id=0),
    )
    sampling = Sampling(repetition_penalty=1.3, do_sample=False)
    rollout = rollout_of(GptOssDecoder(tiny), sampling, max_new_tokens=20, stop_ids=[0])
    assert decode_all(rollout, ids.tolist())[0].completion_ids == wanted[0, 20:].tolist()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 3},
        {"top_p": 0.6},
        {"min_p": 0.2},
        {"top_k": 5, "top_p": 0.8, "temperature": 1.5},
    ],
)
def test_tokens_are_drawn_with_the_probabilities_of_transformers(keys):
    """The share of each of 12 tokens among 20,000 draws, within 5 standard errors."""
    torch.manual_seed(0)
    logits, draws = torch.randn(1, 12), 20_000
    scores = logits.clone()
    settings_ = GenerationConfig(do_sample=True, **({"top_k": 0} | keys))
    model = AutoModelForCausalLM.from_config(FAMILIES["llama"])
    for processor in model._get_logits_processor(settings_, input_ids_seq_length=1):
        scores = processor(None, scores)
    wanted = scores.softmax(-1)[0]
    sampling, foreign = from_generation_config(settings_)
    tokens, logprobs = sampling.draw(logits.expand(draws, -1), None)
    share = torch.bincount(tokens, minlength=12) / draws
    error = (wanted * (1 - wanted) / draws).sqrt()
    assert foreign == [] and ((share - wanted).abs() <= 5 * error + 1e-9).all()
    tempered = (logits[0] / keys.get("temperature", 1.0)).log_softmax(-1)
    assert torch.allclose(logprobs, tempered[tokens], atol=1e-6)


def test_the_seed_decides_what_is_drawn(tiny):
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        rows = decode_all(rollout_of(GptOssDecoder(tiny)), prompts_of(9, 9))
        drawn.append([row.completion_ids for row in rows])
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0][0] != drawn[0][1]


@given(
    st.dictionaries(
        st.sampled_from(["typical_p", "no_repeat_ngram_size", "num_beams", "top_k", "temperature"]),
        st.integers(2, 5),
    )
)
@settings(deadline=None)
def test_keys_that_graphs_do_not_know_are_named(keys):
    _, foreign = from_generation_config(GenerationConfig(do_sample=True, **keys))
    assert foreign == sorted(set(keys) - set(engine.NEUTRAL))


# ---- which engine


def request(**changed):
    options = {
        "generation_config": GenerationConfig(do_sample=True, max_new_tokens=8),
        "stop_ids": [1],
        "pad_id": 0,
        "rows": 4,
        "tokens": 32,
        "max_new_tokens": 8,
    }
    return engine.Request(**(options | changed))


def card(monkeypatch, name, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)


AUTO = engine.Options("auto", False)


@pytest.mark.parametrize(
    ("name", "capability", "graphs"),
    [
        ("Tesla T4", (7, 5), False),
        ("A100", (8, 0), True),
        ("L4", (8, 9), True),
        ("H100", (9, 0), True),
        ("B200", (10, 0), True),
    ],
)
def test_cards_from_ampere_on_get_graphs(monkeypatch, name, capability, graphs):
    card(monkeypatch, name, capability)
    monkeypatch.setattr(engine, "try_graph", lambda model, request: ("the rollout", "so"))
    rollout, words = engine.choose(None, AUTO, request())
    assert (rollout == "the rollout") == graphs
    assert ("older than Ampere" in words) != graphs and (name in words) != graphs


def test_a_model_that_cannot_be_captured_falls_back_with_a_word(monkeypatch):
    card(monkeypatch, "H100", (9, 0))

    def fail(model, request):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(engine, "try_graph", fail)
    rollout, words = engine.choose(None, AUTO, request())
    assert rollout is None
    assert words.startswith(
        "rollout: generate, because this model cannot be captured: RuntimeError"
    )
    with pytest.raises(
        ConfigError, match="rollout.engine: graph cannot be had, because this model"
    ):
        engine.choose(None, engine.Options("graph", False), request())


@pytest.mark.parametrize(
    ("changed", "obstacle", "said"),
    [
        ({}, None, "there is no CUDA GPU"),
        ({}, "the weights are spread over several GPUs", "the weights are spread"),
    ],
)
def test_generate_says_why(changed, obstacle, said):
    rollout, words = engine.choose(None, AUTO, request(**changed), obstacle)
    assert rollout is None and said in words
    rollout, words = engine.choose(None, engine.Options("generate", False), request())
    assert rollout is None and words == "rollout: generate, as rollout.engine says"


def test_keys_unknown_to_graphs_leave_it_to_generate(monkeypatch):
    card(monkeypatch, "H100", (9, 0))
    wanted = request(generation_config=GenerationConfig(do_sample=True, typical_p=0.9))
    rollout, words = engine.choose(None, AUTO, wanted)
    assert rollout is None and "typical_p" in words


def test_the_packed_decoder_comes_before_the_general_one(tiny):
    rollout, words = engine.make_graph_rollout(tiny, request(), capture=False)
    assert isinstance(rollout.decoder, GptOssDecoder) and "packed" in words
    llama = AutoModelForCausalLM.from_config(FAMILIES["llama"])
    rollout, words = engine.make_graph_rollout(llama, request(), capture=False)
    assert isinstance(rollout.decoder, ModelDecoder) and "own forward" in words
    assert len(decode_all(rollout, prompts_of(5, 9))) == 2
