"""
Whether a call's arguments fit its tool's JSON Schema (https://json-schema.org/draft/2020-12).

Looked at is what tells a model what it did wrong: types, what is required, what is one of a few, ranges, and what an object or a
list holds. Patterns and formats are the tool's own to check; so is a schema that is itself wrong.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

DEPTH_LIMIT = 32
"""Deeper arguments are taken as they are."""
SHOWN_CHARS = 60

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


def misfit(value: object, schema: object) -> str | None:
    """Return in one sentence what of *value* does not fit *schema*; None where it fits."""
    return _misfit(value, schema, "$", schema, 0)


def _misfit(value: object, schema: object, path: str, root: object, depth: int) -> str | None:
    if schema is False:
        return f"{path} must not be there"
    if not isinstance(schema, dict) or depth > DEPTH_LIMIT:
        return None
    rules = cast("dict[str, Any]", schema)
    if isinstance(rules.get("$ref"), str):
        return _misfit(value, _find(root, rules["$ref"]), path, root, depth + 1)
    kinds = rules.get("type")
    wanted = [kinds] if isinstance(kinds, str) else kinds if isinstance(kinds, list) else []
    if wanted and not any(_is(value, kind) for kind in wanted):
        return f"{path} must be {' or '.join(map(str, wanted))}, not {_shown(value)}"
    if isinstance(rules.get("enum"), list) and value not in rules["enum"]:
        return f"{path} must be one of {_shown(rules['enum'], 400)}, not {_shown(value)}"
    if "const" in rules and value != rules["const"]:
        return f"{path} must be {_shown(rules['const'])}, not {_shown(value)}"
    for found in (_out_of_range(value, rules, path), _in_object(value, rules, path, root, depth)):
        if found is not None:
            return found
    if isinstance(value, list):
        for place, one in enumerate(value):
            found = _misfit(one, rules.get("items"), f"{path}[{place}]", root, depth + 1)
            if found is not None:
                return found
    return _of_several(value, rules, path, root, depth)


def _of_several(value: object, rules: dict[str, Any], path: str, root: object, depth: int) -> str | None:
    every = rules.get("allOf")
    for one in every if isinstance(every, list) else []:
        if (found := _misfit(value, one, path, root, depth + 1)) is not None:
            return found
    for name in ("anyOf", "oneOf"):
        choices = rules.get(name)
        if isinstance(choices, list) and choices:
            misfits = [_misfit(value, one, path, root, depth + 1) for one in choices]
            if None not in misfits:
                return misfits[0]
    return None


def _in_object(value: object, rules: dict[str, Any], path: str, root: object, depth: int) -> str | None:
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, object]", value)
    required, known = rules.get("required"), rules.get("properties")
    for name in required if isinstance(required, list) else []:
        if name not in fields:
            return f"{path}.{name} is missing"
    properties = cast("dict[str, object]", known) if isinstance(known, dict) else {}
    other = rules.get("additionalProperties") if "patternProperties" not in rules else None
    for name, one in fields.items():
        if name not in properties and other is False:
            return f"{path}.{name} is none of its fields; there are {_shown(list(properties), 400)}"
        found = _misfit(one, properties.get(name, other), f"{path}.{name}", root, depth + 1)
        if found is not None:
            return found
    return None


def _out_of_range(value: object, rules: dict[str, Any], path: str) -> str | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        size: float = value
        least, most, what = "minimum", "maximum", ""
        for name, wrong in (("exclusiveMinimum", "more"), ("exclusiveMaximum", "less")):
            bound = _number(rules.get(name))
            if bound is not None and (size <= bound if wrong == "more" else size >= bound):
                return f"{path} must be {wrong} than {bound:g}, not {_shown(value)}"
    elif isinstance(value, str):
        size, least, most, what = len(value), "minLength", "maxLength", " characters long"
    elif isinstance(value, list):
        size, least, most, what = len(value), "minItems", "maxItems", " items long"
    else:
        return None
    low, high = _number(rules.get(least)), _number(rules.get(most))
    if low is not None and size < low:
        return f"{path} must be at least {low:g}{what}, not {size:g}"
    if high is not None and size > high:
        return f"{path} must be at most {high:g}{what}, not {size:g}"
    return None


def _is(value: object, kind: object) -> bool:
    types = _TYPES.get(str(kind))
    if types is None:
        return True
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, types) and (kind != "integer" or not isinstance(value, float) or value.is_integer())


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _find(root: object, reference: str) -> object:
    """Return what *reference*, such as ``#/$defs/room``, leads to; anything fits where it leads nowhere."""
    found = root
    for part in reference.removeprefix("#").strip("/").split("/") if reference.startswith("#") else ["?"]:
        name = part.replace("~1", "/").replace("~0", "~")
        if name:
            found = cast("dict[str, object]", found).get(name) if isinstance(found, dict) else None
    return found


def _shown(value: object, limit_chars: int = SHOWN_CHARS) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= limit_chars else text[:limit_chars] + "…"
