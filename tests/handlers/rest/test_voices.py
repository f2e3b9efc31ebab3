"""``GET /api/voice/voices`` and ``/languages``: from the bridges, remembered, and kept for when they are away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.fakes.faults import Fault
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.rest.api import Api
from tests.handlers.rest.conftest import SECRET, make_token, serving
from tests.system.server import Server

VOICES = "/api/voice/voices"
LANGUAGES = "/api/voice/languages"
LIST = "/api/tts/voices"
FRENCH = [
    {"id": "fr_FR-siwis-medium", "name": "Siwis (femme)", "language": "fr", "gender": "female"},
    {"id": "fr_FR-upmc-medium", "name": "UPMC (mixte)", "language": "fr", "gender": "unknown"},
    {"id": "fr_FR-tom-medium", "name": "Tom (homme)", "language": "fr", "gender": "male"},
]


async def test_shape(api: Api) -> None:
    """Voices are told with their language and gender, languages with their own names for themselves."""
    assert (await api.get(VOICES)).json == FRENCH
    assert (await api.get(LANGUAGES)).json == [{"code": "fr", "name": "Français"}]


async def test_credentials(strict: Api, strict_server: tuple[Server, int]) -> None:
    """The lists need credentials like everything else."""
    async with Api(strict_server[0].url) as nobody:
        for path in (VOICES, LANGUAGES):
            assert (await nobody.get(path)).error == (401, "unauthenticated")
            assert (await strict.get(path)).status == 200


@pytest.fixture
def new_server(postgres_conninfo: str, request: pytest.FixtureRequest) -> Iterator[tuple[Server, int]]:
    """Run a server that has not heard of any voice yet."""
    name = "voices_" + "".join(filter(str.isalnum, request.node.name.lower()))[:40]
    with serving(postgres_conninfo, name, JWT_SECRET=SECRET) as running:
        yield running


@pytest.fixture
async def new_bridges(new_server: tuple[Server, int]) -> AsyncIterator[FakeBridges]:
    """Run its bridges, which do not answer faster than the question can be asked again."""
    mode = BridgesMode(faults={LIST: Fault(delay_s=0.2)})
    async with FakeBridges(SECRET, mode=mode, port=new_server[1]) as bridges:
        yield bridges


@pytest.fixture
async def caller(new_server: tuple[Server, int], new_bridges: FakeBridges) -> AsyncIterator[Api]:
    """Ask it as the user zoé."""
    async with Api(new_server[0].url, token=make_token("zoé")) as api:
        yield api


async def test_remembered(caller: Api, new_bridges: FakeBridges) -> None:
    """Many questions at once and later are one question at the bridges, whose lists stay when they are gone."""
    asking = [caller.get(VOICES) for _ in range(5)] + [caller.get(LANGUAGES) for _ in range(5)]
    speaking = caller.post("/api/voice/synthesize", {"text": "Bonjour."})
    *lists, spoken = await asyncio.gather(*asking, speaking)
    assert all(answer.json == FRENCH for answer in lists[:5])
    assert all(answer.json == [{"code": "fr", "name": "Français"}] for answer in lists[5:])
    assert spoken.json["voice"] == FRENCH[0]["id"]
    assert new_bridges.requests_seen[LIST] == 1
    await new_bridges.go_away()
    assert (await caller.get(VOICES)).json == FRENCH
    assert (await caller.get(LANGUAGES)).status == 200
    assert new_bridges.requests_seen[LIST] == 1


@pytest.mark.parametrize(
    ("mode", "error"),
    [
        (None, (503, "unavailable")),
        (BridgesMode(faults={LIST: Fault(status=500)}), (502, "bad_gateway")),
        (BridgesMode(faults={LIST: Fault(status=429)}), (429, "rate_limited")),
    ],
    ids=["away", "500", "429"],
)
async def test_never_known(
    caller: Api, new_bridges: FakeBridges, mode: BridgesMode | None, error: tuple[int, str]
) -> None:
    """While the bridges have never told their voices it is their error, and what can be spoken without them is."""
    if mode is None:
        await new_bridges.go_away()
    else:
        new_bridges.mode = mode
    for path in (VOICES, LANGUAGES, VOICES):
        assert (await caller.get(path)).error == error
    assert new_bridges.requests_seen[LIST] <= 1, "they answer this 50 times an hour"
    if mode is None:
        await new_bridges.come_back()
    answer = await caller.post("/api/voice/synthesize", {"text": "Bonjour.", "voice": "nobody"})
    assert (answer.status, answer.json["voice"]) == (200, FRENCH[0]["id"])
