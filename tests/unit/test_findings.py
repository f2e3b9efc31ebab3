"""The scripts in findings/: what each has to have. They are never run here: they install packages."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FINDINGS = sorted((ROOT / "findings").iterdir())

FIELDS = ("Guess", "Seen", "Versions", "Why")
HEAD = re.compile(
    r"#!/usr/bin/env bash\n" + "".join(rf"# {field}: \S.*\n(?:#   \S.*\n)*" for field in FIELDS) + "set -euo pipefail\n"
)
INSTALLED = re.compile(r"\b(?:install|download) ((?:.*\\\n)*.*)\n")
OPTION = re.compile(r"--dest \S+|--\S+")
PIECE = re.compile(r"<<'EOF'\n(.*?)^EOF$", re.DOTALL | re.MULTILINE)


def test_there_are_findings() -> None:
    """The folder has findings, one script each, and nothing else."""
    assert len(FINDINGS) >= 8
    assert {path.suffix for path in FINDINGS} == {".sh"}


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_form(path: Path) -> None:
    """A finding says what one would guess, what is so, with which versions and why it matters; it leaves nothing behind."""
    text = path.read_text()
    assert path.stat().st_mode & 0o111 == 0o111, "it can be executed"
    assert HEAD.match(text), f"it begins with {FIELDS}, in this order, and stops at the first error"
    assert "directory=$(mktemp -d)\ntrap 'rm -rf \"$directory\"' EXIT\n" in text
    assert "not as it was seen before" in text, "it fails when what was seen changes"
    assert max(len(line) for line in text.splitlines()) <= 125
    subprocess.run(["bash", "-n", str(path)], check=True)
    pieces = PIECE.findall(text)
    assert pieces
    for piece in pieces:
        ast.parse(piece)


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_stands_alone(path: Path) -> None:
    """A finding installs public packages of one version, from where pip is set to, and knows nothing of the product."""
    text = path.read_text()
    packages = [word for found in INSTALLED.findall(text) for word in OPTION.sub("", found.replace("\\\n", "")).split()]
    assert packages
    for package in packages:
        assert re.fullmatch(r"'?[a-z0-9-]+(\[[a-z]+\])?==[0-9][0-9a-z.]*'?", package), package
    versions = text.partition("# Versions: ")[2].partition("# Why: ")[0]
    assert re.search(r"\d+\.\d+", versions)
    assert "jarvis" not in text.lower()
    assert not re.search(r"https://|index-url|/home/|/root/|/srv/|/tmp/", text)


def test_ci_runs_none_of_them() -> None:
    """What CI and make run does not depend on what a package index has today."""
    for path in (ROOT / ".ci" / "run", ROOT / "Makefile"):
        assert "findings" not in path.read_text()
