"""pydantic's types as schemas that hold all that pydantic checks, as far as a schema can; and values made by pydantic.

`model_json_schema` leaves out much: the digits of a Decimal, the schemes of a URL, what a format of pydantic's own
means. A text could then meet the schema and be refused when it is read. Nothing is imported that is not there already.
"""

from __future__ import annotations

import datetime
import json
import sys
from decimal import Decimal
from functools import cache
from typing import Any

from . import annotated, scalars

_HOST = r"(([a-z0-9]{1,20}(-[a-z0-9]{1,20})?\.){1,3}[a-z]{2,20}|localhost)"
_PATH = r"(:[1-9][0-9]{0,3})?(/[A-Za-z0-9._~\-/]{0,200})?(\?[A-Za-z0-9._~\-/=&]{0,200})?(#[A-Za-z0-9._~\-]{0,100})?"
_MAX_URL = 700  # characters that the pattern of a URL can have

# What pydantic's own names of formats mean. Networks are written as one address.
_FORMATS: dict[str, dict[str, Any]] = {
    "ipvanyaddress": {"anyOf": [{"format": "ipv4"}, {"format": "ipv6"}]},
    "ipvanyinterface": {"format": "ipv4"},
    "ipvanynetwork": {"format": "ipv4"},
    "ipv4interface": {"format": "ipv4"},
    "ipv6interface": {"format": "ipv6"},
    "ipv4network": {"format": "ipv4"},
    "ipv6network": {"format": "ipv6"},
    "base64": {"pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$"},
    "base64url": {"pattern": "^([A-Za-z0-9_-]{4})*([A-Za-z0-9_-][AQgw]==|[A-Za-z0-9_-]{2}[AEIMQUYcgkosw048]=)?$"},
    **{
        f"uuid{version}": {"format": "uuid", "pattern": f"^.{{14}}{version}.{{4}}[89abAB]"}
        for version in (1, 3, 4, 5, 6, 7, 8)
    },
}


def is_pydantic(kind: Any) -> bool:
    """Whether pydantic (or what has its methods) says what the type is: models, its dataclasses, URLs, ..."""
    if callable(getattr(kind, "model_json_schema", None)) and callable(getattr(kind, "model_validate", None)):
        return True
    return isinstance(kind, type) and (
        "__pydantic_core_schema__" in kind.__dict__ or hasattr(kind, "__get_pydantic_core_schema__")
    )


def json_schema(kind: Any) -> dict[str, Any]:
    """The schema, `$defs` included. Raises TypeError for a type that has none."""
    if hasattr(kind, "__pydantic_generic_metadata__") or not hasattr(kind, "model_json_schema"):
        pydantic = sys.modules["pydantic"]
        try:
            made = pydantic.TypeAdapter(kind).json_schema(schema_generator=_generator())
        except pydantic.errors.PydanticInvalidForJsonSchema as error:
            raise TypeError(f"{kind!r} has no JSON Schema: {str(error).splitlines()[0]}") from None
    else:
        made = kind.model_json_schema()
    found: dict[str, Any] = _completed(made)
    return found


def value(kind: Any, data: Any) -> Any:
    """The value that pydantic makes of JSON data. Raises ValueError."""
    text = json_text(data)
    if hasattr(kind, "model_validate_json"):
        return kind.model_validate_json(text)
    if hasattr(kind, "model_validate"):
        return kind.model_validate(scalars.without_decimals(data))
    return sys.modules["pydantic"].TypeAdapter(kind).validate_json(text)


def json_text(data: Any) -> str:
    """JSON of data with exact decimals."""
    if isinstance(data, Decimal):
        return str(data)
    if isinstance(data, list):
        return "[" + ",".join(map(json_text, data)) + "]"
    if isinstance(data, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{json_text(part)}" for key, part in data.items()) + "}"
    return json.dumps(data)


def _completed(schema: Any) -> Any:
    """The schema with what pydantic's own formats mean."""
    if isinstance(schema, list):
        return [_completed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out: dict[str, Any] = {
        key: {name: _completed(part) for name, part in inner.items()}
        if key in ("properties", "$defs", "patternProperties") and isinstance(inner, dict)
        else inner
        if key in ("enum", "const", "default", "examples")
        else _completed(inner)
        for key, inner in schema.items()
    }
    means = _FORMATS.get(str(out.get("format")))
    if means is not None:
        del out["format"]
        out = {**out, "allOf": [*out.get("allOf", ()), means]}
    return out


@cache
def _generator() -> Any:
    """pydantic's generator of schemas, with what it leaves out."""
    import pydantic.json_schema as of_pydantic

    class Complete(of_pydantic.GenerateJsonSchema):
        def decimal_schema(self, schema: Any) -> dict[str, Any]:
            bounds = [(name, schema[name]) for name in annotated.OF_NUMBERS if schema.get(name) is not None]
            return annotated.with_named_bounds({"type": "number"}, bounds)

        def url_schema(self, schema: Any) -> dict[str, Any]:
            schemes = schema.get("allowed_schemes") or ["https", "http"]
            longest = min(schema.get("max_length") or _MAX_URL, _MAX_URL)
            pattern = f"^({'|'.join(schemes)})://{_HOST}{_PATH}$"
            return {"type": "string", "pattern": pattern, **({"maxLength": longest} if longest < _MAX_URL else {})}

        def dict_schema(self, schema: Any) -> dict[str, Any]:
            made: dict[str, Any] = super().dict_schema(schema)
            if schema.get("keys_schema", {}).get("type") == "int":
                made["propertyNames"] = {"pattern": scalars.INT_KEY}
            return made

        def datetime_schema(self, schema: Any) -> dict[str, Any]:
            return dict(scalars.SCHEMAS[datetime.datetime] if schema.get("tz_constraint") != "naive" else scalars.NAIVE)

        def date_schema(self, schema: Any) -> dict[str, Any]:
            return dict(scalars.SCHEMAS[datetime.date])

        def time_schema(self, schema: Any) -> dict[str, Any]:
            return dict(scalars.SCHEMAS[datetime.time])

        def timedelta_schema(self, schema: Any) -> dict[str, Any]:
            return dict(scalars.SCHEMAS[datetime.timedelta])

    return Complete
