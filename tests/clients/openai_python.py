"""What OpenAI's own client for Python is promised (``openai``)."""

from __future__ import annotations

import asyncio
import io
import json
import math
import tempfile
import time
import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import openai
from checks import API_KEY, BRIDGES, MODEL, URL, act, ask, control, last_request, run_checks, state, wait_until
from openai import AsyncOpenAI, OpenAI

RECORDING = Path(__file__).parents[1] / "fixtures" / "audio" / "fx16k_en_1.wav"
SAID = "what was said"

client = OpenAI(base_url=f"{URL}/v1", api_key=API_KEY, max_retries=0, timeout=10)


def raised(kind: type[openai.APIStatusError], act: Callable[[], object]) -> openai.APIStatusError:
    """Return the error of *kind* that *act* raises."""
    try:
        act()
    except kind as raised_error:
        error = raised_error
    else:
        raise AssertionError(f"no {kind.__name__}")
    assert error.request_id
    return error


def failure_of(act: Callable[[], object]) -> str | None:
    """Return the code of the error that *act* raises while it reads a stream; the empty text where it ends well."""
    try:
        act()
    except openai.APIError as error:
        return error.code
    return ""


def check_models() -> None:
    """The models are listed and found, by OpenAI's names too; an unknown one is NotFoundError."""
    names = [model.id for model in client.models.list()]
    assert names == ["jarvis", "jarvis-hear", "jarvis-voice", "jarvis-embed", "small-model"], names
    assert client.models.retrieve("small-model").id == "small-model"
    assert client.models.retrieve("whisper-1").id == "jarvis-hear"
    error = raised(openai.NotFoundError, lambda: client.models.retrieve("gpt-5"))
    assert (error.code, error.type, error.param) == ("model_not_found", "invalid_request_error", "model")


def check_credentials() -> None:
    """A wrong key is AuthenticationError; a server that is not there is APIConnectionError."""
    stranger = client.with_options(api_key="sk-of-nobody")
    error = raised(openai.AuthenticationError, lambda: stranger.models.list())
    assert error.type == "authentication_error"
    try:
        client.with_options(base_url="http://127.0.0.1:1/v1").models.list()
    except openai.APIConnectionError:
        return
    raise AssertionError("no APIConnectionError")


def check_transcriptions() -> None:
    """A recording is heard in each format, with the fields that the types have."""
    with RECORDING.open("rb") as file:
        heard = client.audio.transcriptions.create(model="whisper-1", file=file, language="en")
    assert heard.text == SAID
    assert heard.usage is not None
    for wanted in ("text", "srt", "vtt"):
        text = client.audio.transcriptions.create(model="jarvis-hear", file=RECORDING, response_format=wanted)
        assert isinstance(text, str)
        assert SAID in text
        assert (" --> " in text) == (wanted != "text")
    verbose = client.audio.transcriptions.create(
        model="gpt-4o-transcribe", file=RECORDING, response_format="verbose_json", timestamp_granularities=["segment"]
    )
    assert verbose.text == SAID
    assert verbose.duration > 1
    assert verbose.segments is not None
    assert verbose.segments[0].text == SAID
    assert 0 <= verbose.segments[0].start < verbose.segments[0].end <= verbose.duration


def check_transcription_prompt() -> None:
    """What the recogniser does not understand is named in the answer's Warning."""
    answer = client.audio.transcriptions.with_raw_response.create(model="whisper-1", file=RECORDING, prompt="Jarvis")
    assert "prompt" in answer.headers["warning"]
    assert answer.parse().text == SAID


def check_streamed_transcription() -> None:
    """The words come as deltas, and all of them at the end."""
    stream = client.audio.transcriptions.create(model="gpt-4o-mini-transcribe", file=RECORDING, stream=True)
    events = list(stream)
    assert "".join(event.delta for event in events if event.type == "transcript.text.delta") == SAID
    assert events[-1].type == "transcript.text.done"
    assert events[-1].text == SAID


