"""gpt-oss as plain functions over the weights that the trainer holds.

A step calls nine kernels a layer, where the model's own forward calls over a hundred. The weights
are not copied: the experts stay packed in MXFP4, and q, k and v become views of one matrix. Only
the LoRA pairs are copied, before each rollout.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as torch_functional

from job.mxfp4 import unpack_mxfp4
from job.rollout import functional
from job.rollout.cache import KeyValueCache, LayerShape, Prompts

ADAPTER = "default"  # PEFT's name of the adapter that is trained
RANK_STEP = 16  # kernels.py reads ranks in steps of this
# 2^(scale - 127) of a larger scale cannot be unpacked by kernels.py. Weights are far below it.
LARGEST_SCALE = 128


class CannotDecode(Exception):
    """This model is not one that the decoder can read. The message says why."""


class Projections:
    """Linear layers that are computed together, with their LoRA.

    Their weights become views of one matrix, so nothing is held twice. The A of their adapters are
    further rows of it, as kernels.py wants them.

    Args:
        modules: the layers, some of which may have no adapter.
    """

    @torch.no_grad()
    def __init__(self, modules: list[Any]):
        bases = [base_of(module) for module in modules]
        for base in bases:
            if not base.weight.is_floating_point():
                raise CannotDecode("its attention weights are quantised")
        self._adapters: list[tuple[Any, int, int]] = []  # module, first output, first rank
        outputs, rank = 0, 0
        for module, base in zip(modules, bases, strict=True):
            if ADAPTER in getattr(module, "lora_A", {}):
                self._adapters.append((module, outputs, rank))
                rank += module.lora_A[ADAPTER].weight.shape[0]
            outputs += base.weight.shape[0]
        rank = max(RANK_STEP, math.ceil(rank / RANK_STEP) * RANK_STEP)

        like = bases[0].weight
        self.weight = like.new_zeros((outputs + rank, like.shape[1]))
        self.b = like.new_zeros((outputs, rank))
        self.bias = None
        if bases[0].bias is not None:
            self.bias = like.new_zeros(outputs + rank)
        self._bases = bases
        start = 0
        for base in bases:
            view = self.weight[start : start + len(base.weight)]
            view.copy_(base.weight)
            base.weight.data = view
            start += len(view)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy what is trained: the LoRA pairs, and biases if they are."""
        outputs = len(self.b)
        for module, output, rank in self._adapters:
            a, b = module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight
            here = slice(rank, rank + len(a))
            self.weight[outputs:][here] = a
            self.b[output : output + len(b), here] = b * module.scaling[ADAPTER]
        if self.bias is not None:
            self.bias[:outputs] = torch.cat([base.bias for base in self._bases])

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, outputs + rank) of (rows, inputs)."""
        return torch_functional.linear(x, self.weight, self.bias)


@dataclass
class PackedExperts:
    """Experts of one layer in MXFP4; see job/mxfp4.py for the layout."""

    gate_up_blocks: torch.Tensor  # (experts, 2 * intermediate, hidden / 32, 16) uint8
    gate_up_scales: torch.Tensor
    gate_up_bias: torch.Tensor  # (experts, 2 * intermediate)
    down_blocks: torch.Tensor  # (experts, hidden, intermediate / 32, 16)
    down_scales: torch.Tensor
    down_bias: torch.Tensor
    alpha: float
    limit: float

    def gate_up(self, expert: int, dtype: Any) -> torch.Tensor:
        """(hidden, 2 * intermediate)"""
        blocks, scales = self.gate_up_blocks[expert], self.gate_up_scales[expert]
        return unpack_mxfp4(blocks, scales, dtype).T

    def down(self, expert: int, dtype: Any) -> torch.Tensor:
        """(intermediate, hidden)"""
        blocks, scales = self.down_blocks[expert], self.down_scales[expert]
        return unpack_mxfp4(blocks, scales, dtype).T


@dataclass
class DenseExperts:
    """Experts of one layer as transformers holds them."""

    gate_up_proj: torch.Tensor  # (experts, hidden, 2 * intermediate)
    gate_up_bias: torch.Tensor
    down_proj: torch.Tensor  # (experts, intermediate, hidden)
    down_bias: torch.Tensor
    alpha: float
    limit: float

    def gate_up(self, expert: int, dtype: Any) -> torch.Tensor:
        return self.gate_up_proj[expert].to(dtype)

    def down(self, expert: int, dtype: Any) -> torch.Tensor:
        return self.down_proj[expert].to(dtype)


@dataclass
class Layer:
    attention_norm: torch.Tensor
    qkv: Projections
    sinks: torch.Tensor
    window: int | None
    output: Projections
    mlp_norm: torch.Tensor
    router: torch.Tensor
    router_bias: torch.Tensor
    experts: PackedExperts | DenseExperts


class GptOssDecoder:
    """Decodes with kernels.py on a GPU, and with functional.py elsewhere.

    Args:
        model: gpt-oss as transformers or Unsloth loads it, with an adapter of PEFT or without.

    Raises:
        CannotDecode: for another model, or one whose weights are held in another way.
    """

    def __init__(self, model: Any):
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = base.config
        if self.config.model_type != "gpt_oss":
            raise CannotDecode(f"{self.config.model_type} is not gpt_oss")
        self._body, self._head = base.model, base.lm_head.weight
        self.device = self._head.device
        self.dtype = self._head.dtype
        self.vocabulary = self._head.shape[0]
        self.heads = self.config.num_attention_heads
        self.kv_heads = self.config.num_key_value_heads
        self.head_dim = self._body.layers[0].self_attn.head_dim
        self.scale = self.head_dim**-0.5
        self.eps = self.config.rms_norm_eps
        self.top_k = self.config.num_experts_per_tok
        self.on_gpu = self.device.type == "cuda"
        self._operations = functional
        if self.on_gpu:
            from job.rollout import kernels

            self._operations = kernels
        self.layers = [self._read_layer(layer) for layer in self._body.layers]
        # The norm after each layer: the next one's first, and the last
        self._norms = [layer.attention_norm for layer in self.layers[1:]]
        self._norms.append(self._body.norm.weight)
        self._embedding = self._body.embed_tokens.weight
        if self.on_gpu and self._embedding.device.type == "cpu":
            self._embedding = self._embedding.detach().pin_memory()
        self._cos = self._sin = None

    # ---- reading the model

    def _read_layer(self, layer: Any) -> Layer:
        attention, router = layer.self_attn, layer.mlp.router
        # First, because what cannot be decoded is mostly found here, and nothing is joined yet
        experts = read_experts(layer.mlp.experts, self.on_gpu)
        return Layer(
            attention_norm=layer.input_layernorm.weight,
            qkv=Projections([attention.q_proj, attention.k_proj, attention.v_proj]),
            sinks=attention.sinks,
            window=attention.sliding_window,
            output=Projections([attention.o_proj]),
            mlp_norm=layer.post_attention_layernorm.weight,
            router=router.weight,
            router_bias=router.bias,
            experts=experts,
        )

    def make_cache(self, rows: int, tokens: int) -> KeyValueCache:
        positions = torch.arange(tokens, device=self.device)[None]
        like = torch.zeros(1, dtype=self.dtype, device=self.device)
        cos, sin = self._body.rotary_emb(like, positions)
        half = self.head_dim // 2
        self._cos = cos[0, :, :half].contiguous()
        self._sin = sin[0, :, :half].contiguous()
        shapes = [LayerShape(self.kv_heads, self.head_dim, layer.window) for layer in self.layers]
        return KeyValueCache(shapes, rows, tokens, self.dtype, self.device)

    def refresh(self) -> None:
        for layer in self.layers:
            layer.qkv.refresh()
            layer.output.refresh()

    # ---- decoding

    def decode(
        self, cache: KeyValueCache, tokens: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        rows = len(tokens)
        x = self._embed(tokens)
        normed = functional.rms_norm(x, self.layers[0].attention_norm, self.eps)
        for i, layer in enumerate(self.layers):
            keys, values = cache.keys[i][:rows], cache.values[i][:rows]
            q = self._queries(layer, normed, positions, keys, values)
            attended = self._operations.attend(
                q,
                keys,
                values,
                positions,
                scale=self.scale,
                window=layer.window,
                sinks=layer.sinks,
            )
            x, normed = self._mix(layer.output(attended.flatten(1)), x, layer, self._norms[i])
        return torch_functional.linear(normed, self._head)

    def read_prompts(self, cache: KeyValueCache, prompts: Prompts) -> None:
        count, tokens = prompts.ids.shape
        x = self._embed(prompts.ids.flatten())
        normed = functional.rms_norm(x, self.layers[0].attention_norm, self.eps)
        positions = prompts.positions.clamp(max=len(self._cos) - 1).flatten()  # of padding, too
        shape = (count * tokens, self.kv_heads, 1, self.head_dim)
        for i, layer in enumerate(self.layers):
            keys = torch.empty(shape, dtype=self.dtype, device=self.device)
            values = torch.empty_like(keys)
            q = self._queries(layer, normed, positions, keys, values)
            q, keys, values = (
                part.view(count, tokens, -1, self.head_dim).transpose(1, 2)
                for part in (q, keys, values)
            )
            if i == len(self.layers) - 1:
                cache.write(i, keys, values, prompts)
                return  # nothing reads what comes after the last keys and values
            attended = cache.read(
                i,
                prompts,
                q,
                keys,
                values,
                self._operations,
                scale=self.scale,
                window=layer.window,
                sinks=layer.sinks,
            )
            attended = attended.transpose(1, 2).reshape(count * tokens, -1)
            x, normed = self._mix(layer.output(attended), x, layer, self._norms[i])

    def _queries(
        self,
        layer: Layer,
        normed: torch.Tensor,
        positions: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
    ) -> torch.Tensor:
        """(rows, heads, head_dim); keys and values are written. See kernels.rotate_and_store."""
        return self._operations.rotate_and_store(
            layer.qkv(normed),
            layer.qkv.b,
            self._cos,
            self._sin,
            positions,
            keys,
            values,
            self.heads,
        )

    def _embed(self, tokens: torch.Tensor) -> torch.Tensor:
        if self._embedding.device == self.device:
            return torch_functional.embedding(tokens, self._embedding)
        return self._operations.embed(self._embedding, tokens)

    def _mix(
        self, out: torch.Tensor, x: torch.Tensor, layer: Layer, next_norm: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The second half of a layer.

        Args:
            out: (rows, hidden + rank) of the output projection.
            x: (rows, hidden), the residual. It may be changed.
            next_norm: weight of the norm that follows the layer.

        Returns:
            (rows, hidden): the residual, and the same after the next norm.
        """
        experts, b = layer.experts, layer.output.b
        if not self.on_gpu:
            x = x + functional.apply_lora(out, b)
            normed = functional.rms_norm(x, layer.mlp_norm, self.eps)
            chosen, weights = functional.route(normed, layer.router, layer.router_bias, self.top_k)
            x = x + functional.mix_experts(normed, chosen, weights, experts)
            return x, functional.rms_norm(x, next_norm, self.eps)
        kernels = self._operations
        normed, chosen, weights = kernels.route(
            out, b, x, layer.mlp_norm, self.eps, layer.router, layer.router_bias, self.top_k
        )
        count = len(experts.gate_up_bias)
        block_m = tile_rows(chosen.numel() / count)
        order, tiles = kernels.make_tiles(chosen.view(-1), count, block_m)
        active = kernels.expert_linear(
            normed,
            order,
            tiles,
            experts.gate_up_blocks,
            experts.gate_up_scales,
            experts.gate_up_bias,
            block_m=block_m,
            pairs_a_row=self.top_k,
            activate=(experts.alpha, experts.limit),
        )
        down = kernels.expert_linear(
            active,
            order,
            tiles,
            experts.down_blocks,
            experts.down_scales,
            experts.down_bias,
            block_m=block_m,
            pairs_a_row=1,
        )
        return x, kernels.combine(x, down, weights, next_norm, self.eps)


