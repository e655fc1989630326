"""Engines against each other on schemas with instances: every disagreement, with the verdict that is right.

    python tests/support/differential.py FOLDER... [--engines llguidance,xgrammar] [--every N] [--annotate]

A folder holds JSON files with `schema` and `tests: [{data, valid}]`, or groups as in JSON-Schema-Test-Suite. An
instance is fed in the promised form: `", "` and `": "`, declared keys first in the schema's order, numbers in their
shortest plain spelling. Exits with 1 if ours is on the wrong side of a disagreement.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import referencing.exceptions

from dslc.compiler.constraints.compile import build_automaton
from dslc.compiler.constraints.engines import OWN, constraint_engine
from dslc.core.constraint import Constraint, Vocabulary
from dslc.core.errors import ConstraintError

# A token for each byte: texts are read byte by byte in every engine.
BYTES = Vocabulary.of((*(bytes([b]) for b in range(256)), None), (256,))


@dataclass(frozen=True)
class Disagreement:
    """Engines that do not give one verdict on a text. `right` is the file's verdict, `told` jsonschema's (None: it has
    none, as where it would have to fetch something)."""

    schema: str
    text: str
    right: bool
    verdicts: dict[str, bool]
    told: bool | None = None

    @property
    def ours_is_right(self) -> bool:
        return self.verdicts[OWN] == self.right

    def __str__(self) -> str:
        told = ", ".join(f"{name} {'accepts' if taken else 'refuses'}" for name, taken in self.verdicts.items())
        says = {True: "valid", False: "invalid", None: "nothing"}
        return f"{self.schema}: {told}; {says[self.right]} (jsonschema says {says[self.told]}): {self.text[:160]}"


def text_of(value: Any, automaton: Any = None) -> str:
    """The value in the promised form. `automaton`: ours for the schema; it knows the order of keys."""
    return _write(value, automaton, automaton.start if automaton is not None else -1, [3000])[0]


def _write(value: Any, automaton: Any, state: int, budget: list[int]) -> tuple[str, int]:
    """The text, and our automaton's state behind it (-1: it does not take it; then keys stay in their order)."""
    if isinstance(value, dict):
        found = _write_object(value, automaton, _read(automaton, state, "{"), list(value), "{", budget)
        if found is not None:
            return found
        return "{" + ", ".join(
            f"{_key(name)}{_write(v, automaton, -1, budget)[0]}" for name, v in value.items()
        ) + "}", -1
    if isinstance(value, list):
        out, state = "[", _read(automaton, state, "[")
        for i, item in enumerate(value):
            comma = ", " if i else ""
            text, state = _write(item, automaton, _read(automaton, state, comma), budget)
            out += comma + text
        return out + "]", _read(automaton, state, "]")
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        text = format(Decimal(str(value)), "f")
        text = text.rstrip("0").rstrip(".") if "." in text else text
        text = "0" if text == "-0" else text
    else:
        text = json.dumps(value, ensure_ascii=False)
    return text, _read(automaton, state, text)


def _write_object(
    value: dict[str, Any], automaton: Any, state: int, left: list[str], out: str, budget: list[int]
) -> tuple[str, int] | None:
    """The rest of an object in the first order of keys that our automaton takes, the declared one tried first."""
    budget[0] -= 1
    if state < 0 or budget[0] < 0:
        return None
    if not left:
        end = _read(automaton, state, "}")
        return (out + "}", end) if end >= 0 else None
    place = {name: i for i, name in enumerate(automaton.declared_names(state))}
    for name in sorted(left, key=lambda n: place.get(n, len(place))):
        key = ("" if out.endswith("{") and len(left) == len(value) else ", ") + _key(name)
        text, after = _write(value[name], automaton, _read(automaton, state, key), budget)
        rest = [other for other in left if other != name]
        found = _write_object(value, automaton, after, rest, out + key + text, budget)
        if found is not None:
            return found
    return None


def _key(name: str) -> str:
    return json.dumps(name, ensure_ascii=False) + ": "


def _read(automaton: Any, state: int, text: str) -> int:
    for byte in text.encode("utf-8", "surrogatepass"):
        if state < 0:
            break
        state = automaton.step(state, byte)
    return state


