"""XGrammar as a constraint engine: `grammar_backend="xgrammar"`, extra `xgrammar`.

It silently ignores schema keywords that it does not know, so its texts may be invalid; ours and llguidance's are not.
Objects are open as the standard has them. Grammars are taken in the `root ::=` form only; nothing is forced (it gives
text, not tokens).
"""

from __future__ import annotations

import threading
import time
from typing import Any

import xgrammar

from ...core.constraint import Constraint, Vocabulary
from ...core.errors import ConstraintError
from .ebnf.reader import is_root_form
from .engines import ConstraintEngine
from .engines_outside import Encode, OutsideConstraint
from .interface import MaskRow
from .options import chosen_options
from .schema.style import STYLES

_MAX_COMPILERS = 4
_compilers: dict[str, Any] = {}
_lock = threading.Lock()


def _compiler(vocabulary: Vocabulary) -> Any:
    with _lock:
        if vocabulary.hash not in _compilers:
            while len(_compilers) >= _MAX_COMPILERS:
                del _compilers[next(iter(_compilers))]
            info = xgrammar.TokenizerInfo(
                [token or b"" for token in vocabulary.token_bytes],
                vocab_type=xgrammar.VocabType.RAW,
                vocab_size=vocabulary.size,
                stop_token_ids=list(vocabulary.eos_ids),
            )
            _compilers[vocabulary.hash] = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        return _compilers[vocabulary.hash]


class _Guide:
    def __init__(self, compiled: Any) -> None:
        self.matcher = xgrammar.GrammarMatcher(compiled)

    def fill(self, row: MaskRow) -> None:
        row.fill(-1)  # it leaves the row alone where everything is allowed
        self.matcher.fill_next_token_bitmask(row.reshape(1, -1))

    def consume(self, token_id: int) -> bool:
        return bool(self.matcher.accept_token(token_id))

    def accepting(self) -> bool:
        return bool(self.matcher.is_completed())

    def forced(self) -> list[int]:
        return []


def compile_with_xgrammar(constraint: Constraint, vocabulary: Vocabulary, encode: Encode | None) -> OutsideConstraint:
    """Raises ConstraintError with XGrammar's message."""
    started = time.perf_counter()
    compiler = _compiler(vocabulary)
    try:
        compiled = _compile(compiler, constraint)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, ConstraintError):
            raise
        message = next((line.strip() for line in str(error).splitlines() if line.strip()), "refused")
        raise ConstraintError(f"xgrammar: {message[:300]}", field=constraint.kind) from None
    return OutsideConstraint("xgrammar", constraint, vocabulary, lambda: _Guide(compiled), started)


def _compile(compiler: Any, constraint: Constraint) -> Any:
    if constraint.kind == "regex":
        chosen_options(constraint, {})
        return compiler.compile_regex(constraint.source)
    if constraint.kind == "ebnf":
        chosen_options(constraint, {})
        if not is_root_form(constraint.source):
            raise ConstraintError("xgrammar takes grammars in the `root ::= ...` form only", field="ebnf")
        return compiler.compile_grammar(constraint.source)
    options = chosen_options(constraint, {"whitespace": tuple(STYLES), "format": ("assert", "annotate")})
    if options["format"] == "annotate":
        raise ConstraintError('xgrammar has no format="annotate"', field="json_schema")
    style = STYLES[options["whitespace"]]
    separators = (style.comma.decode(), style.colon.decode())
    return compiler.compile_json_schema(
        constraint.source, any_whitespace=bool(style.gap), separators=separators, strict_mode=False
    )


def engine() -> ConstraintEngine:
    return ConstraintEngine("xgrammar", compile_with_xgrammar)
