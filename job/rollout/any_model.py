"""Any causal language model of transformers, decoded by its own forward over a cache of ours.

A captured graph can neither grow a cache nor build a mask. So the model's forward is given a Cache
that writes into fixed buffers, and an attention function that knows which places are filled. The
model is otherwise as it is: its norms, its experts, its adapter.

Unsloth replaces the forward of dense models by its own, which takes neither. For a rollout each
module gets back the forward that transformers wrote for it.
"""

import importlib.util
import inspect
import sys
import types
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from transformers import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from job.rollout import functional
from job.rollout.cache import KeyValueCache, LayerShape, Prompts
from job.rollout.gpt_oss import CannotDecode

ATTENTION = "rollout"  # the name of our attention function in transformers' table
KNOWN_LAYERS = ("full_attention", "sliding_attention")


class RolloutCache(Cache):
    """What the model's layers hand their keys and values to.

    While prompts are read, `prompts` holds them. While tokens are decoded, it is None, and
    `positions` holds the places.
    """

    def __init__(self, buffers: KeyValueCache | None):
        super().__init__(layers=[])
        self.buffers = buffers
        self.prompts: Prompts | None = None
        self.positions: torch.Tensor | None = None
        self.layer = 0  # whose keys came last
        self.shapes: dict[int, tuple[int, int]] = {}  # layer -> (kv_heads, head_dim)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.buffers is None:
            self.shapes[layer] = (keys.shape[1], keys.shape[3])
            return keys, values
        if self.prompts is not None:
            self.layer = layer  # attend writes them, because it may need what was there before
            return keys, values
        rows = len(self.positions)
        own_keys = self.buffers.keys[layer][:rows]
        own_values = self.buffers.values[layer][:rows]
        index = (self.positions % own_keys.shape[2])[:, None, None, None]
        index = index.expand(-1, own_keys.shape[1], 1, own_keys.shape[3])
        own_keys.scatter_(2, index, keys.to(own_keys.dtype))
        own_values.scatter_(2, index, values.to(own_values.dtype))
        return own_keys, own_values

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        return 0

    def get_mask_sizes(self, query_length: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return query_length, 0


# The cache whose model is running. Attention functions are called without one.
_running: RolloutCache | None = None


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    sliding_window: int | None = None,
    s_aux: torch.Tensor | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What the model calls in place of its attention. Prompts are padded on the right.

    Args:
        query: (rows, heads, tokens, head_dim).
        key, value: what RolloutCache.update returned.

    Returns:
        (rows, tokens, heads, head_dim), and no weights.
    """
    options = {
        "scale": scaling if scaling is not None else query.shape[-1] ** -0.5,
        "window": sliding_window,
        "sinks": s_aux,
        "softcap": softcap,
    }
    query = query.to(key.dtype)
    if _running.buffers is None:
        return functional.attend_from_start(query, key, value, **options).transpose(1, 2), None
    operations = functional
    if query.is_cuda:
        from job.rollout import kernels as operations
    if _running.prompts is not None:
        prompts, layer = _running.prompts, _running.layer
        out = _running.buffers.read(layer, prompts, query, key, value, operations, **options)
        return out.transpose(1, 2), None
    q = query[:, :, 0].contiguous()
    return operations.attend(q, key, value, _running.positions, **options)[:, None], None


ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)


class ModelDecoder:
    """Decodes with the model's own forward.

    Args:
        model: of transformers, with an adapter of PEFT or without.
        autocast: dtype in which the trainer runs the model's forward; None: as it is.

    Raises:
        CannotDecode: for a model whose layers do not keep keys and values in the usual way.
    """

    def __init__(self, model: Any, autocast: torch.dtype | None = None):
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        self._body = getattr(self._model, self._model.base_model_prefix)
        self._autocast = autocast
        self._text_config = self._model.config.get_text_config()
        head = self._model.get_output_embeddings().weight
        self.device, self.vocabulary = head.device, head.shape[0]
        self.dtype = autocast or head.dtype
        self._own_forwards: dict[Any, Any] = {}
        if "unsloth" in sys.modules:
            self._own_forwards = forwards_as_written(self._model, self._text_config)
        self._shapes = self._probe()

    def _probe(self) -> list[LayerShape]:
        """The shape of each layer's keys, as a forward of two tokens shows them."""
        config = self._text_config
        kinds = getattr(config, "layer_types", None)
        count = config.num_hidden_layers
        if kinds is None:
            kinds = ["full_attention"] * count
        for kind in kinds:
            if kind not in KNOWN_LAYERS:
                raise CannotDecode(f"it has layers of {kind}")
        probe = RolloutCache(None)
        with torch.no_grad():
            self._forward(self._body, probe, torch.zeros((1, 2), dtype=torch.int64))
        if sorted(probe.shapes) != list(range(count)):
            raise CannotDecode("its layers share keys and values, or keep none")
        shapes = []
        for layer, kind in enumerate(kinds):
            window = config.sliding_window if kind == "sliding_attention" else None
            shapes.append(LayerShape(*probe.shapes[layer], window))
        return shapes

    def make_cache(self, rows: int, tokens: int) -> KeyValueCache:
        return KeyValueCache(self._shapes, rows, tokens, self.dtype, self.device)

    def refresh(self) -> None:
        """Nothing: the forward reads the weights that are trained."""

    def read_prompts(self, cache: KeyValueCache, prompts: Prompts) -> None:
        wrapped = RolloutCache(cache)
        wrapped.prompts = prompts
        self._forward(self._body, wrapped, prompts.ids, prompts.positions)

    def decode(
        self, cache: KeyValueCache, tokens: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        wrapped = RolloutCache(cache)
        wrapped.positions = positions
        return self._forward(self._model, wrapped, tokens[:, None], positions[:, None]).logits[:, 0]

    def _forward(
        self,
        module: Any,
        cache: RolloutCache,
        ids: torch.Tensor,
        positions: torch.Tensor | None = None,
    ) -> Any:
        if positions is None:
            positions = torch.arange(ids.shape[1], device=self.device)[None].expand(len(ids), -1)
        with ExitStack() as within:
            within.enter_context(self._decoding(cache))
            if self._autocast is not None:
                within.enter_context(torch.autocast(self.device.type, self._autocast))
            return module(
                input_ids=ids.to(self.device),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )

    @contextmanager
    def _decoding(self, cache: RolloutCache) -> Iterator[None]:
        """The model in evaluation mode, with our attention, and nothing compiled.

        What is compiled may hold CUDA graphs of its own, and those cannot be captured.
        """
        global _running
        training = self._model.training
        before = self._text_config._attn_implementation
        self._model.eval()
        self._text_config._attn_implementation = ATTENTION
        _running = cache
        try:
            with replaced(self._own_forwards), torch.compiler.set_stance("force_eager"):
                yield
        finally:
            _running = None
            self._text_config._attn_implementation = before
            self._model.train(training)


def forwards_as_written(model: torch.nn.Module, config: Any) -> dict[torch.nn.Module, Any]:
    """Each module of the model, and the forward that transformers wrote for its class.

    The file of the architecture is loaded a second time, under another name, so that what was
    replaced in the first copy does not matter.

    Raises:
        CannotDecode: if transformers has no such file.
    """
    architecture = config.model_type.removesuffix("_text")
    name = f"transformers.models.{architecture}.modeling_{architecture}"
    try:
        original = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        original = None
    if original is None:
        raise CannotDecode(f"transformers has no file for {architecture}")
    # In the same package, so that its relative imports work
    spec = importlib.util.spec_from_file_location(f"{name}_as_written", original.origin)
    written = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = written  # its classes look themselves up
    spec.loader.exec_module(written)

    forwards = {}
    for module in model.modules():
        kind = getattr(written, type(module).__name__, None)
        if "RotaryEmbedding" in type(module).__name__:
            rotary = next(value for key, value in vars(written).items() if "RotaryEmb" in key)
            own = rotary(config=config).to(next(model.parameters()).device)
            forwards[module] = own.forward
        elif kind is not None and not calls_super(kind.forward):
            forwards[module] = types.MethodType(kind.forward, module)
    return forwards


def calls_super(method: Any) -> bool:
    """Whether a method works on objects of its own class only."""
    return "__class__" in inspect.unwrap(method).__code__.co_freevars


@contextmanager
def replaced(forwards: dict[torch.nn.Module, Any]) -> Iterator[None]:
    """The modules with these forwards."""
    before = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:
                module.forward = forward
