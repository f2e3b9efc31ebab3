"""The cache: values in a worker's memory, and values and mail through a real Valkey that comes and goes."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from jarvis_core.errors import RequestError, SettingsError, Unavailable
from jarvis_core.local.valkey import PrivateValkey, find_program
from jarvis_core.models import Caller, SpokenAudio, Voice
from jarvis_core.settings import Secret
from jarvis_core.shared import cache as cache_module
from jarvis_core.shared.cache import LocalCache, SharedCache
from jarvis_core.shared.redis_address import parse
from jarvis_core.speech.cache import SpeechCache
from tests.system.server import free_port

ANN = Caller("ann")

pytestmark = [pytest.mark.every_python, pytest.mark.filterwarnings("ignore:.*MemoryObject.*")]
"""coredis (6.9) leaves streams of anyio to the collector when a connection breaks."""


@pytest.fixture(scope="module")
def valkey() -> Iterator[PrivateValkey]:
    """Run one server for all tests."""
    valkey = PrivateValkey()
    valkey.start()
    yield valkey
    valkey.stop()


class Box:
    """A worker's cache, and what came in."""

    def __init__(self, cache: SharedCache) -> None:
        self.cache = cache
        self.mail: list[tuple[str, bytes]] = []
        self.lost: list[str] = []
        cache.on_mail(lambda sender, message: self.mail.append((sender, message)), self.lost.append)

    async def got(self, count: int) -> list[tuple[str, bytes]]:
        """Wait for so many messages."""
        async with asyncio.timeout(5):
            while len(self.mail) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        return self.mail


@pytest.fixture
async def boxes(valkey: PrivateValkey) -> AsyncIterator[list[Box]]:
    """Give two workers' caches on the same server."""
    valkey.start()
    caches = [SharedCache(Secret(valkey.url), name) for name in ("a", "b")]
    for cache in caches:
        await cache.open()
    yield [Box(cache) for cache in caches]
    for cache in caches:
        await cache.close()
    gc.collect()


async def healthy(*caches: SharedCache) -> None:
    """Wait until all are."""
    async with asyncio.timeout(10):
        while any(cache.state != "healthy" for cache in caches):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_local_values() -> None:
    """A value is there until its time is over, another takes its place, and the least used give way to new ones."""
    cache = LocalCache(10)
    await cache.put("a", b"1234", 60)
    await cache.put("b", b"5678", 60)
    assert await cache.get("a") == b"1234"
    await cache.put("c", b"90", 60)
    await cache.put("d", b"9", 60)
    assert [await cache.get(key) for key in "abcd"] == [b"1234", None, b"90", b"9"]
    await cache.put("e", b"x" * 11, 60)
    assert await cache.get("e") is None
    await cache.put("a", b"anew", -1)
    assert await cache.get("a") is None
    assert [await cache.increment("n", 60) for _ in range(3)] == [1, 2, 3]
    assert cache.state == "disabled"


async def test_shared_values(boxes: list[Box]) -> None:
    """What one worker puts or counts another one gets, and too long a value is not kept."""
    a, b = (box.cache for box in boxes)
    await a.put("k", b"value", 60)
    assert await b.get("k") == b"value"
    assert await b.get("nothing") is None
    await a.put("long", bytes(cache_module.VALUE_LIMIT_BYTES + 1), 60)
    assert await b.get("long") is None
    assert [await one.increment("n", 60) for one in (a, b, a)] == [1, 2, 3]


