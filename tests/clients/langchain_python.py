"""What LangChain is promised (``langchain-openai``), over chat completions and over responses."""

from __future__ import annotations

import json
from typing import Any

from checks import API_KEY, MODEL, URL, ask, control, last_request, run_checks
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings

ADDRESS: dict[str, Any] = {"base_url": f"{URL}/v1", "api_key": API_KEY, "max_retries": 0, "timeout": 10}
CALL = [
    {
        "index": 0,
        "id": "call_0123456789",
        "type": "function",
        "function": {"name": "light", "arguments": '{"on": true}'},
    }
]


@tool
def light(on: bool) -> str:
    """Switch a light."""
    return f"on: {on}"


def say(**delta: object) -> str:
    """Return the data of a chunk, as the model's server sends it."""
    reason = "tool_calls" if not delta else None
    return json.dumps({"model": "small-model", "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})


def check_chat() -> None:
    """A chat is answered whole and streamed, with its counts."""
    model = ChatOpenAI(model="jarvis", **ADDRESS)
    messages = [SystemMessage("Be brief."), HumanMessage("one two three")]
    answer = model.invoke(messages)
    assert answer.content == "You said: one two three"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["total_tokens"] > 0
    control(MODEL, delta_delay_s=0.02)  # what comes together is given together
    pieces = list(model.stream(messages, stream_usage=True))
    assert "".join(str(piece.content) for piece in pieces) == "You said: one two three"
    assert len(pieces) > 4


def check_tools() -> None:
    """Tools are bound, called, whole and streamed, and their outputs go back."""
    model = ChatOpenAI(model="jarvis", **ADDRESS).bind_tools([light])
    control(MODEL, events=[say(tool_calls=CALL), say()])
    asked = HumanMessage("Light, please")
    answer = model.invoke([asked])
    assert isinstance(answer, AIMessage)
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("light", {"on": True})]
    whole: Any = None
    for piece in model.stream([asked]):
        whole = piece if whole is None else whole + piece
    assert whole.tool_calls[0]["args"] == {"on": True}
    control(MODEL)
    output = ToolMessage("done", tool_call_id=answer.tool_calls[0]["id"])
    model.invoke([asked, answer, output])
    sent = last_request(MODEL, "/v1/chat/completions")["messages"]
    assert [one["role"] for one in sent[-3:]] == ["user", "assistant", "tool"]


def check_structured_output() -> None:
    """A schema goes to the model's server, and its JSON comes back as what it is."""
    schema = {"title": "Light", "type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    control(MODEL, answer='{"on": true}')
    model = ChatOpenAI(model="small-model", **ADDRESS).with_structured_output(schema, method="json_schema")
    assert model.invoke("Light?") == {"on": True}
    assert last_request(MODEL, "/v1/chat/completions")["response_format"]["type"] == "json_schema"


def check_responses() -> None:
    """Over responses a conversation goes on by the id of the answer before, and is one of ours."""
    model = ChatOpenAI(model="jarvis", use_responses_api=True, use_previous_response_id=True, **ADDRESS)
    first = model.invoke([HumanMessage("My name is Ann")])
    second = model.invoke([HumanMessage("My name is Ann"), first, HumanMessage("Who am I?")])
    assert second.text == "You said: Who am I?"
    sent = last_request(MODEL, "/v1/chat/completions")["messages"]
    assert [one["content"] for one in sent[1:-1]] == ["My name is Ann", "You said: My name is Ann"], sent
    # Before the newest message the model is told the time and the language.
    assert sent[-1]["content"].endswith("\n\nWho am I?"), sent
    conversation = ask("GET", "/api/chat/conversations")["conversations"][0]
    assert conversation["message_count"] == 4
    pieces = list(model.stream([HumanMessage("one two three")]))
    assert "".join(piece.text for piece in pieces) == "You said: one two three"


def check_embeddings() -> None:
    """Texts are embedded, as long as LangChain sends them as texts."""
    embeddings = OpenAIEmbeddings(model="jarvis-embed", check_embedding_ctx_length=False, **ADDRESS)
    assert [len(one) for one in embeddings.embed_documents(["a cat", "a dog"])] == [384, 384]
    assert len(embeddings.embed_query("a cat")) == 384


if __name__ == "__main__":
    run_checks(globals())
