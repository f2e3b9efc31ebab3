"""What recorders make that FFmpeg does not: frames that were made once by other encoders, and files written by hand."""

from __future__ import annotations

import base64
import struct
from fractions import Fraction
from io import BytesIO

import av
import numpy as np

from tests.codec.sounds import Floats, chunk, silence, tone

TONE_HZ = 400.0
"""Of all frames below: it has whole periods in each, so that they can be repeated."""

GSM_FRAMES = base64.b64decode(
    "0jbcbeNQNu8IM2rKUCWVP8yi7aAlkT/Mou3wJZE/zKLt0jbsbaLwg12ZD3qBUUJ9CFfmA1HgOM1xxW15oEcVlbkj0jbsbaLJgDblzkraycBXW0o7"
    "KnnAJyWNuWvJwCclablr0jbsbaLxgCblrrbcyYAm45JG01HAWtpyOS15gEjltbbk0jbsbaLJgEjkljbk8YA05Y2426GgSRtxyNtRwCbsjblj0jbs"
    "baKhwDbsjblj8cAm7I25Y6GgSRtuRtxRgDbjrjcb0jbsbeKhoDcjblrRUcA7oy3LG3mANyyNxtzJgDcsbcbc0jbsbaJRoDbcsiLuoaBEVNYS7vGg"
    "NFXWEzbxwERdsjck0jbsbaLxwEbkjjckecA3JHHJJMmANuSNySPxoDkkcckb0jbsbaJRgEbbkjbcoaA3G4225PGARtuSNuTJoEkkdkbc0jbsLaJR"
    "wDbdkSdtocAkprEVdfHAJKbRF3XxgESdsbUs0jbsLaLxgEbjsbdj8YBG3I23I/HANtuSRuRRgDkkjbkb0jbsLaKh4Ekkbcjb8eBJJG3I28nARtxu"
    "NuNRoDkjjckc0jbsbaJ54EkackjLUaBJYm5InFHASyNySRtRoDbckbcc0jbsbaKhoDbckbkc8aBG3JHHHFGgNxtuOONR4Eckjcjj0jbsbaKh4Ecj"
    "jkjjUcA43JG3HKGANxuNtuPxwDjckbcc0jbsLaLJgDbcsbUtoaA0pbElNfHAJKatFTTxoDSdkaTs0jbsbeLxoDkaStzIUcBf4i7q0lGgOSNtxxx5"
    "oDjjkbck0jbsLaLJoDSc1YD/8cCyZtEVNfHgoqaxF3Xx4CBvzSct0jbsbaKh4DriblaKUYBLY05K21GgRuONtxyhoEbjjbck0jbsLaLxoEbksaMt"
    "8cA0ntGlNfHANJ7RpS3xwDSdrbks0jbsLeLJoDkkSksRUYA5a0nLI1HANuSOONuhwDbkjjjb0jbsbaLxoEbjkkacUeBI25G421HARtyONyShwEbc"
    "jjck0jbsbaLxwDbcjjckoaA5I3HI3FHANtySORuhwDbckjkb0jbsLaLxwDTdsacsocAyprElNfGARJ3RlPbxgEadsacs"
)
"""Half a second at 8 kHz and 13 kbit/s, by SoX."""
GSM_FRAME_BYTES = 33
GSM_BITS = (6, 6, 5, 5, 4, 4, 3, 3, *(7, 2, 2, 6, *[3] * 13) * 4)
"""How many each parameter of a frame has (ETSI GSM 06.10, table 1.1)."""

AMR_WB_FRAMES = base64.b64decode(
    "BO9TBu7/vGXzxz1TIlK3tlDgBOeUReLrReVx8zzBRGB0EBYABO9TDu7/vGXz1x1dLxY/+ZIABO/UBuL/ReVx+wzDE0AA0VCQBO9TD+7//GWz"
    "ww1dPQQsybUgBOfUJOLzReVx+xzLQ8HRlZ6ABOdTBu7//GWzww1cHQVtyLFgBOeUReLrReVx2wzNQpDAYmgQBO9TDe7//GWzww1czDVf8oxQ"
    "BOeURuLrReVx8yzNSJDoyskQBO8TDu7//GWzww1cY4JLuMJwBOeUReLrReVx8yzDHgRQQATwBO9TBe7//GWzwy1TEHKmlmDgBO2UTeLnReUx"
    "9zzIAcAIwwDgBO9TDO7//GWz4w1c0+VO6TeQBO/UBuL/ReVx4zzDRBRkBEEABO8TDO7//GWzwx1cw5FbqFLwBOeUReLrReVx+xzEc2EI+HpA"
    "BO8TDe7//GWzwx1ckLBqqlDABO+UReLvReVx+wzIhDQMxJDgBO9TDe7//GWzww1c5pRf6BbwBO/UBOL/ReVx4zzDFHVBFRFgBO9TD+b//WKz"
    "7y1WwGheyrQgBO8UROLrReVx+xzEQTBwEJAABO9TDub//WKz7y1XxDkf6JoQ"
)
"""Half a second at 6.6 kbit/s, by VisualOn's encoder,"""
AMR_WB_SILENCE = bytes.fromhex("4cffffbdf0d0") + b"\x7c" * 7
"""and what stands for eight frames of silence: how it sounds, and that there is no more to be said (3GPP TS 26.201)."""

