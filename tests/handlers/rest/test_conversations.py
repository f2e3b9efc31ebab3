"""Conversations: made, listed, found, changed and deleted; and their histories."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import pytest

from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.events import read_events
from tests.handlers.rest.api import Api, created
from tests.handlers.rest.conftest import AsUser, make_token

CONVERSATION = "/api/chat/conversation"
CONVERSATIONS = "/api/chat/conversations"


@pytest.fixture
async def own(as_user: AsUser) -> Api:
    """Ask as a user who has nothing yet."""
    return as_user(make_token(str(uuid.uuid4())))


async def all_pages(api: Api, path: str, items: str, limit: int) -> list[Any]:
    """Return the items of all pages; every page but the last is full."""
    found: list[Any] = []
    cursor = ""
    while True:
        page = (await api.get(path, params={"limit": str(limit), **({"cursor": cursor} if cursor else {})})).json
        found += page[items]
        if page["next_cursor"] is None:
            return found
        assert len(page[items]) == limit
        cursor = page["next_cursor"]


async def test_made(api: Api) -> None:
    """A conversation is made with a title or without one, and has an id that sorts by time."""
    made = (await api.post(CONVERSATION, {"title": "Recettes"})).json
    assert (made["title"], made["message_count"], made["archived"], made["summary"]) == ("Recettes", 0, False, None)
    assert made["created_at"] == made["updated_at"]
    assert uuid.UUID(made["id"]).version == 7
    untitled = (await api.post(CONVERSATION, {})).json
    assert untitled["title"]
    assert untitled["id"] > made["id"]
    assert await api.history(made["id"]) == []


@pytest.mark.parametrize("title", ["a\nb", "\x1b[31mrouge", "facture\u202efdp.exe"], ids=ascii)
async def test_made_with_a_title_that_is_none(api: Api, title: str) -> None:
    """A title that would act on the line it is shown on is refused by its name, and nothing is made."""
    before = (await api.get(CONVERSATIONS, params={"limit": "1"})).json
    answer = await api.post(CONVERSATION, {"title": title})
    assert (answer.error, answer.path) == ((400, "invalid_request"), "$.title")
    assert (await api.get(CONVERSATIONS, params={"limit": "1"})).json == before


async def test_title_of_a_message_with_controls(own: Api) -> None:
    """A title that is made of a message has none of its controls; the message keeps them."""
    content = "\x1b[2Jouvre facture\u202efdp.exe\x07"
    said = await own.say(content)
    (made,) = (await own.get(CONVERSATIONS)).json["conversations"]
    assert made["title"] == "[2Jouvre facturefdp.exe"
    assert (await own.history(said["conversation_id"]))[0][1] == content


async def test_made_by_chatting(api: Api) -> None:
    """The first message makes a conversation that has its start, on one line, as title, and counts its messages."""
    said = await api.say("  Quelle\n heure   est-il à " + "Montréal " * 20)
    first = (await api.get(CONVERSATIONS, params={"limit": "1"})).json["conversations"][0]
    assert first["id"] == said["conversation_id"]
    assert first["title"].startswith("Quelle heure est-il à Montréal")
    assert len(first["title"]) <= 80
    assert first["message_count"] == 2
    assert first["updated_at"] > first["created_at"]


async def test_listed_newest_first(own: Api) -> None:
    """The newest comes first, and talking in an old one makes it the newest."""
    made = [(await own.post(CONVERSATION, {"title": f"n° {n}"})).json["id"] for n in range(3)]
    assert [one["id"] for one in (await own.get(CONVERSATIONS)).json["conversations"]] == made[::-1]
    await own.say("encore", conversation_id=made[0])
    listed = (await own.get(CONVERSATIONS)).json
    assert [one["id"] for one in listed["conversations"]] == [made[0], made[2], made[1]]
    assert listed["next_cursor"] is None


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 200])
async def test_listed_in_pages(own: Api, limit: int) -> None:
    """Pages of any size give everything once and in order."""
    made = [(await own.post(CONVERSATION, {"title": f"n° {n}"})).json["id"] for n in range(7)]
    found = await all_pages(own, CONVERSATIONS, "conversations", limit)
    assert [one["id"] for one in found] == made[::-1]


async def test_listed_while_new_ones_come(own: Api) -> None:
    """What comes while one is turning the pages neither repeats nor hides anything."""
    made = [(await own.post(CONVERSATION, {})).json["id"] for _ in range(4)]
    first = (await own.get(CONVERSATIONS, params={"limit": "2"})).json
    await own.post(CONVERSATION, {})
    second = (await own.get(CONVERSATIONS, params={"limit": "2", "cursor": first["next_cursor"]})).json
    assert [one["id"] for one in first["conversations"] + second["conversations"]] == made[::-1]


async def test_found(own: Api) -> None:
    """``q`` finds titles and messages in any case, and takes its own characters literally."""
    titled = (await own.post(CONVERSATION, {"title": "Liste de COURSES à 100%"})).json["id"]
    talked = (await own.say("Il faut du chocolat_noir"))["conversation_id"]
    await own.post(CONVERSATION, {"title": "autre"})

    async def find(query: str) -> list[str]:
        found = (await own.get(CONVERSATIONS, params={"q": query})).json["conversations"]
        return [one["id"] for one in found]

    assert await find("courses") == [titled]
    assert await find("CHOCOLAT") == [talked]
    assert await find("you said") == [talked]
    assert await find("100%") == [titled]
    assert await find("t_n") == [talked]
    assert await find("0_") == await find("%%") == await find("\\") == await find("'") == []
    assert len(await find("")) == 3


async def test_changed(own: Api) -> None:
    """Title and archive are changed one by one, and archived ones can be left out or asked for."""
    made = (await own.post(CONVERSATION, {"title": "avant"})).json
    await own.post(CONVERSATION, {"title": "autre"})
    path = f"{CONVERSATION}/{made['id']}"
    renamed = (await own.ask("PATCH", path, {"title": "après"})).json
    assert (renamed["title"], renamed["archived"]) == ("après", False)
    archived = (await own.ask("PATCH", path, {"archived": True})).json
    assert (archived["title"], archived["archived"]) == ("après", True)

    async def titles(**query: str) -> list[str]:
        return [one["title"] for one in (await own.get(CONVERSATIONS, params=query)).json["conversations"]]

    assert await titles() == ["après", "autre"]
    assert await titles(archived="true") == ["après"]
    assert await titles(archived="false") == ["autre"]
    assert (await own.ask("PATCH", path, {"archived": False})).json["archived"] is False


async def test_deleted(api: Api) -> None:
    """What is deleted is gone with its messages and its responses, and deleting it again is 404."""
    said = await api.say("oublie-moi")
    path = f"{CONVERSATION}/{said['conversation_id']}"
    assert (await api.ask("DELETE", path)).json == {"id": said["conversation_id"], "deleted": True}
    assert (await api.ask("DELETE", path)).error == (404, "not_found")
    assert (await api.get(f"/api/chat/history/{said['conversation_id']}")).error == (404, "not_found")
    gone = await api.post("/api/chat", {"content": "x", "conversation_id": said["conversation_id"]})
    assert gone.error == (404, "not_found")


async def test_deleted_with_its_responses(api: Api) -> None:
    """What was said in a deleted conversation cannot be read through its response either."""
    said = await api.say("oublie-moi")
    await api.ask("DELETE", f"{CONVERSATION}/{said['conversation_id']}")
    assert (await api.get(f"/api/chat/response/{said['id']}")).error == (404, "not_found")


async def test_deleted_while_a_turn_runs(api: Api, bridges: FakeBridges) -> None:
    """Deleting a conversation cancels the turn that runs in it: the model is left, and the waiting client is told."""
    bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    conversation = (await api.post(CONVERSATION, {})).json["id"]
    asking = asyncio.create_task(api.say("long", conversation_id=conversation))
    await bridges.gate.reached()
    assert (await api.ask("DELETE", f"{CONVERSATION}/{conversation}")).status == 200
    await bridges.stream_closed()
    assert (await asking)["status"] == "cancelled"
    assert (await api.get(f"/api/chat/history/{conversation}")).status == 404


# Histories


@pytest.mark.parametrize("limit", [1, 3, 4, 50])
async def test_history_in_pages(api: Api, limit: int) -> None:
    """A history is given oldest first, in pages of any size, each message once."""
    conversation = (await api.say("un"))["conversation_id"]
    for content in ("deux", "trois"):
        await api.say(content, conversation_id=conversation)
    found = await all_pages(api, f"/api/chat/history/{conversation}", "messages", limit)
    assert [message["content"] for message in found] == [
        "un", "You said: un", "deux", "You said: deux", "trois", "You said: trois",
    ]  # fmt: skip
    assert len({message["id"] for message in found}) == 6
    assert all(message["conversation_id"] == conversation for message in found)
    assert [message["timestamp"] for message in found] == sorted(message["timestamp"] for message in found)


async def test_history_of_a_message(api: Api) -> None:
    """The assistant's message has its response's id, model and tokens; the user's has neither model nor tokens."""
    said = await api.say("un deux")
    messages = (await api.get(f"/api/chat/history/{said['conversation_id']}")).json["messages"]
    user, assistant = messages
    assert (user["role"], user["tokens"], user["model"], user["status"]) == ("user", None, None, "completed")
    assert {name: assistant[name] for name in ("id", "content", "tokens", "model", "status", "role")} == {
        name: said[name] for name in ("id", "content", "tokens", "model", "status", "role")
    }


