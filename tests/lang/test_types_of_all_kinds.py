"""Types of every kind: of what their schemas allow a value can be made, and what are no values is not allowed."""

from __future__ import annotations

import collections
import collections.abc
import datetime
import enum
import ipaddress
import random
import uuid
from dataclasses import KW_ONLY, InitVar, dataclass, field
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Final, Generic, Literal, NamedTuple, NewType, Optional, TypeVar, Union

import pydantic
import pytest
from pydantic import Field
from support.constraint_support import random_walk, small_vocabulary
from typing_extensions import NotRequired, Required, TypeAliasType, TypedDict

from dslc.compiler.constraints.compile import ConstraintCache
from dslc.core.constraint import Constraint
from dslc.lang.types import schema_of, type_spec

T = TypeVar("T")
Limited = TypeVar("Limited", int, bool)


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Corner(enum.Enum):
    NEAR = (0, 0)
    FAR = (1, 2)


@dataclass
class Everything:
    name: str
    count: Final[int] = 3
    nick: Optional[str] = None  # noqa: UP045
    tags: list[str] = field(default_factory=list)
    unseen: int = field(default=1, init=False)
    shared: ClassVar[int] = 3
    given: InitVar[int] = 2
    _: KW_ONLY
    late: bool = False

    def __post_init__(self, given: int) -> None:
        self.sum = self.count + given


@dataclass
class Box(Generic[T]):
    item: T
    more: list[T] = field(default_factory=list)


@dataclass
class IntBox(Box[int], Generic[T]):
    label: T | None = None


class Keyed(TypedDict, Generic[T], total=False):
    must: Required[T]
    may: str
    also: NotRequired[int]


class Pair(NamedTuple, Generic[T]):
    left: T
    right: int = 2


UserId = NewType("UserId", int)
Alias = TypeAliasType("Alias", list[UserId])
Of = TypeAliasType("Of", dict[str, T], type_params=(T,))


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True, extra="forbid")
    pair: tuple[int, Colour]
    when: datetime.datetime
    who: uuid.UUID
    some: frozenset[Literal["a", "b", "c"]]


class Generics(pydantic.BaseModel, Generic[T]):
    item: T


class Numbers(pydantic.BaseModel):
    price: Decimal = Field(ge=0, max_digits=5, decimal_places=2)
    few: Decimal = Field(max_digits=3)
    exact: Decimal
    step: Annotated[float, Field(multiple_of=0.5, lt=4)]


class Formats(pydantic.BaseModel):
    link: pydantic.HttpUrl
    host: ipaddress.IPv4Address | ipaddress.IPv6Address
    any_host: pydantic.IPvAnyAddress
    net: ipaddress.IPv4Network
    bytes_64: pydantic.Base64Bytes
    fourth: pydantic.UUID4
    naive: pydantic.NaiveDatetime
    lasts: datetime.timedelta
    clock: datetime.time
    raw: bytes
    by_number: dict[int, bool]


@pydantic.dataclasses.dataclass
class Checked:
    above: int = Field(gt=3)


class Pet(pydantic.BaseModel):
    pet: Annotated[Union[Cat, Dog], Field(discriminator="kind")]  # noqa: UP007
    parents: list[Pet] = []


