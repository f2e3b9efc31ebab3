"""What is looked at before the local stand-ins are started."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from jarvis_core.errors import StartError
from jarvis_core.settings import Local, Settings
from jarvis_core.stand_ins import start_engines


def test_a_missing_engine_is_told_before_its_model_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the engine is not installed, as in the small image, no half gigabyte of weights is fetched for it."""
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    settings = Settings(local=Local(llm_model=str(tmp_path / "absent.gguf"), speech=False))
    with ExitStack() as stack, pytest.raises(StartError, match="PYTHON_BRIDGES_URL") as caught:
        start_engines(settings, tmp_path / "models", stack, [])
    assert "jarvis-core[local]" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