SPEEX_HEAD = bytes.fromhex(
    "5370656578202020312e322e310000000000000000000000000000000100000050000000401f000000000000040000000100"
    "0000ffffffffa00000000000000001000000000000000000000000000000"
)
SPEEX_PACKETS = base64.b64decode(
    "GFcJKTwVznXeI5dl+dm2bNeH5dkYVwki5zoCo14flzuPDsuc14E4LhhXCS48Ry5wPBbsuLnCo6DXhznOGFcJIudG2bceH5c7OcKAnSeHPFkY"
    "VwkgZzoOg14flzi5zoCc14yNwxhXCSu8Rc4cniI3548OG/IM51HUGFcJKTw8bnoeIjdnjxFwhceEicMYVwkgZ0XCdd4FlzgZzoPch4c51hhX"
    "CSBnOc5yHjLhZk8WG5xc4Q82GFcJLOdm2YXeMjcPjxAbnPzowE4YVwkmvEHOch4iNw5PDhuG14k5wxhXCSu8Sc4fHiA3O9nRgJ3HgsnDGFcJ"
    "JDxFzhyeIucPjxFzh5zhOE4YVwkgZwnOpJ4flwwZzoCdx4i5wxhXCSznOgJzXhw3OQ8Ry50nhw3ZGFcJJDw4bnUzowE7jwEbnceI5dkYVwkg"
    "ZwnCoDOdB1EPAsudd4i5wxhXCSw8OG5zXgI3Ou8BG53HiLnDGFcJLjw5znIeI5cMGc6AnNeEicMYVwkrvAsuGDOE4VH5z4PdTOE7PxhXCSQ8"
    "cy/NM4UHwVnCdn93iDnPGFcJIvgt+XNeH5dnPgt+XAznhdQYVwks5z3Chd4c5z+PEXOdJ4i4LhhXCS48Bc5z84ThQa8Py53HiLnDGFcJLjxJ"
    "ws5znQE5rw7LnA8Muy4="
)
SPEEX_PACKET_BYTES = 20
"""20 ms at 8 kHz, by Xiph's encoder."""


