"""outlines-core as a constraint engine: `grammar_backend="outlines"`. An index of all states, made ahead of time.

It has regular constraints only, and ignores schema keywords that it does not know, as XGrammar does. Two things are
done around it. It drops every token that leads from a state where the text may end to one where it may not (as of
0.2.14: `(0|[1-9][0-9]*)(\\.[0-9]+)?` refuses `0.2`); so an end marker, the byte 0, is put behind the expression: then
no state within a text is one where it may end, and a text may end where the marker can follow. Tokens with that byte
are left out. And its index takes space by states times tokens: what would be too large is refused.
"""

from __future__ import annotations

import threading
import time
from typing import Any

import outlines_core
from outlines_core import json_schema

from ...core.constraint import Constraint, Vocabulary
from ...core.errors import ConstraintError
from .bounds import positions_of
from .engines import ConstraintEngine
from .engines_outside import Encode, OutsideConstraint
from .interface import MaskRow
from .options import chosen_options
from .schema.style import STYLES

MAX_INDEXED = 60_000_000  # positions of the expression times tokens: about 10 s
_END, _END_TEXT = b"\0", r"\x00"
_GAP = "@gap@"
_MAX_VOCABULARIES = 4
_vocabularies: dict[str, Any] = {}
_lock = threading.Lock()


def _vocabulary(vocabulary: Vocabulary) -> Any:
    """Theirs: tokens with the byte 0 left out, and the end marker as the id behind the last."""
    with _lock:
        if vocabulary.hash not in _vocabularies:
            while len(_vocabularies) >= _MAX_VOCABULARIES:
                del _vocabularies[next(iter(_vocabularies))]
            table: dict[bytes, list[int]] = {_END: [vocabulary.size]}
            for token, data in enumerate(vocabulary.token_bytes):
                if data and _END not in data and token not in vocabulary.eos_ids:
                    table.setdefault(data, []).append(token)
            _vocabularies[vocabulary.hash] = outlines_core.Vocabulary(vocabulary.size + 1, table)
        return _vocabularies[vocabulary.hash]


class _Guide:
    """A state of an index, which several generations share."""

    def __init__(self, index: Any, end: int) -> None:
        self.index, self.end = index, end
        self.state = index.get_initial_state()

    def fill(self, row: MaskRow) -> None:
        row.fill(0)
        for token in self.index.get_allowed_tokens(self.state) or ():
            if token < self.end:
                row[token >> 5] |= _BITS[token & 31]

    def consume(self, token_id: int) -> bool:
        after = self.index.get_next_state(self.state, token_id)
        if after is None:
            return False
        self.state = after
        return True

    def accepting(self) -> bool:
        after = self.index.get_next_state(self.state, self.end)
        return after is not None and bool(self.index.is_final_state(after))

    def forced(self) -> list[int]:
        return []


_BITS = [1 << bit if bit < 31 else -(1 << 31) for bit in range(32)]


def compile_with_outlines(constraint: Constraint, vocabulary: Vocabulary, encode: Encode | None) -> OutsideConstraint:
    """Raises ConstraintError with outlines-core's message, and for an index that would be too large."""
    started = time.perf_counter()
    pattern = constraint.source if constraint.kind == "regex" else _expression(constraint)
    if constraint.kind == "regex":
        chosen_options(constraint, {})
    size = positions_of(pattern) * vocabulary.size
    if size > MAX_INDEXED:
        raise ConstraintError(
            f"outlines: an index of {positions_of(pattern)} positions and {vocabulary.size} tokens is too large; "
            'grammar_backend="automaton" needs none',
            field=constraint.kind,
        )
    index = _refused(constraint, lambda: outlines_core.Index(f"(?:{pattern}){_END_TEXT}", _vocabulary(vocabulary)))
    return OutsideConstraint("outlines", constraint, vocabulary, lambda: _Guide(index, vocabulary.size), started)


def _expression(constraint: Constraint) -> str:
    """The schema as a regular expression, in the constraint's spacing."""
    options = chosen_options(constraint, {"whitespace": tuple(STYLES), "format": ("assert", "annotate")})
    if options["format"] == "annotate" or options["whitespace"] == "free":
        refused = "format='annotate'" if options["format"] == "annotate" else "whitespace='free'"
        raise ConstraintError(f"outlines has no {refused}", field="json_schema")
    style = STYLES[options["whitespace"]]
    found = _refused(constraint, lambda: json_schema.build_regex_from_schema(constraint.source, _GAP))
    spaced = str(found).replace(f"{_GAP}:{_GAP}", style.colon.decode())
    for comma in (f"{_GAP},{_GAP}", f",{_GAP}"):
        spaced = spaced.replace(comma, style.comma.decode())
    return spaced.replace(_GAP, "")


def _refused(constraint: Constraint, work: Any) -> Any:
    """What `work` gives; its errors, and the panics of outlines-core, as ConstraintErrors."""
    try:
        return work()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        message = next((line.strip() for line in str(error).splitlines() if line.strip()), "refused")
        raise ConstraintError(f"outlines: {message[:300]}", field=constraint.kind) from None


def engine() -> ConstraintEngine:
    return ConstraintEngine("outlines", compile_with_outlines, frozenset(("regex", "json_schema")))
