"""
The kinds of audio files there are, told by their first bytes.

FFmpeg reads most of them, but it is not asked what they are: its own probing would also find playlists and other kinds
that lead to further files. What nobody records is known by its name at most, so that who sends it is told.
"""

from __future__ import annotations

from typing import NamedTuple

from jarvis_core.codec.frames import ADTS, FIRST_FRAMES, LOAS, MPEG, is_gsm
from jarvis_core.errors import InvalidRequest, UnsupportedMediaType

LINEAR = (
    "pcm_u8,pcm_s8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,"
    "pcm_f32le,pcm_f32be,pcm_f64le,pcm_f64be,pcm_alaw,pcm_mulaw"
)
MPEG_AUDIO = "mp1,mp1float,mp2,mp2float,mp3,mp3float"


class Container(NamedTuple):
    """A kind of audio file."""

    name: str
    """As people call it."""
    demuxer: str
    """FFmpeg's name of what reads it."""
    codecs: str
    """FFmpeg's names of what may be in it; of WAV, AIFF, AU and CAF those that are no linear samples."""


WAV = Container("WAV", "wav", f"adpcm_ms,adpcm_ima_wav,adpcm_yamaha,g722,g726,g723_1,gsm_ms,flac,{MPEG_AUDIO}")
W64 = WAV._replace(demuxer="w64")
AIFF = Container("AIFF", "aiff", "adpcm_ima_qt,g722,gsm")
AU = Container("AU", "au", "g722,g726le")
CAF = Container("CAF", "caf", f"aac,alac,opus,flac,adpcm_ima_qt,gsm,amrnb,{MPEG_AUDIO}")
FLAC = Container("FLAC", "flac", "flac")
MP3 = Container("MP3", "mp3", MPEG_AUDIO)
AAC = Container("AAC", "aac", "aac")
LATM = Container("AAC", "loas", "aac_latm")
AMR = Container("AMR", "amr", "amrnb,amrwb")
GSM = Container("GSM", "gsm", "gsm")
OGG = Container("Ogg", "ogg", "opus,vorbis,flac,speex")
WEBM = Container("WebM", "matroska", f"opus,vorbis,flac,aac,alac,{MPEG_AUDIO},{LINEAR}")
MP4 = Container("MP4", "mov", f"aac,alac,opus,flac,amrnb,amrwb,adpcm_ima_qt,gsm,{MPEG_AUDIO},{LINEAR}")
WMA = Container("WMA", "asf", f"wmav1,wmav2,wmapro,wmavoice,{MPEG_AUDIO},pcm_s16le")

UNDERSTOOD = "WAV, AIFF, AU, CAF, FLAC, MP3, AAC, AMR, GSM, Ogg, WebM, MP4, QuickTime, 3GP and WMA are"

CLAIMS = {
    "wav": WAV, "x-wav": WAV, "wave": WAV, "vnd.wave": WAV, "x-pn-wav": WAV, "bwf": WAV, "rf64": WAV, "w64": W64,
    "aiff": AIFF, "x-aiff": AIFF, "aif": AIFF, "aifc": AIFF, "x-aifc": AIFF,
    "au": AU, "x-au": AU, "snd": AU,
    "caf": CAF, "x-caf": CAF,
    "flac": FLAC, "x-flac": FLAC,
    "mp3": MP3, "x-mp3": MP3, "mpeg": MP3, "x-mpeg": MP3, "mpeg3": MP3, "mpga": MP3, "mpa": MP3, "mp2": MP3,
    "aac": AAC, "x-aac": AAC, "aacp": AAC, "vnd.dlna.adts": AAC, "adts": AAC,
    "mp4a-latm": LATM, "latm": LATM, "loas": LATM,
    "amr": AMR, "amr-wb": AMR, "awb": AMR, "x-amr": AMR,
    "gsm": GSM, "x-gsm": GSM,
    "ogg": OGG, "x-ogg": OGG, "oga": OGG, "opus": OGG, "vorbis": OGG, "speex": OGG, "x-speex": OGG, "spx": OGG,
    "webm": WEBM, "x-matroska": WEBM, "matroska": WEBM, "mka": WEBM, "mkv": WEBM, "weba": WEBM,
    "mp4": MP4, "m4a": MP4, "x-m4a": MP4, "m4b": MP4, "quicktime": MP4, "mov": MP4, "alac": MP4,
    "3gpp": MP4, "3gpp2": MP4, "3gp": MP4, "3g2": MP4,
    "x-ms-wma": WMA, "wma": WMA, "x-ms-asf": WMA, "vnd.ms-asf": WMA, "asf": WMA,
}  # fmt: skip
"""What clients call them, in ``format`` and in media types."""

W64_GUID = b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\x00\x00"
ASF_GUID = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
MAGICS = (
    (b"OggS", OGG), (b"\x1a\x45\xdf\xa3", WEBM), (b"caff", CAF), (b".snd", AU), (b"dns.", AU), (b"fLaC", FLAC),
    (b"#!AMR\n", AMR), (b"#!AMR-WB\n", AMR), (W64_GUID, W64), (ASF_GUID, WMA),
)  # fmt: skip
FRAMES = ((ADTS, AAC), (MPEG, MP3), (LOAS, LATM))
MP4_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
"""Which of them the file begins with; QuickTime's had no ``ftyp`` in their first years, and some recorders write none."""

