"""Reads README.md and docs/*.md: their fenced blocks, the marks before those that no test runs, their links."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).parents[2]

FENCE = re.compile(r"^```(\w*)\s*$")
NOT_RUN = re.compile(r"^<!-- not run: (.+) -->$")
HEADING = re.compile(r"^(#+) (.+)$")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


class Block(NamedTuple):
    """One fenced block."""

    page: str
    """The page's path in the repository."""
    line: int
    """Where its text begins, counted from 1."""
    language: str
    text: str
    not_run: str | None
    """Why no test runs it, as the comment before it says; None where there is no such comment."""

    @property
    def place(self) -> str:
        """Where to look for it."""
        return f"{self.page}:{self.line}"

    @property
    def first_line(self) -> str:
        """What it is known by in ``not_run.py``."""
        return self.text.partition("\n")[0]


def paths() -> list[Path]:
    """Return the pages that users read."""
    return [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]


def name_of(path: Path) -> str:
    """Return *path* as it stands in the repository."""
    return path.relative_to(REPOSITORY).as_posix()


def blocks_of(path: Path) -> list[Block]:
    """Return the fenced blocks of a page; raises ``AssertionError`` for a fence that is not closed."""
    blocks = []
    language: str | None = None
    collected: list[str] = []
    not_run: str | None = None
    start = 0
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        fence = FENCE.match(line)
        if language is not None:
            if fence:
                blocks.append(Block(name_of(path), start, language, "\n".join(collected) + "\n", not_run))
                language = not_run = None
            else:
                collected.append(line)
        elif fence:
            language, collected, start = fence[1], [], number + 1
        elif mark := NOT_RUN.match(line):
            not_run = mark[1]
        elif line.strip():
            assert not_run is None, f"{name_of(path)}:{number}: a mark stands before something that is no block"
    assert language is None, f"{name_of(path)}:{start}: the block has no end"
    return blocks


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """Give the lines outside the fenced blocks, with their numbers."""
    inside = False
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            yield number, line


def anchors_of(path: Path) -> set[str]:
    """Return what a link may have behind its #: the headings, as GitHub makes anchors of them."""
    headings = (HEADING.match(line) for _, line in prose_of(path))
    return {re.sub(r"[^\w\- ]", "", found[2].lower()).replace(" ", "-") for found in headings if found}


def links_of(path: Path) -> Iterator[tuple[int, str]]:
    """Give the targets of all links, with their lines."""
    for number, line in prose_of(path):
        for target in LINK.findall(line):
            yield number, target