def takes(compiled: Any, text: str) -> bool:
    """Whether an engine takes a whole text, byte by byte."""
    data = text.encode("utf-8", "surrogatepass")
    if compiled.stats.engine == OWN:
        automaton = compiled.index.automaton
        state = _read(automaton, automaton.start, text)
        return state >= 0 and automaton.accepting(state)
    guide = compiled.begin()
    return all(guide.consume(byte) for byte in data) and guide.accepting()


def compare(
    name: str,
    schema: Any,
    instances: list[tuple[Any, bool]],
    engines: list[str],
    refused: Counter[str],
    options: tuple[tuple[str, str], ...] = (),
) -> Iterator[Disagreement]:
    """What our engine (with `options`) and `engines` do not agree on. Counts per engine what is refused whole."""
    source = json.dumps(schema, ensure_ascii=False, default=_plain)
    compiled: dict[str, Any] = {}
    for engine in (OWN, *engines):
        try:
            constraint = Constraint("json_schema", source, options if engine == OWN else ())
            if engine == OWN:
                build_automaton(constraint)
            compiled[engine] = constraint_engine(engine).compile(constraint, BYTES, None)
        except ConstraintError:
            refused[engine] += 1
    if OWN not in compiled or len(compiled) < 2:
        return
    for value, right in instances:
        text = text_of(value, compiled[OWN].index.automaton)
        verdicts = {engine: takes(made, text) for engine, made in compiled.items()}
        if len(set(verdicts.values())) > 1:
            yield Disagreement(name, text, right, verdicts, _told(schema, value, ("format", "annotate") not in options))


def _told(schema: Any, value: Any, formats: bool) -> bool | None:
    """jsonschema's verdict; None where it has none."""
    try:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        checker = kind.FORMAT_CHECKER if formats else None
        return bool(kind(schema, format_checker=checker).is_valid(_whole(value)))
    except (referencing.exceptions.Unresolvable, jsonschema.SchemaError, ArithmeticError, TypeError, ValueError):
        return None


def _whole(value: Any) -> Any:
    """jsonschema takes a Decimal for no integer."""
    if isinstance(value, dict):
        return {name: _whole(v) for name, v in value.items()}
    if isinstance(value, list):
        return [_whole(v) for v in value]
    return int(value) if isinstance(value, Decimal) and value == value.to_integral_value() else value


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() and "." not in str(value) else float(value)
    raise TypeError(type(value).__name__)


def cases(folder: Path) -> Iterator[tuple[str, Any, list[tuple[Any, bool]]]]:
    """(name, schema, instances with their verdicts) of a folder; the suite's `optional` folders are left out."""
    for path in sorted(folder.rglob("*.json")):
        if "optional" in path.parts:
            continue
        data = json.loads(path.read_text(), parse_float=Decimal)
        for group in data if isinstance(data, list) else [data]:
            schema = group["schema"]
            if path.parent.name == "draft7" and isinstance(schema, dict):
                schema = {"$schema": "http://json-schema.org/draft-07/schema#", **schema}
            name = f"{path.stem}: {group['description']}" if isinstance(data, list) else path.stem
            yield name, schema, [(test["data"], test["valid"]) for test in group["tests"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--engines", default="llguidance,xgrammar")
    parser.add_argument("--every", type=int, default=1, help="take each n-th schema")
    parser.add_argument("--annotate", action="store_true", help="formats are notes, as the suite has them, in ours")
    arguments = parser.parse_args()
    options = (("format", "annotate"),) if arguments.annotate else ()
    engines = arguments.engines.split(",")
    refused: Counter[str] = Counter()
    wrong: Counter[str] = Counter()
    against = total = texts = untold = other = 0
    for folder in arguments.folders:
        for number, (name, schema, instances) in enumerate(cases(folder)):
            if number % arguments.every:
                continue
            total += 1
            texts += len(instances)
            for found in compare(name, schema, instances, engines, refused, options):
                print(found)
                wrong.update(e for e, taken in found.verdicts.items() if taken != found.right)
                against += not found.ours_is_right
                untold += found.told is None
                other += found.told is not None and found.told != found.right
    print(
        f"{total} schemas, {texts} texts; refused whole: {dict(refused)}; "
        f"on the wrong side of a disagreement: {dict(wrong)}; ours: {against}; of the disagreements, jsonschema says "
        f"nothing about {untold}, and other than the file about {other}"
    )
    sys.exit(1 if against else 0)


if __name__ == "__main__":
    main()
