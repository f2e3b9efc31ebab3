#!/usr/bin/env bash
# Guess: a WAV in its big-endian form (RIFX), which FFmpeg opens without a complaint, decodes to the sound that is in it.
# Seen: the sizes and the rate are read as big-endian, the samples as little-endian: the right length, the right rate, and
#   noise at full scale instead of a quiet tone. Nothing is raised or logged. libsndfile, which wrote it, reads the tone.
# Versions: av 18.1.0 (FFmpeg's libavformat 62.12), soundfile 0.14.0 (libsndfile 1.2.2), numpy 2.3.5, Python 3.11
# Why: whoever hands recordings on to FFmpeg has to turn RIFX round first: what comes out looks like a success, and a
#   recogniser makes words of it.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input av==18.1.0 soundfile==0.14.0 numpy==2.3.5
cd "$directory"

cat >main.py <<'EOF'
import io
import sys

import av
import numpy as np
import soundfile

RATE = 16_000
TONE = 0.25 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)


def with_ffmpeg(data):
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.audio[0]
        samples = np.concatenate([frame.to_ndarray().ravel() for frame in container.decode(stream)])
        return stream.codec_context.name, stream.rate, samples / 32_768


seen = []
for endian in ("LITTLE", "BIG"):
    file = io.BytesIO()
    soundfile.write(file, TONE, RATE, format="WAV", subtype="PCM_16", endian=endian)
    data = file.getvalue()
    codec, rate, samples = with_ffmpeg(data)
    itself, _ = soundfile.read(io.BytesIO(data))
    errors = abs(samples - TONE).max(), abs(itself - TONE).max()
    print(data[:4], codec, rate, f"{len(samples)} samples, off by {errors[0]:.4f}; libsndfile is off by {errors[1]:.4f}")
    seen.append((data[:4], codec, rate, len(samples), errors[0] < 0.001, errors[1] < 0.001))
as_before = [
    (b"RIFF", "pcm_s16le", RATE, RATE, True, True),
    (b"RIFX", "pcm_s16le", RATE, RATE, False, True),
]
if seen != as_before or errors[0] < 0.5:
    sys.exit("not as it was seen before")
EOF
"$python" main.py
