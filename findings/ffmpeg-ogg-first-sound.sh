#!/usr/bin/env bash
# Guess: an Ogg file that is sent while it is written has its first sound after the first packet of 20 ms, or after the page
#   of one second that FFmpeg's documentation names; `flush_packets` sends it sooner.
# Seen: the first sound leaves the muxer after two seconds of it: a page is written only when the next one is full as well.
#   `flush_packets` changes nothing. With pages of 40 ms the first sound is there after 80 ms. WebM has it after one second.
# Versions: PyAV 18.1.0 (FFmpeg 8.1.2), numpy 2.4.6, Python 3.11
# Why: two seconds of speech have to be made before a listener hears the first of it, although encoding is nearly free.
#   `page_duration` decides when an answer begins to be heard, and counts twice.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input av==18.1.0 numpy==2.4.6
cd "$directory"

cat >main.py <<'EOF'
import sys
from fractions import Fraction

import av
import numpy as np

RATE_HZ = 48_000
FRAME = 960
SOUND = (0.3 * np.sin(2 * np.pi * 440 * np.arange(4 * RATE_HZ) / RATE_HZ)).astype(np.float32)


class Sink:
    """A client: it gets what is written, and nobody can go back in it."""

    def __init__(self):
        self.received = 0

    def write(self, data):
        self.received += len(data)
        return len(data)


def first_sound_ms(container, options):
    """Return how much sound was written when more than the header's bytes had come out."""
    sink = Sink()
    output = av.open(sink, "w", format=container, container_options=options)
    stream = output.add_stream("libopus", rate=RATE_HZ, layout="mono")
    header = found = None
    for start in range(0, len(SOUND), FRAME):
        frame = av.AudioFrame.from_ndarray(SOUND[np.newaxis, start : start + FRAME], format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE_HZ, start, Fraction(1, RATE_HZ)
        output.mux(stream.encode(frame))
        if header is None and sink.received:
            header = sink.received
        elif found is None and header is not None and sink.received > header:
            found = (start + FRAME) * 1_000 // RATE_HZ
    output.mux(stream.encode(None))
    output.close()
    return found


expected = {
    ("ogg", ()): 2_000,
    ("ogg", (("flush_packets", "1"),)): 2_000,
    ("ogg", (("page_duration", "40000"),)): 80,
    ("webm", ()): 1_020,
}
seen = {(container, options): first_sound_ms(container, dict(options)) for container, options in expected}
for (container, options), found in seen.items():
    print(f"{container} {dict(options)}: the first sound leaves after {found} ms of it")
if seen != expected:
    sys.exit(f"not as it was seen before: {expected}")
EOF
"$python" main.py
