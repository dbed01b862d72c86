"""Triton kernels of one decoding step of gpt-oss over packed MXFP4 experts.

A step of few rows is bound by the bytes of the weights and by the number of kernels. So each kernel
does what would otherwise be kernels of its own: LoRA, rotation and the write into the cache are
one, as are LoRA, the residual, the norm and the router.

The A of a LoRA pair are further rows of the matrix that it adapts. So a product with that matrix
ends with the LoRA's own columns, `RANK` of them, and whoever reads the product applies B.

MXFP4 is 32 values of 4 bits (sign, two bits of exponent, one of mantissa) with a common scale of 8
bits, a power of two. Source: OCP Microscaling Formats (MX) Specification 1.0, section 5.

A packed 16-bit word holds four neighbouring values. The kernel for experts takes the first values
of all words, then the second ones, and so on. So its inputs are `strided`: the columns 0, 4, 8, ...
come first, then 1, 5, 9, ... Then every word is unpacked in place, without a shuffle.

This file is imported on GPUs only. functional.py says the same in plain torch.
"""

import torch
import triton
import triton.language as tl

from job.rollout import functional

ROUTE_AT_ONCE, ROUTE_WARPS = 8, 8


# ---- attention


@triton.jit
def _lora_part(xa_ptr, b_ptr, row, d, inside, RANK: tl.constexpr):
    """B times what A made of the row: one value for each of the outputs `d`, rounded to bf16."""
    total = tl.zeros(d.shape, tl.float32)
    for start in tl.static_range(0, RANK, 16):
        rank = start + tl.arange(0, 16)
        xa = tl.load(xa_ptr + row + rank).to(tl.float32)
        b = tl.load(b_ptr + d[:, None] * RANK + rank[None, :], inside[:, None], other=0.0)
        total += tl.sum(b.to(tl.float32) * xa[None, :], 1)
    return total.to(tl.bfloat16).to(tl.float32)