def tile_rows(rows_an_expert: float) -> int:
    """Rows that one program multiplies, so that most experts need one program a column block."""
    for size in (16, 32, 64):
        if 2 * rows_an_expert <= size:
            return size
    return 128


# ---- what the model's modules hold


def base_of(module: Any) -> Any:
    """The module under PEFT's wrappers."""
    while hasattr(module, "base_layer"):
        module = module.base_layer
    return module


def read_experts(module: Any, on_gpu: bool) -> PackedExperts | DenseExperts:
    """The experts of a layer.

    Raises:
        CannotDecode: if they have an adapter, or are stored in a way that is not known here.
    """
    if hasattr(module, "base_layer"):
        raise CannotDecode("its experts have an adapter")
    if not hasattr(module, "gate_up_proj"):
        raise CannotDecode("its experts are quantised by bitsandbytes")
    biases = {"gate_up_bias": module.gate_up_proj_bias, "down_bias": module.down_proj_bias}
    constants = {"alpha": float(module.alpha), "limit": float(module.limit)}
    gate_up, down = module.gate_up_proj, module.down_proj
    if hasattr(gate_up, "mxfp4_scales"):
        up_blocks, up_scales = packed(gate_up)
        down_blocks, down_scales = packed(down)
        return PackedExperts(
            up_blocks,
            up_scales,
            biases["gate_up_bias"],
            down_blocks,
            down_scales,
            biases["down_bias"],
            **constants,
        )
    if on_gpu:
        raise CannotDecode("its experts are not packed in MXFP4")
    return DenseExperts(gate_up, biases["gate_up_bias"], down, biases["down_bias"], **constants)


def packed(weight: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks and scales of a parameter that Unsloth keeps packed.

    Raises:
        CannotDecode: for another layout than that of the checkpoint.
    """
    if not weight.mxfp4_transposed:
        raise CannotDecode("its packed experts have another layout")
    blocks, scales = weight.data, weight.mxfp4_scales.to(weight.device)
    if blocks.dim() != 4 or not blocks.is_contiguous():
        raise CannotDecode("its packed experts have another layout")
    if int(scales.max()) > LARGEST_SCALE:
        raise CannotDecode("its experts have weights that are too large to unpack")
    return blocks, scales.contiguous()
