"""
Decodes a client's settings leniently, value by value.

An invalid value does not refuse the rest, null means "not said", and unknown fields are ignored.
"""

from __future__ import annotations

import typing
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from jarvis_core.errors import InvalidRequest

PartialT = TypeVar("PartialT", bound="Partial")


class Partial(Struct):
    """Settings of which any may be absent: every field's default is ``UNSET``."""

    @classmethod
    def switched_off(cls) -> frozenset[str]:
        """Name the fields that null switches off; elsewhere it means "not said"."""
        return frozenset()


def take(kind: type[PartialT], given: object, path: str) -> tuple[PartialT, list[InvalidRequest]]:
    """
    Return a *kind* with the valid fields of *given*, decoded JSON, and an error for each invalid value; never raises.

    *path* is the place of *given* in the client's event, such as ``$.session``.
    """
    errors: list[InvalidRequest] = []
    taken: dict[str, Any] = {}
    if not isinstance(given, dict):
        return kind(), [InvalidRequest.field(path, f"Expected `object`, got `{_name_of(given)}`")]
    for name, hint, inner in _fields(kind):
        if name not in given or (given[name] is None and name not in kind.switched_off()):
            continue
        if inner is not None and given[name] is not None:
            taken[name], wrong = take(inner, given[name], f"{path}.{name}")
            errors += wrong
            continue
        try:
            taken[name] = msgspec.convert(given[name], hint)
        except msgspec.ValidationError as exc:
            rule, _, below = str(exc).partition(" - at `$")
            errors.append(InvalidRequest.field(f"{path}.{name}{below.rstrip('`')}", rule))
    return kind(**taken), errors


@cache
def _fields(kind: type[Partial]) -> list[tuple[str, Any, type[Partial] | None]]:
    """Return (name, type, the partial settings that it may be) of each field."""
    fields = []
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        inner = next((one for one in typing.get_args(hint) if isinstance(one, type) and issubclass(one, Partial)), None)
        fields.append((name, hint, inner))
    return fields


def _name_of(value: object) -> str:
    names = {str: "str", bool: "bool", int: "int", float: "float", list: "array", type(None): "null"}
    return names.get(type(value), "object")