@triton.jit
def _rotate_and_store_kernel(
    qkv_ptr,  # (rows, (HEADS + 2 KV_HEADS) D + RANK)
    b_ptr,  # ((HEADS + 2 KV_HEADS) D, RANK)
    cos_ptr,  # (positions, D / 2)
    sin_ptr,
    position_ptr,  # (rows,)
    keys_ptr,  # (rows, KV_HEADS, length, D)
    values_ptr,
    stride_row,  # of keys and values
    length,
    RANK: tl.constexpr,
    HEADS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    D: tl.constexpr,
    HALF: tl.constexpr,
):
    row = tl.program_id(0)
    head = tl.program_id(1)
    d = tl.arange(0, HALF)
    inside = d < D // 2
    position = tl.load(position_ptr + row).to(tl.int32)
    outputs = (HEADS + 2 * KV_HEADS) * D
    start = row * (outputs + RANK)
    source = qkv_ptr + start + head * D
    first = tl.load(source + d, inside, other=0.0).to(tl.float32)
    second = tl.load(source + D // 2 + d, inside, other=0.0).to(tl.float32)
    column = head * D + d
    first += _lora_part(qkv_ptr + outputs, b_ptr, start, column, inside, RANK)
    second += _lora_part(qkv_ptr + outputs, b_ptr, start, column + D // 2, inside, RANK)
    kind = qkv_ptr.dtype.element_ty
    first = first.to(kind).to(tl.float32)
    second = second.to(kind).to(tl.float32)
    if head < HEADS + KV_HEADS:
        cos = tl.load(cos_ptr + position * (D // 2) + d, inside, other=0.0).to(tl.float32)
        sin = tl.load(sin_ptr + position * (D // 2) + d, inside, other=0.0).to(tl.float32)
        turned = first * cos - second * sin
        second = second * cos + first * sin
        first = turned
    if head < HEADS:
        tl.store(source + d, first.to(kind), inside)
        tl.store(source + D // 2 + d, second.to(kind), inside)
    else:
        place = row.to(tl.int64) * stride_row + (position % length) * D
        if head < HEADS + KV_HEADS:
            target = keys_ptr + place + (head - HEADS) * length * D
        else:
            target = values_ptr + place + (head - HEADS - KV_HEADS) * length * D
        tl.store(target + d, first.to(kind), inside)
        tl.store(target + D // 2 + d, second.to(kind), inside)


def rotate_and_store(qkv, b, cos, sin, positions, keys, values, heads):
    """Applies LoRA, rotates queries and keys, and writes keys and values into the cache.

    Args:
        qkv: (rows, (heads + 2 kv_heads) D + rank), changed in place.
        b: ((heads + 2 kv_heads) D, rank), LoRA B. The rank is a multiple of 16.
        cos, sin: (positions, D / 2).
        positions: (rows,) of the tokens.
        keys, values: (rows, kv_heads, length, D); position p is kept in place p % length.

    Returns:
        (rows, heads, D), the queries: a view of `qkv`.
    """
    rows, kv_heads, length, D = keys.shape
    _rotate_and_store_kernel[(rows, heads + 2 * kv_heads)](
        qkv,
        b,
        cos,
        sin,
        positions,
        keys,
        values,
        keys.stride(0),
        length,
        RANK=b.shape[1],
        HEADS=heads,
        KV_HEADS=kv_heads,
        D=D,
        HALF=triton.next_power_of_2(D // 2),
        num_warps=1,
    )
    return qkv[:, : heads * D].unflatten(1, (heads, D))


@triton.jit
def _attend_to(
    q,  # (queries, D)
    k,  # (places, D)
    v,
    seen,  # (queries, places)
    largest,
    total,
    summed,
    scale,
    softcap,
    HAS_SOFTCAP: tl.constexpr,
):
    """Takes further places into a softmax that is under way, and returns its state."""
    scores = tl.dot(q, tl.trans(k)) * scale
    if HAS_SOFTCAP:
        scaled = scores / softcap
        # tanh, which Triton has not
        scores = softcap * (2 * tl.sigmoid(2 * scaled) - 1)
    scores = tl.where(seen, scores, -float("inf"))
    new_largest = tl.maximum(largest, tl.max(scores, 1))
    # Where nothing is seen yet, both are infinite
    safe = tl.where(new_largest == -float("inf"), 0.0, new_largest)
    shrink = tl.exp(largest - safe)
    weights = tl.exp(scores - safe[:, None])
    summed = summed * shrink[:, None] + tl.dot(weights.to(v.dtype), v)
    total = total * shrink + tl.sum(weights, 1)
    return new_largest, total, summed


@triton.jit
def _attend_kernel(
    q_ptr,  # (rows, KV_HEADS GROUP, D), with a stride between rows
    keys_ptr,  # (rows, KV_HEADS, length, D)
    values_ptr,
    sinks_ptr,  # (KV_HEADS GROUP,)
    position_ptr,  # (rows,)
    out_ptr,  # (rows, KV_HEADS GROUP, D)
    stride_q,
    stride_row,
    length,
    window,
    scale,
    softcap,
    HAS_SINKS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    row = tl.program_id(0)
    kv_head = tl.program_id(1)
    group = tl.arange(0, GROUP_PADDED)
    d = tl.arange(0, D_PADDED)
    heads = kv_head * GROUP + group
    mask_q = (group < GROUP)[:, None] & (d < D)[None, :]
    q = tl.load(q_ptr + row * stride_q + heads[:, None] * D + d[None, :], mask_q, other=0.0)
    position = tl.load(position_ptr + row).to(tl.int32)
    filled = tl.minimum(position + 1, length)
    base = row.to(tl.int64) * stride_row + kv_head * length * D
    largest = tl.full((GROUP_PADDED,), -float("inf"), tl.float32)
    total = tl.zeros((GROUP_PADDED,), tl.float32)
    if HAS_SINKS:
        largest = tl.load(sinks_ptr + heads, group < GROUP, other=0.0).to(tl.float32)
        total += 1.0
    summed = tl.zeros((GROUP_PADDED, D_PADDED), tl.float32)
    # With a buffer as long as the sequence, what lies before the window need not be read.
    first = tl.maximum(filled - window, 0) // BLOCK_L * BLOCK_L
    if filled == length:
        first = 0
    for start in range(first, filled, BLOCK_L):
        places = start + tl.arange(0, BLOCK_L)
        # The position of what is kept in a place, in a ring as well
        held = position - (position - places + length) % length
        seen = (places < filled) & (held > position - window)
        inside = (places < filled)[:, None] & (d < D)[None, :]
        k = tl.load(keys_ptr + base + places[:, None] * D + d[None, :], inside, other=0.0)
        v = tl.load(values_ptr + base + places[:, None] * D + d[None, :], inside, other=0.0)
        seen = tl.broadcast_to(seen[None, :], (GROUP_PADDED, BLOCK_L))
        largest, total, summed = _attend_to(
            q, k, v, seen, largest, total, summed, scale, softcap, HAS_SOFTCAP
        )
    result = summed / total[:, None]
    place = row * KV_HEADS * GROUP * D + heads[:, None] * D + d[None, :]
    tl.store(out_ptr + place, result.to(out_ptr.dtype.element_ty), mask_q)


def attend(q, keys, values, positions, *, scale, window=None, sinks=None, softcap=None):
    """Attention of one new token a row over the cache. Reads only what is filled.

    Args:
        q: (rows, heads, D), heads of a row next to each other.
        keys, values: (rows, kv_heads, length, D); position p is kept in place p % length.
        positions: (rows,) of the new tokens, whose keys and values are in the cache already.
        window: positions that are attended to, the new one included; None: all.
        sinks: (heads,) logits of the attention sinks (gpt-oss), or None.
        softcap: bound of the scores (Gemma 2), or None.

    Returns:
        (rows, heads, D).
    """
    rows, kv_heads, length, D = keys.shape
    heads = q.shape[1]
    group = heads // kv_heads
    width = max(16, triton.next_power_of_2(D))
    block_l, stages = 64, 3
    if keys.element_size() == 4 and width > 64:
        block_l, stages = 32, 2  # what small cards have shared memory for
    out = torch.empty((rows, heads, D), dtype=q.dtype, device=q.device)
    _attend_kernel[(rows, kv_heads)](
        q,
        keys,
        values,
        q if sinks is None else sinks,
        positions,
        out,
        q.stride(0),
        keys.stride(0),
        length,
        window or 2**30,
        scale,
        softcap or 0.0,
        HAS_SINKS=sinks is not None,
        HAS_SOFTCAP=softcap is not None,
        KV_HEADS=kv_heads,
        GROUP=group,
        GROUP_PADDED=max(16, triton.next_power_of_2(group)),
        D=D,
        D_PADDED=width,
        BLOCK_L=block_l,
        num_warps=4,
        num_stages=stages,
    )
    return out


@triton.jit
def _attend_prompts_kernel(
    q_ptr,  # (prompts, KV_HEADS GROUP, tokens, D), with strides
    keys_ptr,  # (prompts, KV_HEADS, tokens, D), with strides
    values_ptr,
    held_keys_ptr,  # (rows, KV_HEADS, length, D)
    held_values_ptr,
    sinks_ptr,  # (KV_HEADS GROUP,)
    row_ptr,  # (prompts,)
    start_ptr,  # (prompts,)
    out_ptr,  # (prompts, tokens, KV_HEADS GROUP, D)
    stride_q_prompt,
    stride_q_head,
    stride_q_token,
    stride_k_prompt,
    stride_k_head,
    stride_k_token,
    stride_v_prompt,
    stride_v_head,
    stride_v_token,
    stride_row,  # of what is held
    tokens,
    length,
    window,
    scale,
    softcap,
    HAS_SINKS: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    FOLLOWS: tl.constexpr,
    KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    TILE: tl.constexpr,
    D: tl.constexpr,
    D_PADDED: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    prompt = tl.program_id(0)
    kv_head = tl.program_id(1)
    # A tile holds some tokens, each with the heads of a group
    AT_ONCE: tl.constexpr = TILE // GROUP
    first_token = tl.program_id(2) * AT_ONCE
    tile = tl.arange(0, TILE)
    token = first_token + tile // GROUP
    head = kv_head * GROUP + tile % GROUP
    inside_tile = (tile < AT_ONCE * GROUP) & (token < tokens)
    d = tl.arange(0, D_PADDED)
    mask_q = inside_tile[:, None] & (d < D)[None, :]
    q = tl.load(
        q_ptr
        + prompt.to(tl.int64) * stride_q_prompt
        + head[:, None] * stride_q_head
        + token[:, None] * stride_q_token
        + d[None, :],
        mask_q,
        other=0.0,
    )
    largest = tl.full((TILE,), -float("inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    if HAS_SINKS:
        largest = tl.load(sinks_ptr + head, inside_tile, other=0.0).to(tl.float32)
        total += 1.0
    summed = tl.zeros((TILE, D_PADDED), tl.float32)
    # What the row held before
    if FOLLOWS:
        start = tl.load(start_ptr + prompt).to(tl.int32)
        row = tl.load(row_ptr + prompt).to(tl.int64)
        last = start - 1
        filled = tl.minimum(start, length)
        base = row * stride_row + kv_head * length * D
        # With a buffer as long as the sequence, what lies before the window need not be read.
        first = tl.maximum(start + first_token - window + 1, 0) // BLOCK_L * BLOCK_L
        if filled == length:
            first = 0
        for begin in range(first, filled, BLOCK_L):
            places = begin + tl.arange(0, BLOCK_L)
            held = last - (last - places + length) % length
            oldest = start + token - window
            seen = (places < filled)[None, :] & (held[None, :] > oldest[:, None])
            inside = (places < filled)[:, None] & (d < D)[None, :]
            k = tl.load(held_keys_ptr + base + places[:, None] * D + d[None, :], inside, other=0.0)
            v = tl.load(
                held_values_ptr + base + places[:, None] * D + d[None, :], inside, other=0.0
            )
            largest, total, summed = _attend_to(
                q, k.to(q.dtype), v, seen, largest, total, summed, scale, softcap, HAS_SOFTCAP
            )
    # The prompt itself
    k_base = keys_ptr + prompt.to(tl.int64) * stride_k_prompt + kv_head * stride_k_head
    v_base = values_ptr + prompt.to(tl.int64) * stride_v_prompt + kv_head * stride_v_head
    first = tl.maximum(first_token - window + 1, 0) // BLOCK_L * BLOCK_L
    for begin in range(first, tl.minimum(first_token + AT_ONCE, tokens), BLOCK_L):
        others = begin + tl.arange(0, BLOCK_L)
        back = token[:, None] - others[None, :]
        seen = (back >= 0) & (back < window)
        inside = (others < tokens)[:, None] & (d < D)[None, :]
        k = tl.load(k_base + others[:, None] * stride_k_token + d[None, :], inside, other=0.0)
        v = tl.load(v_base + others[:, None] * stride_v_token + d[None, :], inside, other=0.0)
        largest, total, summed = _attend_to(
            q, k.to(q.dtype), v, seen, largest, total, summed, scale, softcap, HAS_SOFTCAP
        )
    result = summed / total[:, None]
    place = (prompt.to(tl.int64) * tokens + token[:, None]) * KV_HEADS * GROUP + head[:, None]
    tl.store(out_ptr + place * D + d[None, :], result.to(out_ptr.dtype.element_ty), mask_q)


def attend_prompts(
    q,
    keys,
    values,
    held_keys,
    held_values,
    prompts,
    *,
    scale,
    window=None,
    sinks=None,
    softcap=None,
):
    """Causal attention within prompts, and of what follows in rows to what these held before.

    Args:
        q: (prompts, heads, tokens, D), any view of it.
        keys, values: (prompts, kv_heads, tokens, D), of the same tokens.
        held_keys, held_values: (rows, kv_heads, length, D), before the tokens are written.
        prompts: a Prompts.
        Others as in attend.

    Returns:
        (prompts, heads, tokens, D).
    """
    count, heads, tokens, D = q.shape
    follows = prompts.starts is not None
    is_sliding = window is not None and window < tokens
    if not follows and sinks is None and softcap is None and not is_sliding:
        return functional.attend_from_start(q, keys, values, scale=scale)  # torch's own kernel
    q, keys, values = (x if x.stride(3) == 1 else x.contiguous() for x in (q, keys, values))
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    tile = max(64, triton.next_power_of_2(group))
    width = max(16, triton.next_power_of_2(D))
    block_l, stages = places_at_once(width, q.element_size())
    out = torch.empty((count, tokens, heads, D), dtype=q.dtype, device=q.device)
    _attend_prompts_kernel[(count, kv_heads, triton.cdiv(tokens, tile // group))](
        q,
        keys,
        values,
        held_keys,
        held_values,
        q if sinks is None else sinks,
        prompts.rows,
        prompts.starts if follows else prompts.rows,
        out,
        *q.stride()[:3],
        *keys.stride()[:3],
        *values.stride()[:3],
        held_keys.stride(0),
        tokens,
        held_keys.shape[2],
        window or 2**30,
        scale,
        softcap or 0.0,
        HAS_SINKS=sinks is not None,
        HAS_SOFTCAP=softcap is not None,
        FOLLOWS=follows,
        KV_HEADS=kv_heads,
        GROUP=group,
        TILE=tile,
        D=D,
        D_PADDED=width,
        BLOCK_L=block_l,
        num_warps=4,
        num_stages=stages,
    )
    return out.transpose(1, 2)


def places_at_once(width, bytes_each):
    """(BLOCK_L, stages) of attend_prompts. It takes at most 84 KB of shared memory on cards of
    compute capability 8.6, which have 99 KB, and 96 KB on 9.0.

    Args:
        width: D, as a power of 2.
    """
    if width * bytes_each <= 256:
        return 64, 2
    if width * bytes_each <= 512:
        return 32, 1
    return 16, 1


# ---- experts


@triton.jit
def _route_kernel(
    out_ptr,  # (rows, K + RANK) of the output projection
    b_ptr,  # (K, RANK)
    residual_ptr,  # (rows, K), changed
    norm_ptr,  # (K,)
    w_ptr,  # (EXPERTS, K)
    bias_ptr,  # (EXPERTS,)
    normed_ptr,  # (rows, K), strided
    expert_ptr,  # (rows, TOP_K)
    weight_ptr,  # (rows, TOP_K)
    K,
    quarter,  # K / 4
    eps,
    RANK: tl.constexpr,
    EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_K_PADDED: tl.constexpr,
    WHOLE: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    row = tl.program_id(0)
    k = tl.arange(0, WHOLE)
    inside = k < K
    # The attention's result joins the residual
    x = tl.load(out_ptr + row * (K + RANK) + k, inside, other=0.0).to(tl.float32)
    x += _lora_part(out_ptr + K, b_ptr, row * (K + RANK), k, inside, RANK)
    x = x.to(tl.bfloat16).to(tl.float32)
    x += tl.load(residual_ptr + row * K + k, inside, other=0.0).to(tl.float32)
    x = x.to(tl.bfloat16)
    tl.store(residual_ptr + row * K + k, x, inside)
    # The norm
    x = x.to(tl.float32)
    factor = tl.rsqrt(tl.sum(x * x, 0) / K + eps)
    norm = tl.load(norm_ptr + k, inside, other=0.0).to(tl.float32)
    normed = (x * factor * norm).to(tl.bfloat16)
    tl.store(normed_ptr + row * K + (k % 4) * quarter + k // 4, normed, inside)
    # The logits of the experts, some experts at a time
    normed = normed.to(tl.float32)
    e = tl.arange(0, EXPERTS)
    logits = tl.zeros((EXPERTS,), tl.float32)
    for start in tl.static_range(0, EXPERTS, AT_ONCE):
        some = start + tl.arange(0, AT_ONCE)
        w = tl.load(w_ptr + some[:, None] * K + k[None, :], inside[None, :], other=0.0)
        value = tl.sum(w.to(tl.float32) * normed[None, :], 1)
        own = e[:, None] == some[None, :]
        logits += tl.sum(tl.where(own, value[None, :], 0.0), 1)
    logits += tl.load(bias_ptr + e).to(tl.float32)
    # As the model's own router rounds them
    logits = logits.to(tl.bfloat16).to(tl.float32)
    # The largest, one after the other; softmax over them
    largest = tl.max(logits, 0)
    i = tl.arange(0, TOP_K_PADDED)
    chosen = tl.zeros((TOP_K_PADDED,), tl.int32)
    values = tl.zeros((TOP_K_PADDED,), tl.float32)
    for place in tl.static_range(TOP_K):
        best = tl.argmax(logits, 0)
        chosen = tl.where(i == place, best, chosen)
        values = tl.where(i == place, tl.exp(tl.max(logits, 0) - largest), values)
        logits = tl.where(e == best, -float("inf"), logits)
    tl.store(expert_ptr + row * TOP_K + i, chosen, i < TOP_K)
    tl.store(weight_ptr + row * TOP_K + i, values / tl.sum(values, 0), i < TOP_K)


def route(out, b, residual, norm, eps, weight, bias, top_k):
    """From the output projection to the experts of each row: LoRA, residual, norm, router.

    Args:
        out: (rows, hidden + rank) bf16.
        b: (hidden, rank), LoRA B.
        residual: (rows, hidden) bf16, to which the result is added in place.
        norm: (hidden,) weight of the norm before the experts.
        weight, bias: (experts, hidden), (experts,) of the router.

    Returns:
        normed: (rows, hidden) bf16, strided as the head of this file says.
        experts: (rows, top_k) int32.
        weights: (rows, top_k) float32, which sum to 1.
    """
    rows, K = residual.shape
    normed = torch.empty_like(residual)
    experts = torch.empty((rows, top_k), dtype=torch.int32, device=out.device)
    weights = torch.empty((rows, top_k), dtype=torch.float32, device=out.device)
    count = weight.shape[0]
    _route_kernel[(rows,)](
        out,
        b,
        residual,
        norm,
        weight,
        bias,
        normed,
        experts,
        weights,
        K,
        K // 4,
        eps,
        RANK=b.shape[1],
        EXPERTS=count,
        TOP_K=top_k,
        TOP_K_PADDED=triton.next_power_of_2(top_k),
        WHOLE=triton.next_power_of_2(K),
        AT_ONCE=min(ROUTE_AT_ONCE, count),
        num_warps=ROUTE_WARPS,
    )
    return normed, experts, weights


@triton.jit
def _tiles_kernel(
    expert_ptr,  # (pairs,)
    order_ptr,  # (pairs,): pairs in the order of their experts
    tile_ptr,  # (TILES, 3): expert, first and end in `order`
    pairs,
    EXPERTS: tl.constexpr,
    PAIRS: tl.constexpr,
    TILES: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    p = tl.arange(0, PAIRS)
    e = tl.arange(0, EXPERTS)
    expert = tl.load(expert_ptr + p, p < pairs, other=EXPERTS)
    mine = (e[:, None] == expert[None, :]).to(tl.int32)
    count = tl.sum(mine, 1)
    end = tl.cumsum(count, 0)
    # The place of a pair: all of the experts before its own, and those before it of its own
    before = (end - count)[:, None] + tl.cumsum(mine, 1) - 1
    place = tl.sum(mine * before, 0)
    tl.store(order_ptr + place, p, p < pairs)
    # Each expert's rows are cut into tiles
    tiles = (count + BLOCK_M - 1) // BLOCK_M
    tile_end = tl.cumsum(tiles, 0)
    t = tl.arange(0, TILES)
    owner = tl.sum((tile_end[:, None] <= t[None, :]).to(tl.int32), 0)
    own = (e[:, None] == owner[None, :]).to(tl.int32)
    within = t - tl.sum(own * (tile_end - tiles)[:, None], 0)
    first = tl.sum(own * (end - count)[:, None], 0) + within * BLOCK_M
    last = tl.sum(own * end[:, None], 0)
    tl.store(tile_ptr + t * 3, owner)
    tl.store(tile_ptr + t * 3 + 1, first)
    tl.store(tile_ptr + t * 3 + 2, tl.minimum(last, first + BLOCK_M))


def make_tiles(experts, count, block_m):
    """Which rows each program of the experts' kernel multiplies.

    Args:
        experts: (pairs,) int32, the expert of each pair of a row and an expert.
        count: of experts.
        block_m: rows of a tile.

    Returns:
        order: (pairs,) int32, the pairs sorted by expert.
        tiles: (tiles, 3) int32: expert, first and end in `order`. An expert >= count: no tile.
    """
    pairs = experts.numel()
    order = torch.empty((pairs,), dtype=torch.int32, device=experts.device)
    number = triton.next_power_of_2(min(count, pairs) + pairs // block_m)
    tiles = torch.empty((number, 3), dtype=torch.int32, device=experts.device)
    if pairs <= 512:
        _tiles_kernel[(1,)](
            experts,
            order,
            tiles,
            pairs,
            EXPERTS=count,
            PAIRS=triton.next_power_of_2(pairs),
            TILES=number,
            BLOCK_M=block_m,
            num_warps=8,
        )
        return order, tiles
    # Prompts: many pairs, and no hurry
    order = torch.argsort(experts, stable=True).to(torch.int32)
    numbers = torch.arange(count, device=experts.device)
    counts = (experts[:, None] == numbers).sum(0)
    ends = counts.cumsum(0)
    tile_counts = (counts + block_m - 1) // block_m
    tile_ends = tile_counts.cumsum(0)
    t = torch.arange(number, device=experts.device)
    owner = (tile_ends[:, None] <= t).sum(0)
    known = owner.clamp(max=count - 1)
    first = (ends - counts)[known] + (t - (tile_ends - tile_counts)[known]) * block_m
    last = torch.minimum(ends[known], first + block_m)
    return order, torch.stack([owner, first, last], 1).to(torch.int32)


@triton.jit
def _unpack(words, scale):
    """Four bf16 tensors of the four values in each 16-bit word, times their scale.

    The exponent and mantissa of a 4-bit value are put where bf16 has the low end of its exponent.
    That gives the value times 2^-126, exactly. Two words are unpacked at once, in one register.

    Args:
        words: int16.
        scale: bf16 of the same shape, 2^(scale - 1).
    """
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 bits, sign, zero;
        mov.b32 zero, 0x80008000;
        shl.b32 bits, $4, 6;
        shl.b32 sign, $4, 12;
        and.b32 sign, sign, 0x80008000;
        lop3.b32 bits, bits, 0x01C001C0, sign, 0xEA;
        fma.rn.bf16x2 $0, bits, $5, zero;
        shl.b32 bits, $4, 2;
        shl.b32 sign, $4, 8;
        and.b32 sign, sign, 0x80008000;
        lop3.b32 bits, bits, 0x01C001C0, sign, 0xEA;
        fma.rn.bf16x2 $1, bits, $5, zero;
        shr.b32 bits, $4, 2;
        shl.b32 sign, $4, 4;
        and.b32 sign, sign, 0x80008000;
        lop3.b32 bits, bits, 0x01C001C0, sign, 0xEA;
        fma.rn.bf16x2 $2, bits, $5, zero;
        shr.b32 bits, $4, 6;
        and.b32 sign, $4, 0x80008000;
        lop3.b32 bits, bits, 0x01C001C0, sign, 0xEA;
        fma.rn.bf16x2 $3, bits, $5, zero;
        }
        """,
        "=r,=r,=r,=r,r,r",
        [words, scale],
        dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
        is_pure=True,
        pack=2,
    )


@triton.jit
def _expert_kernel(
    x_ptr,  # (rows, K), strided
    order_ptr,
    tile_ptr,
    blocks_ptr,  # (experts, N, K / 4) int16
    scales_ptr,  # (experts, N, K / 32) uint8
    bias_ptr,  # (experts, N)
    out_ptr,  # (pairs, N), or (pairs, N / 2) with ACTIVATE
    K,
    quarter,  # K / 4
    groups,  # K / 32
    N,
    eighth,  # N / 8
    limit,
    alpha,
    PAIRS_A_ROW: tl.constexpr,
    ACTIVATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,  # words of a step: 4 BLOCK_W values
    EXPERTS: tl.constexpr,
):
    tile = tl.program_id(1)
    expert = tl.load(tile_ptr + tile * 3)
    if expert >= EXPERTS:
        return
    first = tl.load(tile_ptr + tile * 3 + 1)
    end = tl.load(tile_ptr + tile * 3 + 2)
    place = first + tl.arange(0, BLOCK_M)
    in_rows = place < end
    pair = tl.load(order_ptr + place, in_rows, other=0)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    in_columns = n < N
    packed_row = expert.to(tl.int64) * N + n
    x_rows = x_ptr + (pair // PAIRS_A_ROW)[None, :] * K
    sums = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for start in range(0, quarter, BLOCK_W):
        w = start + tl.arange(0, BLOCK_W)
        inside = w < quarter
        words = tl.load(
            blocks_ptr + packed_row[:, None] * quarter + w[None, :],
            in_columns[:, None] & inside[None, :],
            other=0,
        )
        g = start // 8 + tl.arange(0, BLOCK_W // 8)
        scale = tl.load(
            scales_ptr + packed_row[:, None] * groups + g[None, :],
            in_columns[:, None] & (g < groups)[None, :],
            other=0,
        )
        # 2^(scale - 1) as the bits of a bf16
        power = (tl.minimum(scale.to(tl.int32), 128) + 126) << 7
        power = power.to(tl.int16).to(tl.bfloat16, bitcast=True)
        power = tl.broadcast_to(power[:, :, None], (BLOCK_N, BLOCK_W // 8, 8))
        power = tl.reshape(power, (BLOCK_N, BLOCK_W))
        w0, w1, w2, w3 = _unpack(words, power)
        mask_x = inside[:, None] & in_rows[None, :]
        x = x_rows + w[:, None]
        sums = tl.dot(w0, tl.load(x, mask_x, other=0.0), sums)
        sums = tl.dot(w1, tl.load(x + quarter, mask_x, other=0.0), sums)
        sums = tl.dot(w2, tl.load(x + 2 * quarter, mask_x, other=0.0), sums)
        sums = tl.dot(w3, tl.load(x + 3 * quarter, mask_x, other=0.0), sums)
    bias = tl.load(bias_ptr + expert.to(tl.int64) * N + n, in_columns, other=0.0)
    sums += bias.to(tl.float32)[:, None]
    if ACTIVATE:
        # Even columns are the gate, odd ones what it lets through
        paired = tl.reshape(tl.trans(sums), (BLOCK_M, BLOCK_N // 2, 2))
        gate, up = tl.split(paired)
        gate = tl.minimum(gate, limit)
        up = tl.minimum(tl.maximum(up, -limit), limit)
        result = (up + 1) * gate * tl.sigmoid(gate * alpha)
        half = tl.program_id(0) * (BLOCK_N // 2) + tl.arange(0, BLOCK_N // 2)
        # Strided, as the second matrix wants it
        column = (half % 4) * eighth + half // 4
        mask = in_rows[:, None] & (half < N // 2)[None, :]
        target = out_ptr + pair[:, None].to(tl.int64) * (N // 2) + column[None, :]
        tl.store(target, result.to(out_ptr.dtype.element_ty), mask)
    else:
        target = out_ptr + pair[None, :].to(tl.int64) * N + n[:, None]
        mask = in_columns[:, None] & in_rows[None, :]
        tl.store(target, sums.to(out_ptr.dtype.element_ty), mask)


def expert_linear(
    x, order, tiles, blocks, scales, bias, *, block_m, pairs_a_row, activate=None, config=None
):
    """Each pair's row times the packed matrix of its expert, plus bias.

    Args:
        x: (rows, in) bf16, strided. The row of pair p is p // pairs_a_row.
        order, tiles, block_m: from and for make_tiles.
        blocks: (experts, out, in / 32, 16) uint8. The low half of a byte comes first.
        scales: (experts, out, in / 32) uint8.
        bias: (experts, out).
        activate: (alpha, limit) of gpt-oss's activation, or None.
        config: (BLOCK_N, BLOCK_W, warps, stages) instead of the table's.

    Returns:
        (pairs, out) bf16; with `activate` (pairs, out / 2), strided.
    """
    count, N = bias.shape
    K = x.shape[1]
    pairs = order.numel()
    alpha, limit = activate if activate is not None else (0.0, 0.0)
    width = N // 2 if activate is not None else N
    out = torch.empty((pairs, width), dtype=x.dtype, device=x.device)
    block_n, block_w, warps, stages = config or expert_config(block_m)
    _expert_kernel[(triton.cdiv(N, block_n), tiles.shape[0])](
        x,
        order,
        tiles,
        blocks.view(torch.int16),
        scales,
        bias,
        out,
        K,
        K // 4,
        K // 32,
        N,
        N // 8,
        limit,
        alpha,
        PAIRS_A_ROW=pairs_a_row,
        ACTIVATE=activate is not None,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_W=block_w,
        EXPERTS=count,
        num_warps=warps,
        num_stages=stages,
    )
    return out


def expert_config(block_m):
    """(BLOCK_N, BLOCK_W, warps, stages) that were the fastest on an H200; benchmarks/README.md."""
    if block_m == 16:
        return (64, 64, 4, 3)
    if block_m == 32:
        return (64, 32, 4, 3)
    return (128, 32, 4, 3)


@triton.jit
def _combine_kernel(
    residual_ptr,  # (rows, N), changed
    expert_out_ptr,  # (rows, TOP_K, N)
    weight_ptr,  # (rows, TOP_K)
    norm_ptr,  # (N,)
    normed_ptr,  # (rows, N)
    N,
    eps,
    TOP_K: tl.constexpr,
    WHOLE: tl.constexpr,
):
    row = tl.program_id(0)
    n = tl.arange(0, WHOLE)
    inside = n < N
    total = tl.zeros((WHOLE,), tl.float32)
    for i in tl.static_range(TOP_K):
        value = tl.load(expert_out_ptr + (row * TOP_K + i) * N + n, inside, other=0.0)
        total += value.to(tl.float32) * tl.load(weight_ptr + row * TOP_K + i)
    total = total.to(tl.bfloat16).to(tl.float32)
    total += tl.load(residual_ptr + row * N + n, inside, other=0.0).to(tl.float32)
    total = total.to(tl.bfloat16)
    tl.store(residual_ptr + row * N + n, total, inside)
    x = total.to(tl.float32)
    factor = tl.rsqrt(tl.sum(x * x, 0) / N + eps)
    norm = tl.load(norm_ptr + n, inside, other=0.0).to(tl.float32)
    tl.store(normed_ptr + row * N + n, (x * factor * norm).to(tl.bfloat16), inside)


def combine(residual, expert_out, weights, norm, eps):
    """Adds the weighted results of each row's experts to `residual`, in place.

    Args:
        residual: (rows, out) bf16.
        expert_out: (rows * top_k, out).
        weights: (rows, top_k) float32.
        norm: (out,) weight of the norm that follows.

    Returns:
        (rows, out), the residual after that norm.
    """
    rows, N = residual.shape
    normed = torch.empty_like(residual)
    _combine_kernel[(rows,)](
        residual,
        expert_out,
        weights,
        norm,
        normed,
        N,
        eps,
        TOP_K=weights.shape[1],
        WHOLE=triton.next_power_of_2(N),
        num_warps=8,
    )
    return normed


# ---- embedding


@triton.jit
def _embed_kernel(table_ptr, token_ptr, out_ptr, width, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    token = tl.load(token_ptr + row).to(tl.int64)
    value = tl.load(table_ptr + token * width + column, inside)
    tl.store(out_ptr + row * width + column, value, inside)


def embed(table, tokens):
    """Rows of a table that may lie in pinned main memory, which the GPU reads over the bus.

    Args:
        table: (vocabulary, width), on the GPU or pinned.
        tokens: (rows,) on the GPU.

    Returns:
        (rows, width) on the GPU.
    """
    rows, width = tokens.numel(), table.shape[1]
    out = torch.empty((rows, width), dtype=table.dtype, device=tokens.device)
    _embed_kernel[(rows, triton.cdiv(width, 1024))](
        table, tokens, out, width, BLOCK=1024, num_warps=4
    )
    return out
