"""The house, asked before the model: what it does, what it leaves to the model, and what becomes of turns where it fails."""

from __future__ import annotations

import asyncio
import math
from array import array
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.fakes.faults import Fault
from tests.fakes.home_assistant import PROCESS, FakeHomeAssistant, HomeAssistantMode
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.events import read_events
from tests.handlers.realtime_client import open_push_to_talk
from tests.handlers.rest.api import Api, created
from tests.handlers.rest.conftest import serving
from tests.system.server import Server, free_port

TOKEN = "a.long-lived.token"
MODEL = "mistral:latest"
TIMEOUT_S = 0.5
TONE = array("h", [round(8_000 * math.sin(n / 9)) for n in range(12_000)]).tobytes()
"""Half a second of speech, as far as the fake can tell."""

Running = tuple[Server, int, int]


@pytest.fixture(scope="session")
def home_server(postgres_conninfo: str) -> Iterator[Running]:
    """Run the server that has a house; give the ports of its model and of the house."""
    port = free_port()
    environment = {
        "HOME_ASSISTANT_URL": f"http://127.0.0.1:{port}/",
        "HOME_ASSISTANT_TOKEN": TOKEN,
        "HOME_TIMEOUT_S": str(TIMEOUT_S),
        "SPEECH_LANGUAGES": "fr,en",
    }
    with serving(postgres_conninfo, "handlers_home", **environment) as (server, bridges_port):
        yield server, bridges_port, port


@pytest.fixture
async def model(home_server: Running) -> AsyncIterator[FakeBridges]:
    """Run the model of that server."""
    async with FakeBridges(mode=BridgesMode(shape="ndjson"), port=home_server[1]) as model:
        yield model


@pytest.fixture
async def home(home_server: Running) -> AsyncIterator[FakeHomeAssistant]:
    """Run the house."""
    async with FakeHomeAssistant(TOKEN, port=home_server[2]) as home:
        yield home


@pytest.fixture
async def user(home_server: Running, model: FakeBridges, home: FakeHomeAssistant) -> AsyncIterator[Api]:
    """Ask the server, whose house is there."""
    async with Api(home_server[0].url) as user:
        yield user


def asked(model: FakeBridges) -> int:
    """Return how often the model was asked."""
    return model.requests_seen["/api/llm/generate"]


@pytest.mark.parametrize(
    ("said", "answer", "act"),
    [
        ("Allume la lumière du salon", "Allumé", ("on", "salon")),
        ("Mets la lampe de chevet à 30 %.", "Luminosité réglée", ("dim", "chevet")),
        ("Turn on the kitchen light", "Turned on the light", ("on", "cuisine")),
        ("  Set the bedside lamp to 40%\n", "Brightness set", ("dim", "chevet")),
    ],
)
async def test_done(
    user: Api, model: FakeBridges, home: FakeHomeAssistant, said: str, answer: str, act: tuple[str, str]
) -> None:
    """The house does what it understands, in either language, and its words are the stored answer; no model is asked."""
    turn = await user.say(said)
    assert (turn["content"], turn["model"], turn["status"], turn["reason"]) == (
        answer,
        "home-assistant",
        "completed",
        "stop",
    )
    assert (turn["tokens"], turn["memories"]) == (0, [])
    assert home.acts == [act]
    assert asked(model) == 0
    assert await user.history(turn["conversation_id"]) == [
        ("user", said, "completed"),
        ("assistant", answer, "completed"),
    ]
    state = await user.state(turn["id"])
    assert (state["content"], state["model"], state["tokens"]) == (answer, "home-assistant", 0)


async def test_streamed(user: Api, model: FakeBridges, home: FakeHomeAssistant) -> None:
    """A stream has the house's answer in the events of any other; who comes late gets the same."""
    async with user.stream("Allume la lumière de la cuisine") as response:
        events = await read_events(response)
    assert [event.name for event in events] == [
        "response.created", "response.output_item.added", "response.content_part.added", "response.output_text.delta",
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.done",
    ]  # fmt: skip
    assert events[3].data["delta"] == "Allumé"
    done = events[-1].data["response"]
    assert done["model"] == "home-assistant"
    assert [event.name for event in await user.follow(done["id"])] == [event.name for event in events]
    assert (asked(model), home.acts) == (0, [("on", "cuisine")])


