"""The whole product with nothing but itself: its own database, and a real language model on this machine."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import aiohttp
import pytest

from jarvis_core.local import weights
from jarvis_core.local.catalogue import CATALOGUE
from tests.handlers.events import read_events, text_of
from tests.system.server import REPOSITORY, Server, processes_naming, wait_gone

MODEL = "smollm2-135m"
CACHE = REPOSITORY / ".cache" / "models"
ANSWER_LIMIT_S = 60.0
NOWHERE = "http://127.0.0.1:9"


def commands(server: Server) -> list[bytes]:
    """Return the command lines of *server* and its children."""
    return [Path(f"/proc/{process.pid}/cmdline").read_bytes() for process in server.family()]


@pytest.mark.model
async def test_alone(directory: Path) -> None:
    """
    Without any neighbour the product answers by itself, streams, stores, and leaves no process, stopped or killed.

    What so small a model says is nobody's concern; that it says something, and stops when told to, is.
    """
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the local engine is not installed")
    await asyncio.to_thread(weights.ensure, CATALOGUE[MODEL], CACHE)
    data = directory / "alone"
    data.mkdir(mode=0o711)
    (data / "models").symlink_to(CACHE)
    environment = {"DATA_DIR": str(data), "LOCAL_LLM_MODEL": MODEL, "LLM_TEMPERATURE": "0", "LOCAL_SPEECH": "off"}
    server = Server(directory, environment)
    try:
        await asyncio.to_thread(server.start)
        family = server.family()
        assert f"  embedded: language model {MODEL}" in server.stdout
        assert "  off:      speech (LOCAL_SPEECH=true, or PYTHON_BRIDGES_URL)" in server.stdout
        assert "to speech" not in server.stdout
        timeout = aiohttp.ClientTimeout(total=ANSWER_LIMIT_S)
        async with aiohttp.ClientSession(server.url, timeout=timeout) as client:
            async with client.post("/api/chat", json={"content": "What is the capital of France?"}) as response:
                first = await response.json()
            assert (response.status, first["status"], first["model"]) == (200, "completed", MODEL), first
            assert "Paris" in first["content"]
            assert first["tokens"] > 0
            body = {"content": "Count to ten.", "conversation_id": first["conversation_id"], "stream": True}
            async with client.post("/api/chat", json={**body, "max_tokens": 8}) as response:
                events = await read_events(response)
            ended = events[-1].data["response"]
            assert (ended["status"], ended["usage"]["output_tokens"]) == ("incomplete", 8)
            assert text_of(events) == ended["output"][0]["content"][0]["text"]
            assert ended["status_details"]["reason"] == "max_output_tokens"
            async with client.get(f"/api/chat/history/{first['conversation_id']}") as response:
                history = await response.json()
            assert [message["content"] for message in history["messages"]] == [
                "What is the capital of France?",
                first["content"],
                "Count to ten.",
                text_of(events),
            ]
        assert await asyncio.to_thread(server.stop) == 0
        assert wait_gone(family) == processes_naming(data) == set()
        await asyncio.to_thread(server.start)
        family = server.family()
        server.kill()
        assert wait_gone(family) == processes_naming(data) == set()
    finally:
        server.kill()


@pytest.mark.model
async def test_speech_alone(directory: Path, database: str) -> None:
    """
    Without bridges the product speaks, and understands what it said, also where the language model is elsewhere.

    Killed, it leaves nothing.
    """
    if any(importlib.util.find_spec(name) is None for name in ("faster_whisper", "kokoro_onnx")):
        pytest.skip("the local engines are not installed")
    for name in ("whisper-base", "kokoro-82m"):
        await asyncio.to_thread(weights.ensure, CATALOGUE[name], CACHE)
    data = directory / "speaking"
    data.mkdir(mode=0o711)
    (data / "models").symlink_to(CACHE)
    server = Server(directory, {"DATA_DIR": str(data), "DATABASE_URL": database, "LLM_URL": NOWHERE})
    try:
        await asyncio.to_thread(server.start)
        assert "  embedded: speech to text whisper-base, text to speech kokoro-82m" in server.stdout
        assert "  embedded: noise suppression" in server.stdout
        assert "  yours:    language model at http://127.0.0.1:9" in server.stdout
        assert "embedded: language model" not in server.stdout
        assert "missing" not in server.stdout
        timeout = aiohttp.ClientTimeout(total=ANSWER_LIMIT_S)
        async with aiohttp.ClientSession(server.url, timeout=timeout) as client:
            body = {"text": "Quelle est la capitale de l'Italie ?"}
            async with client.post("/api/voice/synthesize", json=body) as response:
                spoken = await response.json()
            assert (response.status, spoken["voice"], spoken["format"]) == (200, "ff_siwis", "wav"), spoken
            body = {"audio_data": spoken["audio_data"], "language": "fr"}
            async with client.post("/api/voice/transcribe", json=body) as response:
                heard = await response.json()
            assert response.status == 200, heard
            assert "capitale de l'Italie" in heard["text"].replace("’", "'")
        family = server.family()
        server.kill()
        assert wait_gone(family) == processes_naming(data) == set()
    finally:
        server.kill()


@pytest.mark.model
async def test_several_workers_alone(directory: Path) -> None:
    """
    ``WORKERS=4`` alone, as the README has it, starts workers beside everything that is embedded.

    Each of them answers, and knows that the engines are well; nothing is left of any.
    """
    if any(importlib.util.find_spec(name) is None for name in ("xllamacpp", "faster_whisper", "kokoro_onnx")):
        pytest.skip("the local engines are not installed")
    for name in (MODEL, "whisper-base", "kokoro-82m"):
        await asyncio.to_thread(weights.ensure, CATALOGUE[name], CACHE)
    data = directory / "several"
    data.mkdir(mode=0o711)
    (data / "models").symlink_to(CACHE)
    # The model alone is another than by default: a fifth of its size.
    server = Server(directory, {"WORKERS": "4", "DATA_DIR": str(data), "LOCAL_LLM_MODEL": MODEL})
    try:
        server.launch()
        # It is printed when the last of them is ready.
        await asyncio.to_thread(server.wait_until, lambda: "  try: " in server.stdout)
        family = server.family()
        for what in ("PostgreSQL", "Valkey", "language model", "speech to text", "embeddings", "noise suppression"):
            assert f"  embedded: {what}" in server.stdout
        assert "  serving:  4 worker processes" in server.stdout
        body = {"content": "Hello", "max_tokens": 8}
        said = await asyncio.to_thread(server.ask, "POST", "/api/chat", body, limit_s=ANSWER_LIMIT_S)
        assert (said.status, said.body["model"]) == (200, MODEL), said
        assert 0 < said.body["tokens"] <= 8
        well: set[str] = set()
        async with asyncio.timeout(30):
            while len(well) < 4:
                # A connection of its own each time: the kernel chooses a worker for each.
                async with aiohttp.request("GET", f"{server.url}/health") as response:
                    services = (await response.json())["services"]
                if services == {
                    "database": "healthy",
                    "python_bridges": "healthy",
                    "audio_engine": "healthy",
                    "cache": "healthy",
                }:
                    well.add(response.headers["X-Request-ID"].partition("-")[0])
        assert "Traceback" not in server.stderr
        assert await asyncio.to_thread(server.stop) == 0
        assert wait_gone(family) == processes_naming(data) == set()
    finally:
        server.kill()


async def test_speech_that_cannot_be_had(directory: Path, database: str) -> None:
    """Where the weights of speech cannot be fetched the start says what is missing and goes on, and voice is 503."""
    if importlib.util.find_spec("faster_whisper") is None:
        pytest.skip("the local engines are not installed")
    data = directory / "speechless"
    data.mkdir(mode=0o711)
    offline = {"https_proxy": NOWHERE, "http_proxy": NOWHERE, "no_proxy": "localhost,127.0.0.1"}
    index = {"PIP_INDEX_URL": f"{NOWHERE}/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_CONFIG_FILE": "/dev/null"}
    server = Server(
        directory, {"DATA_DIR": str(data), "DATABASE_URL": database, "LLM_URL": NOWHERE, **offline, **index}
    )
    try:
        await asyncio.to_thread(server.start)
        for what in ("speech to text", "text to speech", "audio engine"):
            assert f"  missing:  {what} " in server.stdout
        assert "LOCAL_SPEECH=false" in server.stderr
        assert "whisper-base cannot be fetched" in server.stderr
        assert server.ask("GET", "/health").body["services"]["audio_engine"] == "disabled"
        assert server.ask("POST", "/api/voice/synthesize", {"text": "Oui."}).status == 503
        assert not any(b"local.bridges" in command for command in commands(server))
        assert await asyncio.to_thread(server.stop) == 0
    finally:
        server.kill()


def test_a_speech_model_that_is_none(directory: Path, database: str) -> None:
    """A directory that a setting names, and that holds no model, stops the start with one line."""
    server = Server(directory, {"DATABASE_URL": database, "LLM_URL": NOWHERE, "LOCAL_STT_MODEL": "/nowhere"})
    server.launch()
    assert server.wait() == 1
    assert server.stderr.startswith("jarvis-core: LOCAL_STT_MODEL=/nowhere is neither a directory with model.bin ")
    assert len(server.stderr.splitlines()) == 1
