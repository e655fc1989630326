"""Choices on a backend that gives no log-probs of a prompt: one generation whose output can only be one of them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ..compiler.ir import Select
from ..core.errors import RequestError
from ..core.events import Finished
from ..core.request import GenRequest
from ..core.sampling import SamplingParams
from .choices import choices_method
from .generate import new_request, origin, prompt, seconds_left, seed_of, send
from .stream import Step, Stream
from .turns import turns

if TYPE_CHECKING:
    from .executor import Executor
    from .gens import SelectExpr

METHODS = ("token_length_normalized", "greedy_token_selection")  # what a constrained choice may stand in for


def choose(executor: Executor, stream: Stream, step: Step, choices: tuple[str, ...], number: int) -> None:
    """Send a select as a generation of one of the choices; the stream waits for its result.

    Raises RequestError for a method that needs log-probs of every choice.
    """
    op: Select | SelectExpr = step.op
    able = executor.backend.capabilities
    method = choices_method(op.method).name
    if method not in METHODS:
        raise RequestError(
            f"{method} needs log-probs of every choice, which {able.name} does not give; there it is one of "
            f"{', '.join(METHODS)}, as a generation of one of the choices",
            field="choices_method",
        )
    stream.num_requests += 1
    temperature: Any = op.temperature
    request = new_request(
        executor.hub.new_id(),
        prompt(executor, stream),
        sampling=SamplingParams(
            temperature=temperature,
            max_new_tokens=max(len(choice.encode()) for choice in choices),
            seed=seed_of(executor, stream),
        ),
        timeout_s=seconds_left(executor),
        origin=origin(executor, stream, number),
        messages=turns(executor, stream) if able.chat else (),
        choices=choices,
    )
    send(executor, stream, request, step, partial(_chosen, executor, stream, step, request))


def _chosen(executor: Executor, stream: Stream, step: Step, request: GenRequest, event: Finished) -> None:
    output = event.outputs[0]
    if output.text not in request.choices:
        raise RequestError(f"{output.text!r} was answered, which is none of {list(request.choices)}", field="choices")
    executor.num_generated_tokens += output.num_tokens
    assert step.slot is not None
    stream.append_text(output.text)
    stream.mark(output.text, step.slot)
    step.slot.set(output.text, partial(_meta, request, event))


def _meta(request: GenRequest, event: Finished) -> dict[str, Any]:
    """The meta info of such a choice; it has no scores."""
    return {
        "id": request.id,
        "prompt_tokens": event.num_prompt_tokens,
        "completion_tokens": event.outputs[0].num_tokens,
        "cached_tokens": event.num_cached_tokens,
        "choices": list(request.choices),
        "choices_method": "constrained",
        **dict(event.notes),
    }
