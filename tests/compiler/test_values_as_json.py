"""What `dslc run` prints and writes of values that JSON has no form for."""

import dataclasses
import datetime
import decimal
import enum
import json
import uuid

import pydantic

from dslc.cli_results import plain


class Color(enum.Enum):
    RED = "red"


class Person(pydantic.BaseModel):
    name: str
    born: datetime.date


@dataclasses.dataclass
class Team:
    people: list[Person]
    color: Color


def test_typed_values_are_written_as_the_data_that_they_hold():
    ada = Person(name="Ada", born=datetime.date(1815, 12, 10))
    value = [Team([ada], Color.RED), {"b", "a"}, decimal.Decimal("1.50"), uuid.UUID(int=1), datetime.time(12, 30)]
    assert json.loads(json.dumps(value, default=plain)) == [
        {"people": [{"name": "Ada", "born": "1815-12-10"}], "color": "red"},
        ["a", "b"],
        "1.50",
        "00000000-0000-0000-0000-000000000001",
        "12:30:00",
    ]
    assert json.dumps(range(2), default=plain) == '"range(0, 2)"'