# type, texts that are values of it, texts that are none
KINDS: list[tuple[Any, list[str], list[str]]] = [
    (Everything, ['{"name": "x", "nick": null, "given": 7, "late": true}'], ['{"name": "x", "unseen": 2}']),
    (Box[int], ['{"item": 1, "more": [2]}'], ['{"item": "x"}']),
    (Box[Box[str]], ['{"item": {"item": "a"}}'], ['{"item": {"item": 1}}']),
    (Box, ['{"item": 1}', '{"item": "x"}'], ["{}"]),
    (IntBox[str], ['{"item": 1, "label": "a"}'], ['{"item": "x"}', '{"item": 1, "label": 2}']),
    (Keyed[bool], ['{"must": true}', '{"must": true, "also": 1}'], ["{}", '{"must": 1}']),
    (Pair[str], ['{"left": "a"}'], ['{"left": 1}']),
    (UserId, ["7"], ["x"]),
    (Alias, ["[7]"], ['["a"]']),
    (Of[int], ['{"a": 1}'], ['{"a": "b"}']),
    (Limited, ["1", "true"], ['"a"']),
    (Corner, ["[0, 0]", "[1, 2]"], ["[0, 1]"]),
    (Literal[1, "a", None, True], ["1", '"a"', "null", "true"], ["2"]),
    (tuple[()], ["[]"], ["[1]"]),
    (collections.deque[int], ["[1]"], ['["a"]']),
    (collections.abc.Iterable[int], ["[1]"], ['["a"]']),
    (collections.OrderedDict[str, int], ['{"a": 1}'], ['{"a": "b"}']),
    (dict[int, str], ['{"-3": "a", "0": ""}'], ['{"x": "a"}', '{"00": "a"}']),
    (dict[Literal["a", "b"], int], ['{"b": 1}'], ['{"c": 1}']),
    (dict[Colour, int], ['{"red": 1}'], ['{"green": 1}']),
    (dict[datetime.date, int], ['{"2024-02-29": 1}'], ['{"2023-02-29": 1}']),
    (Annotated[int | None, Field(ge=1)], ["null", "1"], ["0"]),
    (Annotated[Decimal, Field(max_digits=4, decimal_places=2)], ["12.25", "-0.01"], ["0.125", "123"]),
    (Annotated[Decimal, Field(max_digits=2)], ["12", "1.2", "0.12"], ["123", "12.3", "0.123"]),
    (Annotated[float, Field(multiple_of=0.01)], ["258.2", "1.23"], ["0.001"]),
    (Annotated[str, "a note", {"not": "hashable"}], ['"a"'], ["1"]),
    (Strict, ['{"pair": [1, "red"], "when": "2024-01-02T03:04:05Z", "who": "00000000-0000-4000-8000-000000000000", '
      '"some": ["b"]}'], ['{"pair": [1]}']),
    (Generics[int], ['{"item": 1}'], ['{"item": "x"}']),
    (Numbers, ['{"price": 123.45, "few": 0.25, "exact": 0.1, "step": 1.5}'],
     ['{"price": 1234.5, "few": 1, "exact": 1, "step": 1}', '{"price": 1, "few": 1234, "exact": 1, "step": 1}']),
    (Formats, [], []),
    (Checked, ['{"above": 4}'], ['{"above": 3}', "{}"]),
    (Pet, ['{"pet": {"kind": "cat", "lives": 3}, "parents": [{"pet": {"kind": "dog"}, "parents": []}]}'],
     ['{"pet": {"kind": "dog", "lives": 3, "kind": "cat"}}', '{"pet": {"kind": "cat", "lives": 10}}']),
    (pydantic.HttpUrl, ['"https://example.org/a?b=c"'], ['"ftp://example.org"', '"x"']),
]  # fmt: skip


def read(automaton: Any, text: str) -> bool:
    state = automaton.start
    for byte in text.encode():
        state = automaton.step(state, byte) if state >= 0 else state
    return state >= 0 and bool(automaton.accepting(state))


@pytest.mark.parametrize("kind, good, bad", KINDS, ids=lambda value: str(value)[:40])
def test_texts_of_a_type_are_its_values(kind: Any, good: list[str], bad: list[str]) -> None:
    spec = type_spec(kind)
    assert spec.kind is not None
    vocabulary, rng = small_vocabulary(), random.Random(3)
    compiled = ConstraintCache().get(Constraint(spec.kind, spec.source), vocabulary)
    for length in (0, 2, 5, 12, 30):
        matcher = compiled.start()
        text, is_over = random_walk(matcher, vocabulary, rng, length, closing_after=12)
        rest = () if is_over else matcher.shortest_end()
        assert rest is not None
        spec.parse((text + b"".join(vocabulary.token_bytes[token] or b"" for token in rest)).decode())
    for text in good:
        assert read(compiled.index.automaton, text), text  # type: ignore[attr-defined]
        spec.parse(text)
    for text in bad:
        assert not read(compiled.index.automaton, text), text  # type: ignore[attr-defined]


def test_values_are_what_the_types_say() -> None:
    value = type_spec(Everything).parse('{"name": "x", "given": 7, "late": true}')
    assert (value.sum, value.late, value.tags) == (10, True, [])
    assert type_spec(dict[int, str]).parse('{"-3": "a"}') == {-3: "a"}
    assert type_spec(Corner).parse("[1, 2]") is Corner.FAR
    assert type_spec(IntBox[str]).parse('{"item": 1, "label": "a"}') == IntBox(1, label="a")
    assert type_spec(Checked).parse('{"above": 4}') == Checked(4)


def test_the_parts_of_a_union_are_tried_in_their_own_order() -> None:
    """Python holds unions of the same parts equal."""
    text = '"2024-01-02"'
    assert type_spec(Union[str, datetime.date]).parse(text) == "2024-01-02"  # noqa: UP007
    assert type_spec(Union[datetime.date, str]).parse(text) == datetime.date(2024, 1, 2)  # noqa: UP007


def test_types_without_json_say_so() -> None:
    class Empty(enum.Enum):
        pass

    for kind, message in (
        (Literal[b"x"], "JSON has no b'x'"),
        (Empty, "no members"),
        (dict[float, int], "keys"),
        (Annotated[int, Field(max_length=3)], "max_length=3"),
        (Annotated[Decimal, Field(max_digits=99)], "40 digits"),
        (bytes, "not a type that can be generated"),
    ):
        with pytest.raises(TypeError, match=message):
            type_spec(kind)


def test_a_schema_of_generic_classes_keeps_them_apart() -> None:
    schema = schema_of(tuple[Box[int], Box[str]])
    assert [d["properties"]["item"] for d in schema["$defs"].values()] == [{"type": "integer"}, {"type": "string"}]
