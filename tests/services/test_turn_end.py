"""Whether a turn is over, asked of the bridges: an optional path, and what becomes of every way in which they answer."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from jarvis_core.errors import BadGateway, DeadlineExceeded, NotFound, RequestError
from jarvis_core.models import Caller
from jarvis_core.services import turn_end
from jarvis_core.services.tokens import TokenMint
from jarvis_core.services.transport import Transport
from jarvis_core.services.turn_end import PATH, BridgesTurnEnd
from jarvis_core.settings import Neighbours, Secret
from tests.fakes.content import encode_base64, noise
from tests.fakes.python_bridges import BridgesMode, FakeBridges

SECRET = "0123456789abcdef0123456789abcdef"
ANN = Caller("ann", "Ann")
AUDIO = encode_base64(noise(0.5, 16_000)).encode()


@pytest.fixture
async def bridges() -> AsyncIterator[FakeBridges]:
    """Run bridges that check tokens."""
    async with FakeBridges(SECRET) as server:
        yield server


@pytest.fixture
async def transport(bridges: FakeBridges) -> AsyncIterator[Transport]:
    """Give the way to them."""
    transport = Transport("turn_end", bridges.url, Neighbours())
    yield transport
    await transport.close()


@pytest.fixture
def model(transport: Transport) -> BridgesTurnEnd:
    """Give their model."""
    return BridgesTurnEnd(transport, TokenMint(Secret(SECRET)))


async def test_probability(bridges: FakeBridges, model: BridgesTurnEnd) -> None:
    """The sound goes as float32 at 16 kHz, with the user's token, and the probability comes back, 0 and 1 included."""
    bridges.mode = BridgesMode(turn_end="heard", end_probabilities=(0.25, 0.0, 1.0))
    assert [await model.end_probability(AUDIO, ANN) for _ in range(3)] == [0.25, 0.0, 1.0]
    request = bridges.requests[-1]
    assert (request.path, request.json) == (PATH, {"audio_data": AUDIO.decode(), "sample_rate": 16_000})


@pytest.mark.parametrize(
    ("trap", "error"),
    [
        ("absent", NotFound),
        ("not_made", NotFound),
        ("error_200", BadGateway),
        ("nan", BadGateway),
        ("out_of_range", BadGateway),
        ("text", BadGateway),
        ("broken", BadGateway),
    ],
)
async def test_traps(
    bridges: FakeBridges, model: BridgesTurnEnd, transport: Transport, trap: str, error: type[RequestError]
) -> None:
    """An absent path is told from a model that fails, and no nonsense is a probability."""
    bridges.mode = BridgesMode(turn_end=trap)  # type: ignore[arg-type]
    with pytest.raises(error):
        await model.end_probability(AUDIO, ANN)
    assert transport.breaker.closed


async def test_slow(
    bridges: FakeBridges, model: BridgesTurnEnd, transport: Transport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer that does not come is waited for no longer than its deadline."""
    monkeypatch.setattr(turn_end, "TIMEOUT_S", 0.05)
    bridges.mode = BridgesMode(turn_end="heard", end_delay_s=5.0)
    with pytest.raises(DeadlineExceeded):
        await model.end_probability(AUDIO, ANN)
