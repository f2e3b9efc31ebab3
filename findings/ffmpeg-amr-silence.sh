#!/usr/bin/env bash
# Guess: a decoder of AMR-NB gives 20 ms of sound for every frame, in the pauses too: discontinuous transmission is part of
#   the codec, every phone uses it, and a comfort-noise frame or an empty one is a frame.
# Seen: FFmpeg's own decoder, which it takes unless told otherwise, calls comfort noise not implemented and an empty frame
#   invalid. Whoever skips what cannot be decoded loses the pauses: four seconds with two of silence in them become little
#   more than two. The other decoder in the same library, libopencore_amrnb, gives all four.
# Versions: PyAV 18.1.0 (FFmpeg 8.1.2), numpy 2.4.6, Python 3.11
# Why: of a phone's voice message a large share of the frames looks broken, so it is refused, or its words run into one
#   another and every time in it is wrong.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input av==18.1.0 numpy==2.4.6
cd "$directory"

cat >main.py <<'EOF'
import collections
import io
import sys
from fractions import Fraction

import av
import numpy as np

RATE_HZ = 8_000
FRAME = 160
SECONDS = 4


def recording():
    """Return a second of a humming voice, two seconds of a quiet room, and the voice again."""
    times = np.arange(RATE_HZ) / RATE_HZ
    voice = 0.3 * np.sin(2 * np.pi * 300 * times) * (1 + np.sin(2 * np.pi * 4 * times)) / 2
    sound = np.concatenate([voice, np.zeros(2 * RATE_HZ), voice])
    sound += 0.001 * np.random.default_rng(1).standard_normal(len(sound))
    return (sound * 32_767).astype(np.int16)


def encode(samples, *, dtx):
    encoder = av.CodecContext.create("libopencore_amrnb", "w")
    encoder.sample_rate, encoder.layout, encoder.format = RATE_HZ, "mono", "s16"
    encoder.bit_rate, encoder.time_base, encoder.options = 12_200, Fraction(1, RATE_HZ), {"dtx": str(int(dtx))}
    packets = []
    for start in range(0, len(samples), FRAME):
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis, start : start + FRAME], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, start, Fraction(1, RATE_HZ)
        packets += [bytes(packet) for packet in encoder.encode(frame)]
    return packets + [bytes(packet) for packet in encoder.encode(None)]


def decode(packets, name):
    """Decode a file of *packets* with *name*; return the errors that there were, with their number, and the seconds."""
    file = io.BytesIO(b"#!AMR\n" + b"".join(packets))
    errors = collections.Counter()
    samples = 0
    with av.open(file) as source:
        decoder = source.streams.audio[0].codec_context
        if name != decoder.name:
            decoder = av.CodecContext.create(name, "r")
            decoder.sample_rate, decoder.layout = RATE_HZ, "mono"
        for packet in source.demux():
            try:
                samples += sum(frame.samples for frame in decoder.decode(packet))
            except av.FFmpegError as exc:
                errors[type(exc).__name__] += 1
    return dict(errors), samples / RATE_HZ


with av.open(io.BytesIO(b"#!AMR\n" + encode(recording(), dtx=False)[0])) as source:
    default = source.streams.audio[0].codec_context.name
as_seen = default == "amrnb"
for dtx in (False, True):
    packets = encode(recording(), dtx=dtx)
    kinds = collections.Counter(packet[0] >> 3 & 15 for packet in packets)
    comfort, empty = kinds[8], kinds[15]
    for name in ("amrnb", "libopencore_amrnb"):
        errors, seconds = decode(packets, name)
        frames = f"{comfort} of comfort noise and {empty} empty among {len(packets)} frames"
        print(f"{frames}: {name} gives {seconds} s, {errors}")
        if dtx and name == default:
            as_seen &= errors == {"PatchWelcomeError": comfort, "InvalidDataError": empty} and seconds < SECONDS - 1
        else:
            as_seen &= not errors and seconds >= SECONDS
    as_seen &= (empty > 50) == (comfort > 5) == dtx
if not as_seen:
    sys.exit("not as it was seen before")
EOF
"$python" main.py