# Other people's


async def test_other_peoples_are_unknown(as_user: AsUser, strict_bridges: FakeBridges) -> None:
    """Another user's conversations and responses are 404 on every route, in no list, and stay as they are."""
    zoe, max_ = as_user(make_token("zoé-1")), as_user(make_token("max-1"))
    said = await zoe.say("mon secret")
    conversation, response = said["conversation_id"], said["id"]
    before = await zoe.history(conversation)
    for method, path, body in (
        ("POST", "/api/chat", {"content": "x", "conversation_id": conversation}),
        ("GET", f"/api/chat/history/{conversation}", None),
        ("PATCH", f"{CONVERSATION}/{conversation}", {"title": "à moi"}),
        ("DELETE", f"{CONVERSATION}/{conversation}", None),
        ("GET", f"/api/chat/response/{response}", None),
        ("GET", f"/api/chat/response/{response}/events", None),
        ("POST", f"/api/chat/response/{response}/cancel", None),
    ):
        assert (await max_.ask(method, path, body)).error == (404, "not_found")
    assert (await max_.get(CONVERSATIONS)).json["conversations"] == []
    assert (await max_.get(CONVERSATIONS, params={"q": "secret"})).json["conversations"] == []
    assert await zoe.history(conversation) == before
    assert strict_bridges.requests_seen["/api/llm/generate"] == 1


