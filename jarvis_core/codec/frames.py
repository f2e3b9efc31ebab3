"""
The heads of the frames that compressed audio is made of where no file is around them: MPEG audio, ADTS, LOAS, GSM.

A few bits of each are fixed, which any data may have by chance; one head that tells where the next one is, several times
over, is none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

FIRST_FRAMES = 3
"""So many heads in a row are looked for at the beginning of the data, fewer where it ends before."""
LATER_FRAMES = 4
"""And so many anywhere else, all of one kind."""
SEARCHED_BYTES = 16 << 10
"""In which a recording that was cut out of a longer one has its first whole frame; the longest frame has 8 KiB."""
GSM_FRAME_BYTES = 33
GSM_FRAMES = 8

MP3_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MP2_KBPS = (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384)
MP1_KBPS = tuple(range(0, 449, 32))
LSF_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
"""Of layers II and III at the lower sampling frequencies,"""
LSF_MP1_KBPS = (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256)
"""and of layer I (ISO/IEC 13818-3, section 2.4.2.3)."""
MPEG_RATES_HZ = (44_100, 48_000, 32_000)


class FrameKind(NamedTuple):
    """A kind of frames that can be found in data."""

    first_byte: int
    head_bytes: int
    length: Callable[[bytes], int]
    """How long the frame is that a head begins, 0 where it begins none."""
    constant: Callable[[bytes], bytes]
    """What is the same in the heads of all frames of a stream."""

    def begins(self, data: bytes, start: int, frames: int, *, alike: bool = False) -> bool:
        """
        Tell whether so many frames follow one another from *start* on.

        They all have to be there and *alike*, or else may be fewer where the data ends.
        """
        first = data[start : start + self.head_bytes]
        for _ in range(frames):
            head = data[start : start + self.head_bytes]
            length = self.length(head)
            if not length or (alike and self.constant(head) != self.constant(first)):
                return False
            start += length
            if not alike and start + self.head_bytes > len(data):
                return True
        return True

    def find(self, data: bytes) -> int:
        """Return where the first of ``LATER_FRAMES`` begins within ``SEARCHED_BYTES``, -1 where there is none."""
        start = -1
        while (start := data.find(self.first_byte, start + 1, SEARCHED_BYTES)) >= 0:
            if self.begins(data, start, LATER_FRAMES, alike=True):
                return start
        return -1


def mpeg_frame_bytes(head: bytes) -> int:
    """Return how long the frame of MPEG audio is that *head* begins, 0 where it begins none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    rate_index, kbps_index = head[2] >> 2 & 3, head[2] >> 4
    if version == 1 or layer == 4 or kbps_index in (0, 15) or rate_index == 3 or head[3] & 3 == 2:
        return 0
    rate_hz = MPEG_RATES_HZ[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    padding = head[2] >> 1 & 1
    lower = version != 3
    if layer == 1:
        return (12_000 * (LSF_MP1_KBPS if lower else MP1_KBPS)[kbps_index] // rate_hz + padding) * 4
    if layer == 2:
        return 144_000 * (LSF_KBPS if lower else MP2_KBPS)[kbps_index] // rate_hz + padding
    return (72_000 * LSF_KBPS[kbps_index] if lower else 144_000 * MP3_KBPS[kbps_index]) // rate_hz + padding


def declares_mpeg_length(data: bytes, start: int) -> bool:
    """Tell whether the frame at *start* is none of sound, but says how many there are: Xing's, LAME's, or Fraunhofer's."""
    head = data[start : start + 4]
    if not mpeg_frame_bytes(head):
        return False
    lower, mono = head[1] >> 3 & 3 != 3, head[3] >> 6 == 3
    place = start + 4 + ((9 if mono else 17) if lower else (17 if mono else 32))
    if data[place : place + 4] in (b"Xing", b"Info"):
        return len(data) > place + 7 and bool(data[place + 7] & 1)
    return data[start + 36 : start + 40] == b"VBRI"


def _adts_frame_bytes(head: bytes) -> int:
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length >= 7 else 0


def _loas_frame_bytes(head: bytes) -> int:
    # ISO/IEC 14496-3, section 1.7.2: 11 bits, then the length of what follows in 13.
    if len(head) < 3 or head[0] != 0x56 or head[1] & 0xE0 != 0xE0:
        return 0
    return 3 + ((head[1] & 0x1F) << 8 | head[2])


MPEG = FrameKind(0xFF, 4, mpeg_frame_bytes, lambda head: bytes((head[1] & 0xFE, head[2] & 0x0C)))
ADTS = FrameKind(0xFF, 7, _adts_frame_bytes, lambda head: bytes((head[1], head[2] & 0xFC)))
LOAS = FrameKind(0x56, 3, _loas_frame_bytes, lambda head: head[:1])


def is_gsm(data: bytes, *, claimed: bool) -> bool:
    """Tell whether *data* is frames of GSM 06.10, each of which begins with the same four bits; a few may be chance."""
    heads = data[::GSM_FRAME_BYTES]
    enough = 1 if claimed else GSM_FRAMES
    return len(data) % GSM_FRAME_BYTES == 0 and len(heads) >= enough and all(head >> 4 == 0xD for head in heads)
