"""
The kinds of audio files there are, told by their first bytes, and what their headers say.

FFmpeg reads the files, but it is not asked what they are: its own probing would also find playlists and other kinds
that lead to further files.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from jarvis_core.errors import InvalidRequest

PCM = "pcm_u8,pcm_s16le,pcm_s24le,pcm_s32le,pcm_f32le,pcm_f64le"


class Container(NamedTuple):
    """A kind of audio file."""

    name: str
    """As people call it."""
    demuxer: str
    """FFmpeg's name of what reads it."""
    codecs: str
    """FFmpeg's names of what may be in it."""


WAV = Container("WAV", "wav", f"{PCM},pcm_alaw,pcm_mulaw,adpcm_ms,adpcm_ima_wav")
W64 = WAV._replace(demuxer="w64")
FLAC = Container("FLAC", "flac", "flac")
MP3 = Container("MP3", "mp3", "mp3,mp3float")
AAC = Container("AAC", "aac", "aac")
OGG = Container("Ogg", "ogg", "opus,vorbis,flac")
WEBM = Container("WebM", "matroska", f"opus,vorbis,flac,aac,mp3,mp3float,{PCM}")
MP4 = Container("MP4", "mov", f"aac,alac,mp3,mp3float,opus,flac,amrnb,amrwb,{PCM},pcm_s16be,pcm_s24be")

CLAIMS = {
    "wav": WAV, "x-wav": WAV, "wave": WAV, "vnd.wave": WAV,
    "flac": FLAC, "x-flac": FLAC,
    "mp3": MP3, "mpeg": MP3,
    "aac": AAC,
    "ogg": OGG, "opus": OGG,
    "webm": WEBM,
    "mp4": MP4, "m4a": MP4, "x-m4a": MP4,
}  # fmt: skip
"""What clients call them, in ``format`` and in media types."""

FrameBytes = Callable[[bytes], int]

W64_GUID = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
WAV_BITS = {1: (8, 16, 24, 32), 3: (32, 64), 0xFFFE: (8, 16, 24, 32, 64)}
"""Bits that a sample may have, by the format's tag: integers, floats, either."""
ID3_HEADER_BYTES = 10
CHANNELS_MAX = 32
RATE_MIN_HZ = 1_000
RATE_MAX_HZ = 768_000

BOXES_LIMIT = 10_000
"""Chunks of a WAV, or boxes of an MP4, that are looked at; those of a recording in fragments go on after its index."""

MISSING_SHARE = 0.05
MISSING_S = 0.25
"""A file is cut short where more than both is missing of what its header declares."""


def find_container(data: bytes) -> Container | None:
    """Return what kind of file *data* is, None where it is none that is known."""
    if data[:4] in (b"RIFF", b"RF64"):
        return WAV if data[8:12] == b"WAVE" else None
    if data[:16] == W64_GUID:
        return W64
    if data[:4] == b"OggS":
        return OGG
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return WEBM
    if data[4:8] == b"ftyp":
        return MP4
    start = _skip_id3(data)
    if data[start : start + 4] == b"fLaC":
        return FLAC
    if _has_frames(data, start, _adts_frame_bytes):
        return AAC
    if start or _has_frames(data, start, _mp3_frame_bytes):
        return MP3
    return None


def check_shape(container: Container, channels: int, rate_hz: int, path: str) -> None:
    """Raise ``InvalidRequest`` where no audio has that many channels, or samples a second."""
    if not 1 <= channels <= CHANNELS_MAX:
        raise InvalidRequest.field(path, f"is {container.name} with {channels} channels, not 1..{CHANNELS_MAX}")
    if not RATE_MIN_HZ <= rate_hz <= RATE_MAX_HZ:
        rule = f"is {container.name} with {rate_hz} samples a second, not {RATE_MIN_HZ}..{RATE_MAX_HZ}"
        raise InvalidRequest.field(path, rule)


def is_cut(declared: float, found: float, second: float) -> bool:
    """Tell whether *found* is clearly less than *declared*; *second* is how much a second has of it."""
    return declared - found > max(MISSING_S * second, MISSING_SHARE * declared)


def check_wav(data: bytes, path: str) -> bool:
    """
    Tell whether the RIFF file *data* has any samples.

    Raises ``InvalidRequest`` where its header makes no sense, or it ends before the samples that it declares. A size of
    0 or of about 2 or 4 GiB is what writes a stream that does not know its own: the samples go to the end then.
    """
    long_size = 0
    shape: tuple[int, int, int, int, int, int] | None = None
    for name, position, size in _chunks(data, 12):
        if name == b"ds64" and len(data) >= position + 16:
            long_size = struct.unpack_from("<Q", data, position + 8)[0]
        elif name == b"fmt " and len(data) >= position + 16:
            shape = struct.unpack_from("<HHIIHH", data, position)
            check_shape(WAV, shape[1], shape[2], path)
            if shape[5] not in WAV_BITS.get(shape[0], (shape[5],)):
                raise InvalidRequest.field(path, f"is WAV with samples of {shape[5]} bits")
        elif name == b"data":
            if shape is None:
                raise InvalidRequest.field(path, "is WAV without a description of its samples")
            long = data[:4] == b"RF64" and size == 0xFFFFFFFF
            return _check_wav_data(data, position, long_size if long else size, shape, path)
    raise InvalidRequest.field(path, "is WAV that ends before its samples")


