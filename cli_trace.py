"""`dslc run --trace` and `--timeline`: the engine's launches told to what watches the run, and its reports."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .cli_programs import CliError
from .compiler.watch import Watched
from .runtime.trace import StepTrace

if TYPE_CHECKING:
    from .compiler.plan import Plan
    from .core.backend import Backend
    from .runtime.engine import Engine
    from .runtime.scheduling.batch import Batch
    from .runtime.scheduling.messages import Message


class ForwardLog(StepTrace):
    """An engine's step trace that passes the rows of each launch on."""

    def __init__(self, watched: Watched) -> None:
        super().__init__()
        self.watched = watched

    def record(self, step: int, messages: Sequence[Message], batch: Batch | None) -> None:
        """Called by the engine before each launch."""
        if batch is None:
            return
        rows: dict[str, int] = {}
        for seq in batch.decodes:
            rows[seq.request.id] = rows.get(seq.request.id, 0) + 1
        for extend in batch.extends:
            name = extend.seq.request.id
            rows[name] = rows.get(name, 0) + extend.num_rows
        self.watched.note_forward(rows)


def watch(engine: Engine, backend: Backend, with_tokens: bool) -> Watched:
    """`backend` (the engine, or what stands around it), watched."""
    watched = Watched(backend, with_tokens)
    engine.trace = ForwardLog(watched)
    return watched


def report(watched: Watched, plan: Plan | None, tree: bool, timeline: Path | None) -> None:
    """Print the tree to the standard error, and write the timeline."""
    from .compiler.run_tree import print_trace
    from .compiler.timeline import print_timeline

    trace = watched.trace()
    if tree:
        sys.stderr.write(print_trace(trace, plan, watched.tokenizer))
    if timeline is not None:
        try:
            timeline.write_text(print_timeline(trace, plan), encoding="utf-8")
        except OSError as error:
            raise CliError(f"--timeline {timeline}: {error}") from None
