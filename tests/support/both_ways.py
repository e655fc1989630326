"""A program run as it is written and from its plan, on answers that depend on the prompt: both show the same."""

import copy
import hashlib
from typing import Any

from support.scripted import ScriptedBackend


def answers(seed: int = 1) -> ScriptedBackend:
    """A backend that answers one to three of the characters a, b, c and space."""

    def answer(prompt: str) -> str:
        digest = hashlib.sha256(f"{seed}{prompt}".encode()).digest()
        return "".join("ab c"[b % 4] for b in digest[: 1 + digest[0] % 3])

    return ScriptedBackend(answer)


def both_ways(function: Any, calls: list[Any] | None = None, whole: bool = True, **arguments: Any) -> Any:
    """The state of the compiled run. Asserts that the interpreted one shows the same: text, variables, result, what
    became of the arguments, and `calls`, a list that the program's own functions fill. `whole`: it must have compiled.
    """
    shown, state = [], None
    for compiled in (False, None):
        given = copy.deepcopy(arguments)
        if calls is not None:
            calls.clear()
        state = function.run(**given, backend=answers(), compiled=compiled, seed=1)
        shown.append((state.text(), state.variables(), state.ret_value, given, list(calls or ())))
    assert shown[1] == shown[0]
    assert not whole or function.compile().is_whole, str(function.compile())
    return state