async def test_question(user: Api, model: FakeBridges, home: FakeHomeAssistant) -> None:
    """A question about a device is answered by the house."""
    assert (await user.say("Est-ce que la lumière de la cuisine est allumée ?"))["content"] == "Non"
    home.levels["cuisine"] = 100
    assert (await user.say("Is the kitchen light on?"))["content"] == "Yes"
    assert asked(model) == 0


async def test_unmatched(user: Api, model: FakeBridges, home: FakeHomeAssistant) -> None:
    """What the house does not understand in either language is the model's, as if there were no house."""
    turn = await user.say("Raconte une histoire")
    assert (turn["content"], turn["model"]) == ("You said: Raconte une histoire", MODEL)
    assert home.sentences == [("Raconte une histoire", "fr"), ("Raconte une histoire", "en")]


async def test_not_to_be_done(user: Api, model: FakeBridges, home: FakeHomeAssistant) -> None:
    """What cannot be done is told in the house's own words; what it only takes for a device's name is the model's."""
    home.mode = HomeAssistantMode(failing=True)
    assert (await user.say("Allume la lumière du salon"))["content"] == "Une erreur inattendue s'est produite"
    home.mode = HomeAssistantMode()
    turn = await user.say("Allume le four")
    assert (turn["content"], turn["model"]) == ("Désolé, je ne connais pas l'appareil four", "home-assistant")
    assert asked(model) == 0
    assert (await user.say("Quelle heure est-il ?"))["model"] == MODEL
    assert (await user.say("quelle heure est-il"))["model"] == MODEL
    assert (await user.say("Mon vélo est au garage"))["model"] == MODEL
    assert (await user.say("Tell me a joke"))["model"] == MODEL


async def test_long_text_is_the_models(user: Api, model: FakeBridges, home: FakeHomeAssistant) -> None:
    """What nobody says to a lamp is not sent to the house."""
    assert (await user.say(" ".join(f"Allume la lampe {number} du salon" for number in range(40))))["model"] == MODEL
    assert home.sentences == []


WRONG = [
    {"faults": {PROCESS: Fault("hang")}},
    {"faults": {PROCESS: Fault(delay_s=2)}},
    {"faults": {PROCESS: Fault("trickle")}},
    {"faults": {PROCESS: Fault(status=503)}},
    {"faults": {PROCESS: Fault(status=500)}},
    {"faults": {PROCESS: Fault(status=404)}},
    {"faults": {PROCESS: Fault(status=429)}},
    *({"faults": {PROCESS: Fault(kind)}} for kind in (
        "close", "reset", "empty", "html", "nonsense", "null", "list", "wrong_shape", "nested", "wrong_type", "truncated", "short_body",
        "garbage", "redirect",
    )),
    {"lost": "before"},
    {"lost": "after"},
    {"response_type": "partial_action_done"},
]  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
async def test_wrong(user: Api, model: FakeBridges, home: FakeHomeAssistant, wrong: dict[str, Any]) -> None:
    """Whatever the house does wrong, the model answers in time, and what was said is done once at most."""
    home.mode = HomeAssistantMode(**wrong)
    started = asyncio.get_running_loop().time()
    turn = await user.say("Bascule la lumière du salon")
    assert (turn["model"], turn["status"]) == (MODEL, "completed")
    assert asyncio.get_running_loop().time() - started < TIMEOUT_S + 5
    assert len(home.acts) <= 1
    home.mode = HomeAssistantMode()
    async with asyncio.timeout(10):
        while (await user.say("Allume la lumière du salon"))["model"] == MODEL:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)


async def test_trouble_with_a_sentence(user: Api, home: FakeHomeAssistant) -> None:
    """A sentence whose intent no device offers is a 500 in plain text; the model is asked."""
    assert (await user.say("What is the temperature?"))["model"] == MODEL


