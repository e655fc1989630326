"""A JSON Schema as a document: parsed exactly, with its subschemas, identifiers and references. Nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from ....core.errors import ConstraintError

MAX_DEPTH = 256

# Where subschemas stand: directly, in a list, in a mapping.
_DIRECT = (
    "additionalItems", "additionalProperties", "contains", "contentSchema", "else", "if", "items", "not",
    "propertyNames", "then", "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
_LISTS = ("allOf", "anyOf", "items", "oneOf", "prefixItems")
_MAPPINGS = ("$defs", "definitions", "dependencies", "dependentSchemas", "patternProperties", "properties")

_DRAFTS = {"draft-03": 3, "draft-04": 4, "draft-05": 4, "draft-06": 6, "draft-07": 7, "2019-09": 2019, "2020-12": 2020}


def schema_error(message: str, pointer: str) -> ConstraintError:
    """The error of everything in this package: about the keyword or schema at a JSON pointer."""
    return ConstraintError(message, field="json_schema", pointer=pointer)


def escaped(key: str | int) -> str:
    """A key as a step of a JSON pointer (RFC 6901)."""
    return "/" + str(key).replace("~", "~0").replace("/", "~1")


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A schema in the document: `value` is a bool or a dict; `base` the URI that references in it start from."""

    pointer: str
    value: Any
    base: str

    def at(self, *steps: str | int) -> str:
        """The pointer of something inside."""
        return self.pointer + "".join(map(escaped, steps))

    def get(self, keyword: str) -> Any:
        return self.value.get(keyword) if isinstance(self.value, dict) else None


class Document:
    """Parses a schema and finds what a reference points to. Raises ConstraintError."""

    def __init__(self, source: str) -> None:
        self.root_value = parse_json(source)
        self.draft = self._draft()
        self.nodes: dict[str, Node] = {}
        self._resources: dict[str, Node] = {}
        self._anchors: dict[str, Node] = {}
        self._scan("", self.root_value, "")
        self.root = self.nodes[""]

    def _draft(self) -> int:
        uri = self.root_value.get("$schema", "") if isinstance(self.root_value, dict) else ""
        if not isinstance(uri, str):
            raise schema_error(f"must be a string, not {shown(uri)}", "/$schema")
        if urlsplit(uri).netloc not in ("", "json-schema.org", "www.json-schema.org"):
            raise schema_error(f"unknown dialect {uri!r}; drafts 4 to 2020-12 are supported", "/$schema")
        draft = next((draft for name, draft in _DRAFTS.items() if name in uri), 2020)
        if draft == 3:
            raise schema_error("draft 3 is not supported; use draft 4 or later", "/$schema")
        return draft

    def _scan(self, pointer: str, value: Any, base: str) -> None:
        """Record the schema at `pointer` and all below it, with identifiers and anchors."""
        todo = [(pointer, value, base, 0)]
        while todo:
            pointer, value, base, depth = todo.pop()
            if pointer in self.nodes:
                continue
            if depth > MAX_DEPTH:
                raise schema_error(f"nested more than {MAX_DEPTH} deep", pointer)
            if not isinstance(value, (bool, dict)):
                raise schema_error(f"a schema must be an object or a boolean, not {shown(value)}", pointer)
            base = self._identify(pointer, value, base)
            node = self.nodes[pointer] = Node(pointer, value, base)
            if isinstance(value, bool):
                continue
            self._name(node)
            todo.extend((pointer + step, sub, base, depth + 1) for step, sub in subschemas(value))

    def _identify(self, pointer: str, value: Any, base: str) -> str:
        name = "id" if self.draft == 4 else "$id"
        found = value.get(name) if isinstance(value, dict) else None
        if not isinstance(found, str) or (self.draft <= 7 and "$ref" in value):
            return base
        if self.draft <= 7 and found.startswith("#"):  # an anchor, before it had a keyword of its own
            return base
        return urldefrag(urljoin(base, found))[0]

    def _name(self, node: Node) -> None:
        value = node.value
        name = "id" if self.draft == 4 else "$id"
        found = value.get(name)
        ignored = self.draft <= 7 and "$ref" in value
        if not node.pointer or (isinstance(found, str) and not found.startswith("#") and not ignored):
            self._resources.setdefault(node.base, node)
        anchors = [value.get("$anchor"), value.get("$dynamicAnchor")]
        if self.draft <= 7 and isinstance(found, str) and "#" in found:
            anchors.append(urldefrag(found)[1])
        for anchor in anchors:
            if isinstance(anchor, str) and anchor:
                self._anchors.setdefault(f"{node.base}#{anchor}", node)

    def resolve(self, node: Node, reference: str, keyword: str = "$ref") -> Node:
        """The schema that `reference`, standing in `node`, points to. Raises ConstraintError for a remote one."""
        pointer = node.at(keyword)
        uri, fragment = urldefrag(urljoin(node.base, reference))
        resource = self._resources.get(uri)
        if resource is None and reference.startswith("#"):
            resource = self.root
        if resource is None:
            raise schema_error(f"reference to another document, {reference!r}: nothing is fetched", pointer)
        if not fragment:
            return resource
        if not fragment.startswith("/"):
            found = self._anchors.get(f"{uri}#{unquote(fragment)}")
            if found is None:
                raise schema_error(f"reference to an unknown anchor, {reference!r}", pointer)
            return found
        return self._follow(resource, unquote(fragment), reference, pointer)

    def _follow(self, resource: Node, fragment: str, reference: str, pointer: str) -> Node:
        at, value, base = resource.pointer, resource.value, resource.base
        for raw in fragment.split("/")[1:]:
            step = raw.replace("~1", "/").replace("~0", "~")
            if isinstance(value, dict) and step in value:
                value = value[step]
            elif isinstance(value, list) and step.isdigit() and int(step) < len(value):
                value = value[int(step)]
            else:
                raise schema_error(f"reference to {reference!r}, which is not there", pointer)
            at += escaped(step)
            base = self.nodes[at].base if at in self.nodes else base
        if at not in self.nodes:
            self._scan(at, value, base)
        return self.nodes[at]


def subschemas(value: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """(pointer step, schema) for each schema directly inside one."""
    for keyword in _DIRECT:
        if isinstance(value.get(keyword), (dict, bool)):
            yield escaped(keyword), value[keyword]
    for keyword in _LISTS:
        if isinstance(value.get(keyword), list):
            for i, sub in enumerate(value[keyword]):
                yield escaped(keyword) + escaped(i), sub
    for keyword in _MAPPINGS:
        if isinstance(value.get(keyword), dict):
            for key, sub in value[keyword].items():
                if keyword != "dependencies" or not isinstance(sub, list):
                    yield escaped(keyword) + escaped(key), sub


def parse_json(source: str) -> Any:
    """JSON text with exact decimals. Raises ConstraintError."""

    def refuse(name: str) -> Any:
        raise schema_error(f"{name} is not JSON", "")

    try:
        return json.loads(source, parse_float=Decimal, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise schema_error(f"not JSON: {error}", "") from None
    except RecursionError:
        raise schema_error(f"nested more than {MAX_DEPTH} deep", "") from None
    except ConstraintError:
        raise
    except ValueError as error:  # an integer with thousands of digits
        raise schema_error(f"not usable: {error}", "") from None


def shown(value: Any) -> str:
    """A value for a message, cut short."""
    text = json.dumps(value, ensure_ascii=False, default=float)
    return text if len(text) <= 60 else text[:57] + "..."
