"""The structs of requests and answers below ``/v1``: OpenAI's, and what of ours goes with them."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType


class ErrorFields(Struct, frozen=True):
    """What is wrong."""

    message: str
    """One sentence for a person."""
    type: str
    """``invalid_request_error``, ``authentication_error``, ``permission_error``, ``rate_limit_error`` or ``server_error``."""
    param: str | None
    """The field that is meant."""
    code: str
    """One of our stable words, or of OpenAI's where its clients look for it."""
    details: dict[str, Any] | UnsetType = UNSET
    """Ours: what a program may want to know, such as the model server's own words."""


class ErrorAnswer(Struct, frozen=True):
    """Every error of ``/v1``, whatever raised it."""

    error: ErrorFields


class ModelCard(Struct, frozen=True):
    """A model that may be named."""

    id: str
    created: int
    """When this server was started, in seconds since 1970: nobody tells when a model was made."""
    owned_by: str
    object: str = "model"


class ModelList(Struct, frozen=True):
    """All of them."""

    data: list[ModelCard]
    object: str = "list"
