"""The canonical text of a schema: what a `Constraint` of kind "json_schema" holds as its source."""

from __future__ import annotations

import json
from typing import Any

from ...core.errors import ConstraintError


def source_of_schema(schema: Any) -> str:
    """JSON text of a schema given as a dict or bool, as JSON text, or as a class with `model_json_schema` (pydantic).

    Keys keep their order, which decides the order of properties. Equal schemas give equal texts. Raises
    ConstraintError for anything else, and for what is not JSON.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError) as error:
            raise ConstraintError(f"not JSON: {error}", field="json_schema") from None
    elif callable(describe := getattr(schema, "model_json_schema", None)):
        schema = describe()
    if not isinstance(schema, (dict, bool)):
        raise ConstraintError(
            f"a schema is a dict, JSON text or a pydantic model, not {type(schema).__name__}", field="json_schema"
        )
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConstraintError(f"not JSON: {error}", field="json_schema") from None
