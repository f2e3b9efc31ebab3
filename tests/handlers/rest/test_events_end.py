"""What a browser's own EventSource needs: an end to its coming back, and credentials that it can send."""

from __future__ import annotations

import pytest

from jarvis_core.access.tickets import Tickets
from jarvis_core.errors import Unauthenticated
from jarvis_core.models import Caller
from jarvis_core.settings import Auth, Secret
from tests.handlers.events import read_events
from tests.handlers.rest.api import Api

ANN = Caller("ann", "Ann")
AUTH = Auth(api_keys=Secret("ann:anns-key-0123456789"))


async def test_no_coming_back_at_the_end(api: Api) -> None:
    """Who comes back with the last event of an ended turn gets 204, which ends an EventSource; earlier, what is missing."""
    turn = await api.say("one two three")
    path = f"/api/chat/response/{turn['id']}/events"
    events = await api.follow(turn["id"])
    last = events[-1].id
    answer = await api.get(path, headers={"Last-Event-ID": str(last)})
    assert (answer.status, answer.body) == (204, b"")
    rest = await api.follow(turn["id"], headers={"Last-Event-ID": str(events[-2].id)})
    assert [event.name for event in rest] == ["response.done"]
    # The address stays as it was when the browser first asked.
    answer = await api.get(f"{path}?after=2", headers={"Last-Event-ID": str(last)})
    assert answer.status == 204


async def test_retry_once(api: Api) -> None:
    """A stream that is followed says once how soon to come back."""
    turn = await api.say("one two three")
    async with api.session.get(f"/api/chat/response/{turn['id']}/events") as response:
        body = await response.read()
    assert body.startswith(b"retry: 1000\n\nid: 1\n")
    assert body.count(b"retry:") == 1


async def test_ticket(strict: Api) -> None:
    """A ticket stands for credentials on the events of its turn, as often as it takes, and nowhere else."""
    turn, other = await strict.say("one two three"), await strict.say("four")
    answer = await strict.post(f"/api/chat/response/{turn['id']}/ticket")
    assert answer.status == 200
    ticket = answer.json["ticket"]
    nobody = {"Authorization": ""}
    for _ in range(2):
        async with strict.session.get(
            f"/api/chat/response/{turn['id']}/events?ticket={ticket}", headers=nobody
        ) as response:
            assert response.status == 200
            assert (await read_events(response))[-1].name == "response.done"
    for path in (
        f"/api/chat/response/{other['id']}/events?ticket={ticket}",
        f"/api/chat/response/{turn['id']}?ticket={ticket}",
        f"/api/chat/conversations?ticket={ticket}",
        f"/api/chat/response/{turn['id']}/events?ticket={ticket[:-2]}",
        f"/api/chat/response/{turn['id']}/events?ticket=",
    ):
        answer = await strict.get(path, headers=nobody)
        assert answer.error == (401, "unauthenticated"), path
    answer = await strict.post(f"/api/chat/response/{turn['id']}/cancel?ticket={ticket}", headers=nobody)
    assert answer.error == (401, "unauthenticated")


async def test_ticket_of_a_turn_that_is_not_theirs(strict: Api) -> None:
    """There is no ticket for an unknown turn."""
    answer = await strict.post("/api/chat/response/019b0000-0000-7000-8000-000000000000/ticket")
    assert answer.error == (404, "not_found")


def test_ticket_ends() -> None:
    """A ticket ends with its time, and with the credentials of who asked for it; another installation does not know it."""
    now = 1_000.0
    tickets = Tickets(AUTH, now=lambda: now)
    ticket, good_until_s = tickets.issue("events", ANN, "turn", lifetime_s=600)
    assert good_until_s == 1_600
    assert tickets.check("events", ticket, "turn")[0] == ANN
    with pytest.raises(Unauthenticated):
        tickets.check("socket", ticket, "turn")
    with pytest.raises(Unauthenticated):
        Tickets(Auth(api_keys=Secret("ann:another-key-0123456789")), now=lambda: now).check("events", ticket, "turn")
    short, good_until_s = tickets.issue("socket", ANN, lifetime_s=600, ends_at_s=1_100)
    assert good_until_s == 1_100
    assert tickets.check("socket", short) == (ANN, 1_100)
    with pytest.raises(Unauthenticated, match="before"):
        tickets.check("socket", short)
    now = 1_600.0
    with pytest.raises(Unauthenticated, match="expired"):
        tickets.check("events", ticket, "turn")


def test_ticket_of_another_worker() -> None:
    """Workers with the same settings know one another's tickets."""
    ticket, _ = Tickets(AUTH).issue("events", ANN, "turn", lifetime_s=600)
    assert Tickets(AUTH).check("events", ticket, "turn")[0] == ANN