async def test_mail(boxes: list[Box]) -> None:
    """Messages arrive whole and in their order, many and large ones too; one to nobody is told to its sender."""
    a, b = boxes
    messages = [b"%d" % number for number in range(500)] + [bytes(100_000), b"last"]
    assert all(a.cache.post("b", message) for message in messages)
    assert b.cache.post("a", b"back")
    assert await b.got(len(messages)) == [("a", message) for message in messages]
    assert await a.got(1) == [("b", b"back")]
    a.cache.post("nobody", b"x")
    async with asyncio.timeout(5):
        while a.lost != ["nobody"]:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_outbox_is_bounded(boxes: list[Box]) -> None:
    """More than there is room for is refused, and what was taken arrives."""
    a, b = boxes
    taken = sum(a.cache.post("b", bytes(100_000)) for _ in range(100))
    assert 0 < taken < 20
    assert len(await b.got(taken)) == taken


async def test_a_server_that_goes_and_comes(boxes: list[Box], valkey: PrivateValkey) -> None:
    """While it is away values are missed at once and mail is refused; when it is back all is as before, but empty."""
    a, b = boxes
    await a.cache.put("k", b"value", 60)
    assert valkey.process is not None
    valkey.process.kill()
    async with asyncio.timeout(5):
        while (a.cache.state, b.cache.state) != ("unavailable", "unavailable"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    async with asyncio.timeout(0.2):
        assert await a.cache.get("k") is None
        await a.cache.put("k", b"value", 60)
        assert not a.cache.post("b", b"lost")
        with pytest.raises(Unavailable):
            await a.cache.increment("n", 60)
    valkey.process.wait()
    valkey.start()
    await healthy(a.cache, b.cache)
    assert await a.cache.get("k") is None
    assert a.cache.post("b", b"again")
    assert await b.got(1) == [("a", b"again")]


async def test_a_start_without_the_server() -> None:
    """A Redis that is away at the start does not keep a worker from it."""
    cache = SharedCache(Secret("redis://127.0.0.1:1/0"), "a")
    async with asyncio.timeout(5):
        await cache.open()
    assert cache.state == "unavailable"
    await cache.close()


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Run a cluster of one server, and a server with a Sentinel; give the cluster's port and the Sentinel's."""
    cluster, server, sentinel = free_port(), free_port(), free_port()
    file = tmp_path / "sentinel.conf"
    file.write_text(f"port {sentinel}\nsentinel monitor main 127.0.0.1 {server} 1\n")
    arguments = [
        ("--port", f"{cluster}", "--cluster-enabled", "yes", "--save", ""),
        ("--port", f"{server}", "--save", ""),
        (str(file), "--sentinel"),
    ]
    running = [
        subprocess.Popen([find_program(), *one], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for one in arguments
    ]
    try:
        for port in (cluster, server, sentinel):
            assert said(port, "PING") == b"+PONG"
        assert said(cluster, "CLUSTER ADDSLOTSRANGE 0 16383") == b"+OK"
        yield cluster, sentinel
    finally:
        for process in running:
            process.kill()
            process.wait()


def said(port: int, command: str) -> bytes:
    """Return the answer to an inline command, of a server that is starting too."""
    deadline = time.monotonic() + 5
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                connection.sendall(f"{command}\r\n".encode())
                return connection.recv(1_024).strip()
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


async def test_clusters_and_sentinels(ports: tuple[int, int]) -> None:
    """Values and mail go through a cluster, and through the server that a Sentinel names."""
    cluster, sentinel = ports
    for url in (f"redis+cluster://127.0.0.1:{cluster}", f"redis+sentinel://127.0.0.1:{sentinel}/main"):
        a, b = (SharedCache(Secret(url), name) for name in ("a", "b"))
        box = Box(b)
        try:
            await a.open()
            await b.open()
            await healthy(a, b)
            await a.put("k", b"value", 60)
            assert await b.get("k") == b"value"
            assert [await one.increment("n", 60) for one in (a, b)] == [1, 2]
            assert a.post("b", b"hello")
            assert await box.got(1) == [("a", b"hello")]
        finally:
            await a.close()
            await b.close()
    gc.collect()


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "service", "database", "options"),
    [
        ("redis://h", "redis", [("h", 6379)], "", 0, {}),
        ("redis://:p%40ss@h:1/3", "redis", [("h", 1)], "", 3, {"password": "p@ss"}),
        ("redis://u:p@[::1]:1", "redis", [("::1", 1)], "", 0, {"username": "u", "password": "p"}),
        ("redis+sentinel://:p@a,b:7/main/2", "sentinel", [("a", 26379), ("b", 7)], "main", 2, {"password": "p"}),
        ("redis+cluster://a:1,b:2", "cluster", [("a", 1), ("b", 2)], "", 0, {}),
    ],
)
def test_addresses(
    url: str, kind: str, hosts: list[tuple[str, int]], service: str, database: int, options: dict[str, str]
) -> None:
    """Servers, Sentinels and clusters have addresses."""
    parts = parse(url)
    assert (parts.kind, parts.hosts, parts.service, parts.database) == (kind, hosts, service, database)
    assert parts.options == options


@pytest.mark.parametrize(
    "url",
    ["", "h:6379", "http://h", "redis://", "redis://h:x", "redis://h/x", "redis+sentinel://h", "redis+x://h", "unix:"],
)
def test_what_is_no_address(url: str) -> None:
    """What is no address of a Redis is told by the name of its setting, without the secret in it."""
    with pytest.raises(SettingsError, match=r"^REDIS_URL: ") as refused:
        parse(url.replace("//h", "//:hunter22@h"))
    assert "hunter22" not in str(refused.value)


class Speaker:
    """Says one number after another."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails = False

    async def synthesize(self, text: str, voice: str | None, speed: float, caller: Caller) -> SpokenAudio:
        """Speak."""
        self.asked += 1
        if self.fails:
            raise Unavailable("no voice")
        return SpokenAudio(b"%d" % self.asked, "base64", 22_050, f"{voice}")

    async def fetch_voices(self, caller: Caller) -> list[Voice]:
        """Name one."""
        self.asked += 1
        return [Voice("siwis", "Siwis", "fr", "female")]


async def test_speech_is_kept() -> None:
    """The same words in the same voice and speed are made once, by one worker; failures are not kept."""
    speaker = Speaker()
    kept = SpeechCache(speaker, "x", LocalCache(), limit_bytes=1_000)
    first = await kept.synthesize("Bonjour", None, 1.0, ANN)
    assert await kept.synthesize("Bonjour", None, 1.0, Caller("bob")) == first
    others = [("Bonjour", "siwis", 1.0), ("Bonjour", None, 1.1), ("bonjour", None, 1.0)]
    assert first not in [await kept.synthesize(*other, ANN) for other in others]
    assert (speaker.asked, kept.hits) == (4, 1)
    speaker.fails = True
    for _ in range(2):
        with pytest.raises(RequestError):
            await kept.synthesize("Salut", None, 1.0, ANN)
    speaker.fails = False
    assert (await kept.synthesize("Salut", None, 1.0, ANN)).audio == b"7"
    none = SpeechCache(speaker, "x", LocalCache(), limit_bytes=0)
    assert await none.synthesize("Bonjour", None, 1.0, ANN) != await none.synthesize("Bonjour", None, 1.0, ANN)


async def test_speech_and_voices_are_shared(boxes: list[Box]) -> None:
    """What one worker's neighbour said another worker has from Redis, unless its neighbour is another one."""
    speaker = Speaker()
    a, b, other = (
        SpeechCache(speaker, address, box.cache, limit_bytes=1_000)
        for address, box in (("x", boxes[0]), ("x", boxes[1]), ("y", boxes[1]))
    )
    assert await a.synthesize("Bonjour", None, 1.0, ANN) == await b.synthesize("Bonjour", None, 1.0, ANN)
    assert await a.fetch_voices(ANN) == await b.fetch_voices(ANN)
    assert speaker.asked == 2
    await other.synthesize("Bonjour", None, 1.0, ANN)
    await other.fetch_voices(ANN)
    assert speaker.asked == 4
