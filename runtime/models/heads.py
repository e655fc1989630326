"""Heads other than a vocabulary: embeddings, classification of sequences and of tokens, rewards.

A decoder family gets them from here: `LlamaForSequenceClassification` is `LlamaForCausalLM` with another head. `task`
says what a row of results is; `pooling` which rows of a sequence are wanted ("last", "cls": the first, "mean",
"tokens": all).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor

from ..layers.attention import AttentionType, RadixAttention
from ..layers.linear import Linear

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ..model_config import ModelConfig
    from .base import CausalLM


def num_labels(config: ModelConfig) -> int:
    """How many classes config.json names."""
    names = config.fields.get("id2label")
    return len(names) if isinstance(names, dict) and names else config.read.integer("num_labels", 2)


class Head:
    """Mixed in before a family's ForCausalLM, whose vocabulary head it drops."""

    task = "embed"
    pooling = "last"

    def __init__(self: Any, config: ModelConfig, act_dtype: torch.dtype) -> None:
        super().__init__(config, act_dtype)  # type: ignore[call-arg]
        del self.lm_head
        self.add_head(config)
        if config.fields.get("is_causal") is False or config.fields.get("use_bidirectional_attention"):
            see_everything(self)

    def add_head(self, config: ModelConfig) -> None:
        """Make the head's layers, under the checkpoint's names."""

    def is_ignored(self: Any, name: str) -> bool:
        return name.startswith("lm_head.") or bool(super().is_ignored(name))  # type: ignore[misc]

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> [R, hidden] or [R, labels], float32."""
        return hidden.float()


class SequenceClassifier(Head):
    """score(x) of the last token."""

    task = "classify"

    def add_head(self: Any, config: ModelConfig) -> None:
        self.score = Linear(config.hidden_size, num_labels(config))

    def logits(self: Any, hidden: Tensor) -> Tensor:
        out: Tensor = self.score(hidden).float()
        return out


class TokenClassifier(SequenceClassifier):
    """score(x) of each token."""

    task = "classify_tokens"
    pooling = "tokens"

    def add_head(self: Any, config: ModelConfig) -> None:
        self.score = Linear(config.hidden_size, num_labels(config), bias=True)


class RewardModel(Head):
    """Qwen's reward models (arXiv 2409.12122): score.2(relu(score.0(x))) of the last token."""

    task = "classify"
    CHECKPOINT_NAMES = (("score_in.", "score.0."), ("score_out.", "score.2."))

    def add_head(self: Any, config: ModelConfig) -> None:
        self.score_in = Linear(config.hidden_size, config.hidden_size, bias=True)
        self.score_out = Linear(config.hidden_size, config.read.integer("num_labels", 1), bias=True)

    def logits(self: Any, hidden: Tensor) -> Tensor:
        out: Tensor = self.score_out(F.relu(self.score_in(hidden))).float()
        return out


HEADS: dict[str, type[Head]] = {
    "ForSequenceClassification": SequenceClassifier,
    "ForTokenClassification": TokenClassifier,
    "ForRewardModel": RewardModel,
    "TextModel": Head,
    "Model": Head,
}


def headed(architecture: str, known: Mapping[str, type[CausalLM]]) -> type[CausalLM] | None:
    """The class of an architecture that is a known family with another head; None if it is none."""
    for suffix, head in HEADS.items():
        stem = architecture.removesuffix(suffix)
        if stem == architecture:
            continue
        for name in (f"{stem}ForCausalLM", f"{stem}LMHeadModel"):
            if name in known:
                return with_head(head, known[name], architecture)
    return None


def with_head(head: type[Head], family: type[CausalLM], name: str = "") -> type[CausalLM]:
    """A family's class with that head."""
    if family.task != "generate":
        return family
    names = (*head.__dict__.get("CHECKPOINT_NAMES", ()), *family.CHECKPOINT_NAMES)
    made: type[CausalLM] = type(
        name or f"{family.__name__}{head.__name__}", (head, family), {"CHECKPOINT_NAMES": names}
    )
    return made


def see_everything(model: Any) -> None:
    """Have all layers attend in both directions: such a model reads its whole input at once."""
    for module in model.modules():
        if isinstance(module, RadixAttention):
            module.attn_type = AttentionType.ENCODER_ONLY
            module.sliding_window = None
    model.is_bidirectional = True