async def test_away(user: Api, home: FakeHomeAssistant) -> None:
    """A house that is away costs a turn nothing but the model; when it is back it is asked again."""
    await home.go_away()
    for _ in range(7):
        assert (await user.say("Allume la lumière du salon"))["model"] == MODEL
    assert (await user.get("/health")).json["tools"] == {"home_assistant": {"state": "unavailable"}}
    await home.come_back()
    async with asyncio.timeout(10):
        while (await user.say("Allume la lumière du salon"))["model"] == MODEL:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.05)
    async with asyncio.timeout(5):
        while (health := (await user.get("/health")).json)["tools"] != {"home_assistant": {"state": "healthy"}}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert len(health["services"]) == 4


async def test_wrong_token(user: Api, home: FakeHomeAssistant, home_server: Running) -> None:
    """A token that the house does not take is told in /health and the log, without the token; the model answers."""
    home.token = "another"
    assert (await user.say("Allume la lumière du salon"))["model"] == MODEL
    async with asyncio.timeout(5):
        while (await user.get("/health")).json["tools"] != {"home_assistant": {"state": "unavailable"}}:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert "HOME_ASSISTANT_TOKEN" in home_server[0].stderr
    assert TOKEN not in home_server[0].stderr
    home.token = TOKEN
    assert (await user.say("Allume la lumière du salon"))["model"] == "home-assistant"


async def test_speechless(user: Api, home: FakeHomeAssistant) -> None:
    """What was done without a word of the house is told all the same."""
    home.mode = HomeAssistantMode(speechless=True)
    assert (await user.say("Allume la lumière du salon"))["content"] == "C'est fait."
    assert (await user.say("Turn off the kitchen light"))["content"] == "Done."


async def test_conversation(user: Api, home: FakeHomeAssistant) -> None:
    """Each conversation goes on under the house's own name of it, where it has one."""

    async def named(**fields: object) -> Any:
        turn = await user.say("Allume la lumière du salon", **fields)
        return turn["conversation_id"], home.last(PROCESS).json.get("conversation_id")

    first, name = await named()
    assert name is None
    assert await named(conversation_id=first) == (first, None)
    home.mode = HomeAssistantMode(version="2025.4")
    await named(conversation_id=first)
    _, name = await named(conversation_id=first)
    assert name
    assert await named(conversation_id=first) == (first, name)
    assert (await named())[1] is None


async def test_cancelled(user: Api, model: FakeBridges, home: FakeHomeAssistant) -> None:
    """Cancelling a turn that waits for the house closes the connection to it; no model is asked."""
    home.mode = HomeAssistantMode(held=True)
    async with user.stream("Allume la lumière du salon") as response:
        await home.gate.reached()
        port = home.last(PROCESS).client_port
        turn = await created(response)
        state = (await user.post(f"/api/chat/response/{turn['id']}/cancel")).json
    assert (state["status"], state["content"]) == ("cancelled", "")
    assert not home.is_connected(port)
    assert asked(model) == 0


async def test_spoken(user: Api, home_server: Running, model: FakeBridges, home: FakeHomeAssistant) -> None:
    """What was said aloud goes to the house in the language that was heard, first and, where it is understood, alone."""
    model.mode = BridgesMode(shape="ndjson", transcript="Turn on the kitchen light")
    async with open_push_to_talk(home_server[0].url) as socket:
        audio = {"input": {"transcription": {"language": "en"}, "create_response": False}}
        await socket.send("session.update", session={"audio": audio})
        await socket.until("session.updated")
        await socket.send_raw(TONE)
        await socket.send("input_audio_buffer.commit")
        await socket.until("conversation.item.input_audio_transcription.completed")
        await socket.send("response.create")
        done = await socket.done()
    assert (done["model"], home.acts) == ("home-assistant", [("on", "cuisine")])
    assert home.sentences == [("Turn on the kitchen light", "en")]
    assert asked(model) == 0


async def test_health_is_as_before_without_a_house(api: Any) -> None:
    """Where nothing is configured that acts, /health tells of none."""
    assert "tools" not in (await api.get("/health")).json
