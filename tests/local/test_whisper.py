"""How much of Whisper's window is heard, with a model in the test's hands."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from jarvis_core.local.whisper import RATE_HZ, Encoder, find_language, listen

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
    """What repeats itself in a small window is heard once more in the whole one."""
    model = Model(enough)
    for _ in range(2):
        model.encode.whole = False  # as for each clip
        assert [part.text for part in listen(cast("Any", model), SPEECH, "fr")] == ["Oui, merci."]
    assert model.heard == windows * 2


class Polyglot:
    """Knows the language in the whole window only."""

    supported_languages = ("en", "fr", "it")

    def __init__(self, small: dict[str, float]) -> None:
        self.encode = Encoder(lambda window: window.shape[1])
        self.model = self
        self.small = small
        self.asked: list[int] = []
        self.feature_extractor: Any = FeatureExtractor()

    def detect_language(self, frames: int) -> list[list[tuple[str, float]]]:
        """Rank the languages."""
        self.asked.append(frames)
        found = self.small if frames < WINDOW else {"fr": 0.95, "en": 0.03, "it": 0.02}
        return [[(f"<|{code}|>", share) for code, share in found.items()]]


class FeatureExtractor:
    """Gives two seconds of features."""

    nb_max_frames = WINDOW

    def __call__(self, _speech: Any) -> Any:
        return features(200)[:, :201]


@pytest.mark.parametrize(
    ("small", "named", "windows", "found"),
    [
        ({"fr": 0.9, "en": 0.05, "it": 0.05}, "", [1_000], "fr"),
        ({"fr": 0.5, "en": 0.4, "it": 0.1}, "", [1_000, WINDOW], "fr"),
        ({"fr": 0.5, "en": 0.02, "it": 0.5}, "", [1_000], "fr"),
        ({"fr": 0.9, "en": 0.05, "it": 0.05}, "fr", [1_000], "fr"),
        ({"fr": 0.05, "en": 0.9, "it": 0.05}, "fr", [1_000, WINDOW], "fr"),
        ({"fr": 0.01, "en": 0.95, "it": 0.04}, "fr", [1_000], "en"),
    ],
)
def test_languages_in_doubt_are_heard_in_the_whole_window(
    small: dict[str, float], named: str, windows: list[int], found: str
) -> None:
    """A language that is clear among those of the house is believed in a small window, any other is looked at once more."""
    pytest.importorskip("faster_whisper")
    model = Polyglot(small)
    assert find_language(cast("Any", model), SPEECH, named, ["fr", "en"])[0] == found
    assert model.asked == windows
    assert model.encode.whole is (windows[-1] == WINDOW)
