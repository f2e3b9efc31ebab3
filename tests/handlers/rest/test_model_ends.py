"""
How a model's answer ends, whatever its server sends: as JSON, as events, over the WebSocket, in the history, in the next prompt.

Each kind of ``../../fakes/openai_compatible.py`` goes through the running server; the next turn of the same conversation is
asked of a model whose template takes messages in one order only.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import pytest

from tests.fakes.openai_compatible import FakeModelServer, ModelServerMode
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.events import read_events, text_of
from tests.handlers.realtime_client import open_socket
from tests.handlers.rest.api import Api
from tests.system.server import Server

MARKS = ("<think", "</think", "<|", "|>", "HassTurnOn", "[THINK]", "hm hm")
"""What is in no answer that is stored or sent back."""


def chunk(content: object = None, reason: str | None = None, **delta: object) -> str:
    """Return a chunk of a completion."""
    fields = ({} if content is None else {"content": content}) | delta
    return json.dumps({"model": "small-model", "choices": [{"index": 0, "delta": fields, "finish_reason": reason}]})


class Kind(NamedTuple):
    """What a server sends, and what is to become of it."""

    mode: dict[str, Any]
    text: str
    status: str
    reason: str
    code: str = "bad_gateway"
    """Of the error, where there is no text."""


def said(*contents: object, reason: str | None = "stop", then: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a mode that sends these contents, an end, and what else is to come before ``[DONE]``."""
    end = () if reason is None else (chunk(None, reason),)
    return {"events": (*map(chunk, contents), *end, *then)}


GOOD = ("completed", "stop")
HALF = ("Half",)

