"""Tools: Python functions that a model calls between gens.

s += assistant(gen("call", tools=[search, calculate]))   # constrained to a call of one of them, with its arguments
s += tool(s["call"].run())                               # executed by the program, the result a turn of its own
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..core.errors import ProgramError, RequestError, SourceLoc
from .locate import caller
from .types import TypeSpec, build, schema_of


class ToolError(ProgramError):
    """A tool raised an exception (its `__cause__`)."""

    is_of_a_tool = True  # never what a generation fails with


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model has written: the tool's name, and its arguments as values of their types."""

    name: str
    arguments: dict[str, Any]
    function: Callable[..., Any]

    def run(self) -> str:
        """Call the tool. Its result as text: a str as it is, anything else as JSON, or by `str`.

        Raises ToolError, at the user's line, from what the tool raises.
        """
        where = caller()
        try:
            result = self.function(**self.arguments)
        except Exception as error:
            shown = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
            raise ToolError(f"{self.name}({shown}) raised {type(error).__name__}: {error}", where=where) from error
        if isinstance(result, str):
            return result
        try:
            return json.dumps(result, ensure_ascii=False)
        except (TypeError, ValueError):
            return str(result)


@dataclass(frozen=True, slots=True)
class Tool:
    """A function with the schema of its arguments."""

    name: str
    description: str
    parameters: dict[str, Any]
    types: dict[str, Any]
    required: tuple[str, ...]
    function: Callable[..., Any]

    @property
    def schema(self) -> dict[str, Any]:
        """As chat templates and APIs describe a tool."""
        inner = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": inner}


def tool_of(function: Callable[..., Any], where: SourceLoc | None = None) -> Tool:
    """A tool from a function's name, docstring and annotations. Raises RequestError for what has no schema."""
    name = getattr(function, "__name__", "")
    try:
        parameters = inspect.signature(function).parameters.values()
        hints = typing.get_type_hints(function, include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise RequestError(f"{function!r} cannot be a tool: {error}", field="tools", where=where) from None
    properties: dict[str, Any] = {}
    types: dict[str, Any] = {}
    required: list[str] = []
    definitions: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
            raise RequestError(f"{name} takes {parameter}: a tool needs named parameters", field="tools", where=where)
        kind = hints.get(parameter.name)
        if kind is None:
            raise RequestError(f"the parameter {parameter.name!r} of {name} has no type", field="tools", where=where)
        try:
            schema = schema_of(kind)
        except (TypeError, NameError) as error:
            raise RequestError(
                f"the parameter {parameter.name!r} of {name}: {error}", field="tools", where=where
            ) from None
        definitions.update(schema.pop("$defs", {}))
        properties[parameter.name] = schema
        types[parameter.name] = kind
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    described: dict[str, Any] = {
        "type": "object", "properties": properties, "required": required, "additionalProperties": False,
    }  # fmt: skip
    if definitions:
        described["$defs"] = definitions
    return Tool(name, inspect.getdoc(function) or "", described, types, tuple(required), function)


def spec_of_tools(functions: Sequence[Callable[..., Any]], where: SourceLoc | None) -> TypeSpec:
    """What a call of one of these asks of a generation: JSON with a name and arguments; its value is a ToolCall."""
    tools = [tool_of(function, where) for function in functions]
    if not tools:
        raise RequestError("needs at least one function", field="tools", where=where)
    names = [tool.name for tool in tools]
    if len(set(names)) < len(names):
        raise RequestError(f"two tools have the same name: {', '.join(names)}", field="tools", where=where)
    definitions: dict[str, Any] = {}
    calls: list[dict[str, Any]] = []
    for tool in tools:
        parameters = dict(tool.parameters)
        definitions.update(parameters.pop("$defs", {}))
        properties = {"name": {"const": tool.name}, "arguments": parameters}
        calls.append(
            {
                "type": "object",
                "properties": properties,
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if definitions:
        schema = {**schema, "$defs": definitions}
    known = {tool.name: tool for tool in tools}

    def parse(text: str) -> ToolCall:
        data = json.loads(text)
        if not isinstance(data, dict) or data.keys() != {"name", "arguments"}:
            raise ValueError("a call has a name and arguments")
        tool = known.get(data["name"])
        if tool is None:
            raise ValueError(f"there is no tool {data['name']!r}")
        arguments = data["arguments"]
        if not isinstance(arguments, dict) or not tool.types.keys() >= arguments.keys() >= set(tool.required):
            raise ValueError(f"the arguments of {tool.name} do not fit: {arguments!r}")
        built = {name: build(tool.types[name], value, f"$.{name}") for name, value in arguments.items()}
        return ToolCall(tool.name, built, tool.function)

    return TypeSpec(ToolCall, "json_schema", json.dumps(schema, ensure_ascii=False), parse)
