"""The ids of a straight-line program's stream, found the slow and obvious way (design: all text between two
generations, special tokens or pictures is tokenised as one string)."""

from __future__ import annotations

from typing import Any

from dslc.compiler.ir import Gen, Join, Media, Program, Select, Special, Text, Tokens, walk
from dslc.compiler.printer import print_op


def ids_of(program: Program, tokenizer: Any, kept: str = "") -> list[object]:
    """Token ids, and each generation or picture as a printed mark.

    `kept` is what each generation leaves behind as text that opens the next run.
    """
    items: list[object] = []
    pending = ""

    def close() -> None:
        nonlocal pending
        items.extend(tokenizer.encode(pending))
        pending = ""

    for op in walk(program.body):
        if isinstance(op, Text):
            pending += op.text if isinstance(op.text, str) else f"<value {op.text.id}>"
        elif isinstance(op, Tokens) and op.continues and pending:
            pending += op.text
        elif isinstance(op, Tokens):
            close()
            items.extend(op.ids)
        elif isinstance(op, Special):
            for part in tokenizer.split_special(op.text):
                if isinstance(part, str):
                    pending += part
                else:
                    close()
                    items.append(part)
        elif isinstance(op, (Gen, Select, Media)) or (isinstance(op, Join) and op.mode == "concate_and_append"):
            close()
            items.append(print_op(op))
            pending = "" if isinstance(op, Media) else kept
    close()
    return items
