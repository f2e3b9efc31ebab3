"""The core's side of the codec: whose fault it is when a process dies."""

from __future__ import annotations

import pytest

from jarvis_core.codec.client import Codec
from jarvis_core.codec.messages import Decoded, Failed, encoder
from jarvis_core.errors import InvalidRequest, RequestError, TooLarge, Unavailable
from jarvis_core.processes.subprocess_pool import Message, SubprocessDied


class Dying:
    """Processes that die of their requests as the test says, and then answer."""

    def __init__(self, *deaths: SubprocessDied) -> None:
        self.deaths = list(deaths)

    async def call(self, header: bytes, payloads: object, *, timeout_s: float) -> Message:
        if self.deaths:
            raise self.deaths.pop(0)
        return [encoder.encode(Decoded(0, []))]


class Answering:
    """Processes that answer each request alike."""

    def __init__(self, answer: Failed) -> None:
        self._answer = answer

    async def call(self, header: bytes, payloads: object, *, timeout_s: float) -> Message:
        return [encoder.encode(self._answer)]


def crash() -> SubprocessDied:
    return SubprocessDied(crashed=True)


def kill() -> SubprocessDied:
    return SubprocessDied(crashed=False)


@pytest.mark.parametrize(
    ("deaths", "error"),
    [
        ([crash()], None),
        ([crash(), crash()], InvalidRequest),
        ([kill()], Unavailable),
        ([crash(), kill()], Unavailable),
    ],
)
async def test_death(deaths: list[SubprocessDied], error: type[Exception] | None) -> None:
    """A file of which two processes crash is not to be decoded; one death is chance, and a kill is nobody's fault."""
    codec = Codec(limit=1)
    codec._uploads = Dying(*deaths)  # type: ignore[assignment]
    asking = codec.decode_upload([b"x"], "audio/wav", limit_s=1, limit_bytes=1)
    if error is None:
        assert (await asking).duration_ms == 0
    else:
        with pytest.raises(error):
            await asking
    await codec._pool.close()


@pytest.mark.parametrize(
    ("code", "error", "message"),
    [
        ("unavailable", Unavailable, "No more."),
        ("too_large", TooLarge, "No more."),
        ("internal", RequestError, "Something went wrong here; the log has the details."),
    ],
)
async def test_failure(code: str, error: type[RequestError], message: str) -> None:
    """An error of the codec's process arrives as what it is there; of a defect nothing is told but that it was one."""
    codec = Codec(limit=1)
    codec._uploads = Answering(Failed(code, "No more.", {"limit_s": 1}))  # type: ignore[assignment]
    with pytest.raises(RequestError) as caught:
        await codec.decode_upload([b"x"], "audio/wav", limit_s=1, limit_bytes=1)
    assert (type(caught.value), caught.value.message) == (error, message)
    assert caught.value.details == (None if code == "internal" else {"limit_s": 1})
    await codec._pool.close()
