"""Every neighbour hangs and as many turns run as may: what machines ask is answered as if nothing were."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import Counter
from collections.abc import Coroutine
from contextlib import AsyncExitStack

import aiohttp
import pytest

from tests.codec.sounds import tone
from tests.fakes.audio_engine import AudioEngineMode, FakeAudioEngine
from tests.fakes.faults import Fault
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.shown import eventually, gauge
from tests.system.conftest import MakeServer
from tests.system.server import Server

pytestmark = pytest.mark.every_python

TURNS = 200
"""As many as may run."""
SAMPLES = 150
"""Of each path."""
MEDIAN_LIMIT_S = 0.05
"""Of an answer; the longest may be a machine's that does other work, and is printed."""
PATHS = ("/health", "/ready", "/metrics")


async def test_health_while_everything_hangs(make_server: MakeServer, bridges: FakeBridges, database: str) -> None:
    """
    While every neighbour hangs and the limit of turns is reached, health, readiness and metrics take under 50 ms.

    More turns are refused at once, and cancelling one is answered.
    """
    async with FakeAudioEngine(mode=AudioEngineMode(faults={"/process": Fault("hang")})) as engine:
        server = make_server(
            DATABASE_URL=database,
            TURN_LIMIT=str(TURNS),
            AUDIO_ENGINE_URL=engine.url,
            AUDIO_ENGINE_TIMEOUT_S="60",
            TRUSTED_PROXIES="127.0.0.1",
        )
        await asyncio.to_thread(server.start)
        bridges.mode = BridgesMode(faults={"/": Fault("hang")})
        async with AsyncExitStack() as stack:
            connector = aiohttp.TCPConnector(limit=0)
            timeout = aiohttp.ClientTimeout(total=60)
            client = await stack.enter_async_context(
                aiohttp.ClientSession(server.url, connector=connector, timeout=timeout)
            )
            asking: list[Coroutine[None, None, object]] = [
                # Each from an address of its own: one user alone may not have them all.
                ask(client, {"content": f"turn {number}"}, address=f"192.0.2.{number}")
                for number in range(TURNS)
            ]
            waiting = [asyncio.create_task(one) for one in [*asking, *others(client)]]
            try:
                await eventually(lambda: runs(client, TURNS))
                refusals: Counter[tuple[int, str]] = Counter()
                flood = asyncio.create_task(keep_asking(client, refusals))
                times_s = await sample(server)
                flood.cancel()
                await asyncio.wait([flood])
                for path, taken_s in times_s.items():
                    taken_s.sort()
                    print(  # noqa: T201 - shown by make faults
                        f"  {path:<9} median {statistics.median(taken_s) * 1e3:.1f} ms,"
                        f" 99 % {taken_s[int(0.99 * len(taken_s))] * 1e3:.1f} ms, longest {taken_s[-1] * 1e3:.1f} ms"
                    )
                    assert statistics.median(taken_s) < MEDIAN_LIMIT_S
                assert set(refusals) == {(503, "overloaded")}
                print(f"  {refusals.total()} more turns refused meanwhile")  # noqa: T201
                async with client.get("/api/chat/conversations?limit=1") as response:
                    newest = (await response.json())["conversations"][0]
                async with client.delete(f"/api/chat/conversation/{newest['id']}") as response:
                    assert response.status == 200, "deleting cancels the turn that runs there"
                assert await runs(client, TURNS - 1)
            finally:
                for task in waiting:
                    task.cancel()
                await asyncio.wait(waiting)
            await eventually(lambda: runs(client, 0))
        assert await asyncio.to_thread(server.stop) == 0


async def ask(client: aiohttp.ClientSession, body: dict[str, str], *, address: str = "198.51.100.1") -> tuple[int, str]:
    """Chat from *address*, and return the status and the code of an error."""
    async with client.post("/api/chat", json=body, headers={"X-Forwarded-For": address}) as response:
        answer = await response.json()
    return response.status, answer.get("code", "")


def others(client: aiohttp.ClientSession) -> list[Coroutine[None, None, object]]:
    """Return what else hangs: each kind of call to a neighbour."""
    audio = {"data": tone(1.0).tobytes(), "headers": {"Content-Type": "application/octet-stream"}}

    async def post(path: str, **body: object) -> None:
        async with client.post(path, **body) as response:  # type: ignore[arg-type]
            await response.read()

    return [
        *(post("/api/voice/transcribe", **audio) for _ in range(4)),
        *(post("/api/voice/synthesize", json={"text": "Bonjour."}) for _ in range(4)),
        *(post("/api/memory/add", json={"content": f"fact {number}"}) for number in range(4)),
    ]


async def keep_asking(client: aiohttp.ClientSession, refusals: Counter[tuple[int, str]]) -> None:
    """Ask for more turns than may run, again and again."""
    while True:
        refusals.update(await asyncio.gather(*(ask(client, {"content": "one more"}) for _ in range(5))))
        await asyncio.sleep(0.01)


async def sample(server: Server) -> dict[str, list[float]]:
    """Return how long each of the paths took, each time."""
    times_s: dict[str, list[float]] = {path: [] for path in PATHS}
    async with aiohttp.ClientSession(server.url) as client:
        for _ in range(SAMPLES):
            for path, taken_s in times_s.items():
                started = time.perf_counter()
                async with client.get(path) as response:
                    await response.read()
                    assert response.status == 200, path
                taken_s.append(time.perf_counter() - started)
    return times_s


async def runs(client: aiohttp.ClientSession, turns: int) -> bool:
    """Whether so many turns run."""
    return await gauge(client, "turns_running") == turns
