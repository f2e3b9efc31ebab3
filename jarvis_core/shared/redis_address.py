"""The addresses of Redis servers, Sentinels and clusters."""

from __future__ import annotations

from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from jarvis_core.errors import SettingsError


class RedisAddress(Struct, frozen=True):
    """Where a Redis is."""

    kind: Literal["redis", "sentinel", "cluster"]
    hosts: list[tuple[str, int]]
    service: str
    database: int
    options: dict[str, Any]


def parse(url: str) -> RedisAddress:
    """
    Read ``redis://``, ``rediss://``, ``unix://``, ``redis+sentinel://h,h/service/db`` or ``redis+cluster://h,h``.

    Raises ``SettingsError``, with no secret in it.
    """
    try:
        parts = urlsplit(url)
        scheme, _, kind = parts.scheme.partition("+")
        netloc = parts.netloc.rpartition("@")[2]
        hosts = []
        for host in netloc.split(",") if netloc else []:
            one = urlsplit(f"//{host}")
            hosts.append((one.hostname or "", one.port or (26_379 if kind == "sentinel" else 6_379)))
        path = [part for part in parts.path.split("/") if part]
        service = path.pop(0) if kind == "sentinel" else ""
        database = int(path[0]) if path and scheme != "unix" else 0
        sound = (
            scheme in ("redis", "rediss") and kind in ("", "sentinel", "cluster") and hosts and all(h for h, _ in hosts)
        ) or (scheme == "unix" and not kind and parts.path)
    except (ValueError, IndexError):
        sound = False
    if not sound:
        raise SettingsError(
            "REDIS_URL: must be redis://, rediss:// or unix://, redis+sentinel://host,host/service or redis+cluster://host,host"
        )
    options: dict[str, Any] = {}
    credentials = parts.netloc.rpartition("@")[0]
    if credentials:
        name, _, password = credentials.partition(":")
        options = {"password": unquote(password)} | ({"username": unquote(name)} if name else {})
    if scheme == "rediss":
        import ssl

        options["ssl_context"] = ssl.create_default_context()
    return RedisAddress(kind or "redis", hosts, service, database, options)  # type: ignore[arg-type]  # checked above
