"""How the next token is drawn. It means what the same keys mean in transformers' generate."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from job.rollout.engine import IGNORED, NEUTRAL


@dataclass(frozen=True)
class Sampling:
    """Keys of GenerationConfig, by their names."""

    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    do_sample: bool = True  # False: the most likely token
    warpers: Sequence[Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        # In the order of transformers' generate
        from transformers.generation import logits_process as processors

        warpers = []
        if self.do_sample and self.top_k:
            warpers.append(processors.TopKLogitsWarper(self.top_k))
        if self.do_sample and self.top_p < 1:
            warpers.append(processors.TopPLogitsWarper(self.top_p))
        if self.do_sample and self.min_p is not None:
            warpers.append(processors.MinPLogitsWarper(self.min_p))
        object.__setattr__(self, "warpers", warpers)

    def draw(
        self, logits: torch.Tensor, seen: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A token for each row. Runs on the device without looking at a value.

        Args:
            logits: (rows, vocabulary).
            seen: (rows, vocabulary) bool, tokens of the row so far; with a repetition penalty only.

        Returns:
            tokens: (rows,) int64.
            logprobs: (rows,) float32, at the temperature, before top_k, top_p and min_p. That is
                how the trainer scores tokens.
        """
        scores = logits.float()
        if seen is not None:
            # Source: CTRL, https://arxiv.org/abs/1909.05858, section 4.1
            penalised = torch.where(
                scores < 0, scores * self.repetition_penalty, scores / self.repetition_penalty
            )
            scores = torch.where(seen, penalised, scores)
        if self.do_sample and self.temperature != 1:
            scores = scores / self.temperature
        filtered = scores
        for warp in self.warpers:
            filtered = warp(None, filtered)
        if self.do_sample:
            # The largest of logits with Gumbel noise is drawn with the probabilities of their
            # softmax (Gumbel 1954). Unlike torch.multinomial this asks nothing of the host.
            noise = torch.empty_like(filtered).exponential_().log_()
            tokens = (filtered - noise).argmax(-1)
        else:
            tokens = filtered.argmax(-1)
        chosen = scores.gather(1, tokens[:, None]).squeeze(1)
        return tokens, chosen - scores.logsumexp(-1)


def from_generation_config(settings: Any) -> tuple[Sampling, list[str]]:
    """What a GenerationConfig says of sampling, and its keys that a Sampling cannot honour.

    Keys at the value that changes nothing do not count.
    """
    from transformers import GenerationConfig

    own = {}
    for key, neutral in NEUTRAL.items():
        value = getattr(settings, key, None)
        own[key] = neutral if value is None else value
    usual = GenerationConfig()
    foreign = []
    for key, value in settings.to_diff_dict().items():
        if key in NEUTRAL or key in IGNORED or key.startswith("_"):
            continue
        if value not in (None, getattr(usual, key, None)):
            foreign.append(key)
    return Sampling(**own), sorted(foreign)