def check_transcription_errors() -> None:
    """No recording, an unknown format or model, and what is no sound are errors that name the field."""
    error = raised(
        openai.BadRequestError,
        lambda: client.audio.transcriptions.create(model="whisper-1", file=("x.wav", b"no sound at all", "audio/wav")),
    )
    assert error.param == "file", error.param
    error = raised(
        openai.BadRequestError,
        lambda: client.audio.transcriptions.create(model="whisper-1", file=RECORDING, response_format="diarized_json"),
    )
    assert error.param == "response_format"
    raised(openai.NotFoundError, lambda: client.audio.transcriptions.create(model="whisper-9", file=RECORDING))


def check_speech() -> None:
    """A text is spoken in each format, whole and streamed to a file, and is heard again as what it is."""
    begins = {"mp3": b"ID3\xff", "opus": b"OggS", "aac": b"\xff\xf1", "flac": b"fLaC", "wav": b"RIFF"}
    for wanted in ("mp3", "opus", "aac", "flac", "wav", "pcm"):
        spoken = client.audio.speech.create(
            model="tts-1", voice="alloy", input="Bonjour. Il fait beau.", response_format=wanted
        )
        sound = spoken.content
        assert len(sound) > 1_000, wanted
        assert wanted == "pcm" or sound[:2] in (begins[wanted][:2], begins[wanted][-2:]) or sound[:1] == b"\xff", wanted
        if wanted != "pcm":
            heard = client.audio.transcriptions.create(model="whisper-1", file=(f"x.{wanted}", sound))
            assert heard.text == SAID, wanted
    path = Path(tempfile.mkdtemp()) / "speech.wav"
    with client.audio.speech.with_streaming_response.create(
        model="gpt-4o-mini-tts", voice="onyx", input="Bonjour.", response_format="wav", speed=2.0
    ) as response:
        response.stream_to_file(path)
    with wave.open(io.BytesIO(path.read_bytes())) as sound_file:
        assert sound_file.getnframes() > 1_000


def check_streamed_speech() -> None:
    """As events the sound comes in pieces that are one file, and then an end."""
    stream = client.audio.speech.with_streaming_response.create(
        model="jarvis-voice",
        voice={"id": "fr_FR-siwis-medium"},
        input="Bonjour. Il fait beau.",
        stream_format="sse",
        instructions="Whisper.",
    )
    with stream as response:
        assert "instructions" in response.headers["warning"]
        text = "".join(response.iter_text())
    assert text.count("speech.audio.delta") >= 2
    assert text.rstrip().endswith("}")
    assert '"type":"speech.audio.done"' in text


def check_speech_errors() -> None:
    """An unknown voice, model and format, and a text of nothing, are errors that name the field."""
    for fields, param in (
        ({"voice": "nobody"}, "voice"),
        ({"response_format": "wma"}, "response_format"),
        ({"input": "***"}, "input"),
        ({"speed": 9.0}, "speed"),
    ):
        asked: dict[str, Any] = {"model": "tts-1", "voice": "alloy", "input": "Bonjour.", **fields}
        error = raised(openai.BadRequestError, partial(client.audio.speech.create, **asked))
        assert error.param == param, error.param
    raised(openai.NotFoundError, lambda: client.audio.speech.create(model="tts-9", voice="alloy", input="Bonjour."))


def check_neighbour_that_is_away() -> None:
    """Speech that cannot be had now is InternalServerError, with the code."""
    control(BRIDGES, faults={"/api/tts": {"status": 503}})
    error = raised(
        openai.InternalServerError,
        lambda: client.audio.speech.create(model="tts-1", voice="alloy", input="Bonjour."),
    )
    assert (error.code, error.type) == ("unavailable", "server_error")


def check_embeddings() -> None:
    """Vectors come as floats and as base64, which agree; several texts have several, in order; fewer dimensions have length one."""
    floats = client.embeddings.create(model="text-embedding-3-small", input="a cat", encoding_format="float")
    packed = client.embeddings.create(model="jarvis-embed", input="a cat")
    assert floats.model == "jarvis-embed"
    assert len(floats.data[0].embedding) == 384
    pairs = zip(floats.data[0].embedding, packed.data[0].embedding, strict=True)
    assert all(math.isclose(one, other, abs_tol=1e-6) for one, other in pairs)
    several = client.embeddings.create(model="jarvis-embed", input=["a dog", "a cat"], dimensions=64)
    assert [one.index for one in several.data] == [0, 1]
    cut = several.data[1].embedding
    assert len(cut) == 64
    assert math.isclose(math.hypot(*cut), 1, abs_tol=1e-4)
    whole = floats.data[0].embedding[:64]
    assert math.isclose(cut[0], whole[0] / math.hypot(*whole), abs_tol=1e-4)


