"""Secrets: whatever happens to them, none stands in what the server prints, logs or counts."""

from __future__ import annotations

import contextlib
import io
import json

import aiohttp
import jwt
import pytest
from psycopg.conninfo import make_conninfo
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from tests.fakes.faults import Fault
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.system.conftest import MakeServer

MARK = "geheim"
"""In every secret of these tests."""
SECRET = f"{MARK}-jwt-0123456789abcdef0123456789abcdef"
KEY = f"{MARK}-api-key-0123456789"
WRONG = f"{MARK}-wrong-key-0123456789"
SAID = f"{MARK}-was-gesagt-wurde"


@pytest.mark.parametrize(("log_format", "by_token"), [("json", "LLM"), ("console", "EMBEDDINGS")])
async def test_nothing_of_them_is_told(
    make_server: MakeServer, bridges: FakeBridges, database: str, log_format: str, by_token: str
) -> None:
    """Credentials, bodies, queries and the settings' secrets are in no line at the level debug, and in no metric."""
    token = jwt.encode({"sub": "zoé", "exp": 32_503_680_000, "username": SAID}, SECRET, algorithm="HS256")
    plain = f"{bridges.url}/v1"
    with_user = plain.replace("http://", f"http://user:{MARK}-userinfo@")
    server = make_server(
        RUST_LOG="debug",
        LOG_FORMAT=log_format,
        JWT_SECRET=SECRET,
        API_KEYS=f"kitchen:{KEY}",
        DATABASE_URL=make_conninfo(database, password=f"{MARK}-password"),
        LLM_FIRST_TOKEN_TIMEOUT_S="2",
        **{f"{name}_URL": plain if name == by_token else with_user for name in ("LLM", "EMBEDDINGS")},
        **{f"{by_token}_API_KEY": f"{MARK}-token"},
    )
    server.start()
    answers: list[bytes] = []

    async def ask(method: str, path: str, **options: object) -> int:
        async with session.request(method, path, **options) as response:  # type: ignore[arg-type]
            answers.append(await response.read())
            return response.status

    good, wrong = {"Authorization": f"Bearer {token}"}, {"Authorization": f"Bearer {WRONG}"}
    async with aiohttp.ClientSession(server.url) as session:
        for headers in (good, wrong, {"Authorization": f"Bearer {KEY}"}, {"Authorization": f"Basic {WRONG}"}, {}):
            more = {**headers, "Cookie": f"session={SAID}", "X-Api-Key": KEY, "Idempotency-Key": SAID}
            await ask("POST", "/api/chat", json={"content": SAID}, headers=more)
            await ask("POST", "/api/chat", data=b'{"content": "' + SAID.encode(), headers=more)
            await ask("POST", "/api/memory/add", json={"content": SAID, "importance": SAID}, headers=more)
            await ask(
                "POST",
                "/api/voice/transcribe",
                data={"file": io.BytesIO(SAID.encode()), "language": SAID},
                headers=more,
            )
            await ask("POST", "/api/voice/synthesize", json={"text": SAID}, headers=more)
            await ask("GET", f"/api/chat/conversations?token={KEY}&q={SAID}&cursor={SAID}", headers=more)
        assert await ask("GET", "/api/chat/conversations", headers=good) == 200
        bridges.mode = BridgesMode(faults={"/": Fault(status=500)})
        await ask("POST", "/api/chat", json={"content": SAID}, headers=good)
        address = server.url.replace("http", "ws", 1) + "/ws"
        for query, subprotocols in (
            (f"?token={token}", None),
            (f"?token={WRONG}", None),
            ("", ["realtime", f"openai-insecure-api-key.{KEY}"]),
            ("", ["realtime", f"openai-insecure-api-key.{WRONG}"]),
        ):
            with contextlib.suppress(WebSocketException):
                async with connect(address + query, subprotocols=subprotocols, proxy=None) as socket:  # type: ignore[arg-type]
                    await socket.send(json.dumps({"type": "session.update", "session": {"instructions": SAID}}))
                    await socket.send(json.dumps({"type": SAID, "event_id": "e"}))
                    await socket.send(SAID)
                    answers += [str(await socket.recv()).encode() for _ in range(4)]
        await ask("GET", "/metrics")
        metrics = answers[-1].decode()
    assert server.stop() == 0
    told = server.stdout + server.stderr
    assert "answered" in told, "the log is at the level debug"
    for line in [*told.splitlines(), *metrics.splitlines()]:
        assert MARK not in line, line
    errors = [answer for answer in answers if b'"unauthenticated"' in answer]
    assert errors
    assert not [answer for answer in errors if MARK.encode() in answer]
