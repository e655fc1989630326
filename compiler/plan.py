"""The Plan: what the executor walks. Made by `lower` once per (program, tokenizer, options); frozen; saves and prints.

Facts about a gen or select are found by its value: `plan.gen(op.out)`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..core.constraint import Constraint
from ..core.errors import IRSyntaxError, ProgramError
from ..core.request import Hints
from .fields import new_streams
from .hints import hints_of
from .ir import Program, Ref, walk
from .parser import CONSTRAINT_KINDS
from .paths import paths_of
from .printer import print_program, string_text
from .serial import Reader, check_version, decode_program, encode_program

FORMAT = "dslc.plan"
PLAN_VERSION = 2

# What comes next on the stream of a generation.
FOLLOWERS = ("literal", "value", "gen", "select", "media", "turn", "fork", "join", "branch", "break", "end")


@dataclass(frozen=True, slots=True)
class GenFacts:
    """What is known of a gen before it runs.

    `op` is its number in `walk(plan.program.body)`. `prefix` and `num_static_tokens`: its prompt begins with that many
    ids of `plan.prefixes[prefix]` in every run (prefix -1: none). `follows` is one of FOLLOWERS, `literal` the constant
    text that follows where it is "literal". `constraint` is the key of a constant constraint in `plan.constraints`.
    `expected_len` bounds the number of new tokens (0: unknown).
    """

    out: Ref
    op: int
    stream: int
    prefix: int = -1
    num_static_tokens: int = 0
    follows: str = "end"
    literal: str = ""
    constraint: str | None = None
    expected_len: int = 0


@dataclass(frozen=True, slots=True)
class SelectFacts:
    """What is known of a select before it runs; see GenFacts.

    `sequences` holds, for each choice, the ids of `tail` + choice: the prompt's text after its last safe cut, then the
    choice, tokenised as one. They are right if that text is `tail` in the run; empty: not prepared.
    """

    out: Ref
    op: int
    stream: int
    prefix: int = -1
    num_static_tokens: int = 0
    follows: str = "end"
    literal: str = ""
    tail: str = ""
    sequences: tuple[tuple[int, ...], ...] = ()

    @property
    def num_nodes(self) -> int:
        """Nodes of the trie of the sequences."""
        return len({ids[:i] for ids in self.sequences for i in range(1, len(ids) + 1)})


@dataclass(frozen=True)
class Plan:
    """A lowered program and what the compiler knows about it.

    `tokenizer_hash` names the tokenizer whose ids stand in it (None: compiled without one, text stays text).
    `constraints` are the constant constraints, each once, by `key`. `prefixes` are the longest constant beginnings of
    prompts, none of which begins another. `passes` are the passes that ran. `types` are the Python types that variables
    are read as, by name: `module:qualname`, or with a `<` where a type has no name that a file could hold.
    """

    program: Program
    tokenizer_hash: str | None = None
    constraints: tuple[Constraint, ...] = ()
    prefixes: tuple[tuple[int, ...], ...] = ()
    gens: tuple[GenFacts, ...] = ()
    selects: tuple[SelectFacts, ...] = ()
    passes: tuple[str, ...] = ()
    types: tuple[tuple[str, str], ...] = ()

    @cached_property
    def _gens(self) -> dict[Ref, GenFacts]:
        return {facts.out: facts for facts in self.gens}

    @cached_property
    def _selects(self) -> dict[Ref, SelectFacts]:
        return {facts.out: facts for facts in self.selects}

    @cached_property
    def _constraints(self) -> dict[str, Constraint]:
        return {constraint.key: constraint for constraint in self.constraints}

    def gen(self, out: Ref) -> GenFacts:
        """The facts of the gen that defines `out`. Raises KeyError if it is none of this plan's."""
        return self._gens[out]

    def select(self, out: Ref) -> SelectFacts:
        """The facts of the select that defines `out`. Raises KeyError if it is none of this plan's."""
        return self._selects[out]

    def constraint(self, key: str) -> Constraint:
        """The constraint of that key. Raises KeyError if the plan has none."""
        return self._constraints[key]

    @cached_property
    def first_free_stream(self) -> int:
        """The first number of a stream that no op of the program makes: those of rounds of loops begin there."""
        return max([stream for op in walk(self.program.body) for stream in new_streams(op)], default=0) + 1

    @cached_property
    def hints(self) -> dict[int, Hints]:
        """By the value's number: what each gen and select can tell a backend of the future."""
        return hints_of(self)

    @cached_property
    def paths(self) -> dict[int, float]:
        """By the value's number: tokens to be generated from each gen and select on, along the longest path."""
        return paths_of(self)

    @cached_property
    def guesses(self) -> dict[Any, Any]:
        """What has been worked out of its budgets, kept so that it is worked out once."""
        return {}

    @cached_property
    def has_branches(self) -> bool:
        """Whether streams of the program run beside each other."""
        return any(new_streams(op) for op in walk(self.program.body))

    @property
    def facts(self) -> tuple[GenFacts | SelectFacts, ...]:
        """The facts of all gens and selects, in program order."""
        both: list[GenFacts | SelectFacts] = [*self.gens, *self.selects]
        return tuple(sorted(both, key=lambda facts: facts.op))

    @property
    def static_prefix(self) -> tuple[int, ...]:
        """The longest constant beginning that the first prompt has in every run; empty if there is none."""
        for first in self.facts[:1]:
            if first.prefix >= 0:
                return self.prefixes[first.prefix][: first.num_static_tokens]
        return ()

    @property
    def is_whole(self) -> bool:
        """Whether the plan runs without the Python body."""
        return self.program.is_whole

    def check_tokenizer(self, tokenizer_hash: str | None) -> None:
        """Raise ProgramError unless the plan was compiled for this tokenizer, or for none."""
        if self.tokenizer_hash is not None and self.tokenizer_hash != tokenizer_hash:
            raise ProgramError(
                f"the plan of {self.program.title!r} holds ids of the tokenizer {self.tokenizer_hash}, but that of the "
                f"backend is {tokenizer_hash}: compile it anew for this model",
                where=self.program.where,
            )

    def to_json(self, indent: int | None = None) -> str:
        """The plan as versioned JSON; `Plan.from_json` gives an equal plan.

        Raises ProgramError where a variable has a type that has no name outside of its process.
        """
        for var, name in self.types:
            if "<" in name:
                raise ProgramError(
                    f"{self.program.title!r} gives {var!r} the type {name}, which a saved plan cannot name: take a "
                    "class at the top of its module, or regex= or json_schema= and read the text",
                    where=self.program.where,
                )
        return json.dumps(_encode(self), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """The plan in `text`. Raises IRSyntaxError with the path of what is wrong; refuses other versions."""
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise IRSyntaxError(f"not JSON: {error}") from error
        return _decode(data)

    def __str__(self) -> str:
        return print_plan(self)


def print_plan(plan: Plan) -> str:
    """The plan as text: its facts, then its program."""
    lines = [f"plan {plan.program.title or string_text('')}"]
    lines.append(f"tokenizer {plan.tokenizer_hash or 'none: text stays text'}")
    lines.append(f"passes {' '.join(plan.passes) or 'none'}")
    for constraint in plan.constraints:
        options = "".join(f" {name}={value}" for name, value in constraint.options)
        lines.append(f"constraint {constraint.key} {constraint.kind}{options} {string_text(constraint.source)}")
    lines += [f"type {string_text(var)} {name}" for var, name in plan.types]
    for number, prefix in enumerate(plan.prefixes):
        lines.append(f"prefix {number}: {len(prefix)} tokens")
    ops = list(walk(plan.program.body))
    lines += [_facts_line(facts, getattr(ops[facts.op], "var", None)) for facts in plan.facts]
    return "\n".join(lines) + "\n" + print_program(plan.program)


def _facts_line(facts: GenFacts | SelectFacts, var: str | None) -> str:
    kind = "gen" if isinstance(facts, GenFacts) else "select"
    parts = [f"{kind} %{facts.out.id}" + (f" {string_text(var)}" if var is not None else "")]
    parts.append(f"op {facts.op}, stream {facts.stream}")
    if facts.num_static_tokens:
        parts.append(f"{facts.num_static_tokens} static tokens of prefix {facts.prefix}")
    if isinstance(facts, GenFacts):
        if facts.constraint is not None:
            parts.append(f"constraint {facts.constraint}")
        if facts.expected_len:
            parts.append(f"at most {facts.expected_len} tokens")
    elif facts.sequences:
        tail = f" behind {string_text(facts.tail)}" if facts.tail else ""
        parts.append(f"trie of {len(facts.sequences)} choices{tail}, {facts.num_nodes} nodes")
    else:
        parts.append("choices tokenised in the run")
    literal = f" {string_text(facts.literal)}" if facts.follows == "literal" else ""
    return "; ".join(parts) + f"; then {facts.follows}{literal}"


def _encode(plan: Plan) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": PLAN_VERSION,
        "program": encode_program(plan.program),
        "tokenizer_hash": plan.tokenizer_hash,
        "constraints": [
            {"kind": item.kind, "source": item.source, "options": [list(pair) for pair in item.options]}
            for item in plan.constraints
        ],
        "prefixes": [list(prefix) for prefix in plan.prefixes],
        "gens": [_encode_facts(facts) for facts in plan.gens],
        "selects": [_encode_facts(facts) for facts in plan.selects],
        "passes": list(plan.passes),
        "types": [list(pair) for pair in plan.types],
    }


