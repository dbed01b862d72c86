"""job/rollout/kernels.py: each kernel says the same as functional.py."""

import dataclasses

import pytest
import torch

from job.rollout import functional
from job.rollout.cache import Prompts
from job.rollout.gpt_oss import PackedExperts, tile_rows

triton = pytest.importorskip("triton", reason="Triton is for GPUs")
if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)
from job.rollout import kernels  # noqa: E402

pytestmark = pytest.mark.gpu
BF16 = torch.bfloat16
HEADS, KV_HEADS, D = 8, 2, 32
HIDDEN, INTERMEDIATE, EXPERTS, TOP_K = 160, 96, 4, 2
QKV = (HEADS + 2 * KV_HEADS) * D


def normal(*shape, scale=1.0):
    return (torch.randn(*shape, device="cuda") * scale).to(BF16)


def difference(found, wanted):
    """Relative to the size of what is wanted."""
    found, wanted = found.float(), wanted.float()
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("rank", [16, 32])
def test_rotate_and_store(rank):
    rows, length = 5, 16
    qkv, b = normal(rows, QKV + rank), normal(QKV, rank, scale=0.1)
    cos, sin = normal(64, D // 2), normal(64, D // 2)
    positions = torch.tensor([0, 15, 16, 17, 40], device="cuda")
    keys, values = normal(rows, KV_HEADS, length, D), normal(rows, KV_HEADS, length, D)
    own_keys, own_values = keys.clone(), values.clone()
    wanted = functional.rotate_and_store(qkv, b, cos, sin, positions, keys, values, HEADS)
    found = kernels.rotate_and_store(
        qkv.clone(), b, cos, sin, positions, own_keys, own_values, HEADS
    )
    assert difference(found, wanted) < 0.01
    assert difference(own_keys, keys) < 0.01
    assert difference(own_values, values) < 0.01


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize(("length", "window"), [(40, None), (16, 16), (40, 16), (200, 100)])
def test_attend(length, window, with_sinks, softcap):
    rows = 6
    keys, values = normal(rows, KV_HEADS, length, D), normal(rows, KV_HEADS, length, D)
    last = length - 1 if window != length else 3 * length
    positions = torch.randint(0, last, (rows,), device="cuda")
    positions[:2] = torch.tensor([0, last], device="cuda")
    q = normal(rows, HEADS, D)
    options = {"scale": D**-0.5, "window": window, "softcap": softcap}
    sinks = normal(HEADS) if with_sinks else None
    found = kernels.attend(q, keys, values, positions, sinks=sinks, **options)
    wide = [tensor.float() for tensor in (q, keys, values)]
    wanted = functional.attend(*wide, positions, sinks=sinks, **options)
    assert difference(found, wanted) < 0.01


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("follows", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 8])
@pytest.mark.parametrize(("length", "window"), [(150, None), (16, 16), (150, 16), (128, 128)])
def test_attend_prompts(length, window, kv_heads, follows, with_sinks, softcap):
    tokens, lengths, rows = 71, [71, 70, 5], [4, 0, 6]
    held = [normal(7, kv_heads, length, D) for _ in range(2)]
    starts = [0, 70, 35] if window != length else [9 * length, length, 5]
    prompts = Prompts(
        ids=torch.zeros((3, tokens), dtype=torch.int64, device="cuda"),
        lengths=torch.tensor(lengths, device="cuda"),
        sources=torch.arange(3, device="cuda"),
        rows=torch.tensor(rows, device="cuda"),
        starts=torch.tensor(starts, device="cuda") if follows else None,
    )
    q = normal(3, tokens, HEADS, D).transpose(1, 2)
    keys, values = normal(3, kv_heads, tokens, D), normal(3, tokens, kv_heads, D).transpose(1, 2)
    options = {"scale": D**-0.5, "window": window, "softcap": softcap}
    sinks = normal(HEADS) if with_sinks else None
    found = kernels.attend_prompts(q, keys, values, *held, prompts, sinks=sinks, **options)
    wide = [tensor.float() for tensor in (q, keys, values, *held)]
    wanted = functional.attend_prompts(*wide, prompts, sinks=sinks, **options)
    for i, own in enumerate(lengths):
        assert difference(found[i, :, :own], wanted[i, :, :own]) < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("width", [64, 80, 128, 256])
