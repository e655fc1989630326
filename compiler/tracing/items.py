"""Loops over parts of the program whose number only the run knows: the branches of such a fork, alone or zipped.

A Loop of the IR goes over plain values. `Items` says which ones, and what the body gets for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from .symbols import Symbol

if TYPE_CHECKING:
    from .tracer import PathTracer


class Items(NamedTuple):
    """`over` is what the loop goes over, `item(value)` what stands for a value of it in the body."""

    over: Symbol
    item: Callable[[Symbol], Any]


def items_of(value: Any) -> Items | None:
    """The items of something that has them (`__dslc_items__`), or is them; None of anything else."""
    if isinstance(value, Items):
        return value
    found = getattr(type(value), "__dslc_items__", None)
    if found is None:
        return None
    items: Items = found(value)
    return items


def over_items(tracer: PathTracer, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """`zip`, `enumerate`, `list` and the like of arguments some of which have items; `len` of one that has."""
    found = [items_of(arg) for arg in args]
    overs = [arg if items is None else items.over for arg, items in zip(args, found, strict=True)]
    if function is len:
        return tracer.expr("len", *overs)
    if function not in (zip, enumerate):
        (items,) = found
        assert items is not None
        over = tracer.host_call(list, [tracer.host_call(function, overs, kwargs, is_pure=True)], is_pure=True)
        return Items(over, items.item)
    # As a list: an iterator could be gone through once only, wherever the call is made.
    over = tracer.host_call(list, [tracer.host_call(function, overs, kwargs, is_pure=True)], is_pure=True)

    def item(value: Symbol) -> Any:
        if function is enumerate:
            assert found[0] is not None
            return value[0], found[0].item(value[1])
        return tuple([value[i] if items is None else items.item(value[i]) for i, items in enumerate(found)])

    return Items(over, item)


class Lost:
    """What a loop's own variable is behind the loop, where it was a part of the program: to use it is a break."""

    __dslc_traceable__ = True

    def __init__(self, tracer: PathTracer, name: str) -> None:
        object.__setattr__(self, "_lost", (tracer, name))

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        lost: tuple[PathTracer, str] = object.__getattribute__(self, "_lost")
        tracer, name = lost
        tracer.break_here(f"{name!r} goes on from a loop as a part of the program")

    __getattr__ = __setattr__ = __getitem__ = __setitem__ = __contains__ = __iter__ = __len__ = __call__ = _refuse
    __add__ = __radd__ = __iadd__ = __bool__ = __format__ = __str__ = __eq__ = __enter__ = __exit__ = _refuse
    __hash__ = object.__hash__


FUNCTIONS = frozenset({zip, enumerate, list, tuple, reversed, iter, len})