def _encode_facts(facts: GenFacts | SelectFacts) -> dict[str, Any]:
    data = {name: getattr(facts, name) for name in facts.__dataclass_fields__}
    data["out"] = facts.out.id
    return data


def _decode(data: Any) -> Plan:
    reader = Reader("", data)
    check_version(reader, FORMAT, PLAN_VERSION)
    plan = Plan(
        program=decode_program(reader["program"].data, "program"),
        tokenizer_hash=reader["tokenizer_hash"].optional_string(),
        constraints=tuple(_decode_constraint(item) for item in reader["constraints"].items()),
        prefixes=tuple(item.integers() for item in reader["prefixes"].items()),
        gens=tuple(
            GenFacts(
                **_decode_common(item),
                constraint=item["constraint"].optional_string(),
                expected_len=item["expected_len"].integer(),
            )
            for item in reader["gens"].items()
        ),
        selects=tuple(
            SelectFacts(
                **_decode_common(item),
                tail=item["tail"].string(),
                sequences=tuple(ids.integers() for ids in item["sequences"].items()),
            )
            for item in reader["selects"].items()
        ),
        passes=tuple(item.string() for item in reader["passes"].items()),
        types=tuple(item.string_pair() for item in reader["types"].items()),
    )
    num_ops = sum(1 for _ in walk(plan.program.body))
    for facts in plan.facts:
        if not 0 <= facts.op < num_ops:
            reader.fail(f"%{facts.out.id} speaks of op {facts.op}, but there are {num_ops}")
        if not -1 <= facts.prefix < len(plan.prefixes):
            reader.fail(f"%{facts.out.id} speaks of prefix {facts.prefix}, but there are {len(plan.prefixes)}")
    return plan


def _decode_common(reader: Reader) -> dict[str, Any]:
    data: dict[str, Any] = {name: reader[name].integer() for name in ("op", "stream", "prefix", "num_static_tokens")}
    data["out"] = Ref(reader["out"].integer())
    data["literal"] = reader["literal"].string()
    data["follows"] = reader["follows"].string()
    if data["follows"] not in FOLLOWERS:
        reader["follows"].fail(f"must be one of {', '.join(FOLLOWERS)}")
    return data


def _decode_constraint(reader: Reader) -> Constraint:
    kind = next((kind for kind in CONSTRAINT_KINDS if kind == reader["kind"].string()), None)
    if kind is None:
        reader["kind"].fail(f"must be one of {', '.join(CONSTRAINT_KINDS)}")
    options = tuple(item.string_pair() for item in reader["options"].items())
    return Constraint(kind, reader["source"].string(), options)  # type: ignore[arg-type]
