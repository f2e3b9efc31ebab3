"""The log of a turn: what its readers get, from whatever position."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import msgspec
import pytest

from jarvis_core.models import Caller, Status, TurnRecord
from jarvis_core.store.turns import TurnEnd
from jarvis_core.turns.log import CLOSING, OPENING, Entry, Reader, Step, Turn

pytestmark = pytest.mark.every_python

CALLER = Caller("ann")
TEXT = "déjà 🙂 vu 漢字"


def new_turn() -> Turn:
    """Make a turn that has been stored."""
    turn = Turn(CALLER, "c", "t", "u")
    turn.append(Step.CREATED)
    return turn


def spoken(*pieces: str, status: Status = Status.COMPLETED) -> Turn:
    """Make an ended turn whose model said *pieces*."""
    turn = new_turn()
    for number, piece in enumerate(pieces):
        turn.append(*(() if number else OPENING), piece)
    turn.end(TurnEnd(status, "stop"))
    return turn


def record(status: Status, content: str) -> TurnRecord:
    """Make a turn as the store has it."""
    now = datetime.now(UTC)
    return TurnRecord("t", "c", "u", status, "stop", content, 3, "m", [], now, now, "It failed.", None)


def join(taken: list[tuple[int, Entry]]) -> str:
    """Return the text of what a reader took."""
    return "".join(entry for _, entry in taken if isinstance(entry, str))


def steps(taken: list[tuple[int, Entry]]) -> list[Step]:
    """Return the steps of what a reader took."""
    return [entry for _, entry in taken if isinstance(entry, Step)]


async def test_positions_count_code_points() -> None:
    """A step counts 1 and a text its code points, so positions do not depend on how the text was cut."""
    expected = [
        (1, Step.CREATED),
        (2, Step.ITEM_ADDED),
        (3, Step.PART_ADDED),
        (3 + len(TEXT), TEXT),
        (4 + len(TEXT), Step.TEXT_DONE),
        (5 + len(TEXT), Step.PART_DONE),
        (6 + len(TEXT), Step.ITEM_DONE),
        (7 + len(TEXT), Step.ENDED),
    ]
    assert Reader(spoken(TEXT)).take() == expected
    assert Reader(spoken(*TEXT)).take() == expected
    assert Reader(Turn.from_record(CALLER, record(Status.COMPLETED, TEXT))).take() == expected


async def test_what_is_new_is_merged() -> None:
    """A reader that is behind gets neighbouring texts as one, and each entry once."""
    turn = new_turn()
    reader = Reader(turn)
    assert reader.take() == [(1, Step.CREATED)]
    turn.append(*OPENING, "a")
    turn.append("b", "c")
    assert reader.take() == [(2, Step.ITEM_ADDED), (3, Step.PART_ADDED), (6, "abc")]
    assert reader.take() == []
    turn.append("d")
    assert reader.take() == [(7, "d")]


@pytest.mark.parametrize("pieces", [(TEXT,), tuple(TEXT), (TEXT[:6], TEXT[6:])])
async def test_resuming_anywhere(pieces: tuple[str, ...]) -> None:
    """From any position, in the middle of a text and between characters beyond the basic plane too, a reader gets the rest."""
    turn = spoken(*pieces)
    whole = Reader(turn).take()
    last = whole[-1][0]
    for after in range(last + 1):
        taken = Reader(turn, after).take()
        assert join(taken) == TEXT[max(0, after - 3) :]
        assert steps(taken) == [entry for position, entry in whole if isinstance(entry, Step) and position > after]
        assert [position for position, _ in taken] == sorted({position for position, _ in taken})
        assert all(position > after for position, _ in taken)
        if after < last:
            assert taken[-1] == (last, Step.ENDED)


async def test_resuming_from_the_store() -> None:
    """A reader that comes back finds the same rest at the same positions, whether from memory or from the store."""
    for status in (Status.COMPLETED, Status.INCOMPLETE, Status.CANCELLED, Status.FAILED):
        for text in ("", TEXT):
            live = spoken(*text, status=status)
            stored = Turn.from_record(CALLER, record(status, text))
            for after in range(10 + len(text)):
                assert Reader(live, after).take() == Reader(stored, after).take()


async def test_resuming_behind_the_end() -> None:
    """A reader at a position behind the end of an ended turn gets nothing, and does not wait."""
    assert Reader(spoken(TEXT), 999).take() == []
    assert await Reader(spoken(TEXT), 999).next() == []


@pytest.mark.parametrize("after", [3, 5, 8, 9, 500])
async def test_resuming_after_a_crash(after: int) -> None:
    """A reader that had seen more than a killed server kept is told the end, with the text as it was kept."""
    kept = msgspec.structs.replace(record(Status.INCOMPLETE, "abc"), reason="server_stopped")
    taken = Reader(Turn.from_record(Caller("ann"), kept), after).take()
    assert steps(taken) == [*CLOSING, Step.ENDED]
    assert join(taken) == "abc"[after - 3 :]


async def test_many_readers() -> None:
    """Readers do not disturb one another, and each gets the whole."""
    turn = new_turn()
    taken: list[list[tuple[int, Entry]]] = [[] for _ in range(50)]

    async def follow(number: int) -> None:
        reader = Reader(turn)
        while new := await reader.next():
            taken[number] += new
            if number % 3 == 0:
                await asyncio.sleep(0)

    tasks = [asyncio.create_task(follow(number)) for number in range(50)]
    turn.append(*OPENING)
    for character in TEXT * 3:
        turn.append(character)
        await asyncio.sleep(0)
    turn.end(TurnEnd(Status.COMPLETED, "stop"))
    async with asyncio.timeout(5):
        await asyncio.gather(*tasks)
    assert {join(one) for one in taken} == {TEXT * 3}
    assert all(steps(one) == [Step.CREATED, *OPENING, *CLOSING, Step.ENDED] for one in taken)


async def test_next_waits_for_news() -> None:
    """A reader that has everything waits, and is woken by the next entry."""
    turn = new_turn()
    reader = Reader(turn)
    await reader.next()
    waiting = asyncio.create_task(reader.next())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    turn.append(*OPENING)
    async with asyncio.timeout(1):
        assert len(await waiting) == 2


async def test_wake() -> None:
    """A waiting reader that is woken returns empty, and goes on where it was."""
    turn = new_turn()
    reader = Reader(turn)
    reader.wake()
    await reader.next()
    waiting = asyncio.create_task(reader.next())
    await asyncio.sleep(0)
    reader.wake()
    reader.wake()
    async with asyncio.timeout(1):
        assert await waiting == []
    turn.append(*OPENING, "a")
    async with asyncio.timeout(1):
        assert join(await reader.next()) == "a"


async def test_cancelled_reader() -> None:
    """A reader that is cancelled while it waits disturbs nobody, and can go on later."""
    turn = new_turn()
    reader = Reader(turn)
    await reader.next()
    waiting = asyncio.create_task(reader.next())
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    turn.append(*OPENING, "a")
    assert join(await reader.next()) == "a"


async def test_end_of_a_log() -> None:
    """An ended turn has exactly one end, which is last; what was opened is closed before it."""
    assert steps(Reader(spoken("a")).take()) == [Step.CREATED, *OPENING, *CLOSING, Step.ENDED]
    assert steps(Reader(spoken("a", status=Status.INCOMPLETE)).take()) == [
        Step.CREATED,
        *OPENING,
        *CLOSING,
        Step.ENDED,
    ]


async def test_end_without_text() -> None:
    """A completed turn without a text still has an item; one that failed or was cancelled has none."""
    assert steps(Reader(spoken()).take()) == [Step.CREATED, *OPENING, *CLOSING, Step.ENDED]
    for status in (Status.FAILED, Status.CANCELLED, Status.INCOMPLETE):
        assert steps(Reader(spoken(status=status)).take()) == [Step.CREATED, Step.ENDED]


async def test_wait_ended() -> None:
    """Who waits for the end waits until the last entry is in the log."""
    turn = new_turn()
    waiting = asyncio.create_task(turn.wait_ended())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    turn.end(TurnEnd(Status.COMPLETED, "stop"))
    async with asyncio.timeout(1):
        await waiting
    assert turn.ended


async def test_text_so_far() -> None:
    """The text so far is whole at any moment, and pieces are counted."""
    turn = new_turn()
    assert turn.text() == ""
    turn.append(*OPENING, "a")
    turn.append("🙂")
    assert turn.opened
    assert turn.text() == "a🙂"
    turn.append("b")
    assert turn.text() == turn.text() == "a🙂b"
    assert turn.pieces == 3


async def test_from_record() -> None:
    """A turn from the store says what the store says; one that failed has an error for a person."""
    turn = Turn.from_record(CALLER, record(Status.FAILED, ""))
    assert (turn.status, turn.reason, turn.tokens, turn.model) == (Status.FAILED, "stop", 3, "m")
    assert turn.error is not None
    assert turn.error.message == "It failed."
    assert turn.ended
    assert Turn.from_record(CALLER, record(Status.CANCELLED, "a")).error is None


def test_discarded() -> None:
    """What was discarded is not the answer, and readers that have not got it never do; positions stay as they are."""
    turn = Turn(Caller("ann"), "conversation", "turn", "message")
    turn.append(Step.CREATED, *OPENING, "Okay, ", "hm.")
    early, late = Reader(turn), Reader(turn)
    assert join(early.take()) == "Okay, hm."
    turn.discard_text()
    assert (turn.text(), turn.logged_text()) == ("", "Okay, hm.")
    turn.append("Oui", ".")
    turn.end(TurnEnd(Status.COMPLETED, "stop"))
    assert turn.text() == "Oui."
    for reader in (early, late, Reader(turn), Reader(turn, 5), Reader(turn, 12)):
        taken = reader.take()
        assert join(taken) == "Oui."
        assert taken[-4][0] == 17, "the same place for all"
    assert join(Reader(turn, 14).take()) == "i."
