"""From a Python function to a Program: the rewritten copy, its hooks, and the paths through it.

`trace` is the entry. Which calls may run in the copy is decided in `hooks` and `purity`; how paths become regions in
`merge`.
"""

from .purity import TRACEABLE
from .rewrite import NoSource
from .symbols import Symbol, operand
from .trace import Guards, Traced, strict_error, trace

__all__ = ["TRACEABLE", "Guards", "NoSource", "Symbol", "Traced", "operand", "strict_error", "trace"]
