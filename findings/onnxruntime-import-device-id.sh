#!/usr/bin/env bash
# Guess: importing ONNX Runtime's CPU package on Linux writes nothing to the user's home; telemetry is a matter of Windows.
# Seen: the import alone makes a device id and an SQLite file for telemetry events under ~/.cache/Microsoft; 1.22.1 wrote
#   nothing. disable_telemetry_events() comes too late for the files; ORT_DISABLE_TELEMETRY=1 before the start prevents them.
# Versions: onnxruntime 1.32.0 and 1.22.1, numpy 2.3.5, Python 3.11
# Why: whoever promises that nothing of a house leaves it has to set the variable for every process that imports the package,
#   also where another library brings it (voices, voice detection, embeddings); a home that is read-only sees the attempt.
set -euo pipefail
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
cd "$directory"

cat >main.py <<'EOF'
import os
import subprocess
import sys
from pathlib import Path

CODE = "import onnxruntime; onnxruntime.disable_telemetry_events(); print(onnxruntime.__version__)"


def written(python, name, **more):
    home = Path(name).absolute()
    home.mkdir()
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("ORT_", "XDG_"))}
    done = subprocess.run([python, "-c", CODE], env={**kept, "HOME": str(home), **more}, capture_output=True, check=True)
    files = sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())
    print(done.stdout.decode().strip(), more, files)
    return files


new, old = sys.argv[1:]
told = written(new, "told", ORT_DISABLE_TELEMETRY="1")
untold = written(new, "untold")
before = written(old, "before")
folder = ".cache/Microsoft/DeveloperTools/.onnxruntime"
if told or before or not {f"{folder}/deviceid", f"{folder}/onnxruntime.db"} <= set(untold):
    sys.exit("not as it was seen before")
EOF
for name in new old; do "${PYTHON:-python3}" -m venv "$directory/$name"; done
new/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-input onnxruntime==1.32.0 numpy==2.3.5
old/bin/python -m pip install --quiet --quiet --disable-pip-version-check --no-input onnxruntime==1.22.1 numpy==2.3.5
new/bin/python main.py "$directory/new/bin/python" "$directory/old/bin/python"
