"""Whom the stand-in for the bridges answers: who has a token that its secret has signed."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import jwt
import pytest

from jarvis_core.local.launcher import LocalBridges
from jarvis_core.models import Caller
from jarvis_core.services.tokens import TokenMint
from jarvis_core.settings import Secret
from tests.system.server import REPOSITORY, free_port

SECRET = "0123456789abcdef0123456789abcdef-of-the-stand-in"
ASKED = [
    ("GET", "/api/llm/models"),
    ("POST", "/api/llm/generate"),
    ("POST", "/api/stt/transcribe"),
    ("POST", "/api/tts/synthesize"),
    ("GET", "/api/tts/voices"),
    ("POST", "/api/embeddings/embed"),
    ("POST", "/api/embeddings/embed-batch"),
    ("GET", "/healthy"),
    ("GET", "/no/such/path"),
]
OPEN = [("GET", "/health"), ("GET", "/ready"), ("GET", "/audio/health"), ("GET", "/audio/stats")]


def token(secret: str = SECRET, **claims: object) -> str:
    """Sign a token, good for a minute unless *claims* say otherwise; a claim of None is left out."""
    good = {"sub": "zoé", "exp": int(time.time()) + 60, **claims}
    return jwt.encode({name: value for name, value in good.items() if value is not None}, secret)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run a stand-in without engines."""
    log_path = tmp_path_factory.mktemp("tokens") / "log"
    bridges = LocalBridges(audio_engine=True, secret=SECRET, log_path=log_path)
    yield bridges.start()
    command = Path(f"/proc/{bridges.process.pid}/cmdline").read_bytes() if bridges.process else b""
    assert command
    assert SECRET.encode() not in command
    bridges.stop()


async def status(url: str, method: str, path: str, authorization: str | None = None) -> int:
    """Ask; return the status."""
    headers = {} if authorization is None else {"Authorization": authorization}
    async with aiohttp.request(method, url + path, headers=headers) as response:
        if response.status == 401:
            assert "token" in (await response.json())["error"]
        return response.status


async def test_the_core_s_token_is_taken(url: str) -> None:
    """With a token as the core signs it every route answers as it would without a secret."""
    good = f"Bearer {TokenMint(Secret(SECRET)).token(Caller('zoé'))}"
    for method, path in ASKED:
        assert await status(url, method, path, good) in (200, 404, 501), path


@pytest.mark.parametrize(
    "authorization",
    [
        None,
        "",
        "Bearer",
        "Bearer nonsense",
        f"Bearer {token(secret='another-secret-of-more-than-32-bytes')}",
        f"Bearer {token(exp=int(time.time()) - 3_600)}",
        f"Bearer {token(exp=None)}",
        f"Bearer {token(aud='somebody')}",
        f"Basic {token()}",
        f"Bearer {jwt.encode({'sub': 'zoé', 'exp': 32_503_680_000}, None, algorithm='none')}",
    ],
    ids=[
        "none",
        "empty",
        "no token",
        "nonsense",
        "another's",
        "expired",
        "endless",
        "for others",
        "scheme",
        "unsigned",
    ],
)
async def test_others_are_refused(url: str, authorization: str | None) -> None:
    """Who has no such token gets 401 on every route, also where there is none."""
    for method, path in ASKED:
        assert await status(url, method, path, authorization) == 401, path


async def test_what_is_open(url: str) -> None:
    """Probes, and the audio engine, for which the core has no token, are answered without."""
    for method, path in OPEN:
        assert await status(url, method, path) == 200, path


@pytest.fixture
def service() -> Iterator[str]:
    """Run a stand-in that nobody has started but its user, with JWT_SECRET."""
    port = free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "jarvis_core.local.bridges", "--port", str(port)],
        env={**os.environ, "JWT_SECRET": SECRET},
        cwd=REPOSITORY,
    ) as process:
        yield f"http://127.0.0.1:{port}"
        process.kill()


async def test_a_service_of_its_own(service: str) -> None:
    """Started by itself it takes the secret from JWT_SECRET, as in a container beside the cores."""
    async with asyncio.timeout(30):
        while True:
            try:
                assert await status(service, "GET", "/health") == 200
                break
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.05)
    assert await status(service, "GET", "/api/llm/models") == 401
    assert await status(service, "GET", "/api/llm/models", f"Bearer {token()}") == 200
