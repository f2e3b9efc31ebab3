"""Whether the speech engines are loaded before somebody speaks."""

from __future__ import annotations

from pathlib import Path

import pytest

from jarvis_core import stand_ins
from jarvis_core.processes.child import free_memory_bytes
from jarvis_core.settings import Local
from jarvis_core.stand_ins import SPEECH_BYTES, Weights, preloads

MODEL_BYTES = 400 << 20
NEEDED_BYTES = 2 * SPEECH_BYTES + MODEL_BYTES * 3 // 2


@pytest.mark.parametrize(
    ("preload", "free_bytes", "speaks", "expected"),
    [
        (True, NEEDED_BYTES, True, True),
        (True, NEEDED_BYTES - 1, True, False),
        (True, 1 << 40, False, False),
        (False, 1 << 40, True, False),
    ],
)
def test_preloads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, preload: bool, free_bytes: int, speaks: bool, expected: bool
) -> None:
    """They are where all models have room, unless it is said that they are not; without speech there is nothing to load."""
    model = tmp_path / "model.gguf"
    with model.open("wb") as file:
        file.truncate(MODEL_BYTES)
    monkeypatch.setattr(stand_ins, "free_memory_bytes", lambda: free_bytes)
    speech = tmp_path if speaks else None
    weights = Weights(model, speech, speech, turn_end=None, missing=[])
    assert preloads(Local(preload=preload), weights) is expected


def test_free_memory(tmp_path: Path) -> None:
    """Free is what the kernel could give without taking it from others; where it does not tell, what there is."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       24000000 kB\nMemFree:         1000 kB\nMemAvailable:    2000 kB\n")
    assert free_memory_bytes(meminfo) == 2_000 * 1_024
    assert free_memory_bytes(tmp_path / "nothing") > 2_000 * 1_024
