"""A Program as versioned JSON: `from_json(to_json(p)) == p`, source places kept. Nothing is executed on loading.

One rule per kind of field in each direction. A Ref is `{"ref": 3}`, a tuple a list, a float that JSON cannot write
`{"float": "inf"}`; fields at their default are left out.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from ..core.errors import IRSyntaxError, SourceLoc
from ..core.request import LogprobWish
from .fields import FIELDS, Kind
from .ir import IR_VERSION, OP_CLASSES, AnyOp, Case, Const, ConstraintSpec, Operand, Param, Program, Ref
from .parser import CONSTRAINT_KINDS

if TYPE_CHECKING:
    from collections.abc import Callable

FORMAT = "dslc.program"
MAX_DEPTH = 200  # of regions and of nested operands


def to_json(program: Program, indent: int | None = None) -> str:
    """The JSON text of a program."""
    return json.dumps(encode_program(program), indent=indent, allow_nan=False)


def from_json(text: str | bytes) -> Program:
    """The program in `text`. Raises IRSyntaxError naming the path of what is wrong; refuses other versions."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise IRSyntaxError(f"not JSON: {error}") from error
    return decode_program(data)


def encode_program(program: Program) -> dict[str, Any]:
    """The program as plain JSON data."""
    return {
        "format": FORMAT,
        "version": IR_VERSION,
        "title": program.title,
        "params": [_encode_param(param) for param in program.params],
        "body": [encode_op(op) for op in program.body],
        "guards": [list(pair) for pair in program.guards],
        "num_api_spec_tokens": program.num_api_spec_tokens,
        "where": encode_where(program.where),
    }


def decode_program(data: Any, path: str = "") -> Program:
    """The program in plain JSON data. Raises IRSyntaxError with the path of what is wrong."""
    reader = Reader(path, data)
    check_version(reader, FORMAT, IR_VERSION)
    num_tokens = data.get("num_api_spec_tokens")
    if num_tokens is not None:
        num_tokens = reader["num_api_spec_tokens"].integer()
    return Program(
        title=reader["title"].string(),
        params=tuple(_decode_param(item) for item in reader["params"].items()),
        body=tuple(_decode_op(item, 0) for item in reader["body"].items()),
        guards=tuple(item.string_pair() for item in reader["guards"].items()),
        num_api_spec_tokens=num_tokens,
        where=reader["where"].where(),
    )


def encode_where(where: SourceLoc | None) -> list[Any] | None:
    """A place as [file, line, function]."""
    return None if where is None else [where.file, where.line, where.function]


class Reader:
    """A piece of JSON data and its path; every accessor checks the type and fails with the path."""

    def __init__(self, path: str, data: Any) -> None:
        self.path = path
        self.data = data

    def fail(self, message: str) -> Any:
        raise IRSyntaxError(f"{self.path or 'the top level'}: {message}")

    def __getitem__(self, key: str) -> Reader:
        if key not in self.mapping():
            self.fail(f"lacks {key!r}")
        return Reader(f"{self.path}.{key}" if self.path else key, self.data[key])

    def mapping(self) -> dict[str, Any]:
        return self._typed(dict, "an object")  # type: ignore[no-any-return]

    def items(self) -> list[Reader]:
        return [Reader(f"{self.path}[{i}]", item) for i, item in enumerate(self._typed(list, "a list"))]

    def string(self) -> str:
        return self._typed(str, "a string")  # type: ignore[no-any-return]

    def integer(self) -> int:
        return self._typed(int, "an integer")  # type: ignore[no-any-return]

    def boolean(self) -> bool:
        return self._typed(bool, "true or false")  # type: ignore[no-any-return]

    def optional_string(self) -> str | None:
        return None if self.data is None else self.string()

    def integers(self) -> tuple[int, ...]:
        return tuple(item.integer() for item in self.items())

    def string_pair(self) -> tuple[str, str]:
        items = self.items()
        if len(items) != 2:
            self.fail("must be a pair of strings")
        return items[0].string(), items[1].string()

    def where(self) -> SourceLoc | None:
        if self.data is None:
            return None
        items = self.items()
        if len(items) != 3:
            self.fail("must be [file, line, function]")
        return SourceLoc(items[0].string(), items[1].integer(), items[2].string())

    def _typed(self, kind: type, what: str) -> Any:
        if type(self.data) is not kind:
            self.fail(f"must be {what}, not {type(self.data).__name__}")
        return self.data


