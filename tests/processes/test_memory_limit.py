"""How much memory this machine, or this container, has, and how many connections that bears."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jarvis_core.processes.child import machine_memory_bytes
from jarvis_core.server import CONNECTION_LIMIT, connection_limit

pytestmark = pytest.mark.every_python

GIB = 1 << 30


@pytest.mark.parametrize(
    ("texts", "least"), [((), None), (("max\n",), None), (("1073741824\n",), GIB), (("max\n", "536870912\n"), GIB // 2)]
)
def test_machine_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: tuple[str, ...], least: int | None
) -> None:
    """It is the machine's, or the control group's where that has less; a group that is not there, or says max, has no limit."""
    paths = [tmp_path / str(number) for number in range(2)]
    for path, text in zip(paths, texts, strict=False):
        path.write_text(text)
    monkeypatch.setattr("jarvis_core.processes.child.CGROUP_LIMITS", tuple(paths))
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine_memory_bytes() == (machine if least is None else min(machine, least))


@pytest.mark.parametrize(
    ("open_files", "memory_bytes", "limit"),
    [(1_024, 64 * GIB, 512), (1 << 17, GIB, 2_048), (1 << 17, 8 * GIB, 16_384), (1 << 20, 64 * GIB, CONNECTION_LIMIT)],
)
def test_connection_limit(open_files: int, memory_bytes: int, limit: int) -> None:
    """Connections take a quarter of the memory at most, and leave files for the rest."""
    assert connection_limit(open_files, memory_bytes) == limit
