"""The sizes of a decoder, read from its config.json: layers, matrices, parameters.

The counts are exact for the architectures in FAMILIES. Any other architecture is counted as a Llama
with the same numbers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

# The numbers that no decoder can do without.
REQUIRED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class Family:
    """What config.json leaves to the code of an architecture. Defaults: transformers 5.17."""

    head_dim: int | None = None  # None: hidden_size / num_attention_heads
    tied: bool = False  # the output head is the input embedding
    norms: int = 2  # vectors of hidden_size in a layer
    qk_norm: bool = False  # a norm for queries and one for keys
    # None: attention_bias of config.json decides, for o_proj as well
    qkv_bias: bool | None = None
    # In each group of this many layers, all but the last use a sliding window. 1: every layer does.
    window_every: int = 0

    def slides(self, layer: int) -> bool:
        """Whether a layer, counted from 0, uses the sliding window."""
        if self.window_every <= 1:
            return self.window_every == 1
        return (layer + 1) % self.window_every != 0


FAMILIES = {
    "llama": Family(),
    "mistral": Family(qkv_bias=False, window_every=1),
    "mixtral": Family(qkv_bias=False, window_every=1),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(head_dim=128, qk_norm=True),
    "qwen3_moe": Family(qk_norm=True),
    "gemma": Family(head_dim=256, tied=True),
    "gemma2": Family(head_dim=256, tied=True, norms=4, window_every=2),
    "gemma3_text": Family(head_dim=256, tied=True, norms=4, qk_norm=True, window_every=6),
    "gpt_oss": Family(head_dim=64, window_every=2),
}


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder. Parameters are counted in groups, because each is stored in its own way.

    The groups are embedding, head, linears, expert_weights and other.
    """

    model_type: str
    family: Family
    layers: int
    sparse_layers: int  # layers with experts
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    dense_intermediate: int  # of a layer without experts
    intermediate: int  # of one expert, where there are experts
    experts: int  # 0: dense
    top_k: int  # experts that a token uses
    vocab: int
    windows: tuple[int | None, ...]  # tokens that each layer attends to; None: all
    tied: bool
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool

    @property
    def known(self) -> bool:
        return self.model_type in FAMILIES

    @property
    def query(self) -> int:
        """Width of the queries of all heads."""
        return self.heads * self.head_dim

    @property
    def key(self) -> int:
        """Width of the keys of all heads, and of the values."""
        return self.kv_heads * self.head_dim

    @cached_property
    def linears(self) -> dict[str, tuple[int, int, int]]:
        """Name of a linear layer -> (in, out, how many in the whole model)."""
        linears = {
            "q_proj": (self.hidden, self.query, self.layers),
            "k_proj": (self.hidden, self.key, self.layers),
            "v_proj": (self.hidden, self.key, self.layers),
            "o_proj": (self.query, self.hidden, self.layers),
        }
        dense = self.layers - self.sparse_layers
        if dense:
            linears["gate_proj"] = (self.hidden, self.dense_intermediate, dense)
            linears["up_proj"] = (self.hidden, self.dense_intermediate, dense)
            linears["down_proj"] = (self.dense_intermediate, self.hidden, dense)
        return linears

    @property
    def linear_weights(self) -> int:
        return sum(inputs * outputs * count for inputs, outputs, count in self.linears.values())

    @property
    def embedding(self) -> int:
        return self.vocab * self.hidden

    @property
    def head(self) -> int:
        """Parameters of the output head; 0 where it is the embedding."""
        return 0 if self.tied else self.embedding

    @property
    def expert_weights(self) -> int:
        """Parameters of the fused expert matrices, without their biases."""
        return self.sparse_layers * self.experts * 3 * self.hidden * self.intermediate

    @property
    def gate_up(self) -> int:
        """Weights of the first expert matrix of one layer. The second is half as large."""
        return self.experts * self.hidden * 2 * self.intermediate

    @property
    def other(self) -> int:
        """Norms, biases, routers and attention sinks."""
        one_layer = self.family.norms * self.hidden
        if self.family.qk_norm:
            one_layer += 2 * self.head_dim
        if self.qkv_bias:
            one_layer += self.query + 2 * self.key
        if self.o_bias:
            one_layer += self.hidden
        total = self.layers * one_layer
        total += self.hidden  # the norm before the head
        if self.mlp_bias:
            dense = self.layers - self.sparse_layers
            total += dense * (2 * self.dense_intermediate + self.hidden)
        total += self.sparse_layers * self.experts * self.hidden  # routers
        if self.model_type == "gpt_oss":
            # attention sinks, biases of the router and of the experts
            expert_biases = self.experts * (2 * self.intermediate + self.hidden)
            total += self.layers * (self.heads + self.experts + expert_biases)
        return total

    @property
    def parameters(self) -> int:
        return self.embedding + self.head + self.linear_weights + self.expert_weights + self.other


