"""Values for a JSON schema: those that it allows, nearly those, and others."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

Schema = dict[str, Any]
Strategy = st.SearchStrategy[Any]

# With what stores and parsers stumble over: NUL, lone surrogates, marks that combine, writing from right to left.
CHARACTERS = st.one_of(
    st.characters(),
    st.sampled_from("\0\ud800\udfff\u0301\u202e\u200d\ufeff\U0010ffff\x7f\x80'\"\\%_<>&;\r\n\t"),
)
TEXTS = st.text(CHARACTERS, max_size=40)
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -0.0, 1e308, 5e-324, 2**31, 2**53, 2**63, 2**64, 10**30]),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)
LONG_CHARS = 60_000
"""Beyond every limit of a text."""


def values(schema: Schema, components: Schema) -> Strategy:
    """Return what *schema* allows; ``$ref`` points into *components*."""
    if "$ref" in schema:
        return st.deferred(lambda: values(components[schema["$ref"].rpartition("/")[2]], components))
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([values(one, components) for one in schema["anyOf"]])
    make = MAKERS.get(schema.get("type", ""))
    return ANYTHING if make is None else make(schema, components)


def _texts(schema: Schema, _: Schema) -> Strategy:
    lowest = schema.get("minLength", 0)
    highest = schema.get("maxLength")
    short = st.text(CHARACTERS, min_size=lowest, max_size=min(highest or 40, max(lowest, 40)))
    if highest is None:
        return short
    return st.one_of(short, short, st.text("aé🙂", min_size=1, max_size=1).map(lambda one: one * highest))


def _integers(schema: Schema, _: Schema) -> Strategy:
    return st.integers(schema.get("minimum"), schema.get("maximum"))


def _numbers(schema: Schema, _: Schema) -> Strategy:
    return st.floats(schema.get("minimum"), schema.get("maximum"), allow_nan=False, allow_infinity=False)


def _lists(schema: Schema, components: Schema) -> Strategy:
    least = schema.get("minItems", 0)
    most = min(schema.get("maxItems", 4), max(4, least))
    return st.lists(values(schema.get("items", {}), components), min_size=least, max_size=most)


def _objects(schema: Schema, components: Schema) -> Strategy:
    properties = {name: values(one, components) for name, one in schema.get("properties", {}).items()}
    required = {name: properties[name] for name in schema.get("required", ())}
    optional = {name: one for name, one in properties.items() if name not in required}
    return st.fixed_dictionaries(required, optional=optional)


MAKERS: dict[str, Callable[[Schema, Schema], Strategy]] = {
    "string": _texts,
    "integer": _integers,
    "number": _numbers,
    "boolean": lambda *_: st.booleans(),
    "null": lambda *_: st.none(),
    "array": _lists,
    "object": _objects,
}


@st.composite
def mutants(draw: st.DrawFn, sound: Strategy) -> Any:
    """Return one of *sound* with something in it that is missing, of another kind, too long, or not asked for."""
    value = copy.deepcopy(draw(sound))
    at = value
    while isinstance(at, dict) and at:
        name = draw(st.sampled_from(sorted(at)))
        if isinstance(at[name], dict) and at[name] and draw(st.booleans()):
            at = at[name]
            continue
        change = draw(st.integers(0, 4))
        if change == 0:
            del at[name]
        elif change == 1:
            at[name] = None
        elif change == 2 and isinstance(at[name], str):
            at[name] = (at[name] or "x") * (LONG_CHARS // max(1, len(at[name])))
        elif change == 3:
            at[draw(TEXTS)] = draw(ANYTHING)
        else:
            at[name] = draw(ANYTHING)
        return value
    return draw(ANYTHING)
