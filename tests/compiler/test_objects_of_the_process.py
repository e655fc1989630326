"""Operations on the user's own objects: a traced copy makes none of them, and each run makes each once, in its place.

The oracle is the interpreter: the same texts and the same calls of the user's methods, before and after the object has
changed, for every operation that Python lets a class define.
"""

from __future__ import annotations

import collections
import contextlib
import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

import dslc
from dslc.compiler.printer import print_program

CALLS: list[str] = []


class Persona:
    """Every operation is noted."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        CALLS.append("str")
        return f"<{self.name}>"

    def __len__(self) -> int:
        CALLS.append("len")
        return len(self.name)

    def __bool__(self) -> bool:
        CALLS.append("bool")
        return self.name != "eva"

    def __iter__(self) -> Iterator[str]:
        CALLS.append("iter")
        return iter(self.name)

    def __contains__(self, part: str) -> bool:
        CALLS.append("in")
        return part in self.name

    def __getitem__(self, key: Any) -> str:
        CALLS.append("item")
        return self.name[key]

    def __eq__(self, other: object) -> bool:
        CALLS.append("eq")
        return self.name == other

    def __lt__(self, other: Any) -> bool:
        CALLS.append("lt")
        return self.name < other

    def __add__(self, other: str) -> str:
        CALLS.append("add")
        return self.name + other

    def __neg__(self) -> str:
        CALLS.append("neg")
        return self.name[::-1]

    __hash__ = None  # type: ignore[assignment]

    @property
    def title(self) -> str:
        CALLS.append("title")
        return self.name.title()

    def __getattr__(self, name: str) -> str:
        if name.startswith("_"):
            raise AttributeError(name)
        CALLS.append(name)
        return f"{name} of {self.name}"


WHO = Persona("bob")


def loud(text: str) -> str:
    CALLS.append("loud")
    return text.upper()


def in_an_f_string(s: Any) -> None:
    s += f"I am {WHO}, {WHO!s}."


def as_text(s: Any) -> None:
    s += "I am " + str(WHO)


def in_a_list(s: Any) -> None:
    s += f"{[WHO.name, len([WHO])]}" + ", ".join(map(str, [WHO, WHO]))


def formatted(s: Any) -> None:
    s += "%s and {}".format(WHO) % WHO  # noqa: UP032


def length(s: Any) -> None:
    s += "n" * len(WHO)


def truth(s: Any) -> None:
    s += "yes" if WHO else "no"
    if not WHO:
        s += "no"
    if WHO:
        s += "yes"


def either(s: Any) -> None:
    s += (WHO and "yes") or "no"


def rounds(s: Any) -> None:
    for char in WHO:
        s += char + ","


def comprehended(s: Any) -> None:
    s += ",".join([char + "." for char in WHO])


def as_list(s: Any) -> None:
    s += ",".join(list(WHO))


def held(s: Any) -> None:
    s += "b" + ("y" if "b" in WHO else "n")


def indexed(s: Any) -> None:
    s += WHO[0] + WHO[1:]


def compared(s: Any) -> None:
    s += "T" if WHO == "bob" else "F"
    s += "T" if WHO < "c" else "F"


def added(s: Any) -> None:
    s += WHO + "!"
    s += -WHO


def unpacked(s: Any) -> None:
    first, second, third = WHO
    s += third + second + first


def attributes(s: Any) -> None:
    s += WHO.title + WHO.home + getattr(WHO, "title") + WHO.name  # noqa: B009


def through_builtins(s: Any) -> None:
    s += ",".join(map(loud, ["a", "b"])) + ",".join(sorted(["b", "a"], key=loud)) + max("a", "b", key=loud)


PROGRAMS = (
    in_an_f_string, as_text, in_a_list, formatted, length, truth, either, rounds, comprehended, as_list, held, indexed,
    compared, added, unpacked, attributes, through_builtins,
)  # fmt: skip


def runs(body: Callable[..., Any], compiled: bool | None, change: Callable[[], Any]) -> list[tuple[str, list[str]]]:
    """Texts of a run, of another, and of one after a change, with the calls that each has made."""
    program = dslc.function(body)
    found = []
    for turn in range(3):
        if turn == 2:
            change()
        CALLS.clear()
        found.append((program.run(backend=dslc.ScriptedBackend([]), compiled=compiled).text(), list(CALLS)))
    return found


@pytest.mark.parametrize("body", PROGRAMS, ids=lambda body: body.__name__)
def test_the_run_asks_the_users_object_once(body):
    WHO.name = "bob"
    interpreted = runs(body, False, lambda: setattr(WHO, "name", "eva"))
    WHO.name = "bob"
    CALLS.clear()
    assert dslc.function(body).trace().is_whole
    assert CALLS == []  # tracing has called nothing of the user's
    assert runs(body, True, lambda: setattr(WHO, "name", "eva")) == interpreted


class Colour(enum.Enum):
    RED = "red"

    def __str__(self) -> str:
        return self.value


@dataclass
class Settings:
    tone: str = "kind"
    words: list[str] = field(default_factory=lambda: ["a"])

    def __str__(self) -> str:
        return f"in a {self.tone} tone with {len(self.words)} words"

    def __len__(self) -> int:
        return len(self.words)


class Slots:
    __slots__ = ("tone",)

    def __init__(self) -> None:
        self.tone = "kind"

    def __str__(self) -> str:
        return self.tone


SETTINGS, SLOTS, QUEUE = Settings(), Slots(), collections.deque(["a"])
COUNTS: collections.defaultdict[str, int] = collections.defaultdict(int)


def settings(s: Any) -> None:
    s += f"Write {SETTINGS}, {Colour.RED}." + "n" * len(SETTINGS)


def slots(s: Any) -> None:
    s += f"Write {SLOTS}."


def queue(s: Any) -> None:
    s += ",".join(QUEUE) + str(len(QUEUE)) + QUEUE[0]
    for item in QUEUE:
        s += item


def counts(s: Any) -> None:
    s += f"{COUNTS['x']}"


def test_a_method_that_only_computes_is_followed_and_its_reads_are_guards():
    program = dslc.function(settings).trace()
    assert 'text "Write in a kind tone with 1 words, red.n"' in print_program(program)


@pytest.mark.parametrize(
    "body, change",
    [
        (settings, lambda: (setattr(SETTINGS, "tone", "cold"), SETTINGS.words.append("b"))),
        (slots, lambda: setattr(SLOTS, "tone", "cold")),
        (queue, lambda: QUEUE.append("b")),
        (counts, lambda: COUNTS.update(x=3)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_change_of_the_object_is_seen(body, change):
    def reset() -> None:
        SETTINGS.tone, SETTINGS.words[:], SLOTS.tone = "kind", ["a"], "kind"
        QUEUE.clear()
        QUEUE.append("a")
        COUNTS.clear()

    reset()
    interpreted = runs(body, False, change)
    reset()
    dslc.function(body).trace()
    assert not COUNTS
    assert runs(body, True, change) == interpreted


@contextlib.contextmanager
def _noting() -> Iterator[None]:
    CALLS.append("enter")
    yield


class Lock:
    def __enter__(self) -> None:
        CALLS.append("enter")

    def __exit__(self, *error: object) -> None:
        CALLS.append("exit")


LOCK = Lock()


def test_a_with_over_an_object_of_the_process_is_a_break():
    def body(s: Any) -> None:
        with LOCK:
            s += "inside"

    CALLS.clear()
    program = dslc.function(body)
    assert "a `with` over a Lock" in print_program(program.trace())
    assert CALLS == []
    assert runs(body, None, lambda: None) == [("inside", ["enter", "exit"])] * 3
