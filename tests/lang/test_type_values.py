"""Types and back: random texts under a type's constraint are valid by its schema, and become values of the type."""

import datetime
import enum
import json
import random
import uuid
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple, TypedDict, get_origin

import annotated_types as at
import jsonschema
import pydantic
import pytest
from support.constraint_support import random_walk, small_vocabulary

from dslc.compiler.constraints import compile_constraint
from dslc.core.constraint import Constraint
from dslc.lang.types import build, schema_of, type_spec


class Colour(enum.Enum):
    RED = "red"
    BLUE = 2


@dataclass
class Order:
    id: uuid.UUID
    placed: datetime.datetime
    price: Annotated[Decimal, at.Ge(0), at.Lt(100)]
    tags: Annotated[list[Literal["a", "b"]], at.Len(1, 2)]


class Slot(TypedDict):
    day: datetime.date
    at: datetime.time


class Span(NamedTuple):
    length: datetime.timedelta
    colour: Colour = Colour.RED


class Model(pydantic.BaseModel):
    when: datetime.date
    count: Annotated[int, pydantic.Field(ge=3, lt=10)]
    name: Annotated[str, pydantic.StringConstraints(min_length=1, max_length=3, pattern="^[a-z]*$")]
    price: Decimal | None = None


def short(kind: Any) -> Any:
    return Annotated[kind, at.MaxLen(4)]


KINDS: list[tuple[Any, Any]] = [
    (int, int),
    (float, float),
    (bool, bool),
    (None, type(None)),
    (Decimal, Decimal),
    (datetime.datetime, datetime.datetime),
    (datetime.date, datetime.date),
    (datetime.time, datetime.time),
    (datetime.timedelta, datetime.timedelta),
    (uuid.UUID, uuid.UUID),
    (Literal["x", 1, None], (str, int, type(None))),
    (Colour, Colour),
    (short(str), str),
    (Annotated[int, at.Interval(ge=-3, lt=12), at.MultipleOf(2)], int),
    (Annotated[float, at.Gt(0.5), at.Le(2)], float),
    (Annotated[Decimal, at.Ge(1), at.Lt(2)], Decimal),
    (Annotated[str, pydantic.Field(pattern="^[a-c]+$", max_length=3)], str),
    (Annotated[int, pydantic.Field(gt=2, le=7)], int),
    (Annotated[int, at.Ge(1), at.Ge(3), at.Le(5)], int),
    (list[bool], list),
    (Annotated[list[bool], at.Len(2, 3)], list),
    (set[Literal["a", "b"]], set),
    (tuple[bool, Literal["z"]], tuple),
    (tuple[bool, ...], tuple),
    (dict[str, bool], dict),
    (bool | None, (bool, type(None))),
    (Colour | datetime.date, (Colour, datetime.date)),
    (Order, Order),
    (Slot, dict),
    (Span, Span),
    (Model, Model),
    (list[Order], list),
]


@pytest.mark.parametrize(("kind", "expected"), KINDS, ids=lambda k: str(k)[:40])
def test_random_texts_are_valid_and_become_values(kind, expected):
    spec = type_spec(kind)
    vocabulary = small_vocabulary(4)
    compiled = compile_constraint(Constraint(spec.kind, spec.source), vocabulary)
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    ended = 0
    for seed in range(12):
        data, complete = random_walk(compiled.start(), vocabulary, random.Random(seed), 400, closing_after=40)
        if not complete:
            continue
        ended += 1
        if spec.kind == "json_schema":
            jsonschema.Draft202012Validator(json.loads(spec.source), format_checker=checker).validate(json.loads(data))
        value = spec.parse(data.decode())
        assert isinstance(value, expected)
        if isinstance(value, list) and get_origin(kind) is list and kind.__args__[0] is Order:
            assert all(isinstance(item, Order) for item in value)
    assert ended > 4


def test_values_are_the_right_ones():
    utc = datetime.timezone.utc
    cases: list[tuple[Any, str, Any]] = [
        (datetime.datetime, '"2024-02-29T10:20:30.5Z"', datetime.datetime(2024, 2, 29, 10, 20, 30, 500000, utc)),
        (datetime.date, '"0001-01-01"', datetime.date(1, 1, 1)),
        (datetime.timedelta, '"P1DT2H3M4S"', datetime.timedelta(days=1, hours=2, minutes=3, seconds=4)),
        (datetime.timedelta, '"P2W"', datetime.timedelta(weeks=2)),
        (Decimal, "0.1234567890123456789012345", Decimal("0.1234567890123456789012345")),
        (list[Decimal], "[1, 2.50]", [Decimal(1), Decimal("2.50")]),
        (dict[str, Any], '{"a": [0.5]}', {"a": [0.5]}),
        (Literal[0.5, "x"], "0.5", 0.5),
        (Order, '{"id": "12345678-1234-5678-1234-567812345678", "placed": "2024-01-01T00:00:00+02:00", "price": 9.99, '
         '"tags": ["a"]}', Order(uuid.UUID("12345678123456781234567812345678"), datetime.datetime.fromisoformat(
             "2024-01-01T00:00:00+02:00"), Decimal("9.99"), ["a"])),
    ]  # fmt: skip
    for kind, text, value in cases:
        found = type_spec(kind).parse(text)
        assert found == value and type(found) is type(value)
    assert type(type_spec(dict[str, Any]).parse('{"a": 0.5}')["a"]) is float


@pytest.mark.parametrize(
    ("kind", "data", "message"),
    [
        (datetime.date, "2023-02-29", r"\$: '2023-02-29' is no date"),
        (datetime.timedelta, "P1Y", "weeks, or days"),
        (Decimal, "1", r"\$: '1' is not a number"),
        (Annotated[int, at.Ge(3)], 2, r"\$: 2 is not within ge=3"),
        (list[Annotated[str, at.MaxLen(2)]], ["ab", "abc"], r"\$\[1\]: 'abc' is not within max_length=2"),
        (Annotated[str, pydantic.Field(pattern="^a")], "b", "pattern='\\^a'"),
        (uuid.UUID, 3, "is not a string"),
    ],
)
def test_what_does_not_fit_is_named(kind, data, message):
    with pytest.raises(ValueError, match=message):
        build(kind, data)


def test_bounds_that_mean_nothing_are_refused():
    for kind in (Annotated[bool, at.Ge(1)], Annotated[int, at.MaxLen(2)], Annotated[str, at.Lt(3)]):
        with pytest.raises(TypeError, match="means nothing"):
            schema_of(kind)
    assert schema_of(Annotated[int, "a note", object()]) == {"type": "integer"}
