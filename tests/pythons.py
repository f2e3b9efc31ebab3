"""
Run the tests marked ``every_python`` on every other CPython of this machine that the core may run on.

``python -m tests.pythons``: exit code 0 when they pass on each, or when there is no other. What asyncio does with
cancellations, deadlines and signals differs from one Python to another, a patch's too; the rest of the suite, on one, tells
of the core. Each Python has an environment of its own in ``.cache/pythons``, made anew when the lock file changes, with all
that tests import but the models.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "config" / "test.lock"
ENVIRONMENTS = ROOT / ".cache" / "pythons"
MARK = "every_python"
SYSTEM = Path("/usr/bin/python3")
COMMAND = re.compile(r"python3\.\d+")
OLDEST = (3, 11)
ANSWER_LIMIT_S = 20
WORKERS = "4"
"""These tests wait for longer than others, so two cores do for four processes of them."""
QUESTION = (
    "import json, sys, sysconfig, venv;"
    "free_threaded = bool(sysconfig.get_config_var('Py_GIL_DISABLED'));"
    "fit = sys.implementation.name == 'cpython' and sys.version_info.releaselevel == 'final' and not free_threaded;"
    "print(json.dumps([fit, sys.executable, *sys.version_info[:3]]))"
)
PIP = (sys.executable, "-m", "pip", "--quiet", "--quiet", "--disable-pip-version-check", "--no-input", "--python")


class Interpreter(NamedTuple):
    """A Python of this machine."""

    version: tuple[int, int, int]
    path: Path

    @property
    def name(self) -> str:
        """Its version in words."""
        return ".".join(map(str, self.version))

    @property
    def environment(self) -> Path:
        """The directory of its packages."""
        return ENVIRONMENTS / self.name


def main() -> int:
    """Find the Pythons, make their environments and run the tests; return the exit code."""
    others = find_others(candidates())
    if not others:
        say("there is no other CPython from 3.11 on here")
        return 0
    # One after another: while the tests run on one Python, the next one's packages arrive.
    with ThreadPoolExecutor(1) as thread:
        installing = [thread.submit(install, other) for other in others]
        ready = zip(others, installing, strict=True)
        failed = [other.name for other, installed in ready if not (installed.result() and run(other))]
    if failed:
        say(f"failed on {', '.join(failed)}")
    return 1 if failed else 0


def candidates() -> Iterator[Path]:
    """Give what may be Pythons: the system's, those on PATH that have a version in their names, and pyenv's."""
    yield SYSTEM
    for directory in os.get_exec_path():
        found = Path(directory).glob("python3.*")
        yield from sorted(path for path in found if COMMAND.fullmatch(path.name))
    root = answer_of("pyenv", "root")
    if root is not None:
        versions = Path(root.strip()) / "versions"
        yield from (
            versions / name / "bin" / "python3" for name in (answer_of("pyenv", "versions", "--bare") or "").split()
        )


def find_others(paths: Iterator[Path]) -> list[Interpreter]:
    """Return one Python for each version but this one's that the core may run on, the oldest first."""
    found: dict[tuple[int, int, int], Path] = {}
    asked: set[Path] = set()
    for path in paths:
        if not path.exists() or (real := path.resolve()) in asked:
            continue
        asked.add(real)
        answer = answer_of(str(path), "-I", "-c", QUESTION)  # a shim without a version behind it fails
        if answer is None:
            continue
        fit, executable, *numbers = json.loads(answer)
        version = (numbers[0], numbers[1], numbers[2])
        if fit and version >= OLDEST and version != sys.version_info[:3]:
            found.setdefault(version, Path(executable))
    return [Interpreter(version, found[version]) for version in sorted(found)]


def install(one: Interpreter) -> bool:
    """Make an environment for *one*, unless it is as it should be; return whether it is now."""
    inputs = LOCK.read_bytes() + (ROOT / "pyproject.toml").read_bytes()
    stamp = f"{one.path} {hashlib.sha256(inputs).hexdigest()}"
    mark = one.environment / ".installed"
    if mark.exists() and mark.read_text() == stamp:
        return True
    python = str(one.environment / "bin" / "python")
    for command in (
        # Debian's Python may have no pip to put into an environment: this one's does it.
        (str(one.path), "-m", "venv", "--clear", "--without-pip", str(one.environment)),
        (*PIP, python, "install", "--require-hashes", "--no-deps", "-r", str(LOCK)),
        (*PIP, python, "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)),
        (python, "-m", "compileall", "-q", str(ROOT / "jarvis_core")),
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            say(f"{one.name} ({one.path}) has no environment:\n{done.stdout}{done.stderr}")
            return False
    mark.write_text(stamp)
    return True


def run(one: Interpreter) -> bool:
    """Run the tests on *one*; return whether they passed."""
    say(f"{one.name} ({one.path})")
    started = time.monotonic()
    arguments = ("-n", WORKERS, "--dist", "loadfile", "--reruns", "1", "-rR", "-m", MARK)
    # To collect all the others takes longer than many of these.
    modules = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if MARK in path.read_text()]
    done = subprocess.run(
        (str(one.environment / "bin" / "python"), "-m", "pytest", *arguments, *modules),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    say(f"{one.name}: {time.monotonic() - started:.0f} s")
    return not done.returncode


def answer_of(*command: str) -> str | None:
    """Return what *command* prints; None where there is none, or it fails or does not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_LIMIT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else done.stdout


def say(line: str) -> None:
    """Tell what is done."""
    sys.stdout.write(f"pythons: {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
