"""The boxes of an MP4 file, of QuickTime or of 3GP (ISO/IEC 14496-12): what FFmpeg does not say of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from jarvis_core.errors import InvalidRequest, UnsupportedMediaType

BOXES_LIMIT = 10_000
"""That are looked at in one place; those of a recording in fragments go on after its index."""
ENTRIES_BYTES = 8
"""Before the first kind of samples in ``stsd``: its version and how many there are."""
ENCRYPTED = (b"enca", b"encv", b"drms", b"drmi")
"""Kinds of samples that are: of the standard (section 8.12), and of Apple's shop."""

LPCM_CHANNELS_AT, LPCM_BYTES = 40, 64
"""Where the description of linear samples begins to count in QuickTime's second version of it, and how long it is."""
LPCM_FLOAT, LPCM_HIGH = 1, 16
"""Flags: they are floats; the upper bits mean something."""


def check_mp4(data: bytes, path: str) -> bytes:
    """
    Return the MP4 file *data* as FFmpeg understands it.

    Raises ``InvalidRequest`` where it is encrypted, or ends before its index, ``UnsupportedMediaType`` of samples that
    FFmpeg takes for others.
    """
    for name, start, end in boxes(data, 0, len(data)):
        if name == b"moov" and end <= len(data):
            for kind, first, last in sample_kinds(data, start, end):
                if kind in ENCRYPTED:
                    raise InvalidRequest.field(path, "is MP4 that is encrypted")
                if kind == b"lpcm" and last - first >= LPCM_BYTES:
                    data = _widened(data, first)
            return data
    raise InvalidRequest.field(path, "is MP4 that ends before its index")


def _widened(data: bytes, start: int) -> bytes:
    """
    Return *data* with all bits of the linear samples in use that are described at *start*.

    FFmpeg sizes them by the bits that mean something (``mov_parse_stsd_audio``); unused ones are zeros.
    """
    channels, _, bits, flags, packet = struct.unpack_from(">5I", data, start + LPCM_CHANNELS_AT)
    width_bits = packet // channels * 8 if channels and packet % channels == 0 else 0
    if flags & LPCM_FLOAT or not bits < width_bits <= 64:
        return data
    if not flags & LPCM_HIGH:
        raise UnsupportedMediaType(
            f"The MP4 file has {bits} bits in the lower ones of {width_bits} inside, which is not understood."
        )
    place = start + LPCM_CHANNELS_AT + 8
    return data[:place] + struct.pack(">I", width_bits) + data[place + 4 :]


def sample_kinds(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Give the kinds of samples that all tracks in the index between *start* and *end* have, and where they are described."""
    for track in _inside(data, start, end, b"trak"):
        for media in _inside(data, *track, b"mdia"):
            for information in _inside(data, *media, b"minf"):
                for table in _inside(data, *information, b"stbl"):
                    for first, last in _inside(data, *table, b"stsd"):
                        yield from boxes(data, first + ENTRIES_BYTES, last)


def is_fragmented(data: bytes) -> bool:
    """Tell whether *data* is what a recorder sends while it goes on, whose index does not know what is to come."""
    return any(name == b"moof" for name, _, _ in boxes(data, 0, len(data)))


def _inside(data: bytes, start: int, end: int, wanted: bytes) -> Iterator[tuple[int, int]]:
    return ((first, last) for name, first, last in boxes(data, start, end) if name == wanted)


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """
    Give the name of each box between *start* and *end*, and where what is in it begins and ends.

    Only the last one may be said to end after the file; those in others end with these at the latest.
    """
    for _ in range(BOXES_LIMIT):
        if start + 8 > min(end, len(data)):
            return
        size, name = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1 and start + 16 <= len(data):
            size, head = struct.unpack_from(">Q", data, start + 8)[0], 16
        after = start + size if size else end
        yield name, start + head, after if end == len(data) else min(after, end)
        start = max(after, start + 8)