def check_embedding_errors() -> None:
    """More dimensions than there are, tokens, an empty text and an unknown model are errors that name the field."""
    for fields, param in (
        ({"dimensions": 4_000}, "dimensions"),
        ({"input": [[1, 2, 3]]}, "input[0]"),
        ({"input": ["x", ""]}, "input[1]"),
        ({"input": []}, "input"),
    ):
        asked: dict[str, Any] = {"model": "jarvis-embed", "input": "x", **fields}
        error = raised(openai.BadRequestError, partial(client.embeddings.create, **asked))
        assert error.param == param, error.param
    raised(openai.NotFoundError, lambda: client.embeddings.create(model="ada", input="x"))


TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "light",
            "description": "Switch a light.",
            "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]},
        },
    }
]


def chunk(reason: str | None = None, **delta: object) -> str:
    """Return the data of a chunk, as the model's server sends it."""
    return json.dumps({"model": "small-model", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})


def check_chat_completion() -> None:
    """A whole answer has its text, its end and the counts of the model's server; parts and the developer's role are understood."""
    before = ask("GET", "/api/chat/conversations")
    for model in ("jarvis", "small-model"):
        answer = client.chat.completions.create(
            model=model,
            messages=[
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Hello "}, {"type": "text", "text": "there"}]},
            ],
            user="somebody",
        )
        (choice,) = answer.choices
        assert (choice.message.content, choice.finish_reason) == ("You said: Hello there", "stop")
        assert choice.message.role == "assistant"
        assert answer.model == model
        assert answer.usage is not None
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 4
    sent = last_request(MODEL, "/v1/chat/completions")
    assert sent["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello there"},
    ]
    assert sent["user"] == "somebody"
    assert ask("GET", "/api/chat/conversations") == before


def check_assistants_instructions() -> None:
    """The assistant has its own instructions where the client gives none; the model under its own name has none."""
    messages: list[Any] = [{"role": "user", "content": "Hello"}]
    client.chat.completions.create(model="jarvis", messages=messages)
    sent = last_request(MODEL, "/v1/chat/completions")
    assert "You are Jarvis" in sent["messages"][0]["content"]
    assert sent["max_tokens"] == 1024
    client.chat.completions.create(model="small-model", messages=messages)
    sent = last_request(MODEL, "/v1/chat/completions")
    assert sent["messages"] == messages
    assert {"max_tokens", "temperature"}.isdisjoint(sent)


def check_memories_are_recalled() -> None:
    """The assistant remembers what the user told it before; the model under its own name is told nothing of it."""
    added = ask("POST", "/api/memory/add", {"content": "The bicycle is in the garage"})
    messages: list[Any] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is the bicycle?"},
    ]
    client.chat.completions.create(model="jarvis", messages=messages)
    system, question = last_request(MODEL, "/v1/chat/completions")["messages"]
    assert system == messages[0]
    assert "The bicycle is in the garage" in question["content"]
    assert question["content"].endswith("Where is the bicycle?")
    client.chat.completions.create(model="small-model", messages=messages)
    assert last_request(MODEL, "/v1/chat/completions")["messages"] == messages
    ask("DELETE", f"/api/memory/entry/{added['id']}")


