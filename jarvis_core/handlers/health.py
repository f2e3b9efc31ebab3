"""Answers health, readiness and metrics from memory, without asking any neighbour."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from jarvis_core import __version__
from jarvis_core.handlers.call import Call, Reply
from jarvis_core.handlers.wire import HealthBody, NotReadyBody, ReadyBody, ServiceStates, ToolServer
from jarvis_core.metrics import Metrics

_encoder = msgspec.json.Encoder()

FRESH_S = 0.2
"""How long an answer of /health is given again as it is."""
METRICS_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class HealthHandlers:
    """
    The routes for monitoring.

    *services* returns the states of the parts, *reasons* why the core is not ready, and *tools* what acts; all only read what is
    known already.
    """

    def __init__(
        self,
        metrics: Metrics,
        services: Callable[[], ServiceStates],
        reasons: Callable[[], list[str]],
        tools: Callable[[], dict[str, ToolServer] | UnsetType],
        warnings: Sequence[str] = (),
    ) -> None:
        self._metrics = metrics
        self._services = services
        self._reasons = reasons
        self._tools = tools
        self._warnings = list(warnings) or UNSET
        self._started = time.monotonic()
        self._stale_at = 0.0
        self._reply = Reply(b"")

    async def get_health(self, _call: Call) -> Reply:
        """Answer ``GET /health``."""
        now = time.monotonic()
        if now >= self._stale_at:
            self._stale_at = now + FRESH_S
            services = self._services()
            status = overall(services)
            uptime_s = int(now - self._started)
            body = HealthBody(status, __version__, uptime_s, services, self._tools(), self._warnings)
            self._reply = Reply(_encoder.encode(body), 503 if status == "unhealthy" else 200)
        return self._reply

    async def get_readiness(self, _call: Call) -> Reply:
        """Answer ``GET /ready``."""
        reasons = self._reasons()
        if reasons:
            return Reply(_encoder.encode(NotReadyBody("not_ready", __version__, reasons)), 503)
        return Reply(_encoder.encode(ReadyBody("ready", __version__)))

    async def get_metrics(self, _call: Call) -> Reply:
        """Answer ``GET /metrics``."""
        return Reply(self._metrics.write(), content_type=METRICS_TYPE)


def overall(services: ServiceStates) -> Literal["healthy", "degraded", "unhealthy"]:
    """Return the core's own status: unhealthy without a database, degraded where any other part in use is not well."""
    if services.database == "unavailable":
        return "unhealthy"
    others = (services.database, services.python_bridges, services.audio_engine, services.cache)
    return "degraded" if any(state in ("degraded", "unavailable") for state in others) else "healthy"