def check_version(reader: Reader, form: str, version: int) -> None:
    """Refuse data of another kind or version, by name."""
    data = reader.mapping()
    if data.get("format") != form:
        reader.fail(f"this is not a {form!r} (its format is {data.get('format')!r})")
    if data.get("version") != version:
        found = data.get("version")
        reader.fail(f"written in version {found!r} of {form!r}; this dslc reads version {version}: compile it anew")


def _encode_param(param: Param) -> dict[str, Any]:
    data: dict[str, Any] = {"name": param.name}
    if param.has_default:
        data["default"] = encode_operand(param.default)
    if param.keyword_only:
        data["keyword_only"] = True
    return data


def _decode_param(reader: Reader) -> Param:
    data = reader.mapping()
    return Param(
        reader["name"].string(),
        "default" in data,
        _operand(reader["default"], 0) if "default" in data else None,
        reader["keyword_only"].boolean() if "keyword_only" in data else False,
    )


# Encoding


def encode_operand(operand: Operand) -> Any:
    """An operand as plain JSON data."""
    if isinstance(operand, Ref):
        return {"ref": operand.id}
    if isinstance(operand, tuple):
        return [encode_operand(item) for item in operand]
    if isinstance(operand, float) and not math.isfinite(operand):
        return {"float": repr(operand)}
    return operand


def _encode_constraint(spec: ConstraintSpec | None) -> Any:
    if spec is None:
        return None
    return {"kind": spec.kind, "source": encode_operand(spec.source), "options": [list(pair) for pair in spec.options]}


def _encode_logprobs(wish: LogprobWish | None) -> Any:
    if wish is None:
        return None
    return {"prompt_start": wish.prompt_start, "top": wish.top, "token_ids": list(wish.token_ids)}


def _encode_cases(cases: tuple[Case, ...]) -> Any:
    return [{"value": encode_operand(case.value), "body": [encode_op(op) for op in case.body]} for case in cases]


_ENCODE: dict[Kind, Callable[[Any], Any]] = {
    Kind.OPERAND: encode_operand,
    Kind.CONST: encode_operand,
    Kind.REF: lambda ref: ref.id,
    Kind.STRING: lambda value: value,
    Kind.OPTIONAL_STRING: lambda value: value,
    Kind.BOOL: lambda value: value,
    Kind.INT: lambda value: value,
    Kind.OPTIONAL_INT: lambda value: value,
    Kind.INTS: list,
    Kind.OPERANDS: lambda items: [encode_operand(item) for item in items],
    Kind.REFS: lambda refs: [ref.id for ref in refs],
    Kind.PAIRS: lambda pairs: [[name, encode_operand(value)] for name, value in pairs],
    Kind.CONSTRAINT: _encode_constraint,
    Kind.LOGPROBS: _encode_logprobs,
    Kind.REGION: lambda body: [encode_op(op) for op in body],
    Kind.CASES: _encode_cases,
    Kind.WORD: lambda word: word,
}


def encode_op(op: AnyOp) -> dict[str, Any]:
    """One op, with its regions, as plain JSON data."""
    data: dict[str, Any] = {"op": op.name}
    if op.stream:
        data["stream"] = op.stream
    for info in FIELDS[type(op)]:
        value = getattr(op, info.name)
        if info.is_required or value != info.default:
            data[info.name] = _ENCODE[info.kind](value)
    if op.where is not None:
        data["where"] = encode_where(op.where)
    return data


# Decoding. Every rule takes the depth of nesting, which is bounded.


def _operand(reader: Reader, depth: int) -> Operand:
    data = reader.data
    if depth > MAX_DEPTH:
        reader.fail(f"nested more than {MAX_DEPTH} deep")
    if isinstance(data, list):
        return tuple(_operand(item, depth + 1) for item in reader.items())
    if not isinstance(data, dict):
        return data  # type: ignore[no-any-return]
    if set(data) == {"ref"}:
        return Ref(reader["ref"].integer())
    if set(data) == {"float"} and data["float"] in ("inf", "-inf", "nan"):
        return float(data["float"])
    return reader.fail('must be a literal, a list, {"ref": id} or {"float": ...}')  # type: ignore[no-any-return]