def check_streamed_chat_completion() -> None:
    """A streamed answer comes in pieces with one end; its counts come where they are asked for."""
    control(MODEL, delta_delay_s=0.02)  # what comes together is given together
    for model in ("jarvis", "small-model"):
        stream = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "one two three"}],
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        assert chunks[0].choices[0].delta.role == "assistant"
        texts = [one.choices[0].delta.content or "" for one in chunks if one.choices]
        assert "".join(texts) == "You said: one two three"
        assert len([text for text in texts if text]) >= 4
        assert [one.choices[0].finish_reason for one in chunks if one.choices and one.choices[0].finish_reason] == [
            "stop"
        ]
        assert [one.usage.total_tokens > 0 for one in chunks if one.usage] == [True]
        assert len({one.id for one in chunks}) == 1
    asked = client.chat.completions.create(model="jarvis", messages=[{"role": "user", "content": "x"}], stream=True)
    assert all(one.usage is None and one.choices for one in asked)


def check_tools() -> None:
    """Tools go to the model, and its calls come back, whole and streamed; the client's own outputs go back to it."""
    call = [
        {"index": 0, "id": "call_0123456789", "type": "function", "function": {"name": "light", "arguments": '{"on"'}}
    ]
    rest = [{"index": 0, "function": {"arguments": ": true}"}}]
    control(MODEL, events=[chunk(tool_calls=call), chunk(tool_calls=rest), chunk("tool_calls")])
    asked: dict[str, Any] = {
        "model": "jarvis",
        "messages": [{"role": "user", "content": "Light, please"}],
        "tools": TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
    }
    answer = client.chat.completions.create(**asked)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls is not None
    (called,) = choice.message.tool_calls
    assert (called.id, called.function.name, json.loads(called.function.arguments)) == (
        "call_0123456789",
        "light",
        {"on": True},
    )
    sent = last_request(MODEL, "/v1/chat/completions")
    assert (sent["tools"], sent["tool_choice"], sent["parallel_tool_calls"]) == (TOOLS, "auto", False)
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].finish_reason == "tool_calls"
    assert final.choices[0].message.tool_calls is not None
    assert final.choices[0].message.tool_calls[0].function.name == "light"
    control(MODEL)
    messages = [
        *asked["messages"],
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": "call_0123456789", "content": "done"},
    ]
    client.chat.completions.create(**{**asked, "messages": messages})
    sent = last_request(MODEL, "/v1/chat/completions")["messages"]
    assert sent[-2]["tool_calls"][0]["id"] == "call_0123456789"
    assert sent[-1] == {"role": "tool", "content": "done", "tool_call_id": "call_0123456789"}


def check_parameters() -> None:
    """Parameters go to the model's server as they are; what it refuses is left out, and named in the Warning."""
    parameters: dict[str, Any] = {
        "stop": ["END"],
        "seed": 7,
        "top_p": 0.5,
        "max_completion_tokens": 50,
        "temperature": 0.25,
        "n": 1,
        "response_format": {"type": "json_object"},
        "extra_body": {"top_k": 3},
        "store": True,
    }
    asked: dict[str, Any] = {"model": "small-model", "messages": [{"role": "user", "content": "Hello"}], **parameters}
    answer = client.chat.completions.with_raw_response.create(**asked)
    sent = last_request(MODEL, "/v1/chat/completions")
    assert (sent["stop"], sent["seed"], sent["top_p"], sent["top_k"]) == (["END"], 7, 0.5, 3)
    assert (sent["max_tokens"], sent["temperature"]) == (50, 0.25)
    assert sent["response_format"] == {"type": "json_object"}
    assert answer.headers["warning"].endswith('"left out: store"')
    control(MODEL, refuses=["seed", "top_k"])
    answer = client.chat.completions.with_raw_response.create(**{**asked, "store": False})
    assert answer.headers["warning"].endswith('"left out: seed, top_k"')
    assert answer.parse().choices[0].message.content == "You said: Hello"
    stream = client.chat.completions.with_raw_response.create(**{**asked, "store": False, "stream": True})
    assert stream.headers["warning"].endswith('"left out: seed, top_k"')
    control(MODEL, refuses=["response_format"])
    error = raised(openai.BadRequestError, lambda: client.chat.completions.create(**asked))
    assert error.param == "response_format"


