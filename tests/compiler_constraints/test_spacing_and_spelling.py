"""Layouts and numbers over generated values: what each option takes is what JSON and jsonschema say, and no more."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import jsonschema
import pytest
from support.constraint_samples import random_schema
from support.constraint_support import random_walk, small_vocabulary

from dslc.compiler.constraints import ConstraintCache, compile_constraint, source_of_schema
from dslc.compiler.constraints.compile import build_automaton
from dslc.core.constraint import Constraint
from dslc.core.errors import ConstraintError

MAX_GAP = 40  # of whitespace="free"


def constraint(schema: Any, **options: str) -> Constraint:
    return Constraint("json_schema", source_of_schema(schema), tuple(options.items()))


def reader(schema: Any, **options: str) -> Callable[[str], bool]:
    automaton = build_automaton(constraint(schema, **options))

    def accepts(text: str) -> bool:
        state = automaton.start
        for byte in text.encode():
            state = automaton.step(state, byte)
            if state < 0:
                return False
        return automaton.accepting(state)

    return accepts


def random_value(rng: random.Random, depth: int = 3) -> Any:
    kind = rng.randrange(7 if depth else 5)
    if kind == 5:
        return [random_value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind == 6:
        names = rng.sample(["a", "b c", "é", '"', "\\", "long_name", ""], rng.randrange(5))
        return {name: random_value(rng, depth - 1) for name in names}
    return [
        None,
        True,
        rng.randint(-999, 999),
        (2 * rng.randrange(50) + 1) / 4,
        rng.choice(["", "x y", 'q"é\n', "{[,:]}"]),
    ][kind]


def laid_out(value: Any, gap: Callable[[], str]) -> str:
    """JSON with whatever `gap` gives wherever whitespace may stand within a value."""
    if isinstance(value, list):
        items = ",".join(gap() + laid_out(item, gap) + gap() for item in value)
        return f"[{items or gap()}]"
    if isinstance(value, dict):
        items = ",".join(
            f"{gap()}{json.dumps(k, ensure_ascii=False)}{gap()}:{gap()}{laid_out(v, gap)}{gap()}"
            for k, v in value.items()
        )
        return f"{{{items or gap()}}}"
    text = json.dumps(value, ensure_ascii=False)
    return text[:-2] if text.endswith(".0") else text


def test_free_layout_takes_up_to_so_much_whitespace_anywhere_and_no_more():
    rng = random.Random(1)
    free, compact, spaced = (reader({}, whitespace=style) for style in ("free", "compact", "spaced"))
    num_gaps = 0
    for _ in range(120):
        value = random_value(rng)

        def gap(rng: random.Random = rng) -> str:
            return "".join(rng.choices(" \n\r\t", k=rng.choice([0, 0, 1, 2, 7, MAX_GAP])))

        text = laid_out(value, gap)
        assert free(text), text
        assert json.loads(text) == value
        tight, wide = laid_out(value, lambda: ""), json.dumps(value, ensure_ascii=False)
        assert compact(tight) and free(tight), tight
        assert compact(text) == (text == tight) and spaced(text) == (text == wide)
        places = laid_out(value, lambda: "\0").split("\0")
        if len(places) > 1:
            chosen = rng.randrange(1, len(places))
            over = "".join(places[:chosen]) + " " * (MAX_GAP + 1) + "".join(places[chosen:])
            assert not free(over), over
            num_gaps += 1
    assert num_gaps > 25
    for wrong in (
        "[1,\x0b2]",
        "[1,\u00a02]",
        "[1 2]",
        '{"a" "b"}',
        "[1,,2]",
        "[1,]",
        '{"a":1,}',
        " 1",
        "1 ",
        "tr ue",
        "1 2",
    ):
        assert not free(wrong), wrong


@pytest.mark.parametrize("whitespace", ["compact", "free", "spaced"])
def test_what_is_generated_in_a_layout_validates(whitespace):
    """Random walks over random schemas; between tokens of JSON there is what the layout says."""
    rng, vocabulary, served = random.Random(len(whitespace)), small_vocabulary(), 0
    while served < 40:
        schema = random_schema(rng)
        try:
            compiled = ConstraintCache().get(constraint(schema, whitespace=whitespace), vocabulary)
        except ConstraintError as error:
            assert "no value meets" in str(error)
            continue
        data, ended = random_walk(compiled.start(), vocabulary, rng, 300, closing_after=15)
        if not ended:
            continue
        served += 1
        text = data.decode()
        value = json.loads(text)
        jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())
        between = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text)
        if whitespace == "compact":
            assert not re.search(r"\s", between), text
        elif whitespace == "spaced":
            assert re.sub(r"(?<=[,:]) ", "", between) == re.sub(r"\s", "", between), text
            assert between.count(" ") == between.count(",") + between.count(":"), text
        else:
            assert not re.search(rf"\s{{{MAX_GAP + 1}}}", between), text


NUMBERS = [
    {"type": "number"},
    {"type": "integer"},
    {"type": "number", "minimum": -2, "maximum": 12.5},
    {"type": "number", "exclusiveMinimum": 0},
    {"type": "number", "exclusiveMaximum": -0.5},
    {"type": "number", "multipleOf": 0.25},
    {"type": "number", "multipleOf": 5, "minimum": -20},
    {"type": "integer", "minimum": -7, "exclusiveMaximum": 101},
    {"type": "integer", "multipleOf": 3},
    {"enum": [0, 1, -1, 2.5, 100, 0.001]},
    {"const": 12.0},
    {"type": "number", "not": {"type": "integer"}},
]


def spellings(rng: random.Random) -> list[str]:
    """Numbers as JSON may spell them, and texts that JSON does not take."""
    out = [
        "0",
        "-0",
        "0.0",
        "-0.0",
        "00",
        "01",
        "-",
        ".5",
        "5.",
        "+1",
        "1e",
        "1e+",
        "0x1",
        "Infinity",
        "NaN",
        "1_0",
        "12",
        "12.0",
        "1.2e1",
        "100",
        "2.50",
    ]
    for _ in range(250):
        whole = rng.choice(["0", str(rng.randint(1, 9)), str(rng.randint(10, 130)), str(rng.randint(1, 10**12))])
        fraction = rng.choice(["", "", ".0", ".5", ".25", ".250", ".001", f".{rng.randint(0, 999):03d}", ".00"])
        exponent = rng.choice(["", "", "", "e0", "E1", "e+2", "e-1", "E-03"])
        out.append(rng.choice(["", "-"]) + whole + fraction + exponent)
    return out


@pytest.mark.parametrize("schema", NUMBERS, ids=json.dumps)
def test_numbers_come_in_plain_spelling_and_only_those_that_meet_the_schema(schema):
    """No exponent and no minus before zero. What is accepted is valid; a valid one is accepted in its shortest
    spelling, and with zeros behind unless the schema has whole numbers only, or few."""
    accepts = reader(schema)
    validator = jsonschema.Draft202012Validator(json.loads(json.dumps(schema), parse_float=Decimal))
    num_valid = num_taken = 0
    for text in spellings(random.Random(7)):
        taken = accepts(text)
        if not re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?", text):
            assert not taken, text
            continue
        number = Decimal(text)
        value = int(number) if number == number.to_integral_value() else number
        valid = validator.is_valid(value)
        plain = re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?", text) and not (text.startswith("-") and not number)
        assert valid or not taken, text
        assert plain or not taken, text
        shortest = format(number, "f")
        shortest = shortest.rstrip("0").rstrip(".") if "." in shortest else shortest
        shortest = "0" if shortest == "-0" else shortest
        assert accepts(shortest) == valid, (text, shortest)
        if plain and text != shortest:
            one_spelling = schema.get("type") == "integer" or schema.get("multipleOf") == 5 or "type" not in schema
            assert taken == (valid and not one_spelling), text
        num_valid, num_taken = num_valid + valid, num_taken + taken
    assert num_valid >= num_taken > 0


def test_what_is_generated_as_a_number_reads_back_as_one_that_is_valid():
    rng, vocabulary = random.Random(3), small_vocabulary()
    for schema in NUMBERS:
        compiled = compile_constraint(constraint(schema), vocabulary)
        for _ in range(25):
            data, ended = random_walk(compiled.start(), vocabulary, rng, 60)
            assert "e" not in data.decode().lower()
            if ended:
                number = Decimal(data.decode())
                value = int(number) if number == number.to_integral_value() else number
                exact = json.loads(json.dumps(schema), parse_float=Decimal)
                jsonschema.Draft202012Validator(exact).validate(value)
