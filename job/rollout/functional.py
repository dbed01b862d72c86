"""One decoding step of gpt-oss in plain torch: what kernels.py does, on any device and dtype.

Prompts are read with it as well, and CPUs have nothing else. Each operation rounds where the model
of transformers does, so that in float32 the two agree to the last digits.
"""

import math
from typing import Any

import torch
from torch.nn import functional

from job.rollout.cache import Prompts
from job.rollout.engine import SCORE_BYTES, SCORE_COPIES


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """x / rms(x) * weight, computed in float32. Source: https://arxiv.org/abs/1910.07467."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (weight.float() * wide).to(x.dtype)


def apply_lora(out: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Adds LoRA to a product that ends with what A made of the rows.

    Args:
        out: (..., outputs + rank).
        b: (outputs, rank), with the scaling.

    Returns:
        (..., outputs).
    """
    outputs, rank = b.shape
    own, xa = out.split([outputs, rank], -1)
    return own + functional.linear(xa, b)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding, halves paired. Source: https://arxiv.org/abs/2104.09864.

    Args:
        x: (..., heads, D).
        cos, sin: (..., D / 2) of the positions.
    """
    first, second = x.chunk(2, -1)
    cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def rotate_and_store(
    qkv: torch.Tensor,
    b: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    """See kernels.rotate_and_store. Leaves `qkv` as it is."""
    rows, kv_heads, length, D = keys.shape
    split = apply_lora(qkv, b).unflatten(1, (heads + 2 * kv_heads, D))
    q, k, v = split.split([heads, kv_heads, kv_heads], 1)
    cos, sin = cos[positions], sin[positions]
    every_row = torch.arange(rows, device=qkv.device)
    keys[every_row, :, positions % length] = rotate(k, cos, sin)
    values[every_row, :, positions % length] = v
    return rotate(q, cos, sin)


def attend(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    positions: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """See kernels.attend. Reads the whole buffers."""
    rows, kv_heads, length, D = keys.shape
    grouped = q.unflatten(1, (kv_heads, -1))
    scores = (grouped @ keys.transpose(2, 3)) * scale
    places = torch.arange(length, device=q.device)
    last = positions[:, None]
    held = last - (last - places) % length
    seen = held >= 0
    if window is not None:
        seen = seen & (held > last - window)
    weights = _softmax(scores, seen[:, None, None], sinks, softcap)
    return (weights.to(values.dtype) @ values).flatten(1, 2)


def _softmax(
    scores: torch.Tensor,
    seen: torch.Tensor,
    sinks: torch.Tensor | None,
    softcap: float | None,
) -> torch.Tensor:
    """Softmax over the last dimension, with a sink beside it that takes its share.

    Args:
        scores: (rows, kv_heads, ..., length); with sinks, the third dimension is the group.
        seen: bool, broadcast to the shape of scores.
        sinks: (heads,), or None.
    """
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    scores = scores.float().masked_fill(~seen, -math.inf)
    if sinks is None:
        return scores.softmax(-1)
    shape = [1, scores.shape[1], -1] + [1] * (scores.dim() - 3)
    beside = sinks.float().view(shape).expand(*scores.shape[:-1], 1)
    return torch.cat([scores, beside], -1).softmax(-1)[..., :-1]


def attend_prompts(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    held_keys: torch.Tensor,
    held_values: torch.Tensor,
    prompts: Prompts,
    **options: Any,
) -> torch.Tensor:
    """See kernels.attend_prompts."""
    if prompts.starts is None:
        return attend_from_start(q, keys, values, **options)
    held = held_keys[prompts.rows], held_values[prompts.rows]
    return attend_following(q, keys, values, *held, prompts.starts, **options)


def attend_from_start(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal attention within prompts that begin at position 0.

    Args:
        q: (prompts, heads, tokens, D).
        keys, values: (prompts, kv_heads, tokens, D).
        Others as in kernels.attend.

    Returns:
        (prompts, heads, tokens, D).
    """
    prompts, heads, tokens, D = q.shape
    sliding = window is not None and window < tokens
    if sinks is None and softcap is None and not sliding:
        return functional.scaled_dot_product_attention(
            q, keys, values, is_causal=True, scale=scale, enable_gqa=heads != keys.shape[1]
        )
    # Piece by piece: of one prompt, as many queries as may be
    grouped = q.reshape(prompts, keys.shape[1], -1, tokens, D)
    places = torch.arange(tokens, device=q.device)
    size = max(1, SCORE_BYTES // (heads * tokens * SCORE_COPIES))
    out = torch.empty(grouped.shape, dtype=q.dtype, device=q.device)
    for i in range(prompts):
        for start in range(0, tokens, size):
            piece = grouped[i : i + 1, :, :, start : start + size]
            scores = (piece @ keys[i, :, None].transpose(-1, -2)) * scale
            own = places[start : start + size, None]
            seen = places <= own
            if window is not None:
                seen = seen & (places > own - window)
            weights = _softmax(scores, seen, sinks, softcap)
            out[i : i + 1, :, :, start : start + size] = (
                weights.to(values.dtype) @ values[i, :, None]
            )
    return out.view(q.shape)


def attend_following(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    earlier_keys: torch.Tensor,
    earlier_values: torch.Tensor,
    starts: torch.Tensor,
    *,
    scale: float,
    window: int | None = None,
    sinks: torch.Tensor | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Causal attention of tokens that follow what the buffers hold.

    Args:
        q: (rows, heads, tokens, D).
        keys, values: (rows, kv_heads, tokens, D), of the same tokens.
        earlier_keys, earlier_values: (rows, kv_heads, length, D), the buffers of these rows before
            the tokens are written.
        starts: (rows,) position of the first token.
        Others as in kernels.attend.

    Returns:
        (rows, heads, tokens, D).
    """
    rows, heads, tokens, D = q.shape
    length = earlier_keys.shape[2]
    grouped = q.reshape(rows, keys.shape[1], -1, tokens, D)
    all_keys = torch.cat([earlier_keys.to(keys.dtype), keys], 2)
    all_values = torch.cat([earlier_values.to(values.dtype), values], 2)
    # The position of each key; below 0 where nothing has been written
    last = starts[:, None] - 1
    held = last - (last - torch.arange(length, device=q.device)) % length
    own = starts[:, None] + torch.arange(tokens, device=q.device)
    positions = torch.cat([held, own], 1)
    out = torch.empty(grouped.shape, dtype=q.dtype, device=q.device)
    size = max(1, SCORE_BYTES // (heads * (length + tokens) * SCORE_COPIES))
    for i in range(rows):
        for start in range(0, tokens, size):
            piece = grouped[i : i + 1, :, :, start : start + size]
            scores = (piece @ all_keys[i, :, None].transpose(-1, -2)) * scale
            here = own[i, start : start + size, None]
            seen = (positions[i] >= 0) & (positions[i] <= here)
            if window is not None:
                seen = seen & (positions[i] > here - window)
            weights = _softmax(scores, seen, sinks, softcap)
            out[i : i + 1, :, :, start : start + size] = (
                weights.to(all_values.dtype) @ all_values[i, :, None]
            )
    return out.view(q.shape)


def route(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, top_k: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The experts of each row and their shares, which sum to 1.

    Args:
        x: (rows, hidden), after the norm.

    Returns:
        experts: (rows, top_k).
        weights: (rows, top_k).
    """
    logits = functional.linear(x, weight, bias)
    largest, experts = torch.topk(logits, top_k, dim=-1)
    return experts, largest.softmax(-1)


def activate(gate_up: torch.Tensor, alpha: float, limit: float) -> torch.Tensor:
    """gpt-oss's activation. Even columns are the gate. Source: the model card of gpt-oss."""
    gate, up = gate_up[..., ::2], gate_up[..., 1::2]
    gate = gate.clamp(max=limit)
    up = up.clamp(-limit, limit)
    return (up + 1) * gate * torch.sigmoid(gate * alpha)


def mix_experts(
    x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, layer: Any
) -> torch.Tensor:
    """The weighted sum of what each row's experts make of it.

    Args:
        x: (rows, hidden), after the norm.
        experts, weights: from route.
        layer: an ExpertWeights of gpt_oss.py.

    Returns:
        (rows, hidden).
    """
    out = torch.zeros_like(x)
    for expert in experts.unique().tolist():
        row, choice = torch.where(experts == expert)
        gate_up = x[row] @ layer.gate_up(expert, x.dtype) + layer.gate_up_bias[expert]
        active = activate(gate_up, layer.alpha, layer.limit)
        down = active.to(x.dtype) @ layer.down(expert, x.dtype) + layer.down_bias[expert]
        out.index_add_(0, row, (down * weights[row, choice, None]).to(x.dtype))
    return out
