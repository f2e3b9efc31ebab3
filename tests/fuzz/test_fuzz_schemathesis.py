"""
Schemathesis over the document: somebody else's idea of what a client may send, and of what an answer may be.

It runs in an environment of its own (``.cache/fuzz``), as pip-audit does: of the 28 packages that it brings along structlog would
import ``rich`` into the server, where it finds it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

from tests.fuzz.conftest import CASES, KEY
from tests.system.server import REPOSITORY, Server

LOCK = REPOSITORY / "config" / "fuzz.lock"
TOOL = REPOSITORY / ".cache" / "fuzz"
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "use_after_free",
    "ignored_auth",
)
"""All but that every value which the schemas allow is taken: that a text is not blank no schema says."""
EXAMPLES_SHARE = 120
"""One example of each operation and phase for so many cases."""
RUN_LIMIT_S = 1_800


def tool() -> Path:
    """Install what ``LOCK`` pins unless that was done before; return its command."""
    stamp = TOOL / ".installed"
    state = f"{hashlib.sha256(LOCK.read_bytes()).hexdigest()} {sys.version}\n"
    if not stamp.exists() or stamp.read_text() != state:
        venv.create(TOOL, clear=True, with_pip=True)
        pip = [str(TOOL / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "--no-deps", "--requirement", str(LOCK)], check=True)
        stamp.write_text(state)
    return TOOL / "bin" / "st"


def test_document_against_the_server(server: Server) -> None:
    """Schemathesis finds nothing that the document does not say."""
    arguments = [str(tool()), "run", f"{server.url}/openapi.json", "--header", f"Authorization: Bearer {KEY}"]
    arguments += ["--max-examples", str(max(10, CASES // EXAMPLES_SHARE)), "--checks", ",".join(CHECKS)]
    arguments += ["--phases", "examples,coverage,fuzzing,stateful", "--request-timeout", "120", "--no-color"]
    done = subprocess.run(arguments, cwd=TOOL, capture_output=True, text=True, timeout=RUN_LIMIT_S, check=False)
    summary = done.stdout[-1_500:]
    print(summary)  # noqa: T201 - shown with the test's failure
    assert done.returncode == 0, done.stdout[-20_000:]