def check_what_cannot_be_had() -> None:
    """Several answers, probabilities, images, an unknown model and too long a prompt are errors that name the field."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    for fields, param in (
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": [{"role": "user", "content": [image]}]}, "messages[0].content[0].type"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"temperature": 9}, "temperature"),
    ):
        asked: dict[str, Any] = {"model": "jarvis", "messages": [{"role": "user", "content": "x"}], **fields}
        error = raised(openai.BadRequestError, partial(client.chat.completions.create, **asked))
        assert (error.param, error.type) == (param, "invalid_request_error"), error.param
    messages: list[Any] = [{"role": "user", "content": "many words are more than it can read"}]
    error = raised(openai.NotFoundError, lambda: client.chat.completions.create(model="gpt-5", messages=messages))
    assert error.code == "model_not_found"
    control(MODEL, context_tokens=3)
    error = raised(openai.BadRequestError, lambda: client.chat.completions.create(model="jarvis", messages=messages))
    assert (error.code, error.param) == ("context_length_exceeded", "messages")


def check_answers_that_break() -> None:
    """A model that refuses, is limited or away is an error of its class; a stream that is cut never ends as a good one."""
    messages: list[Any] = [{"role": "user", "content": "one two three four"}]
    for status, kind in ((429, openai.RateLimitError), (503, openai.InternalServerError)):
        control(MODEL, faults={"/v1/chat": {"status": status}})
        raised(kind, lambda: client.chat.completions.create(model="jarvis", messages=messages))
        raised(kind, lambda: client.chat.completions.create(model="jarvis", messages=messages, stream=True))
    for fault in (
        {"cut_after": 2, "cut": "reset"},
        {"cut_after": 2, "cut": "end"},
        {"error_after": 2},
        {"stall_after": 2},
        {"finish_reason": "abort"},
    ):
        control(MODEL, **fault)
        time.sleep(0.15)  # until the breaker, which the faults before have opened, lets the model be asked again
        raised(openai.InternalServerError, lambda: client.chat.completions.create(model="jarvis", messages=messages))
        chunks: list[Any] = []
        stream = client.chat.completions.create(model="jarvis", messages=messages, stream=True)
        code = failure_of(lambda: chunks.extend(stream))  # noqa: B023 - it is called at once
        assert code in ("bad_gateway", "timeout"), (fault, code)
        assert not any(one.choices[0].finish_reason for one in chunks), fault


async def check_client_that_leaves() -> None:
    """A client that leaves stops the model, whole and streamed."""
    for streamed in (True, False):
        control(MODEL, hold_after=2)
        act(MODEL, "shut")
        asked: dict[str, Any] = {"model": "jarvis", "messages": [{"role": "user", "content": "one two three"}]}
        async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=API_KEY, max_retries=0) as leaver:
            if streamed:
                stream = await leaver.chat.completions.create(**asked, stream=True)
                async for one in stream:
                    if one.choices[0].delta.content:
                        break
                await stream.close()
            else:
                asking = asyncio.create_task(leaver.chat.completions.create(**asked))
                await wait_until(lambda: state(MODEL)["open_streams"] == 1)
                asking.cancel()
                await asyncio.wait([asking])
        await wait_until(lambda: state(MODEL)["open_streams"] == 0)


def history(conversation_id: str) -> list[tuple[str, str]]:
    """Return what our own API shows of a conversation."""
    messages = ask("GET", f"/api/chat/history/{conversation_id}")["messages"]
    return [(one["role"], one["content"]) for one in messages]


def check_responses() -> None:
    """A response is stored, is found, goes on from the one before, and both are one history of ours."""
    first = client.responses.create(
        model="jarvis", input="My name is Ann", instructions="Be brief.", metadata={"a": "b"}
    )
    assert (first.status, first.output_text, first.model) == ("completed", "You said: My name is Ann", "jarvis")
    assert first.id.startswith("resp_")
    assert first.usage is not None
    assert first.conversation is not None
    assert first.metadata == {"a": "b"}
    assert last_request(MODEL, "/v1/chat/completions")["messages"][0] == {"role": "system", "content": "Be brief."}
    second = client.responses.create(model="jarvis", input="Who am I?", previous_response_id=first.id)
    sent = last_request(MODEL, "/v1/chat/completions")["messages"]
    assert [one["content"] for one in sent[1:-1]] == ["My name is Ann", "You said: My name is Ann"], sent
    # Before the newest message the model is told the time and the language.
    assert sent[-1]["content"].endswith("\n\nWho am I?"), sent
    assert second.previous_response_id == first.id
    assert second.conversation == first.conversation
    assert history(first.conversation.id) == [
        ("user", "My name is Ann"),
        ("assistant", "You said: My name is Ann"),
        ("user", "Who am I?"),
        ("assistant", "You said: Who am I?"),
    ]
    found = client.responses.retrieve(first.id)
    assert (found.output_text, found.status, found.created_at) == (first.output_text, "completed", first.created_at)
    item: Any
    (item,) = client.responses.input_items.list(first.id).data
    assert item.content[0].text == "My name is Ann"
    third = client.responses.create(model="jarvis", input="And now?", conversation=first.conversation.id)
    assert third.conversation == first.conversation


def check_responses_of_clients_that_keep_the_history() -> None:
    """Messages before the last one go to the model; the developer's are instructions."""
    answer = client.responses.create(
        model="small-model",
        input=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "input_text", "text": "one"}]},
            {
                "type": "message",
                "role": "assistant",
                "id": "msg_1",
                "status": "completed",
                "content": [{"type": "output_text", "text": "two", "annotations": []}],
            },
            {"role": "user", "content": "three"},
        ],
    )
    assert answer.output_text == "You said: three"
    sent = last_request(MODEL, "/v1/chat/completions")["messages"]
    assert [one["content"] for one in sent] == ["Be brief.", "one", "two", "three"]