THINKING = {
    "tags": Kind(said("<think>hm hm</think>", "Oui."), "Oui.", *GOOD),
    "tags with line ends": Kind(said("<think>\nhm hm\n</think>\n\n", "Oui."), "Oui.", *GOOD),
    "tags cut anywhere": Kind({"deltas": tuple("<think>hm hm</think>Oui.")}, "Oui.", *GOOD),
    "tags after text": Kind(said("Oui. ", "<think>hm hm", "</think>", "Non."), "Oui. Non.", *GOOD),
    "never closed": Kind(said("<think>hm hm", " hm hm"), "", "failed", "thinking"),
    "never closed after text": Kind(said("Oui. <think>hm hm"), "Oui. ", "incomplete", "thinking"),
    "other tags": Kind(said("[THINK]hm hm[/THINK]", "Oui."), "Oui.", *GOOD),
    "quoted": Kind(said("Écris `<think>` puis `</think>`."), "Écris `<think>` puis `</think>`.", *GOOD),
    "quoted in thinking": Kind(said("<think>hm hm `</think>` hm hm</think>Oui."), "Oui.", *GOOD),
    "reasoning_content": Kind({"reasoning": "hm hm", "deltas": ("Oui.",)}, "Oui.", *GOOD),
    "reasoning": Kind({"reasoning": "hm hm", "reasoning_field": "reasoning", "deltas": ("Oui.",)}, "Oui.", *GOOD),
    "parts": Kind({"reasoning": "hm hm", "reasoning_field": "parts", "deltas": ("Oui.",)}, "Oui.", *GOOD),
    "parts alone": Kind({"reasoning": "hm hm", "reasoning_field": "parts", "deltas": ()}, "", "failed", "thinking"),
    "in a whole answer": Kind({"shape": "json", "answer": "<think>hm hm</think>Oui."}, "Oui.", *GOOD),
    "all tokens": Kind(said("<think>hm hm", reason="length"), "", "failed", "max_tokens"),
}
ENDS = {
    "eos": Kind({"finish_reason": "eos", "deltas": ("Oui.",)}, "Oui.", *GOOD),
    "eos_token": Kind({"finish_reason": "eos_token", "deltas": ("Oui.",)}, "Oui.", *GOOD),
    "the empty text": Kind({"finish_reason": "", "deltas": ("Oui.",)}, "Oui.", *GOOD),
    "none but [DONE]": Kind({"finish_reason": None, "deltas": ("Oui.",)}, "Oui.", *GOOD),
    "STOP": Kind({"finish_reason": "STOP", "deltas": ("Oui.",)}, "Oui.", *GOOD),
    "length": Kind({"finish_reason": "length", "deltas": HALF}, "Half", "incomplete", "max_tokens"),
    **{
        reason: Kind({"finish_reason": reason, "deltas": HALF}, "Half", "incomplete", reason)
        for reason in ("content_filter", "insufficient_system_resource", "error", "abort", "repetition", "tool_calls")
    },
    "a filter without a word": Kind({"finish_reason": "content_filter", "deltas": ()}, "", "failed", "content_filter"),
    "abort without a word": Kind({"finish_reason": "abort", "deltas": ()}, "", "failed", "abort"),
    "filter results alone": Kind({"events": ('{"choices":[],"prompt_filter_results":[]}',)}, "", "failed", "empty"),
    "nothing": Kind({"deltas": ()}, "", "failed", "empty"),
    "white space": Kind(said("\n", " \n"), "", "failed", "empty"),
    "nothing, whole": Kind({"shape": "json", "answer": ""}, "", "failed", "empty"),
    "a refusal": Kind({"events": (chunk(refusal="Je ne peux pas."), chunk(None, "stop"))}, "Je ne peux pas.", "incomplete", "refusal"),
    "a tool": Kind(
        {"events": (chunk(tool_calls=[{"index": 0, "function": {"name": "HassTurnOn", "arguments": "{}"}}]), chunk(None, "tool_calls"))},
        "", "failed", "tool_calls",
    ),
    "a tool that says stop": Kind(
        {"events": (chunk(function_call={"name": "HassTurnOn"}), chunk(None, "stop"))}, "", "failed", "tool_calls"
    ),
    "a broken frame": Kind({"deltas": ("Half", "way"), "cut_after": 1, "half_line": True, "delta_delay_s": 0.05}, "Half", "incomplete", "stream_lost"),
    "a clean end in a frame": Kind(
        {"deltas": ("Half", "way"), "cut_after": 1, "half_line": True, "cut": "end"}, "Half", "incomplete", "stream_lost"
    ),
    "silence in a frame": Kind({"deltas": ("Half", "way"), "stall_after": 1, "half_line": True}, "Half", "incomplete", "stalled"),
    **{
        f"a flood of {flood}": Kind({"deltas": ("Half", "way"), "flood_after": 1, "flood": flood}, "Half", "incomplete", "flood")
        for flood in ("comments", "empty", "bytes", "long_comments")
    },
    "a flood alone": Kind({"deltas": ("Half",), "flood_after": 0}, "", "failed", "flood"),
}  # fmt: skip
ERRORS = {
    **{
        f"{shape} in the middle": Kind(
            {"error_shape": shape, "error_after": 1, "deltas": ("Half", "way")}, "Half", "incomplete", "bad_gateway"
        )
        for shape in ("object", "string", "nested", "vllm", "fastapi", "list", "choice", "event", "field", "text")
    },
    "anthropic in the middle": Kind(
        {"error_shape": "anthropic", "error_after": 1, "deltas": ("Half", "way")}, "Half", "incomplete", "unavailable"
    ),
    "at once": Kind({"error_after": 0, "deltas": HALF}, "", "failed", "bad_gateway"),
    "a field at once": Kind(
        {"error_shape": "field", "error_after": 0, "deltas": HALF}, "", "failed", "bad_gateway"
    ),
    "after the end": Kind(said("Half", then=('{"error": {"code": 400, "message": "kaput"}}',)), "Half", "incomplete", "bad_gateway"),
    "a limit": Kind({"events": ('{"error": {"code": 429, "message": "slow down"}}',)}, "", "failed", "rate_limited", "rate_limited"),
    "a filter of the question": Kind(
        {"events": ('{"error": {"code": "content_filter", "message": "policy"}}',)}, "", "failed", "content_filter"
    ),
    "words": Kind({"events": ("Internal Server Error",)}, "", "failed", "bad_gateway"),
}  # fmt: skip
SHAPES = {
    "whole": Kind({"shape": "json", "answer": "Oui."}, "Oui.", *GOOD),
    "whole on many lines": Kind({"shape": "pretty", "answer": "Oui."}, "Oui.", *GOOD),
    "a chunk a line": Kind({"shape": "ndjson", "deltas": ("O", "ui.")}, "Oui.", *GOOD),
    **{
        f"labelled {label or 'nothing'}": Kind({"content_type": label, "deltas": ("O", "ui.")}, "Oui.", *GOOD)
        for label in ("application/json", "text/plain", "application/octet-stream", "text/html", "x", "")
    },
    "parts": Kind({"content": "parts", "deltas": ("O", "ui.")}, "Oui.", *GOOD),
    "whole in parts": Kind({"shape": "json", "content": "parts", "answer": "Oui."}, "Oui.", *GOOD),
    "unknown parts": Kind(
        said([{"type": "image_url", "image_url": "x"}, {"type": "text", "text": "O"}, 7, None], "ui."), "Oui.", *GOOD
    ),
    "counts with a point": Kind({"float_usage": True, "deltas": ("O", "ui.")}, "Oui.", *GOOD),
    "delta null": Kind({"events": ('{"choices":[{"delta":null}]}', chunk("Oui."), chunk(None, "stop"))}, "Oui.", *GOOD),
    "role null": Kind({"events": (chunk("", role=None), chunk("Oui."), chunk(None, "stop"))}, "Oui.", *GOOD),
    "choices null": Kind({"events": ('{"choices":null}', chunk("Oui."), chunk(None, "stop"))}, "Oui.", *GOOD),
    "a choice that is an object": Kind(
        {"events": ('{"choices":{"delta":{"content":"Oui."}}}', chunk(None, "stop"))}, "Oui.", *GOOD
    ),
    "no numbers": Kind(
        {"events": ('{"choices":[{"delta":{"content":"Oui."},"logprobs":{"x":NaN,"y":-Infinity}}]}', chunk(None, "stop"))},
        "Oui.",
        *GOOD,
    ),
    "other choices": Kind(
        {"events": (chunk("Oui."), '{"choices":[{"index":1,"delta":{"content":"Non."}}]}', chunk(None, "stop"))}, "Oui.", *GOOD
    ),
    "kinds that nobody knows": Kind(
        {"events": ("ping", "[]", "null", "7", '{"type":"ping"}', '"x"', chunk("Oui."), chunk(None, "stop"))}, "Oui.", *GOOD
    ),
    "half a character": Kind({"events": ('{"choices":[{"delta":{"content":"a\\ud83d"}}]}', chunk("b"), chunk(None, "stop"))}, "a\ufffdb", *GOOD),
    "a character in two halves": Kind(
        {"events": ('{"choices":[{"delta":{"content":"a\\ud83d"}}]}', '{"choices":[{"delta":{"content":"\\ude42b"}}]}', chunk(None, "stop"))},
        "a🙂b",
        *GOOD,
    ),
    "the other half alone": Kind({"events": ('{"choices":[{"delta":{"content":"\\ude42b"}}]}', chunk(None, "stop"))}, "\ufffdb", *GOOD),
    "half a character at the end": Kind({"events": ('{"choices":[{"delta":{"content":"a\\ud83d"}}]}', chunk(None, "stop"))}, "a\ufffd", *GOOD),
    "a line separator": Kind(said("a\u2028b"), "a\u2028b", *GOOD),
    "a byte-order mark": Kind({"frames": "bom", "deltas": ("O", "ui.")}, "Oui.", *GOOD),
    "data on two lines": Kind({"frames": "split", "deltas": ("O", "ui.")}, "Oui.", *GOOD),
    "no blank lines": Kind({"frames": "no_blanks", "deltas": ("O", "ui.")}, "Oui.", *GOOD),
    "carriage returns": Kind({"line_ending": "\r", "deltas": ("O", "ui.")}, "Oui.", *GOOD),
    "carriage returns, cut": Kind({"line_ending": "\r\n", "piece_bytes": 3, "deltas": ("O", "ui.")}, "Oui.", *GOOD),
    "no blank behind data": Kind({"field_space": False, "deltas": ("O", "ui.")}, "Oui.", *GOOD),
}  # fmt: skip
CALL = '{"name": "HassTurnOn", "parameters": {"area": "salon"}}'
TOKENS = {
    "the end's token": Kind(said("Oui.", "<|im_end|>"), "Oui.", *GOOD),
    "the end's token, cut": Kind({"deltas": tuple("Oui.<|im_end|>\n")}, "Oui.", *GOOD),
    "the end's token, and more": Kind(said("Oui.<|im_end|>\n<|im_start|>user\nhm hm", reason="length"), "Oui.", *GOOD),
    "another end's token": Kind(said("Oui.<｜end▁of▁sentence｜>"), "Oui.", *GOOD),
    "a header": Kind(said("<|im_start|>assistant\n", "Oui.<|eot_id|>"), "Oui.", *GOOD),
    "channels": Kind(
        said("<|channel|>analysis<|message|>hm hm", "<|end|><|start|>assistant<|channel|>final<|message|>Oui."), "Oui.", *GOOD
    ),
    "channels, cut": Kind(
        {"deltas": tuple("<|channel|>analysis<|message|>hm hm<|end|><|start|>assistant<|channel|>final<|message|>Oui.<|return|>")},
        "Oui.",
        *GOOD,
    ),
    "channels without their tokens": Kind(said("analysis", "Hm hm", "assistantfinal", "Oui."), "Oui.", *GOOD),
    "nothing but tokens": Kind(said("<|im_end|>"), "", "failed", "empty"),
    "a call": Kind(said(CALL), "", "failed", "tool_calls"),
    "a call, cut": Kind({"deltas": tuple(CALL)}, "", "failed", "tool_calls"),
    "a call in tags": Kind(said("<tool_call>\n", CALL, "\n</tool_call>"), "", "failed", "tool_calls"),
    "a call in a list": Kind(said(f"[{CALL}]"), "", "failed", "tool_calls"),
    "a call in a fence": Kind(said(f"```json\n{CALL}\n```"), "", "failed", "tool_calls"),
    "a call after words": Kind(said("Oui. ", CALL), "Oui. ", "incomplete", "tool_calls"),
    "a call that is cut": Kind(said(CALL[:40], reason="length"), "", "failed", "max_tokens"),
    "a call after a token": Kind(said("<|python_tag|>", CALL), "", "failed", "tool_calls"),
    "JSON that was asked for": Kind(said('{"name": "Zoé", "age": 7}'), '{"name": "Zoé", "age": 7}', *GOOD),
}  # fmt: skip
KINDS = {
    f"{group}: {name}": kind
    for group, kinds in (("thinking", THINKING), ("end", ENDS), ("error", ERRORS), ("shape", SHAPES), ("token", TOKENS))
    for name, kind in kinds.items()
}


kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())


async def ask_again(house: Api, model: FakeModelServer, conversation: str) -> list[dict[str, str]]:
    """Ask once more in *conversation*; return what was sent to a model that takes one order only."""
    model.mode = ModelServerMode(template="alternating")
    again = await house.say("Encore ?", conversation_id=conversation)
    assert (again["status"], again["reason"]) == GOOD
    messages: list[dict[str, str]] = model.last("/v1/chat").json["messages"]
    assert messages[-1]["content"].endswith("Encore ?")
    return messages


@kinds
async def test_as_json(house: Api, model: FakeModelServer, kind: Kind) -> None:
    """An answer is its text and says how it ended; without a word it is an error that says why. The next turn is answered."""
    model.mode = ModelServerMode(**kind.mode)
    answer = await house.post("/api/chat", {"content": "Bonjour ?"})
    if kind.text:
        assert answer.status == 200, answer.body
        assert (answer.json["content"], answer.json["status"], answer.json["reason"]) == kind[1:4]
        conversation, response = answer.json["conversation_id"], answer.json["id"]
    else:
        assert answer.code == kind.code
        details = answer.json["details"]
        conversation, response = details["conversation_id"], details["response_id"]
    state = await house.state(response)
    assert (state["content"], state["status"], state["reason"]) == kind[1:4]
    stored = [("user", "Bonjour ?", "completed")]
    if kind.text:
        stored.append(("assistant", kind.text, kind.status))
    assert await house.history(conversation) == stored
    sent = await ask_again(house, model, conversation)
    if "quoted" not in kind.text and "`" not in kind.text:
        assert not any(mark in message["content"] for message in sent for mark in MARKS)


