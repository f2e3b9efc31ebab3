"""
Shares counters and health between the workers of one group: a page each, in a memory file that their parent holds.

A worker writes its whole page about every second, and reads the others' pages without waiting. The page of a worker
that died stays until its successor writes the first of its own.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from jarvis_core.metrics import Counts, Family
from jarvis_core.models import HealthState

HEAD = struct.Struct("<II")
"""Length and checksum: a page may be read while it is written."""
PAGE_LIMIT_BYTES = 1 << 20
READ_ATTEMPTS = 3
AGE_HELP = (
    "How old the oldest of what other workers have counted is here, about a second at most; "
    "what the worker that answers has counted is of now."
)
FRESH_S = 5.0
"""A worker that has not written for so long is dead or stands still."""


class StatsPage(Struct, array_like=True):
    """One worker's page."""

    written_at: float
    """By the machine's monotonic clock, which all its processes share."""
    counts: Counts
    """Includes the counts of its predecessors under the same number."""
    health: dict[str, tuple[HealthState, float]]
    """By neighbour: (state, when it became so)."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StatsPage).decode


class WorkerStats:
    """Writes this worker's page, number *mine* of *descriptors*, and reads the others'."""

    def __init__(self, descriptors: Sequence[int], mine: int) -> None:
        self._descriptors = descriptors
        self._mine = mine
        before = _read(descriptors[mine]) if descriptors else None
        self._before = Counts([], [])
        """Counts of the predecessors under this worker's number."""
        if before is not None:
            self._before.add(before.counts, gauges=False)

    def write(self, counts: Counts, health: dict[str, tuple[HealthState, float]]) -> None:
        """Write this worker's page."""
        counts.add(self._before)
        data = _encode(StatsPage(time.monotonic(), counts, health))
        if len(data) <= PAGE_LIMIT_BYTES:
            os.pwrite(self._descriptors[self._mine], HEAD.pack(len(data), zlib.crc32(data)) + data, 0)

    def counts(self) -> list[Counts]:
        """
        Return the counts of this worker's predecessors and of the other workers, with a gauge of how old the latter
        are.
        """
        pages = self.others()
        now = time.monotonic()
        ages_s = [now - page.written_at for page in pages if now - page.written_at <= FRESH_S]
        age = Family("gauge", "most", "worker_counts_age_seconds", AGE_HELP, {"": max(ages_s, default=0.0)})
        return [self._before, Counts([], [age]), *(page.counts for page in pages)]

    def others(self) -> list[StatsPage]:
        """
        Return the other workers' pages; a worker that stands still keeps its counters and loses its gauges and health.
        """
        pages = []
        for number, descriptor in enumerate(self._descriptors):
            page = None if number == self._mine else _read(descriptor)
            if page is not None:
                if time.monotonic() - page.written_at > FRESH_S:
                    lasting = Counts([], [])
                    lasting.add(page.counts, gauges=False)
                    page = StatsPage(page.written_at, lasting, {})  # gauges and health are of a moment
                pages.append(page)
        return pages


def pulse_of(descriptor: int) -> float:
    """Return a value that changes whenever the page is written."""
    return float(zlib.crc32(os.pread(descriptor, HEAD.size, 0)))


def _read(descriptor: int) -> StatsPage | None:
    for _ in range(READ_ATTEMPTS):
        head = os.pread(descriptor, HEAD.size, 0)
        if len(head) < HEAD.size:
            return None
        length, checksum = HEAD.unpack(head)
        if length > PAGE_LIMIT_BYTES:
            return None
        data = os.pread(descriptor, length, HEAD.size)
        if len(data) == length and zlib.crc32(data) == checksum:
            return _decode(data)
    return None