def test_attention_of_wide_heads_fits_the_card(width, dtype):
    rows, length, tokens = 3, 90, 40
    held = [normal(rows, KV_HEADS, length, width).to(dtype) for _ in range(2)]
    q = normal(rows, HEADS, width).to(dtype)
    options = {"scale": width**-0.5, "softcap": 5.0}
    positions = torch.tensor([0, 40, 89], device="cuda")
    wide = [tensor.float() for tensor in (q, *held)]
    found = kernels.attend(q, *held, positions, **options)
    assert difference(found, functional.attend(*wide, positions, **options)) < 0.01
    prompts = Prompts(
        ids=torch.zeros((rows, tokens), dtype=torch.int64, device="cuda"),
        lengths=torch.full((rows,), tokens, device="cuda"),
        sources=torch.arange(rows, device="cuda"),
        rows=torch.tensor([1, 2, 0], device="cuda"),
        starts=torch.tensor([0, 17, 50], device="cuda"),
    )
    q = normal(rows, HEADS, tokens, width).to(dtype)
    own = [normal(rows, KV_HEADS, tokens, width).to(dtype) for _ in range(2)]
    found = kernels.attend_prompts(q, *own, *held, prompts, **options)
    wide = [tensor.float() for tensor in (q, *own, *held)]
    assert difference(found, functional.attend_prompts(*wide, prompts, **options)) < 0.01


@pytest.mark.parametrize("rank", [16, 64])
def test_route(rank):
    rows, eps = 7, 1e-5
    out, b = normal(rows, HIDDEN + rank), normal(HIDDEN, rank, scale=0.1)
    residual, norm = normal(rows, HIDDEN), normal(HIDDEN)
    weight, bias = normal(EXPERTS, HIDDEN), normal(EXPERTS)
    summed = residual + functional.apply_lora(out, b)
    normed, experts, weights = kernels.route(out, b, residual, norm, eps, weight, bias, TOP_K)
    assert difference(residual, summed) < 0.01
    own_normed = functional.rms_norm(residual, norm, eps)
    strided = own_normed.view(rows, -1, 4).transpose(1, 2).reshape(rows, -1)
    assert difference(normed, strided) < 0.01
    # Two experts that are nearly as good may change places
    logits = torch.nn.functional.linear(own_normed.float(), weight.float(), bias.float())
    chosen = logits.gather(1, experts.long())
    assert (logits.topk(TOP_K).values - chosen).abs().max() < 0.01 * logits.abs().max()
    assert difference(weights, chosen.softmax(-1)) < 0.05


@pytest.mark.parametrize("pairs", [1, 7, 64, 512, 600])
@pytest.mark.parametrize("block_m", [16, 64])
def test_tiles_hold_each_pair_once(pairs, block_m):
    experts = torch.randint(0, EXPERTS, (pairs,), dtype=torch.int32, device="cuda")
    order, tiles = kernels.make_tiles(experts, EXPERTS, block_m)
    found = []
    for expert, first, end in tiles.tolist():
        if expert < EXPERTS:
            own = order[first:end].tolist()
            assert 0 < len(own) <= block_m
            assert all(experts[pair] == expert for pair in own)
            found += own
    assert sorted(found) == list(range(pairs))


@pytest.mark.parametrize("rows", [1, 5, 20, 90, 400])
def test_experts(rows):
    packed = []
    for outputs, inputs in ((2 * INTERMEDIATE, HIDDEN), (HIDDEN, INTERMEDIATE)):
        shape = (EXPERTS, outputs, inputs // 32)
        blocks = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, device="cuda")
        scales = torch.randint(118, 129, shape, dtype=torch.uint8, device="cuda")
        packed += [blocks, scales, normal(EXPERTS, outputs)]
    layer = PackedExperts(*packed, alpha=1.702, limit=7.0)
    x, residual, norm = normal(rows, HIDDEN, scale=0.1), normal(rows, HIDDEN), normal(HIDDEN)
    experts = torch.stack([torch.randperm(EXPERTS)[:TOP_K] for _ in range(rows)]).int().cuda()
    weights = torch.rand(rows, TOP_K, device="cuda")

    strided = x.view(rows, -1, 4).transpose(1, 2).reshape(rows, -1).contiguous()
    block_m = tile_rows(rows * TOP_K / EXPERTS)
    order, tiles = kernels.make_tiles(experts.view(-1), EXPERTS, block_m)
    active = kernels.expert_linear(
        strided,
        order,
        tiles,
        *packed[:3],
        block_m=block_m,
        pairs_a_row=TOP_K,
        activate=(layer.alpha, layer.limit),
    )
    down = kernels.expert_linear(active, order, tiles, *packed[3:], block_m=block_m, pairs_a_row=1)
    wide = dataclasses.replace(layer, gate_up_bias=packed[2].float(), down_bias=packed[5].float())
    mixed = functional.mix_experts(x.float(), experts.long(), weights, wide)
    wanted = residual.float() + mixed
    own_normed = kernels.combine(residual, down, weights, norm, 1e-5)
    assert difference(residual, wanted) < 0.01
    assert difference(own_normed, functional.rms_norm(wanted, norm, 1e-5)) < 0.01


@pytest.mark.parametrize("pinned", [False, True])
def test_embed(pinned):
    table = normal(50, HIDDEN)
    tokens = torch.randint(0, 50, (9,), device="cuda")
    wanted = table[tokens]
    if pinned:
        table = table.cpu().pin_memory()
    assert torch.equal(kernels.embed(table, tokens), wanted)
