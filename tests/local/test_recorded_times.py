"""When something was said: times of the speech in a recording become times of the recording."""

from __future__ import annotations

import pytest

from jarvis_core.local.whisper import recorded_times

CHUNKS = [
    {"start": 16_000, "end": 80_000},
    {"start": 160_000, "end": 208_000},
    {"start": 320_000, "end": 352_000},
]
"""Speech from 1 to 5 s, from 10 to 13, and from 20 to 22: in a row from 0 to 4, 7 and 9."""


@pytest.mark.parametrize(
    ("start_s", "end_s", "recorded"),
    [
        (0.0, 4.0, (1.0, 5.0)),
        (0.5, 3.5, (1.5, 4.5)),
        (4.0, 7.0, (10.0, 13.0)),
        (3.8, 7.1, (10.0, 13.0)),
        (4.3, 6.8, (10.3, 12.8)),
        (6.9, 9.0, (20.0, 22.0)),
        (0.0, 7.0, (1.0, 13.0)),
        (2.0, 8.5, (3.0, 21.5)),
        (3.9, 4.2, (10.0, 10.2)),
        (3.7, 4.2, (4.7, 5.0)),
        (5.0, 5.0, (11.0, 11.0)),
        (8.0, 12.0, (21.0, 22.0)),
        (9.5, 12.0, (22.0, 22.0)),
        (0.0, 30.0, (1.0, 22.0)),
    ],
)
def test_recorded_times(start_s: float, end_s: float, recorded: tuple[float, float]) -> None:
    """A time that is a little off does not put a silence of seconds before or behind what was said."""
    assert recorded_times(start_s, end_s, CHUNKS) == pytest.approx(recorded)


def test_speech_without_a_pause() -> None:
    """Where all is speech the times are what they were, to the end of it."""
    whole = [{"start": 0, "end": 32_000}]
    assert recorded_times(0.2, 1.7, whole) == pytest.approx((0.2, 1.7))
    assert recorded_times(0.0, 29.0, whole) == pytest.approx((0.0, 2.0))
