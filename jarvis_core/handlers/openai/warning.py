"""What was left out of a request, in the Warning header of its answer: nothing is dropped in silence."""

from __future__ import annotations

from collections.abc import Iterable

NAME_LIMIT_CHARS = 64
NAMES_LIMIT = 20


def left_out(names: Iterable[str]) -> list[tuple[bytes, bytes]]:
    """Return the header that *names* fields of the request that had no effect; none where there are none."""
    told = [_printable(name) for name in names][:NAMES_LIMIT]
    if not told:
        return []
    # 299 is a miscellaneous persistent warning (RFC 7234, 5.5.7).
    return [(b"warning", b'299 jarvis-core "left out: %s"' % ", ".join(told).encode())]


def _printable(name: str) -> str:
    """Return *name*, which a client wrote, as a header can have it between quotes."""
    return "".join(c if c.isascii() and c.isprintable() and c not in '"\\' else "?" for c in name[:NAME_LIMIT_CHARS])