OTHERS = (
    (0, b"wvpk", "WavPack"), (0, b"TTA1", "True Audio"), (0, b"TTA2", "True Audio"), (0, b"MAC ", "Monkey's Audio"),
    (0, b"MPCK", "Musepack"), (0, b"MP+", "Musepack"), (0, b"OFR ", "OptimFROG"), (0, b"tBaK", "TAK"),
    (0, b"ajkg", "Shorten"), (0, b"MThd", "MIDI"), (0, b"DSD ", "DSD"), (0, b"FRM8", "DSD"), (1, b"dss", "DSS"),
    (1, b"ds2", "DSS"), (0, b".RMF", "RealMedia"), (0, b".ra\xfd", "RealAudio"), (0, b"FLV\x01", "Flash Video"),
    (0, b"Creative Voice File\x1a", "VOC"), (0, b"NIST_1A\n", "NIST SPHERE"), (0, b"#!SILK_V3", "SILK"),
    (1, b"#!SILK_V3", "SILK"), (0, b"#!AMR_MC", "AMR of several channels"), (0, b"#!AMR-WB_MC", "AMR of several channels"),
    (0, b"#!iLBC", "iLBC"), (0, b"#!EVRC", "EVRC"), (8, b"QLCM", "QCP"), (8, b"AVI ", "AVI"),
    (0, b"ADIF", "AAC in ADIF"), (0, b"\x00\x00\x01\xba", "an MPEG programme stream"), (0, b"\x7f\xfe\x80\x01", "DTS"),
    (0, b"\x0b\x77", "AC-3"),
)  # fmt: skip
"""Where other kinds have which bytes; those of text that nobody would mistake for one are not among them."""
TS_PACKET_BYTES = 188

ID3_HEADER_BYTES = 10
ID3_LIMIT = 10
CHANNELS_MAX = 32
RATE_MIN_HZ = 1_000
RATE_MAX_HZ = 768_000

MISSING_SHARE = 0.05
MISSING_S = 0.25
"""A file is cut short where more than both is missing of what its header declares."""


class Found(NamedTuple):
    """What data is."""

    container: Container
    start: int = 0
    """Where that begins: a recording that was cut out of a longer one may begin in the middle of a frame."""


def find_container(data: bytes, claim: str = "") -> Found | None:
    """Return what kind of file *data* is, None where it is none that is known; *claim* says what it ought to be."""
    for magic, container in MAGICS:
        if data.startswith(magic):
            return Found(container)
    if data[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return Found(WAV) if data[8:12] == b"WAVE" else None
    if data[:4] == b"FORM":
        return Found(AIFF) if data[8:12] in (b"AIFF", b"AIFC") else None
    if data[4:8] in MP4_BOXES:
        return Found(MP4)
    if start := skip_id3(data):
        # Most tags are in front of MP3, whatever is between.
        tagged = find_container(data[start:], claim)
        return Found(tagged.container, start + tagged.start) if tagged is not None else Found(MP3)
    for kind, container in FRAMES:
        if kind.begins(data, 0, FIRST_FRAMES):
            return Found(container)
    if is_gsm(data, claimed=claim == GSM.name):
        return Found(GSM)
    for kind, container in FRAMES:
        if (start := kind.find(data)) >= 0:
            return Found(container, start)
    return None


def refuse_others(data: bytes) -> None:
    """Raise ``UnsupportedMediaType`` where *data* is a kind of file that is known by its name alone."""
    name = next((name for start, magic, name in OTHERS if data.startswith(magic, start)), "")
    if not name and len(data) > 2 * TS_PACKET_BYTES and data[: 3 * TS_PACKET_BYTES : TS_PACKET_BYTES] == b"GGG":
        name = "an MPEG transport stream"
    if name:
        raise UnsupportedMediaType(f"The audio is {name}, which is not understood; {UNDERSTOOD}.")


def check_shape(container: Container, channels: int, rate_hz: float, path: str) -> None:
    """Raise ``InvalidRequest`` where no audio has that many channels, or samples a second."""
    if not 1 <= channels <= CHANNELS_MAX:
        raise InvalidRequest.field(path, f"is {container.name} with {channels} channels, not 1..{CHANNELS_MAX}")
    if not RATE_MIN_HZ <= rate_hz <= RATE_MAX_HZ:
        rule = f"is {container.name} with {rate_hz:.10g} samples a second, not {RATE_MIN_HZ}..{RATE_MAX_HZ}"
        raise InvalidRequest.field(path, rule)


def is_cut(declared: float, found: float, second: float) -> bool:
    """Tell whether *found* is clearly less than *declared*; *second* is how much a second has of it."""
    return declared - found > max(MISSING_S * second, MISSING_SHARE * declared)


def skip_id3(data: bytes) -> int:
    """Return where what follows all ID3v2 tags begins, 0 without one."""
    start = 0
    for _ in range(ID3_LIMIT):
        head = data[start : start + ID3_HEADER_BYTES]
        if head[:3] != b"ID3" or len(head) < ID3_HEADER_BYTES:
            break
        size = 0
        for byte in head[6:]:
            size = size << 7 | byte & 0x7F
        # A footer, where there is one, is as long as the header.
        start += ID3_HEADER_BYTES + size + (ID3_HEADER_BYTES if head[5] & 0x10 else 0)
    return start
