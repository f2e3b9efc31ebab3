"""WAV in all its forms: RIFF, RIFX (big-endian), RF64 and BW64 (beyond 4 GiB), Sony's Wave64."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from jarvis_core.codec.containers import W64, WAV, Container, check_shape, is_cut
from jarvis_core.codec.linear import WIDTHS, Kind, Layout, Linear
from jarvis_core.errors import InvalidRequest

CHUNKS_LIMIT = 10_000
"""That are looked at."""
FORMAT_BYTES = 16
EXTENSIBLE = 0xFFFE
EXTENSIBLE_BYTES = 40
KINDS: dict[int, Kind] = {1: "int", 3: "float", 6: "alaw", 7: "mulaw"}
"""By the format's tag."""
SUBFORMATS = bytes.fromhex("000000001000800000aa00389b71"), bytes.fromhex("00002107d3118644c8c1ca000000")
"""What follows the tag in the identifier of an extensible format: Microsoft's, and that of ambisonic channels."""
UNKNOWN_BYTES = 0x7F000000
"""What writes a stream does not know its size, and declares 0 or about the most that there can be, 2 or 4 GiB."""
UNKNOWN_LONG_BYTES = 1 << 62

TRAILERS = frozenset(
    (b"LIST", b"id3 ", b"ID3 ", b"bext", b"iXML", b"aXML", b"axml", b"_PMX", b"cue ", b"smpl", b"inst", b"afsp", b"PEAK",
     b"fact", b"JUNK", b"junk", b"PAD ", b"FLLR", b"cart", b"acid", b"DISP", b"plst", b"chna", b"LGWV", b"umid")
)  # fmt: skip
"""Names of chunks that stand behind the samples."""
TRAILER_NEAR_BYTES = 64 << 10
"""From the end, where one of another name is believed too: the farther away, the likelier samples look like one."""
TRAILERS_LIMIT = 32

W64_TAIL = b"\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"
"""Of the identifiers of all chunks but the first; the names before it are RIFF's."""
W64_HEAD_BYTES = 24


class Riff(NamedTuple):
    """What a WAV file has."""

    format: bytes
    """The chunk ``fmt ``, little-endian."""
    big_endian: bool
    start: int
    end: int
    """Of the samples."""

    def linear(self, path: str) -> Linear | None:
        """Return the samples; None where they are compressed. Raises ``InvalidRequest`` where their width makes no sense."""
        tag, channels, rate_hz, byte_rate, align, bits = struct.unpack_from("<HHIIHH", self.format)
        padded = byte_rate == rate_hz * align
        valid_bits = bits
        if tag == EXTENSIBLE and len(self.format) >= EXTENSIBLE_BYTES:
            valid_bits, _, tag = struct.unpack_from("<HIH", self.format, 18)
            if self.format[26:40] not in SUBFORMATS:
                return None
            padded = True
        kind = KINDS.get(tag)
        if kind is None:
            return None
        width = 1 if kind in ("alaw", "mulaw") else _width(bits, align, channels, padded=padded and kind == "int")
        if width not in WIDTHS[kind]:
            raise InvalidRequest.field(path, f"is WAV with samples of {bits} bits")
        if kind == "int" and width == 1:
            kind = "uint"
        return Linear(
            Layout(kind, width, rate_hz, channels, self.big_endian, min(valid_bits, bits)), self.start, self.end
        )

    def rebuilt(self, data: bytes) -> bytes:
        """
        Return the file *data* with nothing but its format and its samples, for FFmpeg.

        FFmpeg 8 refuses a whole file because of a chunk LIST that says nothing, and takes what stands behind samples of
        unknown length for more of them (``wav_read_header``).
        """
        size = self.end - self.start
        head = struct.pack("<4sI", b"fmt ", len(self.format)) + self.format + bytes(len(self.format) % 2)
        head += struct.pack("<4sI", b"data", size)
        return b"".join(
            (struct.pack("<4sI4s", b"RIFF", 4 + len(head) + size, b"WAVE"), head, data[self.start : self.end])
        )


def _width(bits: int, align: int, channels: int, *, padded: bool) -> int:
    """
    Return how many bytes a sample of so many *bits* takes, 0 where that makes no sense.

    Where it is *padded* what all channels take together tells it, if they fit in there.
    """
    least = (bits + 7) // 8
    width = align // channels if align % channels == 0 else 0
    if bits and least <= width <= 8 and (padded or bits % 8):
        return width
    return least if bits % 8 == 0 else 0