def check_deleted_response() -> None:
    """Deleting takes the question and the answer out of the history; a conversation with nothing in it is gone too."""
    first = client.responses.create(model="jarvis", input="keep this")
    second = client.responses.create(model="jarvis", input="drop this", previous_response_id=first.id)
    assert first.conversation is not None
    client.responses.delete(second.id)
    assert [text for _, text in history(first.conversation.id)] == ["keep this", "You said: keep this"]
    raised(openai.NotFoundError, lambda: client.responses.retrieve(second.id))
    raised(openai.NotFoundError, lambda: client.responses.delete(second.id))
    error = raised(
        openai.BadRequestError,
        lambda: client.responses.create(model="jarvis", input="x", previous_response_id=second.id),
    )
    assert error.param == "previous_response_id"
    third = client.responses.create(model="jarvis", input="go on", previous_response_id=first.id)
    sent = last_request(MODEL, "/v1/chat/completions")["messages"]
    assert "drop this" not in [one["content"] for one in sent]
    client.responses.delete(third.id)
    client.responses.delete(first.id)
    listed = ask("GET", "/api/chat/conversations")["conversations"]
    assert first.conversation.id not in [one["id"] for one in listed]


def check_streamed_response() -> None:
    """A streamed response has the vocabulary's events in their order, numbered, stored or not; it can be followed again."""
    for store in (True, False):
        with client.responses.stream(model="jarvis", input="one two three", store=store) as stream:
            events = list(stream)
            final = stream.get_final_response()
        types = list(dict.fromkeys(event.type for event in events))
        assert types == [
            *("response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"),
            *("response.output_text.delta", "response.output_text.done", "response.content_part.done"),
            *("response.output_item.done", "response.completed"),
        ], types
        numbers = [event.sequence_number for event in events]
        assert numbers == sorted(set(numbers)), numbers
        assert final.output_text == "You said: one two three"
        assert final.status == "completed"
        assert (
            "".join(event.delta for event in events if event.type == "response.output_text.delta") == final.output_text
        )
        if not store:
            raised(openai.NotFoundError, partial(client.responses.retrieve, final.id))
            continue
        again = list(client.responses.retrieve(final.id, stream=True))
        assert [event.type for event in again if "delta" not in event.type] == [
            type_ for type_ in types if "delta" not in type_
        ]
        rest = list(client.responses.retrieve(final.id, stream=True, starting_after=again[-2].sequence_number))
        assert [event.type for event in rest] == ["response.completed"]


