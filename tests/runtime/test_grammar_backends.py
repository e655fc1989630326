"""`Engine(grammar_backend=...)`: every engine of constraints serves the same requests, and only what it can."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
import torch

import dslc
from dslc.compiler.constraints.compile import compile_automaton
from dslc.compiler.constraints.engines import register_engine, unregister_engine

SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["bug", "idea"]}, "count": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["kind", "count"],
    "additionalProperties": False,
}


@dslc.function
def program(s):
    s += "Code: " + dslc.gen("code", dslc.regex("[A-C][0-9]{2}"), max_tokens=12)
    s += " Report: " + dslc.gen("report", dslc.json(SCHEMA), max_tokens=60)
    s += " Sum: " + dslc.gen("sum", dslc.ebnf('root ::= "(" root ")" | [0-9] "+" [0-9]'), max_tokens=40)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("backend", ["auto", "automaton", "llguidance", "xgrammar"])
def test_every_engine_serves_programs(backend):
    if backend in ("llguidance", "xgrammar"):
        pytest.importorskip(backend)
    with dslc.Engine(grammar_backend=backend, max_running_requests=4, max_total_tokens=2048) as engine:
        for seed in range(3):
            state = program.run(backend=engine, temperature=1.0, seed=seed)
            assert re.fullmatch("[A-C][0-9]{2}", state["code"])
            jsonschema.validate(json.loads(state["report"]), SCHEMA)
            if state.get_meta_info("sum")["finish_reason"]["type"] == "stop":
                assert re.fullmatch(r"(\(*)[0-9]\+[0-9](\)*)", state["sum"])
                assert state["sum"].count("(") == state["sum"].count(")")


def test_a_toy_engine_serves_programs_and_sequences_are_refused_by_it():
    asked = []

    def compile_toy(constraint, vocabulary, encode):
        asked.append(constraint.kind)
        return compile_automaton(constraint, vocabulary, encode)

    register_engine("toy", compile_toy)
    try:
        with dslc.Engine(grammar_backend="toy", max_running_requests=4, max_total_tokens=2048) as engine:
            assert engine.capabilities.constraints == {"regex", "json_schema", "ebnf"}
            state = program.run(backend=engine, temperature=0)
            assert sorted(asked) == ["ebnf", "json_schema", "regex"] and re.fullmatch("[A-C][0-9]{2}", state["code"])

            @dslc.function
            def sequence(s):
                s += "x " + dslc.seq("<", dslc.gen("v", int), ">")

            with pytest.raises(dslc.RequestError, match="seq: the backend 'dslc' cannot enforce it"):
                sequence.run(backend=engine)
    finally:
        unregister_engine("toy")


def test_an_unknown_engine_is_refused_with_the_known_ones():
    with pytest.raises(
        dslc.ConfigError, match="unknown backend 'best'; choices: auto, automaton, llguidance, xgrammar"
    ):
        dslc.Engine(grammar_backend="best")
