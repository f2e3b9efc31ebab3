#!/usr/bin/env bash
# Guess: a resampler that works on a stream holds back the length of its filter, a few milliseconds.
# Seen: at 24 and 48 kHz to 16 kHz the default quality holds back up to 37 ms, and at 8 kHz 115 ms, however small the pieces;
#   the two lower qualities hold back less, "QQ" nearly nothing. How much changes from piece to piece: it comes in blocks.
# Versions: soxr 1.1.0, numpy 2.3.5, Python 3.11
# Why: who listens for the end of speech in what comes out of it hears that end so much later, and not always equally late.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input soxr==1.1.0 numpy==2.3.5
cd "$directory"

cat >main.py <<'EOF'
import sys

import numpy as np
import soxr

OUT = 16_000
PIECE_S = 0.02


def held_ms(rate, quality):
    stream = soxr.ResampleStream(rate, OUT, 1, dtype="float32", quality=quality)
    piece = np.zeros(round(rate * PIECE_S), np.float32)
    given = taken = 0
    held = []
    for _ in range(200):
        given += len(piece) / rate
        taken += len(stream.resample_chunk(piece)) / OUT
        held.append((given - taken) * 1_000)
    return min(held[100:]), max(held[100:])


seen = {}
for rate in (8_000, 24_000, 48_000):
    for quality in ("QQ", "LQ", "HQ"):
        seen[rate, quality] = held_ms(rate, quality)
        print(f"{rate} Hz, {quality}: {seen[rate, quality][0]:.1f} to {seen[rate, quality][1]:.1f} ms held back")
most = {key: high for key, (_, high) in seen.items()}
if not (most[8_000, "HQ"] > 90 and most[24_000, "HQ"] > 25 and most[48_000, "HQ"] > 25 and most[24_000, "QQ"] < 3):
    sys.exit("not as it was seen before")
EOF
"$python" main.py
