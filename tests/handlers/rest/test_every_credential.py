"""Every route of the document without, with a bad, an expired and a foreign credential; and what comes in no shape at all."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.fakes.python_bridges import FakeBridges
from tests.handlers.rest.api import Api
from tests.handlers.rest.conftest import API_KEY, SECRET, AsUser, make_token
from tests.handlers.rest.test_credentials import OTHER_SECRET, PUBLIC, unsigned
from tests.handlers.rest.test_every_route import UNKNOWN, routes
from tests.system.server import Server

BODIES: dict[str, dict[str, Any]] = {
    "/api/chat": {"content": "x"},
    "/api/chat/conversation": {"title": "x"},
    f"/api/chat/conversation/{UNKNOWN}": {"title": "x"},
    "/api/memory/add": {"content": "x"},
    "/api/memory/search": {"query": "x"},
    f"/api/memory/entry/{UNKNOWN}": {"content": "x"},
    "/api/voice/transcribe": {"audio_data": ""},
    "/api/voice/synthesize": {"text": "x"},
}
FAR = 32_503_680_000


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        f"Bearer {API_KEY}x",
        f"Bearer {make_token('zoé', lifetime_s=-3_600)}",
        f"Bearer {make_token('zoé', secret=OTHER_SECRET)}",
    ],
    ids=["none", "bad", "expired", "foreign"],
)
async def test_walk(strict: Api, authorization: str) -> None:
    """Every route that is not public refuses it with 401 and the same few words, whatever else is in the request."""
    walked = 0
    for method, path in await routes(strict):
        if path in PUBLIC:
            continue
        body = BODIES.get(path) if method in ("POST", "PATCH") else None
        answer = await strict.ask(method, path, body, headers={"Authorization": authorization})
        assert answer.error == (401, "unauthenticated"), (method, path)
        assert len(answer.json["error"].split()) < 10
        assert answer.json["details"] is None
        walked += 1
    assert walked > 15


@pytest.mark.parametrize(
    "exp",
    [None, -1, -1e300, 1e17, 3e19, 10**18, 10**400, True, "soon", str(FAR), [FAR], {"at": FAR}, ""],
    ids=str,
)
async def test_absurd_end(strict: Api, exp: object) -> None:
    """A token without an end, or with one that is no time or lies beyond all years, is 401, however well it is signed."""
    token = make_token("zoé", exp=exp)
    assert (await strict.get("/api/chat/conversations", headers={"Authorization": f"Bearer {token}"})).status == 401


@pytest.mark.parametrize("exp", ["NaN", "Infinity", "-Infinity", "1e400", "-1e400", "9" * 5_000])
async def test_end_that_is_no_json_number(strict: Api, exp: str) -> None:
    """An end that Python's JSON reads, and nobody else's, is 401 too."""
    import jwt

    token = jwt.api_jws.encode(f'{{"sub": "zoé", "exp": {exp}}}'.encode(), SECRET, algorithm="HS256")
    assert (await strict.get("/api/chat/conversations", headers={"Authorization": f"Bearer {token}"})).status == 401


async def test_token_in_the_query(strict: Api) -> None:
    """A token in the query of a request lets nobody in: queries stand in logs."""
    for name in ("token", "access_token", "api_key"):
        path = f"/api/chat/conversations?{name}={API_KEY}"
        assert (await strict.get(path, headers={"Authorization": ""})).error == (401, "unauthenticated")


async def send(server: Server, *headers: bytes) -> bytes:
    """Send a request with these lines as they are; return the whole answer, empty where there is none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        lines = [b"GET /api/chat/conversations HTTP/1.1", b"host: x", b"connection: close", *headers]
        writer.write(b"\r\n".join([*lines, b"", b""]))
        async with asyncio.timeout(10):
            return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


GOOD = b"authorization: Bearer " + API_KEY.encode()


async def test_good_line(strict_server: tuple[Server, int], strict: Api) -> None:
    """The line on which the next tests are built lets in."""
    assert (await send(strict_server[0], GOOD)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "headers",
    [
        [GOOD, GOOD],
        [GOOD, b"authorization: Bearer other-key-0123456789"],
        [b"authorization: Bearer other-key-0123456789", GOOD],
        [b"authorization:", GOOD + b","],
        [b"authorization: Bearer " + b"x" * 60_000],
        [b"authorization: " + b"Bearer " * 8_000],
        [b"authorization: Bearer \t" + API_KEY.encode()],
        [GOOD + b"\x80"],
        [GOOD + "é".encode()],
        [b"authorization: Bearer " + unsigned(sub="zoé", exp=FAR).encode()],
    ],
    ids=["twice", "two", "two others", "a list", "a long one", "many schemes", "tab", "byte", "accent", "alg none"],
)
async def test_unfit_header(strict_server: tuple[Server, int], strict: Api, headers: list[bytes]) -> None:
    """Several headers, a very long one, and characters that no token has are 401 with the body that every error has."""
    answer = await send(strict_server[0], b"x-forwarded-for: 2001:db8:ffff::1", *headers)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 401 "), answer[:200]
    assert json.loads(body)["code"] == "unauthenticated"


