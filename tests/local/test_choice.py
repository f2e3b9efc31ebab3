"""Which language model ``auto`` is: by the machine, and by what is at hand."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest

from jarvis_core.local import fetch_later
from jarvis_core.local.catalogue import CATALOGUE, NOWHERE
from jarvis_core.local.checksums import mark
from jarvis_core.local.choice import CORES, FREE_BYTES, LARGE, SMALL, choose
from jarvis_core.local.weights import resolve


def put(models: Path, model: str) -> None:
    """Put a file in the place of the weights of *model*, and a note that it was found whole."""
    weights = CATALOGUE[model]
    weights.path(models).write_bytes(b"GGUF")
    mark(models, weights.files[0])


def test_a_first_start_does_not_wait_for_the_larger_one(tmp_path: Path) -> None:
    """Where nothing is at hand the smaller one begins, and the larger one is fetched for the next start."""
    choice = choose(tmp_path, cores=CORES, free_bytes=FREE_BYTES)
    assert (choice.model, choice.fetch_later) == (SMALL, LARGE)
    assert "1.1 GB, 1.9 GB of memory" in choice.remark


def test_the_larger_one_where_it_is_at_hand(tmp_path: Path) -> None:
    """A machine that carries it has the larger one, once it was fetched; what it costs is said."""
    put(tmp_path, LARGE)
    choice = choose(tmp_path, cores=CORES, free_bytes=FREE_BYTES)
    assert (choice.model, choice.fetch_later) == (LARGE, "")
    assert "1.9 GB of memory" in choice.remark
    assert f"LOCAL_LLM_MODEL={SMALL}" in choice.remark


@pytest.mark.parametrize(("cores", "free_bytes"), [(CORES - 0.5, 64 << 30), (64.0, FREE_BYTES - 1)])
def test_a_machine_that_does_not_carry_it(tmp_path: Path, cores: float, free_bytes: int) -> None:
    """With one core, or little memory, it is the smaller one, also where the larger is at hand."""
    put(tmp_path, LARGE)
    choice = choose(tmp_path, cores=cores, free_bytes=free_bytes)
    assert (choice.model, choice.fetch_later) == (SMALL, "")
    assert f"LOCAL_LLM_MODEL={LARGE}" in choice.remark


def test_a_file_that_was_not_checked_is_not_at_hand(tmp_path: Path) -> None:
    """Half a download is none: only a file whose hash was compared counts."""
    CATALOGUE[LARGE].path(tmp_path).write_bytes(b"GGUF")
    assert choose(tmp_path, cores=CORES, free_bytes=FREE_BYTES).model == SMALL


def test_what_cannot_be_fetched_for_the_next_start_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A machine without a network goes on with the model that it has; a line says why there will be no other."""
    monkeypatch.setattr("os.nice", lambda _: 0)
    monkeypatch.setattr(fetch_later, "WAIT_S", 0.0)
    monkeypatch.setattr(sys, "argv", ["fetch_later", LARGE, str(tmp_path)])
    monkeypatch.setattr(fetch_later, "resolve", partial(resolve, sources=NOWHERE))
    assert fetch_later.main() == 1
    assert f"{LARGE} is not at hand for the next start: " in capfd.readouterr().err
    put(tmp_path, LARGE)
    assert fetch_later.main() == 0
