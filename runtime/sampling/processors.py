"""Logit processors of one's own: functions registered by name, which a request names.

They are trusted code, and off unless the engine has `enable_custom_logit_processor`. Only names travel in requests:
nothing that arrives is unpickled or imported. A processor works after penalties, bias and barred end tokens, and before
the constraint's mask, which it cannot widen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...core.errors import EngineError, RequestError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from ..request import Sequence as RunningSequence


@dataclass(frozen=True, slots=True)
class ProcessedRow:
    """One output being drawn, as its processor sees it: the request's `custom_params`, and all its ids so far."""

    params: dict[str, Any]
    prompt_ids: npt.NDArray[np.int32]
    output_ids: tuple[int, ...]


LogitProcessor = Callable[["Tensor", Sequence[ProcessedRow]], None]
"""Changes logits [b, V] float32 in place; row i of them is rows[i]."""

_PROCESSORS: dict[str, LogitProcessor] = {}


def register_logit_processor(name: str, processor: LogitProcessor) -> None:
    """Let requests name this processor. Raises ValueError if the name stands for another one already."""
    if _PROCESSORS.setdefault(name, processor) is not processor:
        raise ValueError(f"a logit processor {name!r} is registered already")


def unregister_logit_processor(name: str) -> None:
    """Take a processor back; requests that are running under it fail. Raises KeyError if there is none."""
    del _PROCESSORS[name]


def logit_processor(name: str) -> LogitProcessor:
    """The processor of that name. Raises RequestError listing the names there are."""
    if name not in _PROCESSORS:
        known = ", ".join(sorted(_PROCESSORS)) or "none is registered (register_logit_processor)"
        raise RequestError(f"no processor {name!r}; choices: {known}", field="logit_processor")
    return _PROCESSORS[name]


def read_params(text: str) -> dict[str, Any]:
    """`SamplingParams.custom_params` as the dict it stands for. Raises RequestError."""
    try:
        params = json.loads(text or "{}")
    except ValueError as error:
        raise RequestError(f"must be a dict of JSON values: {error}", field="custom_params") from None
    if not isinstance(params, dict):
        raise RequestError(f"must be a dict of JSON values, not {text!r}", field="custom_params")
    return params


def process_(logits: Tensor, seqs: Sequence[RunningSequence], at: Sequence[int]) -> None:
    """Run the processors of the rows `at` of logits [S, V], of `seqs`, in place: each once, on its rows together."""
    by_name: dict[str, list[int]] = {}
    for i in at:
        name = seqs[i].request.source.logit_processor
        assert name is not None
        by_name.setdefault(name, []).append(i)
    for name, places in by_name.items():
        picked = logits[places]
        rows = [
            ProcessedRow(
                read_params(seqs[i].request.source.sampling.custom_params),
                seqs[i].request.prompt_ids,
                tuple(seqs[i].output_ids),
            )
            for i in places
        ]
        try:
            logit_processor(name)(picked, rows)
        except Exception as error:
            raise EngineError(f"the logit processor {name!r} failed: {error!r}") from error
        logits[places] = picked
