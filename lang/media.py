"""Pictures and videos in a program's stream: from an op's source to a segment of the prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.errors import ProgramError, RequestError
from ..core.media import image_ref, video_ref
from .steps import close_run

if TYPE_CHECKING:
    from ..compiler.ir import Media
    from ..core.request import MediaRef
    from .executor import Executor
    from .stream import Step, Stream


def append_media(executor: Executor, stream: Stream, step: Step) -> None:
    """Read the picture or video and put it into the prompt; the text shows a placeholder.

    Raises ProgramError where the backend takes none or it cannot be read.
    """
    op: Media = step.op
    able = executor.backend.capabilities
    if op.kind not in able.media:
        raise ProgramError(f"the backend {able.name!r} takes no {op.kind}s", where=op.where)
    if stream.is_rendered:
        raise ProgramError(
            f'history="render" writes the conversation anew at each turn, and cannot keep {op.kind}s; use "append"',
            where=op.where,
        )
    stream.begin(executor.tokenizer, stream.open_role is not None)
    close_run(executor, stream)  # warns of special tokens written as text
    stream.append_media(read(op), executor.tokenizer)


def read(op: Media) -> MediaRef:
    """What the op's source holds. Raises ProgramError at the user's line."""
    options = dict(op.options)
    try:
        if op.kind == "image":
            return image_ref(op.source)
        return video_ref(op.source, options["num_frames"], options.get("fps"))  # type: ignore[arg-type]
    except RequestError as error:
        raise ProgramError(str(error), where=op.where) from None
