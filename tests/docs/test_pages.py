"""What holds for every page that users read, without running it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.not_run import IN_PROSE, NOT_RUN
from tests.docs.pages import REPOSITORY, anchors_of, blocks_of, links_of, name_of, paths, prose_of

PAGES = [pytest.param(path, id=name_of(path)) for path in paths()]

RUN = {"sh", "python", "js", "toml"}
"""Languages of blocks that are run, or read by what they are for."""
SHOWN = {"json", "text"}
"""Languages of what is shown: the output of the block before."""
PICTURE = ""

COMMAND = re.compile(
    r"`((?:[A-Z_]+=\S+ )*(?:curl|docker(?:-compose)?|npx|npm|pip|\S*bin/\S+|apt|jarvis-core|python3?) [^`]+|make run [^`]+)`"
)
NAMES = {"docker stop", "jarvis-core check"}
"""Commands that are spoken of, not told."""
README_LINES = (150, 200)


@pytest.mark.parametrize("path", PAGES)
def test_every_block_is_run_or_says_why_not(path: Path) -> None:
    """A block is run, or is the output of one that is; any other has its reason before it, or is a picture."""
    before = None
    for block in blocks_of(path):
        known = block.language in RUN or (block.language in SHOWN and before is not None and before.language in RUN)
        assert block.not_run is not None or known or block.language == PICTURE, block.place
        before = block


def test_what_is_not_run_is_listed() -> None:
    """The list of blocks that no test runs is what the pages have, with the same reasons."""
    marked = {(b.page, b.first_line): b.not_run for path in paths() for b in blocks_of(path) if b.not_run is not None}
    assert marked == NOT_RUN


@pytest.mark.parametrize("path", PAGES)
def test_no_command_escapes(path: Path) -> None:
    """A command that is to be tried stands in a block, where it is run, or in the list of those that do not; a fence that is indented would be none."""
    for number, line in prose_of(path):
        for command in COMMAND.findall(line):
            assert command in IN_PROSE.keys() | NAMES, f"{name_of(path)}:{number}: {command}"
        assert not line.lstrip().startswith("```"), f"{name_of(path)}:{number}"


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path: Path) -> None:
    """A link to a file of the repository names one, and behind its # a heading of it."""
    for number, target in links_of(path):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            there = (path.parent / name).resolve() if name else path
            assert there.exists(), f"{name_of(path)}:{number}: {target}"
            assert not anchor or anchor in anchors_of(there), f"{name_of(path)}:{number}: {target}"


@pytest.mark.parametrize("path", PAGES[1:])
def test_a_page_begins_with_what_it_is_for(path: Path) -> None:
    """Under its title each page of docs/ says what it is for; the README leads to it."""
    title, empty, first, *_ = path.read_text(encoding="utf-8").splitlines()
    assert title.startswith("# ")
    assert not empty
    assert first.startswith("This page ")
    assert f"({name_of(path)})" in (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    """The README is as long as a newcomer reads."""
    least, most = README_LINES
    assert least <= len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= most


@pytest.mark.parametrize("path", PAGES)
def test_make_has_what_is_named(path: Path) -> None:
    """Every target of make that a page names is one of the Makefile's."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    named = set(re.findall(r"`(?:[A-Z_]+=\S+ )*make ([a-z-]+)", path.read_text(encoding="utf-8")))
    assert named <= targets
    if name_of(path) == "docs/develop.md":
        documented = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE)) - {"help"}
        assert documented <= named


def test_what_settings_make_is_current() -> None:
    """docs/settings.md and config/jarvis.toml are what ``make docs`` makes of settings.py."""
    check = [sys.executable, str(REPOSITORY / "docs" / "make_settings.py"), "--check"]
    outcome = subprocess.run(check, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
