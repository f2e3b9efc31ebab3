"""
A user who takes all there is to take, at sizes that harm nobody: ``python -m tests.system.greedy URL KEY``.

Runs in a process of its own, so that it does not hold up whoever measures. When its standard input is closed it prints
what it was answered, by kind and status, and waits to be killed.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable

import aiohttp
from websockets.asyncio.client import ClientConnection, connect

from tests.codec.sounds import tone, wav

CHATS = 100
SEARCHES = 6
UPLOADS = 4
SOCKETS = 6
FRAME_BYTES = 64 << 10
FRAME_S = 0.005
IDLE_S = 2.0
"""Between two attempts to add to a buffer that is full."""
PAUSE_S = 0.1
"""
Between two searches, or two uploads: two cores are not to be busy with those alone, which tells of the machine and not of the
queues. Turns come without a pause: the model has no time for more than a few.
"""
REFUSED_PAUSE_S = 0.2
"""Who is refused is told to come again in a second or more, and comes sooner."""
EXCUSES = (429, 503, 504)

Answers = Counter[str]


async def flood(
    work: Callable[[], Awaitable[aiohttp.ClientResponse]], name: str, answers: Answers, pause_s: float = 0.0
) -> None:
    """Ask again and again, and count the answers; a refusal without a time to come again is counted as one more kind."""
    while True:
        response = await work()
        async with response:
            await response.read()
        answers[f"{name} {response.status}"] += 1
        if response.status in EXCUSES:
            if response.status != 504 and "Retry-After" not in response.headers:
                answers[f"{name} without Retry-After"] += 1
            await asyncio.sleep(REFUSED_PAUSE_S)
        await asyncio.sleep(pause_s)


async def hoard(url: str, key: str, answers: Answers) -> None:
    """Fill a socket's buffer with audio that is never committed, until that is refused, and again when it was cleared."""
    async with connect(
        url.replace("http", "ws") + "/ws", additional_headers={"Authorization": f"Bearer {key}"}
    ) as socket:
        # Without turns that are found: their sound is dropped where nobody speaks.
        session = {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 48_000}, "turn_detection": None}}}
        await socket.send(json.dumps({"type": "session.update", "session": session}))
        told = asyncio.Event()
        listening = asyncio.create_task(listen(socket, told, answers))
        try:
            while not listening.done():
                if told.is_set():
                    await asyncio.sleep(IDLE_S)
                    told.clear()
                await socket.send(bytes(FRAME_BYTES))
                await asyncio.sleep(FRAME_S)
        finally:
            listening.cancel()


async def listen(socket: ClientConnection, told: asyncio.Event, answers: Answers) -> None:
    """Count what a socket is told went wrong."""
    async for text in socket:
        event = json.loads(text)
        if event["type"] == "error":
            answers[f"socket {event['error']['code']}"] += 1
            told.set()


async def run(url: str, key: str) -> None:
    """Do all of it at once until standard input ends, print the answers, and wait to be killed."""
    answers: Answers = Counter()
    recording = wav(tone(10.0))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, connector=connector, headers={"Authorization": f"Bearer {key}"}) as client:
        works = [
            *(flood(lambda: client.post("/api/chat", json={"content": "more"}), "chat", answers) for _ in range(CHATS)),
            *(
                flood(
                    lambda: client.get("/api/chat/conversations", params={"q": "nowhere"}), "search", answers, PAUSE_S
                )
                for _ in range(SEARCHES)
            ),
            *(
                flood(
                    lambda: client.post("/api/voice/transcribe", data=recording, headers={"Content-Type": "audio/wav"}),
                    "upload",
                    answers,
                    PAUSE_S,
                )
                for _ in range(UPLOADS)
            ),
            *(hoard(url, key, answers) for _ in range(SOCKETS)),
        ]
        tasks = [asyncio.create_task(one) for one in works]
        print("begun", flush=True)  # noqa: T201 - for who started it
        ending = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
        await asyncio.wait([ending, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():
                answers[f"broken off: {task.exception()!r}"] += 1
        # Whoever started it kills it: what is still to come is of no interest.
        print(json.dumps(answers), flush=True)  # noqa: T201
        await ending
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run(*sys.argv[1:]))