def read_riff(container: Container, data: bytes, path: str) -> Riff | None:
    """
    Return what the WAV file *data* has, None where it has no samples.

    Raises ``InvalidRequest`` where its header makes no sense, or it ends before the samples that it declares.
    """
    big_endian = data[:4] == b"RIFX"
    order = ">" if big_endian else "<"
    long_bytes = 0
    found = b""
    for name, start, size in _long_chunks(data) if container is W64 else chunks(data, 12, order):
        if name == b"ds64" and len(data) >= start + 16:
            long_bytes = struct.unpack_from("<Q", data, start + 8)[0]
        elif name == b"fmt " and len(data) >= start + FORMAT_BYTES:
            found = data[start : start + max(size, FORMAT_BYTES)]
            if big_endian:
                found = _swapped(found)
            channels, rate_hz = struct.unpack_from("<HI", found, 2)
            check_shape(WAV, channels, rate_hz, path)
        elif name == b"data":
            if not found:
                raise InvalidRequest.field(path, "is WAV without a description of its samples")
            if data[:4] in (b"RF64", b"BW64") and size == 0xFFFFFFFF:
                size = long_bytes
            end = _end(data, start, size, order, path, found)
            return Riff(found, big_endian, start, end) if end > start else None
    raise InvalidRequest.field(path, "is WAV that ends before its samples")


def _end(data: bytes, start: int, size: int, order: str, path: str, found: bytes) -> int:
    """Return where samples that are said to be *size* bytes long end."""
    if size == 0 or UNKNOWN_BYTES <= size <= 0xFFFFFFFF or size >= UNKNOWN_LONG_BYTES:
        return _before_trailers(data, start, order)
    there = len(data) - start
    channels, rate_hz, byte_rate, _, bits = struct.unpack_from("<HIIHH", found, 2)
    if is_cut(size, there, byte_rate or rate_hz * channels * bits / 8):
        raise InvalidRequest.field(path, f"is WAV that ends before its samples do: {there} of {size} bytes")
    return min(start + size, len(data))


def _before_trailers(data: bytes, start: int, order: str) -> int:
    """
    Return where the chunks at the end of *data* begin, which follow samples whose length nobody knew.

    Each is known by its size: it reaches to the next one, and the last one to the end.
    """
    end = len(data)
    for _ in range(TRAILERS_LIMIT):
        begin = _last_chunk(data, start, end, order)
        if begin < 0:
            break
        end = begin
    return end


def _last_chunk(data: bytes, start: int, end: int, order: str) -> int:
    """Return where a chunk begins that ends at *end*, with those that are in it; -1 where none does."""
    begins = []
    for first in range(start, start + 4):
        count = (end - first) // 4
        if count < 2:
            continue
        sizes = np.frombuffer(data, f"{order}u4", count, first)[1:]
        # Where a size stands, and what it says, make the end; after an odd size stands a byte more, or should.
        rest = (end - first) - 8 - sizes.astype(np.int64) - 4 * np.arange(count - 1)
        begins += [first + 4 * int(index) for index in np.flatnonzero((rest == 0) | ((rest == 1) & (sizes & 1 == 1)))]
    for begin in sorted(begins):
        name = data[begin : begin + 4]
        if name in TRAILERS or (begin >= end - TRAILER_NEAR_BYTES and _is_name(name)):
            return begin
    return -1


def _is_name(name: bytes) -> bool:
    return name.isascii() and name.decode().isprintable()


def _swapped(found: bytes) -> bytes:
    """
    Return the fields of a big-endian ``fmt `` chunk in the other order.

    Of the identifier SoX turns only the tag, others nothing or all of it; all tags of samples are below 256.
    """
    fields = struct.pack("<HHIIHH", *struct.unpack_from(">HHIIHH", found))
    if len(found) < EXTENSIBLE_BYTES:
        return fields + found[16:]
    fields += struct.pack("<HHI", *struct.unpack_from(">HHI", found, 16))
    if found[26:40] in SUBFORMATS:
        return fields + bytes(sorted(found[24:26], reverse=True)) + found[26:]
    return fields + struct.pack("<IHH", *struct.unpack_from(">IHH", found, 24)) + found[32:]


def chunks(data: bytes, position: int, order: str = "<") -> Iterator[tuple[bytes, int, int]]:
    """Give the name, the start and the size of each chunk of *data*, the first of which begins at *position*."""
    head = struct.Struct(f"{order}4sI")
    for _ in range(CHUNKS_LIMIT):
        if position + 8 > len(data):
            return
        name, size = head.unpack_from(data, position)
        yield name, position + 8, size
        position += 8 + size + size % 2


def _long_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Give the same of Wave64, whose chunks begin at multiples of 8 and count their own heads."""
    position = W64_HEAD_BYTES + 16
    for _ in range(CHUNKS_LIMIT):
        if position + W64_HEAD_BYTES > len(data):
            return
        name, tail, size = struct.unpack_from("<4s12sQ", data, position)
        if tail == W64_TAIL:
            yield name, position + W64_HEAD_BYTES, max(size - W64_HEAD_BYTES, 0)
        position += max(size + 7 & ~7, W64_HEAD_BYTES)
