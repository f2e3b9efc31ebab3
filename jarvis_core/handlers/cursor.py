"""Cursors of lists: where a page ended, in a form that clients hand back as it is."""

from __future__ import annotations

import base64
from datetime import datetime

from jarvis_core.errors import InvalidRequest
from jarvis_core.models import is_id


def encoded(text: str) -> str:
    """Return the cursor that stands for *text*."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def time_and_id(cursor: str) -> tuple[datetime, str]:
    """Return the time and the id of a cursor; raises ``InvalidRequest`` where it is none."""
    time, _, identifier = _decoded(cursor).partition(" ")
    try:
        moment = datetime.fromisoformat(time)
    except ValueError as exc:
        raise _bad_cursor() from exc
    if moment.tzinfo is None or not is_id(identifier):
        raise _bad_cursor()
    return moment, identifier


def position(cursor: str) -> int:
    """Return the position of a cursor; raises ``InvalidRequest`` where it is none."""
    text = _decoded(cursor)
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise _bad_cursor()
    return int(text)


def _decoded(cursor: str) -> str:
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True).decode()
    except ValueError as exc:
        raise _bad_cursor() from exc


def _bad_cursor() -> InvalidRequest:
    return InvalidRequest.field("query.cursor", "is not a cursor of this list")
