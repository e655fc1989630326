"""What an attention backend is, and the registry of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, TypeVar

from ...core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ..batch import ForwardBatch
    from ..layers.attention import RadixAttention
    from ..memory.kv_pool import KVPool
    from ..memory.request_table import ReqToTokenPool


class AttentionBackend(ABC):
    """Attention over the paged KV pool. Made by the model runner, once; used by one forward at a time.

    For each forward `init_forward_metadata` is called first, then `forward` for each layer in turn.
    """

    is_deterministic: ClassVar[bool] = False  # whether a row's bits depend on its own sequence alone

    def __init__(self, req_to_token: ReqToTokenPool) -> None:
        self.req_to_token = req_to_token

    def captures_decodes(self, head_dim: int) -> bool:
        """Whether what it does in a batch of plain decodes, with heads of this size, can be repeated by a graph.

        It then depends on the number of requests alone, reads the batch's own tensors and what was made ready for it,
        and asks the host for nothing.
        """
        return False

    @abstractmethod
    def init_forward_metadata(self, fb: ForwardBatch) -> None:
        """Whatever all layers of this forward share (indices, masks), kept in `fb.scratch`."""

    @abstractmethod
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, layer: RadixAttention, fb: ForwardBatch, kv_pool: KVPool
    ) -> Tensor:
        """q [T, heads, D], k and v [T, kv_heads, D] (in the pool already) -> [T, heads, D] in q's dtype.

        All options of the layer count, its `sinks` too.
        """


_BACKENDS: dict[str, type[AttentionBackend]] = {}
_B = TypeVar("_B", bound=type[AttentionBackend])


def register_attention_backend(name: str) -> Callable[[_B], _B]:
    """Class decorator: makes a backend selectable as `attention_backend=name`. Raises ValueError if it is taken."""

    def register(backend: _B) -> _B:
        if _BACKENDS.setdefault(name, backend) is not backend:
            raise ValueError(f"attention backend {name!r} is registered already, as {_BACKENDS[name].__qualname__}")
        return backend

    return register


def attention_backend(name: str, field: str = "attention_backend") -> type[AttentionBackend]:
    """The backend of that name. Raises ConfigError for the option `field`, listing the choices."""
    if name not in _BACKENDS:
        raise ConfigError(f"unknown backend {name!r}; choices: auto, {', '.join(sorted(_BACKENDS))}", field=field)
    return _BACKENDS[name]


def backend_names() -> list[str]:
    """Every registered backend."""
    return sorted(_BACKENDS)
