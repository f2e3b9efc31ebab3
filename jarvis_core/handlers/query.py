"""The fields of queries: each is read, and described in the OpenAPI document, by one definition."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from msgspec import Struct

from jarvis_core.errors import InvalidRequest

D = TypeVar("D", int, None)
"""The default of a whole number: one, or None where there is none."""


class QueryField(Struct, frozen=True):
    """A field that is any text."""

    name: str
    description: str

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of its value."""
        return {"type": "string"}


class BooleanField(QueryField, frozen=True):
    """A field that is true or false."""

    def read(self, query: dict[str, str]) -> bool | None:
        """Return its value, None where it is absent; raises ``InvalidRequest``."""
        text = query.get(self.name)
        if text is None:
            return None
        if text not in ("true", "false"):
            raise InvalidRequest.field(f"query.{self.name}", "must be true or false")
        return text == "true"

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of its value."""
        return {"type": "boolean"}


class IntegerField(QueryField, Generic[D], frozen=True):
    """A field that is a whole number from *lowest* to *highest*, or *default* where it is absent."""

    lowest: int
    highest: int
    default: D

    def read(self, query: dict[str, str]) -> int | D:
        """Return its value; raises ``InvalidRequest``."""
        text = query.get(self.name)
        if text is None:
            return self.default
        if not (text.isascii() and text.isdigit() and len(text) <= 9 and self.lowest <= int(text) <= self.highest):
            rule = f"must be a whole number from {self.lowest} to {self.highest}"
            raise InvalidRequest.field(f"query.{self.name}", rule)
        return int(text)

    def schema(self) -> dict[str, Any]:
        """Return the JSON schema of its value."""
        return {"type": "integer", "minimum": self.lowest, "maximum": self.highest}


LIMIT = IntegerField("limit", "How many at most; 50 where it is left out.", 1, 200, 50)
CURSOR = QueryField("cursor", "The next_cursor of the page before.")
AFTER = IntegerField("after", "Go on after this event's id.", 0, 999_999_999, None)
EVENTS = QueryField("events", "``jarvis`` for events of ours, too: what tools do meanwhile (``jarvis.tool``).")
TICKET = QueryField("ticket", "In place of credentials, for who can send no header.")
SOUGHT = QueryField("q", "Only those with this in title or messages.")
ARCHIVED = BooleanField("archived", "Only archived ones, or only others.")
UNHEARD = BooleanField("unheard", "With the words of interrupted answers that were not heard.")
LANGUAGE = QueryField("language", "Where the body names none.")
FORMAT = QueryField("format", "pcm16 for 16-bit samples without a header.")
SAMPLE_RATE = IntegerField(
    "sample_rate", "Of samples without a header, where the body names none.", 1_000, 384_000, None
)

IDEMPOTENCY_KEY = ("Idempotency-Key", "A retry with the same key joins the first try's turn; kept 24 hours.")
"""A header, and its description."""