@pytest.mark.parametrize("byte", [0, 1, 8, 11, 12, 27, 31, 127])
async def test_control_characters(strict_server: tuple[Server, int], strict: Api, byte: int) -> None:
    """A control character ends the request in the parser already: nobody comes in, and nothing is said."""
    answer = await send(strict_server[0], GOOD + bytes([byte]))
    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 ")), answer[:100]
    assert API_KEY.encode() not in answer


@pytest.mark.parametrize(
    ("target", "kind", "token", "status"),
    [
        ("/api/voice/transcribe", "audio/wav", make_token("zoé", lifetime_s=-3_600), 401),
        ("/api/chat", "text/plain", make_token("zoé"), 415),
        ("/api/chat", "application/json", make_token("zoé"), 413),
        ("/no/such/path", "application/json", make_token("zoé"), 404),
        ("/health", "application/json", make_token("zoé"), 405),
    ],
)
async def test_refused_upload_is_told(
    strict_server: tuple[Server, int], strict: Api, target: str, kind: str, token: str, status: int
) -> None:
    """Whoever sends a long body that is refused before it is read sees why, and not a broken connection."""
    for length in (70_000, 20 << 20):
        reader, writer = await asyncio.open_connection("127.0.0.1", strict_server[0].port)
        head = f"POST {target} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
        writer.write(f"{head}content-type: {kind}\r\ncontent-length: {length}\r\n\r\n".encode())
        async with asyncio.timeout(10):
            for start in range(0, length, 100_000):
                writer.write(bytes(min(100_000, length - start)))
                await writer.drain()
            assert (await reader.readline()).startswith(b"HTTP/1.1 %d " % status)
        writer.close()


async def test_body_that_nobody_asked_for(strict_server: tuple[Server, int], as_user: AsUser) -> None:
    """A GET with a body gets its whole answer, however long that is."""
    token = make_token("collectionneur")
    owner = as_user(token)
    for number in range(24):
        await owner.post("/api/memory/add", {"content": f"{number} " + chr(97 + number) * 49_000})
    for length in (1, 100_000):
        reader, writer = await asyncio.open_connection("127.0.0.1", strict_server[0].port)
        head = f"GET /api/memory/list HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n"
        writer.write(head.encode() + b"[" * length)
        async with asyncio.timeout(10):
            answered = await reader.readuntil(b"\r\n\r\n")
            assert answered.startswith(b"HTTP/1.1 200 ")
            size = int(answered.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert size > 1_000_000
            await asyncio.sleep(0.3)  # a client that takes its time
            assert len(await reader.readexactly(size)) == size
        writer.close()


async def test_foreign_ids_are_unknown(as_user: AsUser, strict_bridges: FakeBridges) -> None:
    """Every route that takes an id answers for another user's as for one that there never was, word for word."""
    owner, other = as_user(make_token("propriétaire")), as_user(make_token("voisin"))
    chat = await owner.say("C'est à moi.")
    memory = (await owner.post("/api/memory/add", {"content": "Le code est 4512."})).json["id"]
    ids = {"response": chat["id"], "conversation": chat["conversation_id"], "history": chat["conversation_id"]}
    ids["entry"] = memory
    walked = set()
    for method, path in await routes(other):
        if UNKNOWN not in path:
            continue
        kind = next(kind for kind in ids if f"/{kind}/" in path)
        walked.add(kind)
        body = BODIES.get(path) if method == "PATCH" else None
        answers = [await other.ask(method, path.replace(UNKNOWN, one), body) for one in (ids[kind], UNKNOWN)]
        assert [answer.error for answer in answers] == [(404, "not_found")] * 2, (method, path)
        told = [{**answer.json, "request_id": ""} for answer in answers]
        assert told[0] == told[1]
    assert walked == ids.keys()
    for field, one, path in (
        ("conversation_id", ids["conversation"], "/api/chat"),
        ("supersedes", memory, "/api/memory/add"),
    ):
        assert (await other.post(path, {"content": "x", field: one})).error == (404, "not_found")
    assert (await owner.get(f"/api/memory/entry/{memory}")).json["content"] == "Le code est 4512."
    assert len(await owner.history(chat["conversation_id"])) == 2


async def test_foreign_idempotency_key(as_user: AsUser, strict_bridges: FakeBridges) -> None:
    """Another user's Idempotency-Key is another key."""
    owner, other = as_user(make_token("propriétaire")), as_user(make_token("voisin"))
    body, headers = {"content": "le même"}, {"Idempotency-Key": "cle-1"}
    first = await owner.post("/api/chat", body, headers=headers)
    second = await other.post("/api/chat", body, headers=headers)
    assert (first.status, second.status) == (200, 200)
    assert first.json["id"] != second.json["id"]
    assert first.json["conversation_id"] != second.json["conversation_id"]