def check_response_that_is_not_stored() -> None:
    """With store: false nothing is left; Home Assistant's and the frameworks' calls of functions go through it."""
    before = ask("GET", "/api/chat/conversations")["conversations"]
    tool: Any = {
        "type": "function",
        "name": "light",
        "parameters": {"type": "object", "properties": {}},
        "strict": False,
    }
    asked: dict[str, Any] = {
        "model": "jarvis",
        "store": False,
        "tools": [tool],
        "user": "somebody",
        "reasoning": {"effort": "low"},
        "include": ["reasoning.encrypted_content"],
        "input": [
            {"type": "message", "role": "developer", "content": "Be brief."},
            {"type": "message", "role": "user", "content": "Light, please"},
        ],
    }
    call = [{"index": 0, "id": "call_0123456789", "type": "function", "function": {"name": "light", "arguments": "{}"}}]
    control(MODEL, events=[chunk(tool_calls=call), chunk("tool_calls")])
    answer = client.responses.create(**asked)
    (called,) = answer.output
    assert called.type == "function_call"
    assert (called.call_id, called.name, called.arguments) == ("call_0123456789", "light", "{}")
    sent = last_request(MODEL, "/v1/chat/completions")
    assert (sent["tools"][0]["function"]["name"], sent["reasoning_effort"]) == ("light", "low")
    with client.responses.stream(**asked) as stream:
        types = [event.type for event in stream]
        final = stream.get_final_response()
    assert types[2:] == [
        *("response.output_item.added", "response.function_call_arguments.delta"),
        *("response.function_call_arguments.done", "response.output_item.done", "response.completed"),
    ]
    assert final.output[0].type == "function_call"
    control(MODEL)
    done = {"type": "function_call_output", "call_id": "call_0123456789", "output": "done"}
    items = [*asked["input"], called.model_dump(exclude_none=True), done]
    answer = client.responses.create(**{**asked, "input": items})
    sent = last_request(MODEL, "/v1/chat/completions")["messages"]
    assert sent[2]["tool_calls"][0]["function"] == {"name": "light", "arguments": "{}"}
    assert sent[3] == {"role": "tool", "content": "done", "tool_call_id": "call_0123456789"}
    assert answer.output_text == "You said: Light, please"
    assert ask("GET", "/api/chat/conversations")["conversations"] == before


def check_functions_of_stored_responses() -> None:
    """A stored response calls the client's functions, and goes on with their outputs, whole and streamed, in one history."""
    tool: Any = {
        "type": "function",
        "name": "light",
        "parameters": {"type": "object", "properties": {}},
        "strict": False,
    }
    call = [{"index": 0, "id": "call_0123456789", "type": "function", "function": {"name": "light", "arguments": "{}"}}]
    for streamed in (False, True):

        def respond(streamed: bool = streamed, **asked: Any) -> tuple[Any, list[str]]:
            if not streamed:
                return client.responses.create(model="jarvis", tools=[tool], **asked), []
            with client.responses.stream(model="jarvis", tools=[tool], **asked) as stream:
                types: list[str] = [event.type for event in stream]
                return stream.get_final_response(), types

        control(MODEL, events=[chunk(content="Wait."), chunk(tool_calls=call), chunk("tool_calls")])
        first, types = respond(input="Light, please")
        assert first.status == "completed"
        assert [item.type for item in first.output] == ["message", "function_call"]
        assert first.output_text == "Wait."
        called = first.output[1]
        assert (called.call_id, called.name, called.arguments) == ("call_0123456789", "light", "{}")
        control(MODEL, answer="It is on.")
        output = {"type": "function_call_output", "call_id": called.call_id, "output": "done"}
        second, more = respond(input=[output], previous_response_id=first.id)
        assert [item.type for item in second.output] == ["message"], second.output
        assert (second.output_text, second.status) == ("It is on.", "completed")
        if streamed:
            begun = [
                "response.created",
                "response.in_progress",
                "response.output_item.added",
                "response.content_part.added",
            ]
            said = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]
            assert types == [
                *begun,
                *("response.output_text.delta", "response.output_item.added", "response.function_call_arguments.delta"),
                *("response.function_call_arguments.done", "response.output_item.done"),
                *(*said, "response.completed"),
            ]
            assert list(dict.fromkeys(more)) == [*begun, "response.output_text.delta", *said, "response.completed"]
        sent = last_request(MODEL, "/v1/chat/completions")["messages"]
        assert sent[-1] == {"role": "tool", "content": "done", "tool_call_id": called.call_id}
        third, _ = respond(input="And now?", previous_response_id=second.id)
        assert third.output_text == "It is on."
        client.responses.delete(second.id)
        assert first.conversation is not None
        assert [text for _, text in history(first.conversation.id)] == ["And now?", "It is on."]