@kinds
async def test_as_events(house: Api, model: FakeModelServer, kind: Kind) -> None:
    """Its events add up to the same text, and the last one tells of the same end."""
    model.mode = ModelServerMode(**kind.mode)
    async with house.stream("Bonjour ?") as stream:
        events = await read_events(stream)
    assert text_of(events) == kind.text
    response = events[-1].data["response"]
    assert events[-1].name == "response.done"
    assert response["status"] == kind.status
    if kind.status == "completed":
        assert response["status_details"] is None
    else:
        told = response["status_details"]["reason"]
        assert told == {"max_tokens": "max_output_tokens"}.get(kind.reason, kind.reason)
    if kind.status == "failed":
        assert response["status_details"]["error"]["code"] == kind.code
        assert response["output"] == []


@kinds
async def test_over_the_socket(
    house: Api, model_server: tuple[Server, int, int], model: FakeModelServer, kind: Kind
) -> None:
    """Over the WebSocket it is the same, and the same socket goes on to the next turn."""
    async with open_socket(model_server[0].url) as socket:
        model.mode = ModelServerMode(**kind.mode)
        await socket.ask("Bonjour ?")
        response = await socket.done()
        assert (socket.tally.text, response["status"]) == (kind.text, kind.status)
        model.mode = ModelServerMode(template="alternating")
        await socket.ask("Encore ?")
        assert (await socket.done())["status"] == "completed"


# What is told of errors