async def test_other_peoples_running_turns_are_unknown(as_user: AsUser, strict_bridges: FakeBridges) -> None:
    """A running turn cannot be seen, followed or cancelled by another user, nor by deleting its conversation."""
    zoe, max_ = as_user(make_token("zoé-2")), as_user(make_token("max-2"))
    strict_bridges.mode = BridgesMode(shape="ndjson", hold_after=1)
    conversation = (await zoe.post(CONVERSATION, {})).json["id"]
    async with zoe.stream("secret", conversation_id=conversation) as response:
        running = (await created(response))["id"]
        await strict_bridges.gate.reached()
        for method, path in (
            ("GET", f"/api/chat/response/{running}"),
            ("GET", f"/api/chat/response/{running}/events"),
            ("POST", f"/api/chat/response/{running}/cancel"),
            ("DELETE", f"{CONVERSATION}/{conversation}"),
        ):
            assert (await max_.ask(method, path)).error == (404, "not_found")
        strict_bridges.gate.release()
        assert (await read_events(response))[-1].data["response"]["status"] == "completed"


async def test_id_in_capitals(api: Api) -> None:
    """An id in capitals names the same conversation, and is given back as the server writes it."""
    conversation = (await api.post(CONVERSATION, {})).json["id"]
    assert (await api.say("x", conversation_id=conversation.upper()))["conversation_id"] == conversation
    deleted = await api.ask("DELETE", f"{CONVERSATION}/{conversation.upper()}")
    assert deleted.json["id"] == conversation