def read_shape(architecture: Mapping[str, Any]) -> Shape:
    """The shape in a parsed config.json.

    Raises:
        ValueError: if one of REQUIRED is missing.
    """
    # A multimodal architecture keeps the numbers of its text model in a section.
    text = {**architecture, **architecture.get("text_config", {})}
    missing = [key for key in REQUIRED if not text.get(key)]
    if missing:
        raise ValueError(f"config.json has no {', '.join(missing)}")
    hidden, layers, heads, vocab = (text[key] for key in REQUIRED)
    model_type = text.get("model_type", "")
    family = FAMILIES.get(model_type, Family())

    experts = first_given(text.get("num_local_experts"), text.get("num_experts"), 0)
    dense_intermediate = first_given(text.get("intermediate_size"), 4 * hidden)
    intermediate, top_k = dense_intermediate, first_given(text.get("num_experts_per_tok"), 0)
    if experts:
        intermediate = first_given(text.get("moe_intermediate_size"), dense_intermediate)
        top_k = first_given(top_k, 2)

    qkv_bias, o_bias = attention_biases(text, model_type, family)
    return Shape(
        model_type=model_type,
        family=family,
        layers=layers,
        sparse_layers=count_sparse_layers(text, layers) if experts else 0,
        hidden=hidden,
        heads=heads,
        kv_heads=first_given(text.get("num_key_value_heads"), heads),
        head_dim=first_given(text.get("head_dim"), family.head_dim, hidden // heads),
        dense_intermediate=dense_intermediate,
        intermediate=intermediate,
        experts=experts,
        top_k=top_k,
        vocab=vocab,
        windows=layer_windows(text, family, layers),
        tied=bool(text.get("tie_word_embeddings", family.tied)),
        qkv_bias=qkv_bias,
        o_bias=o_bias,
        mlp_bias=bool(text.get("mlp_bias")),
    )


def first_given(*values: int | None) -> int:
    """The first value that is neither missing nor 0; 0 if there is no such value."""
    for value in values:
        if value:
            return value
    return 0


def attention_biases(text: Mapping[str, Any], model_type: str, family: Family) -> tuple[bool, bool]:
    """Whether q_proj, k_proj and v_proj have biases, and whether o_proj has one."""
    if family.qkv_bias is not None:
        return family.qkv_bias, False
    biased = bool(text.get("attention_bias", model_type == "gpt_oss"))
    return biased, biased


def count_sparse_layers(text: Mapping[str, Any], layers: int) -> int:
    """How many layers of a mixture of experts have experts; the others are dense."""
    step = first_given(text.get("decoder_sparse_step"), 1)
    dense_layers = text.get("mlp_only_layers") or []
    stepped = range(step - 1, layers, step)
    return len(set(stepped) - set(dense_layers))


def layer_windows(text: Mapping[str, Any], family: Family, layers: int) -> tuple[int | None, ...]:
    """Tokens that each layer attends to. None: all of them."""
    window = text.get("sliding_window")
    if not window or text.get("use_sliding_window") is False:
        return (None,) * layers
    listed = text.get("layer_types")
    if listed:
        sliding = [kind == "sliding_attention" for kind in listed]
    else:
        sliding = [family.slides(layer) for layer in range(layers)]
    return tuple(window if slides else None for slides in sliding)
