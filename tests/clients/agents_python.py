"""What OpenAI's Agents SDK for Python is promised (``openai-agents``), over responses and over chat completions."""

from __future__ import annotations

import json
from typing import Any

from agents import (
    Agent,
    Model,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from checks import API_KEY, MODEL, URL, ask, control, last_request, run_checks
from openai import AsyncOpenAI

CALL = [
    {
        "index": 0,
        "id": "call_0123456789",
        "type": "function",
        "function": {"name": "light", "arguments": '{"on": true}'},
    }
]
ASKED: list[bool] = []


@function_tool
def light(on: bool) -> str:
    """Switch a light."""
    ASKED.append(on)
    control(MODEL, answer="It is on.")
    return "done"


def calls() -> None:
    """Have the model call the function; once that was done it says so."""
    deltas = [({"tool_calls": CALL}, None), ({}, "tool_calls")]
    events = [
        json.dumps({"model": "small-model", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})
        for delta, reason in deltas
    ]
    ASKED.clear()
    control(MODEL, events=events)


def make_agent(model: Model, **settings: Any) -> Agent[None]:
    """Return an agent with the function."""
    return Agent(
        "house", instructions="Be brief.", model=model, tools=[light], model_settings=ModelSettings(**settings)
    )


def make_client() -> AsyncOpenAI:
    """Return a client of the loop that runs."""
    set_tracing_disabled(disabled=True)
    return AsyncOpenAI(base_url=f"{URL}/v1", api_key=API_KEY, max_retries=0, timeout=10)


async def check_over_responses() -> None:
    """An agent that keeps the history itself calls its function and answers, whole and streamed, stored or not."""
    async with make_client() as client:
        for settings in ({}, {"store": False}):
            agent = make_agent(OpenAIResponsesModel("jarvis", client), **settings)
            calls()
            result = await Runner.run(agent, "Light, please")
            assert (result.final_output, ASKED) == ("It is on.", [True])
            sent = last_request(MODEL, "/v1/chat/completions")["messages"]
            assert [one["role"] for one in sent] == ["system", "user", "assistant", "tool"]
            calls()
            streamed = Runner.run_streamed(agent, "Light, please")
            types = [event.type async for event in streamed.stream_events()]
            assert (streamed.final_output, ASKED) == ("It is on.", [True])
            assert "raw_response_event" in types


async def check_history_of_the_server() -> None:
    """An agent that leaves the history to the server goes on from response to response, in one conversation of ours."""
    async with make_client() as client:
        agent = make_agent(OpenAIResponsesModel("jarvis", client))
        calls()
        result = await Runner.run(agent, "Light, please", auto_previous_response_id=True)
        assert (result.final_output, ASKED) == ("It is on.", [True])
        result = await Runner.run(agent, "And now?", previous_response_id=result.last_response_id)
        assert result.final_output == "It is on."
        conversation = ask("GET", "/api/chat/conversations")["conversations"][0]
        shown = ask("GET", f"/api/chat/history/{conversation['id']}")["messages"]
        assert [one["content"] for one in shown if one["type"] == "message"] == [
            *("Light, please", "It is on.", "And now?", "It is on."),
        ]


async def check_over_chat_completions() -> None:
    """Over chat completions an agent calls its function and answers, whole and streamed."""
    async with make_client() as client:
        agent = make_agent(OpenAIChatCompletionsModel("jarvis", client))
        calls()
        result = await Runner.run(agent, "Light, please")
        assert (result.final_output, ASKED) == ("It is on.", [True])
        calls()
        streamed = Runner.run_streamed(agent, "Light, please")
        async for _ in streamed.stream_events():
            pass
        assert (streamed.final_output, ASKED) == ("It is on.", [True])


if __name__ == "__main__":
    run_checks(globals())
