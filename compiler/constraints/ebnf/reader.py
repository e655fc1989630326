"""A grammar's text to rules, in whichever of the two forms it is written."""

from __future__ import annotations

import re
from functools import lru_cache

from ....core.errors import ConstraintError
from . import lark_form, root_form
from .grammar import Grammar
from .networks import Networks

MAX_CHARS = 256 * 2**10

# A rule of the `root ::= ...` form at the beginning of a line; lark's form has no `::=`.
_ROOT_FORM = re.compile(r"^[ \t]*[A-Za-z_][A-Za-z0-9_.\-]*\s*::=", re.MULTILINE)


def read_grammar(source: str) -> Grammar:
    """The grammar in `source`: in the `root ::= ...` form if a line begins with `name ::=`, otherwise in lark's.

    Raises ConstraintError with line and column for a grammar that is wrong.
    """
    if not source.strip():
        raise ConstraintError("the grammar is empty; write `start: ...` or `root ::= ...`", field="ebnf")
    if len(source) > MAX_CHARS:
        raise ConstraintError(f"the grammar has {len(source)} characters, more than {MAX_CHARS}", field="ebnf")
    return root_form.read(source) if is_root_form(source) else lark_form.read(source)


def is_root_form(source: str) -> bool:
    """Whether a grammar is written as `root ::= ...`."""
    return _ROOT_FORM.search(source) is not None


@lru_cache(maxsize=16)
def networks_of(source: str) -> Networks:
    """What a grammar's text is made into once; machines over it are independent of each other."""
    return Networks(read_grammar(source))
