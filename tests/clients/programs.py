"""Runs a client's program in its environment, and tells what became of each of its checks."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.clients.house import House
from tests.system.server import REPOSITORY

ENVIRONMENTS = REPOSITORY / ".cache" / "clients"
OWN_ENVIRONMENTS = {"pipecat_python.py": "pipecat", "livekit_python.py": "livekit"}
"""Of the programs whose clients do not go beside the others; those share one for each language."""
NODE_MODULES = ENVIRONMENTS / "node" / "node_modules"
COMPILED = ENVIRONMENTS / "node" / "types"
"""Where programs in TypeScript are compiled: packages are found from there."""
CHECKS = Path(__file__).parent / "checks.mjs"
PROGRAM_LIMIT_S = 120.0

_CHECK = re.compile(r"^(?:export )?(?:async )?(?:def|function) (check_\w+)", re.MULTILINE)


def checks_of(program: str) -> list[str]:
    """Return the names of a program's checks, in order."""
    names = _CHECK.findall((Path(__file__).parent / program).read_text())
    assert names, f"{program} checks nothing"
    return names


def needs_environment(program: str) -> pytest.MarkDecorator:
    """
    Return the mark of tests that are skipped where the environment of *program* is not there.

    ``make clients`` names in ``CLIENTS_NEEDED`` those that it made: of them all tests are run, and of no other.
    """
    name, _, made = _environment(program)
    needed = os.environ.get("CLIENTS_NEEDED")
    missing = not made.exists() if needed is None else name not in needed.split()
    return pytest.mark.skipif(missing, reason="`make clients` makes the environment of this client")


def run_program(program: str, house: House) -> dict[str, str]:
    """Run all checks of *program*; return what went wrong with each, the empty text where nothing did."""
    _, command, _ = _environment(program)
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "NODE_MODULES": str(NODE_MODULES),
            "CHECKS": str(CHECKS),
            **house.environment,
        },
        capture_output=True,
        text=True,
        timeout=PROGRAM_LIMIT_S,
        check=False,
    )
    results: list[dict[str, Any]] = [
        msgspec.json.decode(line) for line in done.stdout.splitlines() if line.startswith('{"check"')
    ]
    assert done.returncode == 0, f"{program} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return {result["check"]: result["failure"] for result in results}


def run_tool(*command: str | Path) -> None:
    """Run a program of the packages of JavaScript; fails with what it wrote."""
    name, *arguments = command
    done = subprocess.run(
        [NODE_MODULES / ".bin" / name, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PROGRAM_LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, f"{name} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"


def _environment(program: str) -> tuple[str, Sequence[str], Path]:
    """Return the name of the environment of *program*, the command that runs it there, and what is there once it is made."""
    path = str(Path(__file__).parent / program)
    if program.endswith(".mts"):
        # Node 20 has the WebSocket of pages behind this option alone.
        compiled = str(COMPILED / program.replace(".mts", ".mjs"))
        return "node", ["node", "--experimental-websocket", compiled], NODE_MODULES / "openapi-typescript"
    if program.endswith(".mjs"):
        return "node", ["node", path], NODE_MODULES
    name = OWN_ENVIRONMENTS.get(program, "python")
    python = ENVIRONMENTS / name / "bin" / "python"
    return name, [str(python), path], python
