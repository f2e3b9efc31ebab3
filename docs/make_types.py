"""
Writes the OpenAPI document to the file that is named, from the routes alone: no server is started.

``make types`` makes jarvis_core/console/api.d.ts from it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from jarvis_core import app
from jarvis_core.container import Container
from jarvis_core.handlers import openapi
from jarvis_core.settings import Settings


class _Parts(SimpleNamespace):
    """What looks like the parts of a server: the routes' handlers are made over them, and never asked."""

    def __getattr__(self, _name: str) -> Any:
        return None


def document() -> bytes:
    """Return the document."""
    return openapi.document(app.routes_for(cast("Container", _Parts(settings=Settings()))))


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(document())
