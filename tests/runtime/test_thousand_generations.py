"""A thousand texts drawn at temperature 1 under bounded constraints of all kinds: whole ones are what was asked for."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import torch
from lark import Lark

from dslc.compiler.constraints.compile import build_automaton
from dslc.core.constraint import Constraint
from dslc.core.events import Event, Failed, Finished
from dslc.core.request import GenRequest, Segment
from dslc.core.sampling import SamplingParams
from dslc.runtime.engine import Engine

torch.set_num_threads(1)

NUM = 1000
WORDS = ["name", "age", "city", "is_open", "first name", "Zeit", "été", 'a "b"']
GRAMMARS = [
    'start: item ("," item)~0..3\nitem: "(" NUMBER ")" | WORD\nNUMBER: /[0-9]{1,3}/\nWORD: /[a-z]{1,6}/\n',
    'start: "if " test " then " act\ntest: NAME (" is " | " is not ") NAME\nact: "stop" | "go " NAME\n'
    "NAME: /[a-z]{1,4}/\n",
]


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    kind = rng.choice(["boolean", "integer", "number", "string", "pattern", "format", "enum", "const", "any"]
                      + (["object", "object", "array", "tuple"] if depth else []))  # fmt: skip
    if kind == "integer":
        return {"type": "integer", "minimum": -50, "maximum": rng.choice([7, 99, 1234])}
    if kind == "number":
        return {"type": "number", "minimum": 0, "maximum": 10, "multipleOf": 0.25}
    if kind == "string":
        return {"type": "string", "minLength": rng.randrange(3), "maxLength": rng.randrange(3, 9)}
    if kind == "pattern":
        return {"type": "string", "pattern": rng.choice(["^[a-z]{1,5}$", "^(a|bc)d?$", "^\\d{2}-\\d{2}$"])}
    if kind == "format":
        return {"type": "string", "format": rng.choice(["date", "uuid", "ipv4"])}
    if kind == "enum":
        return {"enum": rng.sample([*WORDS, 1, 20.5, None], rng.randrange(1, 5))}
    if kind == "const":
        return {"const": rng.choice(["a constant", 12345, [1, "two", None], {"k": [True]}])}
    if kind == "any":
        return {"anyOf": [random_schema(rng, 0), {"type": "null"}]}
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth - 1), "minItems": rng.randrange(2), "maxItems": 2}
    if kind == "tuple":
        parts = [random_schema(rng, depth - 1) for _ in range(2)]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": 2}
    if kind == "object":
        names = rng.sample(WORDS, rng.randrange(1, 4))
        return {
            "type": "object", "properties": {name: random_schema(rng, depth - 1) for name in names},
            "required": names[: rng.randrange(len(names) + 1)], "additionalProperties": False,
        }  # fmt: skip
    return {"type": kind}


def random_regex(rng: random.Random) -> str:
    parts = [
        "Name: ",
        "yes|no",
        "[a-z]{1,6}",
        r"\d{2,4}",
        "(, and so on)?",
        "#",
        "été |日本",
        "[^x]{1,3}",
        r"(\w-){0,3}",
    ]
    return "".join(f"({part})" for part in rng.sample(parts, rng.randrange(1, 6)))


def constraints() -> list[Constraint]:
    rng, found = random.Random(17), []
    for number in range(NUM):
        if number % 20 == 0:
            found.append(Constraint("ebnf", GRAMMARS[number // 20 % 2]))
        elif number % 3 == 0:
            found.append(Constraint("regex", random_regex(rng)))
        else:
            found.append(Constraint("json_schema", json.dumps(random_schema(rng))))
    return found


def checker(constraint: Constraint) -> Callable[[str], object]:
    """Raises, or gives None, for a text that is not what was asked for."""
    if constraint.kind == "regex":
        return re.compile(constraint.source).fullmatch
    if constraint.kind == "ebnf":
        return Lark(constraint.source, keep_all_tokens=True).parse
    validator = jsonschema.Draft202012Validator(
        json.loads(constraint.source), format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )
    return lambda text: (validator.validate(json.loads(text)), True)[1]


@pytest.mark.slow
@pytest.mark.parametrize("jump_forward", [True, False])
def test_at_least_95_of_100_end_by_themselves_and_all_are_right(jump_forward: bool) -> None:
    asked = constraints()
    ended: dict[str, Event] = {}

    def sink(event: Event) -> None:
        if isinstance(event, (Finished, Failed)):
            ended[event.request_id] = event

    with Engine(device="cpu", dtype="float32", max_running_requests=64, max_total_tokens=32768) as engine:
        engine.check_when_idle = True
        for at in range(0, NUM, 100):
            requests = [
                GenRequest(
                    id=str(i), segments=(Segment(text=f"Number {i}: "),), constraint=asked[i],
                    sampling=SamplingParams(temperature=1.0, max_new_tokens=250, seed=i, jump_forward=jump_forward),
                )
                for i in range(at, at + 100)
            ]  # fmt: skip
            engine.submit(requests, sink)
            assert engine.wait(lambda at=at: len(ended) == at + 100, timeout=300)
    num_whole = num_cut = 0
    for i, constraint in enumerate(asked):
        event = ended[str(i)]
        assert isinstance(event, Finished), event
        output = event.outputs[0]
        if output.finish_reason.type == "stop":
            assert checker(constraint)(output.text), (constraint.source, output.text)
            num_whole += 1
        else:
            assert output.finish_reason.type == "length" and not output.is_complete
            automaton = build_automaton(constraint)
            state = automaton.start
            for byte in output.text.encode():
                state = automaton.step(state, byte)
                assert state >= 0, (constraint.source, output.text)
            num_cut += 1
    print(f"{num_whole} whole, {num_cut} cut")
    assert num_whole >= 0.95 * NUM
