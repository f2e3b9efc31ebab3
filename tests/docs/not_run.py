"""The blocks of the pages that no test runs, and why; each has the same words in a comment before it."""

from __future__ import annotations

NOT_RUN = {
    ("docs/api.md", "npx --yes openapi-typescript@7 http://localhost:8100/openapi.json --output jarvis.d.ts"): (
        "it downloads a package from npm"
    ),
    ("docs/api.md", 'import createClient from "openapi-fetch";'): "TypeScript's compiler is not among what tests need",
    ("README.md", "make test"): "it runs these tests themselves",
    ("docs/develop.md", "JARVIS_KILL_TURNS=1000 .venv/bin/python -m pytest tests/system/test_sharing.py -k kills"): (
        "it is a test run of its own"
    ),
    (
        "docs/develop.md",
        '.venv/bin/python -m tests.fakes.python_bridges --port 8005 --mode \'{"shape": "ndjson", "delta_delay_s": 0.2}\'',
    ): "it serves until it is stopped; tests/fakes holds the fakes against what they promise",
    ("docs/develop.md", ".venv/bin/python -m perf health chat"): "it measures for half a minute and more",
    (
        "docs/develop.md",
        "PERF_BASE=../other PERF_WEIGHTS=~/.local/share/jarvis-core/models .venv/bin/python -m perf voice_to_voice",
    ): "it needs the models, and takes some minutes",
    (
        "docs/tools.md",
        "MCP_SERVERS=time=http://localhost:8001/mcp,files=http://nas:8002/mcp LLM_URL=http://localhost:11434/v1 make run",
    ): "there is no server of tools where it would be run",
    ("docs/tools.md", "HOME_ASSISTANT_URL=http://homeassistant.local:8123 HOME_ASSISTANT_TOKEN=eyJhbGciOi… make run"): (
        "there is no Home Assistant where it would be run"
    ),
    (
        "docs/tools.md",
        'curl -s localhost:8100/api/chat -H \'content-type: application/json\' -d \'{"content": "Turn the kitchen light on",',
    ): "the model of the examples calls no tools",
    (
        "docs/tools.md",
        "curl -s localhost:8100/api/chat/response/01a20ae2-174a-7232-a16a-74ffd537723c/outputs -H 'content-type: application/json' \\",
    ): "the model of the examples calls no tools",
    ("docs/operations.md", "[Unit]"): "it is for a machine with systemd",
    ("docs/operations.md", "location / {"): "nginx is not among what tests need",
    ("docs/operations.md", "docker build -t jarvis-core:1.9.0 -f Containerfile ."): (
        "it builds an image, which takes an engine; tests/image checks it by `make image`"
    ),
    ("docs/operations.md", "docker exec jarvis-core jarvis-core token --user alice"): (
        "it takes a container that runs"
    ),
    ("docs/operations.md", "docker compose --profile local up --detach --scale jarvis-core=2"): (
        "it takes Docker Compose and builds images; tests/unit/test_container_files.py holds compose.yaml against the settings"
    ),
    ("docs/operations.md", "docker-compose up -d jarvis-core"): (
        "it takes Docker Compose and builds images; tests/unit/test_container_files.py holds compose.yaml against the settings"
    ),
    ("docs/realtime.md", "const RATE = 24000;"): "it needs a browser with a microphone",
    ("docs/realtime.md", "pip install 'openai[realtime]'"): (
        "it is for another environment than ours, where the lock file has it"
    ),
    ("docs/voice.md", "arecord -q -f S16_LE -r 16000 -d 4 | curl -s localhost:8100/api/voice/transcribe -H 'content-type: audio/wav' --data-binary @-"): (
        "it needs a microphone"
    ),
}  # fmt: skip
"""By page and first line."""

IN_PROSE = {
    "apt install make curl python3-venv libgomp1": "what a machine needs before anything runs; once, as root",
    "make run PYTHON=python3.12": "it would install a second environment; `.ci/run` has other Pythons",
    ".venv/bin/python -m jarvis_core": "for a service manager; every system test starts the server so",
    "pip install jarvis-core": "no command to try: what it does not bring",
}
"""Commands within a sentence, and why they are not in a block."""
