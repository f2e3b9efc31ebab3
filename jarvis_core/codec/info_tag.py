"""
The frame in front of an MP3's sound that says how much there is of it: Xing's, as LAME has extended it.

Players without knowledge of it play a moment of silence; the others know how long the file is, and leave out what the
encoder had to fill up in front and behind (http://gabriel.mp3-tech.org/mp3infotag.html).
"""

from __future__ import annotations

import struct

from jarvis_core.codec.frames import mpeg_frame_bytes

LAME_DELAY = 576
"""Samples that LAME puts in front, besides the 529 that every decoder adds."""
PADDING_MAX = 0xFFF
VERSION = b"LAME3.100"
CONSTANT_BIT_RATE = 1
FRAMES_BYTES_AND_TABLE = 7
TABLE = bytes(percent * 256 // 100 for percent in range(100))
"""Where each hundredth of the sound begins, of 256: as evenly as frames of one size have it."""


def info_frame(first: bytes, kbps: int, frames: int | None, length_bytes: int, samples: int) -> bytes:
    """
    Return the frame to put in front of mono sound whose first frame is *first*.

    It says that there are so many more *frames* of *length_bytes* and so many *samples* in them, or nothing of all that
    where *frames* is None.
    """
    lower = first[1] >> 3 & 3 != 3
    # Without padding; what would be the side information of sound is none.
    head = bytes((first[0], first[1], first[2] & 0xFD, first[3]))
    size = mpeg_frame_bytes(head)
    tag = bytearray(head + bytes(9 if lower else 17) + b"Info")
    padding = 0
    if frames is None:
        tag += bytes(4)
    else:
        tag += struct.pack(">III", FRAMES_BYTES_AND_TABLE, frames, size + length_bytes) + TABLE
        padding = min(max(frames * (576 if lower else 1_152) - LAME_DELAY - samples, 0), PADDING_MAX)
    tag += VERSION + bytes((CONSTANT_BIT_RATE,)) + bytes(10) + bytes((kbps,))
    tag += (LAME_DELAY << 12 | padding).to_bytes(3, "big") + bytes(4)
    tag += struct.pack(">IH", 0 if frames is None else size + length_bytes, 0)
    tag += struct.pack(">H", _crc16(tag))
    return bytes(tag) + bytes(size - len(tag))


def _crc16(data: bytes | bytearray) -> int:
    """Return the check that the tag ends with: the polynomial 0x8005, from the lowest bit on."""
    value = 0
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
    return value
