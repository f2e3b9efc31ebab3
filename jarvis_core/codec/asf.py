"""The objects of an ASF file, such as WMA: what FFmpeg does not say of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from jarvis_core.errors import InvalidRequest

HEADER_BYTES = 30
OBJECT_BYTES = 24
OBJECTS_LIMIT = 1_000
"""That are looked at."""
ENCRYPTIONS = (
    bytes.fromhex("fbb3112223bdd211b4b700a0c955fc6e"),
    bytes.fromhex("14e68a292226174cb935dae07ee9289c"),
)
"""Of the Advanced Systems Format's specification, sections 3.14 and 3.15: keys for what is encrypted."""


PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
PROPERTIES_BYTES = 92
BROADCAST = 1
"""A flag of them (section 3.2): what they say of the length means nothing."""


def check_asf(data: bytes, path: str) -> None:
    """Raise ``InvalidRequest`` where the ASF file *data* is encrypted."""
    if any(name in ENCRYPTIONS for name, _ in _objects(data)):
        raise InvalidRequest.field(path, "is WMA that is encrypted")


def declared_asf_s(data: bytes) -> float:
    """Return how many seconds the ASF file *data* says to have, 0 where it does not know."""
    for name, start in _objects(data):
        if name == PROPERTIES and len(data) >= start + PROPERTIES_BYTES:
            lasts, _, preroll_ms, flags = struct.unpack_from("<QQQI", data, start + 64)
            # In tenths of a microsecond, with what is read in advance.
            return 0.0 if flags & BROADCAST else max(lasts / 1e7 - preroll_ms / 1e3, 0.0)
    return 0.0


def _objects(data: bytes) -> Iterator[tuple[bytes, int]]:
    """Give the identifier and the start of each object in the header of the ASF file *data*."""
    position, end = HEADER_BYTES, len(data)
    if len(data) >= HEADER_BYTES:
        end = min(end, struct.unpack_from("<Q", data, 16)[0])
    for _ in range(OBJECTS_LIMIT):
        if position + OBJECT_BYTES > end:
            return
        yield data[position : position + 16], position
        position += max(struct.unpack_from("<Q", data, position + 16)[0], OBJECT_BYTES)
