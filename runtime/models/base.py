"""What every model is to the runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..layers.linear import Linear
from ..layers.logits import LogitsProcessor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from ..attention.base import AttentionBackend
    from ..batch import ForwardBatch
    from ..memory.kv_pool import KVPool
    from ..model_config import ModelConfig


@runtime_checkable
class HasParts(Protocol):
    """A module whose parameters have other names, or another shape, in the checkpoint."""

    def checkpoint_parts(self, prefix: str) -> Iterable[tuple[str, Tensor]]:
        """(checkpoint name, a view of a parameter where its values go); `prefix` is the module's own name."""


class CausalLM(nn.Module, ABC):
    """A decoder-only language model: `forward` gives final hidden states, `logits` turns wanted ones into logits.

    A family's module names are those of the checkpoint, except where a merged layer stands for several. A family is
    made on the meta device by the loader, which then gives it memory and weights. `lm_head` is made after the embedding
    (which it may share): a tied parameter goes by its first name.
    """

    lm_head: Linear

    task: ClassVar[str] = "generate"  # what its results are for: or embed, classify, classify_tokens
    pooling: ClassVar[str] = "last"  # which rows' results count where there is no vocabulary; see `heads`
    is_bidirectional: bool = False  # rows see what comes after them: inputs go whole
    is_generic: ClassVar[bool] = False  # transformers' code, not row-wise

    IGNORED_TENSORS: ClassVar[tuple[str, ...]] = ("rotary_emb.inv_freq",)  # name endings a checkpoint may have in vain
    CHECKPOINT_NAMES: ClassVar[tuple[tuple[str, str], ...]] = ()  # (part of our name, what the checkpoint has there)
    BASE_PREFIX: ClassVar[str] = "model."  # of all names but the head's; checkpoints of the model without head lack it

    def __init__(self, config: ModelConfig, act_dtype: torch.dtype) -> None:
        super().__init__()
        self.config = config
        self.act_dtype = act_dtype
        self.logits_processor = LogitsProcessor(config.final_logit_cap)

    @property
    def position_offset(self) -> int:
        """What the model adds to positions, which its table must have room for."""
        return 0

    @abstractmethod
    def forward(
        self, input_ids: Tensor, positions: Tensor, fb: ForwardBatch, kv_pool: KVPool, attn: AttentionBackend
    ) -> Tensor:
        """ids, positions [T] int64 -> normalised final hidden states [T, hidden]; writes the rows' KV to the pool."""

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, hidden] -> [R, vocab] float32."""
        out: Tensor = self.logits_processor(hidden, self.lm_head)
        return out

    def checkpoint_targets(self) -> Mapping[str, Tensor]:
        """For each tensor name of the checkpoint, where its values go (a view of a parameter).

        A tied parameter appears once.
        """
        targets: dict[str, Tensor] = {}
        seen: set[int] = set()
        for path, module in self.named_modules():
            own = [(name, param) for name, param in module.named_parameters(recurse=False) if id(param) not in seen]
            seen.update(id(param) for _, param in own)
            parts: Iterable[tuple[str, Tensor]] = [(f"{path}.{name}" if path else name, p.data) for name, p in own]
            if own and isinstance(module, HasParts):
                parts = module.checkpoint_parts(path)
            targets.update((self._checkpoint_name(name), target) for name, target in parts)
        return targets

    def is_ignored(self, name: str) -> bool:
        """Whether a checkpoint may hold this tensor in vain."""
        return name.endswith(self.IGNORED_TENSORS)

    def _checkpoint_name(self, name: str) -> str:
        for ours, theirs in self.CHECKPOINT_NAMES:
            name = name.replace(ours, theirs)
        return name
