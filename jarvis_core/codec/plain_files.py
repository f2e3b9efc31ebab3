"""Files of linear samples that begin with a description of them, or of something compressed: AIFF, AU and CAF."""

from __future__ import annotations

import struct

from jarvis_core.codec.containers import AIFF, AU, CAF, Container, check_shape, is_cut
from jarvis_core.codec.linear import WIDTHS, Kind, Layout, Linear
from jarvis_core.codec.riff import UNKNOWN_BYTES, chunks
from jarvis_core.errors import InvalidRequest

AIFF_DESCRIPTION_BYTES = 18
AIFC_KINDS: dict[bytes, tuple[Kind, int, bool]] = {
    b"NONE": ("int", 0, True), b"twos": ("int", 0, True), b"sowt": ("int", 0, False), b"raw ": ("uint", 0, True),
    b"in24": ("int", 3, True), b"42ni": ("int", 3, False), b"in32": ("int", 4, True), b"23ni": ("int", 4, False),
    b"fl32": ("float", 4, True), b"FL32": ("float", 4, True), b"fl64": ("float", 8, True), b"FL64": ("float", 8, True),
    b"alaw": ("alaw", 1, True), b"ALAW": ("alaw", 1, True), b"ulaw": ("mulaw", 1, True), b"ULAW": ("mulaw", 1, True),
}  # fmt: skip
"""Kind, width (0: as the bits say) and whether it is big-endian, by the name of the compression."""

AU_HEAD_BYTES = 24
AU_KINDS: dict[int, tuple[Kind, int]] = {
    1: ("mulaw", 1), 2: ("int", 1), 3: ("int", 2), 4: ("int", 3), 5: ("int", 4), 6: ("float", 4), 7: ("float", 8),
    27: ("alaw", 1),
}  # fmt: skip

CAF_HEAD_BYTES = 8
CAF_CHUNK_BYTES = 12
CAF_CHUNKS_LIMIT = 1_000
CAF_DESCRIPTION_BYTES = 32
CAF_EDITS_BYTES = 4
CAF_FLOAT, CAF_LITTLE_ENDIAN = 1, 2
"""Flags of its format."""


def read_plain(container: Container, data: bytes, path: str) -> Linear | None:
    """
    Return the samples of the file *data*, None where they are compressed.

    Raises ``InvalidRequest`` where its header makes no sense, or it ends before the samples that it declares.
    """
    read = {AIFF.name: _read_aiff, AU.name: _read_au}.get(container.name, _read_caf)
    return read(data, path)


def _read_aiff(data: bytes, path: str) -> Linear | None:
    # Apple, Audio Interchange File Format AIFF-C, draft of 1991-08-26.
    channels, bits, rate_hz, compression = 0, 0, 0.0, b"NONE"
    for name, start, size in chunks(data, 12, ">"):
        if name == b"COMM" and len(data) >= start + AIFF_DESCRIPTION_BYTES:
            channels, _, bits = struct.unpack_from(">HIH", data, start)
            rate_hz = _extended(data[start + 8 : start + 18])
            check_shape(AIFF, channels, rate_hz, path)
            if data[8:12] == b"AIFC" and size > AIFF_DESCRIPTION_BYTES:
                compression = data[start + 18 : start + 22]
        elif name == b"SSND" and len(data) >= start + 8:
            if not channels:
                raise InvalidRequest.field(path, "is AIFF without a description of its samples")
            if compression not in AIFC_KINDS:
                return None
            kind, width, big_endian = AIFC_KINDS[compression]
            layout = Layout(kind, width or (bits + 7) // 8, rate_hz, channels, big_endian, bits)
            offset = struct.unpack_from(">I", data, start)[0]
            known = 8 <= size < UNKNOWN_BYTES
            return _linear(AIFF, layout, data, start + 8 + offset, size - 8 - offset if known else None, path)
    raise InvalidRequest.field(path, "is AIFF that ends before its samples")


def _extended(number: bytes) -> float:
    """Return what 80 bits stand for (IEEE 754, double extended); one that is too large for a rate is 0."""
    exponent, mantissa = struct.unpack(">HQ", number)
    return float(mantissa * 2.0 ** (exponent - 0x3FFF - 63)) if exponent < 0x4100 else 0.0


def _read_au(data: bytes, path: str) -> Linear | None:
    # The little-endian form is DEC's.
    order = "<" if data[:4] == b"dns." else ">"
    if len(data) < AU_HEAD_BYTES:
        raise InvalidRequest.field(path, "is AU that ends before its samples")
    start, size, code, rate_hz, channels = struct.unpack_from(f"{order}5I", data, 4)
    check_shape(AU, channels, rate_hz, path)
    if code not in AU_KINDS:
        return None
    kind, width = AU_KINDS[code]
    layout = Layout(kind, width, rate_hz, channels, order == ">")
    return _linear(AU, layout, data, max(start, AU_HEAD_BYTES), size if 0 < size < UNKNOWN_BYTES else None, path)


def _read_caf(data: bytes, path: str) -> Linear | None:
    # Apple, Core Audio Format Specification 1.0.
    layout: Layout | None = None
    position = CAF_HEAD_BYTES
    for _ in range(CAF_CHUNKS_LIMIT):
        if position + CAF_CHUNK_BYTES > len(data):
            break
        name, size = struct.unpack_from(">4sq", data, position)
        position += CAF_CHUNK_BYTES
        if name == b"desc" and len(data) >= position + CAF_DESCRIPTION_BYTES:
            rate_hz, code, flags, packet, frames, channels, bits = struct.unpack_from(">d4s5I", data, position)
            check_shape(CAF, channels, rate_hz, path)
            if code == b"lpcm" and frames == 1 and packet % channels == 0:
                kind: Kind = "float" if flags & CAF_FLOAT else "int"
                layout = Layout(kind, packet // channels, rate_hz, channels, not flags & CAF_LITTLE_ENDIAN, bits)
            elif code in (b"alaw", b"ulaw"):
                layout = Layout("alaw" if code == b"alaw" else "mulaw", 1, rate_hz, channels)
            else:
                return None
        elif name == b"data":
            if layout is None:
                raise InvalidRequest.field(path, "is CAF without a description of its samples")
            # -1 is what goes on to the end.
            length = size - CAF_EDITS_BYTES if size >= CAF_EDITS_BYTES else None
            return _linear(CAF, layout, data, position + CAF_EDITS_BYTES, length, path)
        position += max(size, 0)
    raise InvalidRequest.field(path, "is CAF that ends before its samples")


def _linear(container: Container, layout: Layout, data: bytes, start: int, size: int | None, path: str) -> Linear:
    """Return samples that are *size* bytes long, or go on to the end of *data* where that is None."""
    if layout.width not in WIDTHS[layout.kind]:
        bits = layout.bits or 8 * layout.width
        raise InvalidRequest.field(path, f"is {container.name} with samples of {bits} bits")
    there = max(len(data) - start, 0)
    if size is None:
        size = there
    if is_cut(size, there, layout.rate_hz * layout.frame_bytes):
        rule = f"is {container.name} that ends before its samples do: {there} of {size} bytes"
        raise InvalidRequest.field(path, rule)
    return Linear(layout, start, start + max(min(size, there), 0))