def _const(reader: Reader, depth: int) -> Const:
    value = _operand(reader, depth)
    if isinstance(value, (tuple, Ref)):
        reader.fail("must be a literal")
    return value  # type: ignore[return-value]


def _pairs(reader: Reader, depth: int) -> tuple[tuple[str, Operand], ...]:
    pairs = []
    for item in reader.items():
        parts = item.items()
        if len(parts) != 2:
            item.fail("must be [name, value]")
        pairs.append((parts[0].string(), _operand(parts[1], depth)))
    return tuple(pairs)


def _constraint(reader: Reader, depth: int) -> ConstraintSpec | None:
    if reader.data is None:
        return None
    kind = next((kind for kind in CONSTRAINT_KINDS if kind == reader["kind"].string()), None)
    if kind is None:
        reader["kind"].fail(f"must be one of {', '.join(CONSTRAINT_KINDS)}")
    options = tuple(item.string_pair() for item in reader["options"].items())
    return ConstraintSpec(kind, _operand(reader["source"], depth), options)  # type: ignore[arg-type]


def _logprobs(reader: Reader, depth: int) -> LogprobWish | None:
    if reader.data is None:
        return None
    return LogprobWish(reader["prompt_start"].integer(), reader["top"].integer(), reader["token_ids"].integers())


def _region(reader: Reader, depth: int) -> tuple[AnyOp, ...]:
    return tuple(_decode_op(item, depth + 1) for item in reader.items())


def _cases(reader: Reader, depth: int) -> tuple[Case, ...]:
    return tuple(Case(_const(item["value"], depth), _region(item["body"], depth)) for item in reader.items())


_DECODE: dict[Kind, Callable[[Reader, int], Any]] = {
    Kind.OPERAND: _operand,
    Kind.CONST: _const,
    Kind.REF: lambda reader, depth: Ref(reader.integer()),
    Kind.STRING: lambda reader, depth: reader.string(),
    Kind.OPTIONAL_STRING: lambda reader, depth: reader.optional_string(),
    Kind.BOOL: lambda reader, depth: reader.boolean(),
    Kind.INT: lambda reader, depth: reader.integer(),
    Kind.OPTIONAL_INT: lambda reader, depth: None if reader.data is None else reader.integer(),
    Kind.INTS: lambda reader, depth: reader.integers(),
    Kind.OPERANDS: lambda reader, depth: tuple(_operand(item, depth) for item in reader.items()),
    Kind.REFS: lambda reader, depth: tuple(Ref(number) for number in reader.integers()),
    Kind.PAIRS: _pairs,
    Kind.CONSTRAINT: _constraint,
    Kind.LOGPROBS: _logprobs,
    Kind.REGION: _region,
    Kind.CASES: _cases,
    Kind.WORD: lambda reader, depth: reader.string(),
}


def _decode_op(reader: Reader, depth: int) -> AnyOp:
    if depth > MAX_DEPTH:
        reader.fail(f"nested more than {MAX_DEPTH} deep")
    data = reader.mapping()
    cls = OP_CLASSES.get(reader["op"].string())
    if cls is None:
        return reader["op"].fail(f"unknown op {data['op']!r}")  # type: ignore[no-any-return]
    infos = {info.name: info for info in FIELDS[cls]}
    if unknown := sorted(data.keys() - infos.keys() - {"op", "stream", "where"}):
        reader.fail(f"op {cls.name!r} has no field {unknown[0]!r}")
    values: dict[str, Any] = {"stream": reader["stream"].integer() if "stream" in data else 0}
    values["where"] = reader["where"].where() if "where" in data else None
    for name, info in infos.items():
        if name in data:
            values[name] = _DECODE[info.kind](reader[name], depth)
            if info.words and values[name] not in info.words:
                reader[name].fail(f"must be one of {', '.join(info.words)}")
        elif info.is_required:
            reader.fail(f"op {cls.name!r} lacks {name!r}")
    op: AnyOp = cls(**values)
    return op