def check_response_goes_on_without_being_stored() -> None:
    """With store: false a stored conversation is read, and not written to; a schema for the text is passed on."""
    first = client.responses.create(model="jarvis", input="My name is Ann")
    wanted: Any = {"format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}}
    asked: dict[str, Any] = {"model": "jarvis", "input": "Who am I?", "previous_response_id": first.id, "text": wanted}
    client.responses.create(**asked, store=False)
    sent = last_request(MODEL, "/v1/chat/completions")
    assert [one["content"] for one in sent["messages"][1:]] == [
        "My name is Ann",
        "You said: My name is Ann",
        "Who am I?",
    ]
    assert sent["response_format"]["json_schema"] == {"name": "n", "schema": {"type": "object"}, "strict": True}
    assert first.conversation is not None
    assert len(history(first.conversation.id)) == 2
    error = raised(openai.BadRequestError, lambda: client.responses.create(**asked))
    assert error.param == "text.format"


async def check_cancelled_response() -> None:
    """A response that runs is cancelled by its id: the model stops, and what was said is kept."""
    control(MODEL, hold_after=2)
    act(MODEL, "shut")
    async with AsyncOpenAI(base_url=f"{URL}/v1", api_key=API_KEY, max_retries=0) as canceller:
        stream = await canceller.responses.create(model="jarvis", input="one two three", stream=True)
        response_id = ""
        async for event in stream:
            if event.type == "response.created":
                response_id = event.response.id
            if event.type == "response.output_text.delta":
                break
        running = await canceller.responses.retrieve(response_id)
        assert running.status == "in_progress"
        cancelled = await canceller.responses.cancel(response_id)
        assert cancelled.status == "cancelled"
        rest = [event async for event in stream]
        assert rest[-1].type == "response.incomplete"
        assert rest[-1].response.status == "cancelled"
        assert state(MODEL)["open_streams"] == 0


def check_responses_that_break() -> None:
    """A stream that is cut ends as response.failed; a model that says nothing is an error, whole."""
    for store in (True, False):
        control(MODEL, cut_after=2)
        events = list(client.responses.create(model="jarvis", input="one two three", stream=True, store=store))
        assert events[-1].type == "response.failed"
        assert events[-1].response.error is not None
        assert events[-1].response.error.code == "server_error"
        time.sleep(0.15)  # until the breaker lets the model be asked again
        control(MODEL, faults={"/v1/chat": {"status": 503}})
        raised(
            openai.InternalServerError,
            partial(client.responses.create, model="jarvis", input="one", store=store),
        )
        time.sleep(0.15)
    control(MODEL, finish_reason="length")
    answer = client.responses.create(model="jarvis", input="one two", max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


async def check_client_secret() -> None:
    """A page's own key opens one WebSocket, once, and nothing else."""
    secret = client.realtime.client_secrets.create(session={"type": "realtime", "model": "jarvis"})
    assert secret.value.startswith("ek_")
    assert 500 < secret.expires_at - time.time() <= 600
    page = AsyncOpenAI(base_url=f"{URL}/v1", api_key=secret.value, max_retries=0)
    async with page.realtime.connect(model="jarvis") as connection:
        event = await connection.recv()
        assert event.type == "session.created"
    async with page.realtime.connect(model="jarvis") as connection:
        event = await connection.recv()
        assert event.type == "error"
        assert event.error.code == "unauthenticated"
    raised(openai.AuthenticationError, lambda: client.with_options(api_key=secret.value).models.list())


if __name__ == "__main__":
    run_checks(globals())