def _check_wav_data(
    data: bytes, position: int, size: int, shape: tuple[int, int, int, int, int, int], path: str
) -> bool:
    found = len(data) - position
    if size == 0 and _is_chunks(data, position):
        return False
    if 0 < size < 0x7FFF0000 or size > 0xFFFFFFFF:
        _, channels, rate_hz, _, _, bits = shape
        if is_cut(size, found, channels * rate_hz * bits / 8):
            raise InvalidRequest.field(path, f"is WAV that ends before its samples do: {found} of {size} bytes")
    return found > 0


def _is_chunks(data: bytes, position: int) -> bool:
    """Tell whether chunks, and nothing else, follow to the very end."""
    for name, start, size in _chunks(data, position):
        if not (name.isascii() and name.decode().isprintable()):
            return False
        position = start + size + size % 2
    return position == len(data)


def hide_empty_lists(data: bytes) -> bytes:
    """
    Return the RIFF file *data* with another name for each chunk LIST that says nothing, not even what it lists.

    FFmpeg 8 refuses the whole file because of one (``wav_read_header``).
    """
    empty = [start for name, start, size in _chunks(data, 12) if name == b"LIST" and size < 4]
    if not empty:
        return data
    named = bytearray(data)
    for start in empty:
        named[start - 8 : start - 4] = b"JUNK"
    return bytes(named)


def _chunks(data: bytes, position: int) -> Iterator[tuple[bytes, int, int]]:
    """Give the name, the start and the size of each chunk of a RIFF file, the first of which begins at *position*."""
    for _ in range(BOXES_LIMIT):
        if position + 8 > len(data):
            return
        name, size = struct.unpack_from("<4sI", data, position)
        yield name, position + 8, size
        position += 8 + size + size % 2


def check_mp4(data: bytes, path: str) -> None:
    """Raise ``InvalidRequest`` where the MP4 file *data* is encrypted, or ends before its index."""
    for name, start, end in _boxes(data):
        if name == b"moov" and end <= len(data):
            # ISO/IEC 14496-12, section 8.12: the kind of a protected track's samples is enca, and sinf says how.
            index = data[start:end]
            if b"enca" in index and b"sinf" in index:
                raise InvalidRequest.field(path, "is MP4 that is encrypted")
            return
    raise InvalidRequest.field(path, "is MP4 that ends before its index")


def _boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Give the name, the start and the end of each box of an MP4 file, which may end after the file."""
    start = 0
    for _ in range(BOXES_LIMIT):
        if start + 8 > len(data):
            return
        size, name = struct.unpack_from(">I4s", data, start)
        if size == 1 and start + 16 <= len(data):
            size = struct.unpack_from(">Q", data, start + 8)[0]
        end = start + size if size else len(data)
        yield name, start, end
        start = max(end, start + 8)


def declares_length(container: Container, data: bytes) -> bool:
    """
    Tell whether the file's header says how long it is; what FFmpeg says of its length is only a guess otherwise.

    Ogg never does. WAV has a check of its own.
    """
    if container is MP3:
        start = _skip_id3(data)
        frame = data[start : start + 200]
        found = max(frame.find(b"Xing"), frame.find(b"Info"))
        return found > 0 and len(frame) >= found + 8 and bool(frame[found + 7] & 1)
    if container is WEBM:
        # RFC 9559, section 5.1.2: Duration is a float of 8 or 4 bytes in Info, near the beginning.
        return b"\x44\x89\x88" in data[:4_096] or b"\x44\x89\x84" in data[:4_096]
    if container is MP4:
        # In fragments it is what a recorder sends while it goes on.
        return all(name != b"moof" for name, _, _ in _boxes(data))
    # Of FLAC FFmpeg says what STREAMINFO has, or nothing.
    return container is FLAC


def _skip_id3(data: bytes) -> int:
    """Return where what follows an ID3v2 tag begins, 0 without one."""
    if data[:3] != b"ID3" or len(data) < ID3_HEADER_BYTES:
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return ID3_HEADER_BYTES + size


def _has_frames(data: bytes, start: int, frame_bytes: FrameBytes) -> bool:
    """Tell whether a frame begins at *start*, and another one where it ends, unless nothing is there."""
    length = frame_bytes(data[start : start + 7])
    return length > 0 and (start + length + 7 > len(data) or frame_bytes(data[start + length : start + length + 7]) > 0)


MP3_KBPS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
MP3_LSF_KBPS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)
MP3_RATES_HZ = (44_100, 48_000, 32_000)


def _mp3_frame_bytes(head: bytes) -> int:
    """Return how long the frame of MPEG audio layer III is that *head* begins, 0 where it begins none."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0
    version, layer = head[1] >> 3 & 3, head[1] >> 1 & 3
    kbps, rate = head[2] >> 4, head[2] >> 2 & 3
    if version == 1 or layer != 1 or kbps in (0, 15) or rate == 3 or head[3] & 3 == 2:
        return 0
    rate_hz = MP3_RATES_HZ[rate] >> {3: 0, 2: 1, 0: 2}[version]
    padding = head[2] >> 1 & 1
    if version == 3:
        return 144_000 * MP3_KBPS[kbps] // rate_hz + padding
    return 72_000 * MP3_LSF_KBPS[kbps] // rate_hz + padding


def _adts_frame_bytes(head: bytes) -> int:
    """Return how long the ADTS frame of AAC is that *head* begins, 0 where it begins none."""
    if len(head) < 7 or head[0] != 0xFF or head[1] & 0xF6 != 0xF0 or head[2] >> 2 & 15 > 12:
        return 0
    length = (head[3] & 3) << 11 | head[4] << 3 | head[5] >> 5
    return length if length >= 7 else 0