@pytest.mark.parametrize(
    "shape", ["object", "string", "nested", "vllm", "fastapi", "list", "choice", "event", "field", "text"]
)
async def test_words_of_the_server(house: Api, model: FakeModelServer, shape: Any) -> None:
    """What the server said of its error is in the details, whatever shape it had, and not in our sentence."""
    model.mode = ModelServerMode(error_shape=shape, error_after=0, error_message="la carte a fondu")
    answer = await house.post("/api/chat", {"content": "Bonjour ?"})
    assert answer.error == (502, "bad_gateway")
    assert "la carte a fondu" in answer.json["details"]["neighbour_error"]
    assert "la carte" not in answer.json["error"]
    model.mode = ModelServerMode(error_shape=shape, error_after=1, error_message="la carte a fondu")
    answer = await house.post("/api/chat", {"content": "Bonjour ?"})
    assert (answer.status, answer.json["status"]) == (200, "incomplete")
    state = await house.state(answer.json["id"])
    assert "la carte a fondu" in state["details"]["neighbour_error"]


async def test_only_the_closing_tag(house: Api, model: FakeModelServer) -> None:
    """Thinking of which only the end is told is not the answer, and from the second answer on nobody gets it either."""
    thinking = ("Okay, ", "hm hm.", "\n</think>\n\n", "Ou", "i.")
    model.mode = ModelServerMode(deltas=thinking)
    answer = await house.say("Bonjour ?")
    assert (answer["content"], answer["status"]) == ("Oui.", "completed")
    assert (await house.history(answer["conversation_id"]))[-1] == ("assistant", "Oui.", "completed")
    async with house.stream("Bonjour ?") as stream:
        events = await read_events(stream)
    assert text_of(events) == "Oui."
    assert events[-1].data["response"]["output"][0]["content"][0]["text"] == "Oui."
    sent = await ask_again(house, model, answer["conversation_id"])
    assert [message["content"] for message in sent[1:3]] == ["Bonjour ?", "Oui."]
    # A model that does not do so any more is heard as it speaks again.
    model.mode = ModelServerMode(deltas=("Ou", "i."), hold_after=1)
    async with house.stream("Bonjour ?") as stream:
        await read_events(stream, until="Ou")
        model.gate.release()
        assert text_of(await read_events(stream)) == "i."


async def test_thinking_keeps_the_stream_alive(house: Api, model: FakeModelServer) -> None:
    """A model that thinks for longer than it may be silent is waited for."""
    model.mode = ModelServerMode(deltas=("<think>", *("hm " * 1,) * 8, "</think>", "Oui."), delta_delay_s=0.2)
    assert (await house.say("Bonjour ?"))["content"] == "Oui."
    model.mode = ModelServerMode(
        events=(*(chunk(reasoning="hm") for _ in range(8)), chunk("Oui."), chunk(None, "stop")), delta_delay_s=0.2
    )
    assert (await house.say("Bonjour ?"))["content"] == "Oui."


async def test_thinking_is_not_spoken(
    house: Api, model_server: tuple[Server, int, int], model: FakeModelServer
) -> None:
    """The voice says the answer only, and its transcript is the answer."""
    async with (
        FakeBridges(mode=BridgesMode(), port=model_server[2]) as bridges,
        open_socket(model_server[0].url) as socket,
    ):
        await socket.send("session.update", session={"output_modalities": ["audio"]})
        model.mode = ModelServerMode(**said("<think>hm hm.</think>", "Oui, bien sûr. ", CALL, "<|im_end|>"))
        await socket.ask("Bonjour ?")
        response = await socket.done()
        assert (response["status"], socket.tally.text.strip()) == ("incomplete", "Oui, bien sûr.")
        spoken = [request.json["text"] for request in bridges.requests if request.path == "/api/tts/synthesize"]
        assert spoken == ["Oui, bien sûr."]


async def until_model_is(house: Api, *, well: bool) -> None:
    """Wait until /health, which looks once a second, says so of the model's server."""
    async with asyncio.timeout(5):
        while ((await house.get("/health")).json["services"]["python_bridges"] == "healthy") != well:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_health_learns_of_a_broken_frame(
    house: Api, model_server: tuple[Server, int, int], model: FakeModelServer
) -> None:
    """A stream that breaks off in mid-answer, inside a frame, shows in /health until the next one goes well."""
    accidents: list[dict[str, Any]] = [{"half_line": True}, {"half_line": True, "cut": "end"}, {}]
    async with FakeBridges(port=model_server[2]):
        await house.get("/api/voice/voices")
        for accident in accidents:
            await until_model_is(house, well=True)
            model.mode = ModelServerMode(deltas=("Half", "way"), cut_after=1, delta_delay_s=0.05, **accident)
            assert (await house.say("Bonjour ?"))["reason"] == "stream_lost"
            await until_model_is(house, well=False)
            model.mode = ModelServerMode()
            await house.say("Bonjour ?")