def amr(container: str, speech: Floats) -> bytes:
    """Return *speech* at 8 kHz as phones record it, with its silence only described, in a file of FFmpeg's."""
    sink = BytesIO()
    with av.open(sink, "w", format=container) as output:
        stream = output.add_stream("libopencore_amrnb", rate=8_000, layout="mono", options={"dtx": "1"})
        stream.bit_rate = 12_200
        for start in range(0, len(speech), 160):
            values = np.rint(speech[start : start + 160] * np.float32(32_767)).astype(np.int16)
            frame = av.AudioFrame.from_ndarray(values[np.newaxis], format="s16", layout="mono")
            frame.rate, frame.pts, frame.time_base = 8_000, start, Fraction(1, 8_000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return sink.getvalue()


def with_a_pause(rate_hz: int) -> Floats:
    """Return a second of tone, two of the noise of a quiet room, and a second of tone."""
    hiss = np.random.default_rng(1).standard_normal(2 * rate_hz).astype(np.float32) * np.float32(1e-4)
    sound = tone(1.0, rate_hz=rate_hz, hz=TONE_HZ)
    return np.concatenate([sound, silence(2.0, rate_hz) + hiss, sound])


def amr_wb() -> bytes:
    """Return the same in AMR-WB."""
    speech = AMR_WB_FRAMES * 2
    return b"#!AMR-WB\n" + speech + (AMR_WB_SILENCE * 13)[: -4 * 1] + speech


def remux(data: bytes, container: str) -> bytes:
    """Return what is in the file *data* in another kind of file, as it is."""
    sink = BytesIO()
    with av.open(BytesIO(data), "r") as source, av.open(sink, "w", format=container) as output:
        stream = output.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux():
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    return sink.getvalue()


def gsm(seconds: int) -> bytes:
    """Return bare GSM."""
    return GSM_FRAMES * 2 * seconds


def gsm_wav(seconds: int) -> bytes:
    """Return GSM in WAV, as answering machines record it: two frames in a row, without their mark, from the lowest bit on."""
    frames = gsm(seconds)
    bits, count = 0, 0
    for start in range(0, len(frames), GSM_FRAME_BYTES):
        number = int.from_bytes(frames[start : start + GSM_FRAME_BYTES], "big")
        left = sum(GSM_BITS)
        for width in GSM_BITS:
            left -= width
            bits |= (number >> left & ((1 << width) - 1)) << count
            count += width
    samples = 160 * len(frames) // GSM_FRAME_BYTES
    fields = struct.pack("<HHIIHHHH", 0x31, 1, 8_000, 1_625, 65, 0, 2, 320)
    body = b"WAVE" + chunk(b"fmt ", fields) + chunk(b"fact", struct.pack("<I", samples))
    body += chunk(b"data", bits.to_bytes(count // 8, "little"))
    return b"RIFF" + struct.pack("<I", len(body)) + body


def speex(seconds: int) -> bytes:
    """Return Speex in Ogg."""
    packets = [SPEEX_HEAD, bytes(8)]
    frames = SPEEX_PACKETS * 2 * seconds
    packets += [frames[start : start + SPEEX_PACKET_BYTES] for start in range(0, len(frames), SPEEX_PACKET_BYTES)]
    pages = []
    for number, packet in enumerate(packets):
        flags = 2 if number == 0 else 4 if number == len(packets) - 1 else 0
        granule = max(number - 1, 0) * 160
        head = struct.pack("<4sBBqIIIBB", b"OggS", 0, flags, granule, 7, number, 0, 1, len(packet))
        page = bytearray(head + packet)
        page[22:26] = struct.pack("<I", _ogg_checksum(page))
        pages.append(bytes(page))
    return b"".join(pages)


def _ogg_checksum(page: bytes | bytearray) -> int:
    # RFC 3533, section 6: the polynomial 0x04c11db7, from the highest bit on.
    value = 0
    for byte in page:
        value ^= byte << 24
        for _ in range(8):
            value = (value << 1 ^ (0x04C11DB7 if value & 0x80000000 else 0)) & 0xFFFFFFFF
    return value


# Headers of linear samples


def wave(
    samples: bytes,
    *,
    width: int,
    bits: int,
    valid_bits: int | None = None,
    tag: int = 1,
    channels: int = 1,
    rate_hz: int = 16_000,
    magic: bytes = b"RIFF",
    data_size: int | None = None,
    after: bytes = b"",
) -> bytes:
    """
    Return a WAV file of *samples* that take *width* bytes each and are said to have so many *bits*.

    It is an extensible one with *valid_bits*; RIFX is big-endian, RF64 and BW64 have their sizes in a chunk of their own.
    """
    order = ">" if magic == b"RIFX" else "<"
    align = width * channels
    shape = (0xFFFE if valid_bits is not None else tag, channels, rate_hz, rate_hz * align, align, bits)
    fields = struct.pack(f"{order}HHIIHH", *shape)
    if valid_bits is not None:
        tail = bytes.fromhex("800000aa00389b71")
        fields += struct.pack(f"{order}HHIIHH", 22, valid_bits, 0, tag, 0, 16) + tail
    body = b"WAVE"
    size = len(samples) if data_size is None else data_size
    if magic in (b"RF64", b"BW64"):
        body += b"ds64" + struct.pack("<IQQQI", 28, 0, size, 0, 0)
        size = 0xFFFFFFFF
    body += struct.pack(f"{order}4sI", b"fmt ", len(fields)) + fields
    body += struct.pack(f"{order}4sI", b"data", size) + samples + after
    return magic + struct.pack(f"{order}I", 0xFFFFFFFF if magic in (b"RF64", b"BW64") else len(body)) + body


def aiff(
    samples: bytes,
    *,
    bits: int,
    channels: int = 1,
    rate_hz: int = 16_000,
    compression: bytes = b"",
    data_size: int | None = None,
) -> bytes:
    """Return an AIFF file, AIFC with a *compression*."""
    exponent = rate_hz.bit_length() - 1
    rate = struct.pack(">HQ", exponent + 0x3FFF, rate_hz << (63 - exponent))
    frames = len(samples) // (channels * ((bits + 7) // 8))
    common = struct.pack(">HIH", channels, frames, bits) + rate + (compression + b"\0\0" if compression else b"")
    size = len(samples) + 8 if data_size is None else data_size
    body = b"AIFC" if compression else b"AIFF"
    body += struct.pack(">4sI", b"COMM", len(common)) + common
    body += struct.pack(">4sIII", b"SSND", size, 0, 0) + samples
    return b"FORM" + struct.pack(">I", len(body)) + body


def au(
    samples: bytes, *, code: int, channels: int = 1, rate_hz: int = 16_000, size: int = 0xFFFFFFFF, note: bytes = b""
) -> bytes:
    """Return an AU file."""
    return struct.pack(">4s5I", b".snd", 24 + len(note), size, code, rate_hz, channels) + note + samples


def caf(
    samples: bytes, *, width: int, bits: int, flags: int = 0, channels: int = 1, rate_hz: int = 16_000, size: int = -1
) -> bytes:
    """Return a CAF file of linear samples; flag 1 stands for floats, 2 for little-endian."""
    description = struct.pack(">d4s5I", rate_hz, b"lpcm", flags, width * channels, 1, channels, bits)
    free = struct.pack(">4sq", b"free", 100) + bytes(100)
    data = struct.pack(">4sqI", b"data", size, 0) + samples
    return b"caff\0\1\0\0" + struct.pack(">4sq", b"desc", 32) + description + free + data
