"""How much of Whisper's window is heard, with a model in the test's hands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from jarvis_core.local.whisper import RATE_HZ, Encoder, listen

np = pytest.importorskip("numpy")

WINDOW = 3_000
SPEECH = np.zeros(2 * RATE_HZ, np.float32)


def features(frames: int) -> Any:
    """Return a window with so many frames of sound."""
    window = np.zeros((80, WINDOW), np.float32)
    window[:, :frames] = -0.5
    return window


@pytest.mark.parametrize(("sound", "encoded"), [(0, 1_000), (200, 1_000), (900, 1_000), (901, 1_500), (2_950, 3_000)])
def test_windows_fit_the_clip(sound: int, encoded: int) -> None:
    """A short clip is heard with a second of silence or more behind it, a long one in the whole window; each once."""
    asked = []
    encoder = Encoder(lambda window: asked.append(window.shape[1]))
    for _ in range(2):
        encoder(features(sound))
    assert asked == [encoded]


class Model:
    """Says the same for ever in a window of fewer than *enough* frames."""

    def __init__(self, enough: int) -> None:
        self.encode = Encoder(lambda window: window.shape[1])
        self.enough = enough
        self.heard: list[int] = []

    def transcribe(self, _speech: Any, **_: Any) -> tuple[list[Any], None]:
        """Return one segment."""
        self.heard.append(self.encode(features(200)))
        loops = self.heard[-1] < self.enough
        text = "merci " * 30 if loops else "Oui, merci."
        return [SimpleNamespace(seek=0, start=0.0, text=text, compression_ratio=9.0 if loops else 0.9)], None


@pytest.mark.parametrize(("enough", "windows"), [(0, [1_000]), (WINDOW, [1_000, WINDOW])])
def test_loops_are_heard_in_the_whole_window(enough: int, windows: list[int]) -> None:
    """What repeats itself in a small window is heard once more in the whole one, and the next clip in a small one again."""
    model = Model(enough)
    for _ in range(2):
        assert [part.text for part in listen(cast("Any", model), SPEECH, "fr")] == ["Oui, merci."]
    assert model.heard == windows * 2
