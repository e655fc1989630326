"""llguidance as a constraint engine: `grammar_backend="llguidance"`, extra `llguidance`.

Refused by it (and so here): `oneOf` that it cannot prove disjoint, unknown formats, uniqueItems, dependencies, `not`,
`if`, `format="annotate"`. Its numbers may be spelled in more ways than ours (`1.0`, `1e0`). Its terminals take the
longest match, ours any. Grammars in the `root ::=` form are put into lark's by llguidance's own converter.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import llguidance
import llguidance.gbnf_to_lark

from ...core.constraint import Constraint, Vocabulary
from ...core.errors import ConstraintError
from .ebnf.reader import is_root_form
from .engines import ConstraintEngine
from .engines_outside import Encode, OutsideConstraint
from .interface import MaskRow
from .options import chosen_options
from .schema.style import STYLES

_MAX_TOKENIZERS = 4
_tokenizers: dict[tuple[str, bool], Any] = {}
_lock = threading.Lock()


class _Wrapped:
    """What llguidance asks of a tokenizer. Tokens without bytes begin with 0xFF, which is in no text."""

    def __init__(self, vocabulary: Vocabulary, encode: Encode | None) -> None:
        self.eos_token_id = vocabulary.eos_ids[0]
        self.bos_token_id = None
        ends = set(vocabulary.eos_ids)
        self.tokens = [
            token if token and i not in ends else b"\xff<%d>" % i for i, token in enumerate(vocabulary.token_bytes)
        ]
        self.special_token_ids = [i for i, t in enumerate(vocabulary.token_bytes) if t is None or i in ends]
        self.encode = encode
        self.whole = {token: i for i, token in reversed(list(enumerate(self.tokens)))}

    def __call__(self, text: str | bytes) -> list[int]:
        data = text.encode() if isinstance(text, str) else text
        if self.encode is not None:
            return self.encode(data.decode("utf-8", "replace"))
        return [self.whole[data[i : i + 1]] for i in range(len(data))]


def _tokenizer(vocabulary: Vocabulary, encode: Encode | None) -> Any:
    key = (vocabulary.hash, encode is None)
    with _lock:
        if key not in _tokenizers:
            while len(_tokenizers) >= _MAX_TOKENIZERS:
                del _tokenizers[next(iter(_tokenizers))]
            wrapper = llguidance.TokenizerWrapper(_Wrapped(vocabulary, encode))
            _tokenizers[key] = llguidance.LLTokenizer(wrapper, slices=llguidance.LLTokenizer.json_slices())
        return _tokenizers[key]


class _Guide:
    def __init__(self, matcher: Any, forces: bool) -> None:
        self.matcher = matcher
        self.forces = forces

    def fill(self, row: MaskRow) -> None:
        if self.matcher.is_stopped():
            row.fill(0)
        else:
            self.matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        self.check()

    def consume(self, token_id: int) -> bool:
        return bool(self.matcher.consume_token(token_id))

    def accepting(self) -> bool:
        return bool(self.matcher.is_accepting())

    def forced(self) -> list[int]:
        return list(self.matcher.compute_ff_tokens()) if self.forces else []

    def check(self) -> None:
        if self.matcher.is_error():
            raise ConstraintError(f"llguidance: {_first_line(self.matcher.get_error())}", field="grammar_backend")


def compile_with_llguidance(constraint: Constraint, vocabulary: Vocabulary, encode: Encode | None) -> OutsideConstraint:
    """Raises ConstraintError with llguidance's message."""
    started = time.perf_counter()
    tokenizer = _tokenizer(vocabulary, encode)
    first = llguidance.LLMatcher(tokenizer, _grammar(constraint), log_level=0)
    if first.is_error():
        raise ConstraintError(f"llguidance: {_first_line(first.get_error())}", field=constraint.kind)
    return OutsideConstraint(
        "llguidance", constraint, vocabulary, lambda: _Guide(first.deep_copy(), encode is not None), started
    )


def _grammar(constraint: Constraint) -> str:
    try:
        if constraint.kind == "regex":
            chosen_options(constraint, {})
            return str(llguidance.LLMatcher.grammar_from_regex(constraint.source))
        if constraint.kind == "ebnf":
            chosen_options(constraint, {})
            source = constraint.source
            if is_root_form(source):
                source = llguidance.gbnf_to_lark.gbnf_to_lark(source)
            return str(llguidance.LLMatcher.grammar_from_lark(source))
        options = chosen_options(constraint, {"whitespace": tuple(STYLES), "format": ("assert", "annotate")})
        if options["format"] == "annotate":
            raise ConstraintError('llguidance has no format="annotate"', field="json_schema")
        style = STYLES[options["whitespace"]]
        layout: Any = {
            "item_separator": style.comma.decode(),
            "key_separator": style.colon.decode(),
            "whitespace_flexible": bool(style.gap),
        }
        return str(llguidance.LLMatcher.grammar_from_json_schema(json.loads(constraint.source), overrides=layout))
    except (ValueError, RecursionError, llguidance.gbnf_to_lark.GbnfToLarkError) as error:
        if isinstance(error, ConstraintError):
            raise
        raise ConstraintError(f"llguidance: {_first_line(str(error))}", field=constraint.kind) from None


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "refused")[:300]


def engine() -> ConstraintEngine:
    return ConstraintEngine("llguidance", compile_with_llguidance)
