"""The elements of a WebM or Matroska file (RFC 8794, RFC 9559): what FFmpeg does not say of them."""

from __future__ import annotations

from collections.abc import Iterator

from jarvis_core.errors import InvalidRequest

SEGMENT, INFO, DURATION = 0x18538067, 0x1549A966, 0x4489
CLUSTER, TRACKS, TRACK, ENCODINGS, ENCODING, ENCRYPTION = 0x1F43B675, 0x1654AE6B, 0xAE, 0x6D80, 0x6240, 0x5035
ELEMENTS_LIMIT = 10_000
"""That are looked at in one place."""


def declares_duration(data: bytes) -> bool:
    """Tell whether the WebM file *data* says how long it is, before its sound."""
    return _has(data, SEGMENT, INFO, DURATION)


def check_webm(data: bytes, path: str) -> None:
    """Raise ``InvalidRequest`` where the WebM file *data* is encrypted."""
    if _has(data, SEGMENT, TRACKS, TRACK, ENCODINGS, ENCODING, ENCRYPTION):
        raise InvalidRequest.field(path, "is WebM that is encrypted")


def _has(data: bytes, *path: int) -> bool:
    """Tell whether there is an element at *path*, one in another; nothing behind the first cluster is looked at."""
    places = [(0, len(data))]
    for wanted in path:
        places = [(first, last) for place in places for name, first, last in _elements(data, *place) if name == wanted]
    return bool(places)


def _elements(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Give the name of each element between *start* and *end*, and where what is in it begins and ends."""
    for _ in range(ELEMENTS_LIMIT):
        name, start = _number(data, start, end, marked=True)
        size, start = _number(data, start, end)
        if start > end or name == CLUSTER:
            return
        after = min(start + size, end)
        yield name, start, after
        start = after


def _number(data: bytes, start: int, end: int, *, marked: bool = False) -> tuple[int, int]:
    """Return the number that begins at *start* and where it ends, which is beyond *end* where there is none."""
    if start >= end or not data[start]:
        return 0, end + 1
    length = 9 - data[start].bit_length()
    number = int.from_bytes(data[start : start + length], "big")
    if not marked:
        number &= (1 << 7 * length) - 1
        if number == (1 << 7 * length) - 1:
            # All ones: unknown, as what is recorded live has it.
            number = end
    return number, start + length
