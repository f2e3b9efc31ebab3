#!/usr/bin/env bash
# Guess: in an extensible WAV file the size of a sample's container (bits per sample, block align) says where the next one
#   begins; the valid bits only say how many of them mean anything, as in 24-bit sound kept in 32-bit containers.
# Seen: FFmpeg takes the valid bits for the size. 24 of 32 bits become samples of a floating-point kind, 20 of 32 bits
#   samples of three bytes, a third more of them than there are: both are noise. libsndfile reads either as it was written.
#   12 of 16 and 20 of 24 bits, where valid bits and container round up to the same bytes, FFmpeg reads too.
# Versions: PyAV 18.1.0 (FFmpeg 8.1.2), soundfile 0.14.0 (libsndfile 1.2.2), numpy 2.4.6, Python 3.11
# Why: a recording of an audio interface is heard as a loud hiss, and no error tells it. A header with fewer valid bits than
#   the container has bytes for has to be recognised, or rewritten, before FFmpeg sees it.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input av==18.1.0 soundfile==0.14.0 numpy==2.4.6
cd "$directory"

cat >main.py <<'EOF'
import io
import struct
import sys

import av
import numpy as np
import soundfile

RATE_HZ = 16_000
SOUND = 0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE_HZ) / RATE_HZ)
PCM = struct.pack("<H", 1) + bytes.fromhex("000000001000800000aa00389b71")


def wav(container_bits, valid_bits):
    """Return one second of SOUND with its samples at the top of their containers, as the format has it."""
    unused = container_bits - valid_bits
    samples = np.round(SOUND * (2 ** (valid_bits - 1) - 1)).astype(np.int64) << unused
    size = container_bits // 8
    data = b"".join(int(one).to_bytes(size, "little", signed=True) for one in samples)
    shape = struct.pack("<HHIIHH", 0xFFFE, 1, RATE_HZ, RATE_HZ * size, size, container_bits)
    shape += struct.pack("<HHI", 22, valid_bits, 4) + PCM
    chunks = b"WAVEfmt " + struct.pack("<I", len(shape)) + shape + b"data" + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks


def likeness(samples):
    """Return how like SOUND *samples* are: 1 the same, 0 nothing of it."""
    length = min(len(samples), len(SOUND))
    return round(float(np.corrcoef(samples[:length], SOUND[:length])[0, 1]), 2)


def through_ffmpeg(file):
    with av.open(io.BytesIO(file)) as source:
        stream = source.streams.audio[0]
        samples = np.concatenate([frame.to_ndarray().ravel() for frame in source.decode(stream)]).astype(float)
        return stream.codec_context.name, len(samples), likeness(samples)


def through_libsndfile(file):
    samples, _ = soundfile.read(io.BytesIO(file))
    return len(samples), likeness(samples)


expected = {
    (16, 12): (("pcm_s16le", 16_000, 1.0), (16_000, 1.0)),
    (24, 20): (("pcm_s24le", 16_000, 1.0), (16_000, 1.0)),
    (32, 32): (("pcm_s32le", 16_000, 1.0), (16_000, 1.0)),
    (32, 24): (("pcm_f24le", 16_000, 0.0), (16_000, 1.0)),
    (32, 20): (("pcm_s24le", 21_328, 0.0), (16_000, 1.0)),
}
for (container_bits, valid_bits), before in expected.items():
    file = wav(container_bits, valid_bits)
    seen = through_ffmpeg(file), through_libsndfile(file)
    (codec, samples, like), (other_samples, other_like) = seen
    print(
        f"{valid_bits} of {container_bits} bits: FFmpeg {codec}, {samples} samples, likeness {like:.2f}; "
        f"libsndfile {other_samples} samples, likeness {other_like:.2f}"
    )
    if seen != before:
        sys.exit(f"not as it was seen before: {before}")
EOF
"$python" main.py
