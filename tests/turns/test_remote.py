"""Turns of other workers on a real database, with mail that gets lost: what sockets cannot bring about at will."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

import pytest

from jarvis_core.errors import NotFound, Unavailable
from jarvis_core.models import Caller, Discard, Finish, Prompt, Status
from jarvis_core.processes.child import own_identity
from jarvis_core.settings import Llm
from jarvis_core.shared.mailbox import SharingState
from jarvis_core.store.conversations import ConversationStore
from jarvis_core.store.heartbeats import HeartbeatStore
from jarvis_core.store.pool import Pool
from jarvis_core.store.turns import TurnStore
from jarvis_core.turns import remote as elsewhere_module
from jarvis_core.turns.ask import Ask
from jarvis_core.turns.log import Reader, Step, Turn
from jarvis_core.turns.mail import Ended, decode
from jarvis_core.turns.remote import RemoteTurns
from jarvis_core.turns.remote_turn import RemoteTurn
from jarvis_core.turns.turns import Turns

pytestmark = pytest.mark.every_python

ANN = Caller("ann")


class Post:
    """Takes mail from worker to worker, and loses what it is told to lose."""

    def __init__(self) -> None:
        self.boxes: dict[str, tuple[Callable[[str, bytes], None], Callable[[str], None]]] = {}
        self.loses: Callable[[bytes], bool] = lambda _: False
        self.carried = 0


class Mail:
    """One worker's end of it."""

    def __init__(self, post: Post, worker_id: str) -> None:
        self.state: SharingState = "healthy"
        self._post = post
        self._worker_id = worker_id

    def post(self, worker_id: str, message: bytes) -> bool:
        """Deliver *message* a moment later, or lose it."""
        if self.state != "healthy":
            return False
        box = self._post.boxes.get(worker_id)
        if box is None:
            asyncio.get_running_loop().call_soon(self._post.boxes[self._worker_id][1], worker_id)
        elif not self._post.loses(message):
            self._post.carried += 1
            asyncio.get_running_loop().call_later(0.001, box[0], self._worker_id, message)
        return True

    def on_mail(self, receive: Callable[[str, bytes], None], lost: Callable[[str], None]) -> None:
        """Open the mailbox."""
        self._post.boxes[self._worker_id] = (receive, lost)


class Model:
    """Says what it is told, piece by piece, each when the test lets it."""

    history_limit_chars = 1_000
    reads_ahead = False

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[str | Discard | Finish] = asyncio.Queue()

    async def read_ahead(self, prompt: Prompt, caller: Caller) -> None:
        """Do nothing."""

    @asynccontextmanager
    async def generate(self, prompt: Prompt, caller: Caller) -> AsyncIterator[AsyncIterator[str | Discard | Finish]]:
        """Answer, whatever is asked."""
        yield self._say()

    async def _say(self) -> AsyncIterator[str | Discard | Finish]:
        while True:
            piece = await self.pieces.get()
            yield piece
            if isinstance(piece, Finish):
                return


class Worker(NamedTuple):
    """What one process has."""

    turns: Turns
    model: Model
    mail: Mail
    remote_turns: RemoteTurns
    id: str


Make = Callable[[], Worker]


@pytest.fixture
def post() -> Post:
    """Give the mail of all."""
    return Post()


@pytest.fixture
async def make(pool: Pool, post: Post, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Make workers on one database, which lose patience ten times as soon as real ones."""
    for name in ("ALIVE_INTERVAL_S", "SILENCE_S", "CHECK_INTERVAL_S", "FIRST_MAIL_S", "IDLE_S", "CANCEL_REPEAT_S"):
        monkeypatch.setattr(elsewhere_module, name, getattr(elsewhere_module, name) / 10)
    made: list[Worker] = []

    def make() -> Worker:
        store = TurnStore(pool)
        model, mail = Model(), Mail(post, store.worker_id)
        elsewhere = RemoteTurns(store, mail)
        turns = Turns(store, model, Llm(), None, elsewhere)
        elsewhere.serve(turns)
        made.append(Worker(turns, model, mail, elsewhere, store.worker_id))
        return made[-1]

    yield make
    for one in made:
        await one.turns.close(drain_timeout_s=0)
        await one.remote_turns.close()


async def read(turn: Turn, limit_s: float = 10) -> tuple[list[Step], str]:
    """Read *turn* to its end; return the steps and the text."""
    reader = Reader(turn)
    steps: list[Step] = []
    text = ""
    async with asyncio.timeout(limit_s):
        while Step.ENDED not in steps:
            for _, entry in await reader.next():
                if isinstance(entry, Step):
                    steps.append(entry)
                elif isinstance(entry, str):
                    text += entry
    return steps, text


async def begin(worker: Worker, *pieces: str) -> Turn:
    """Begin a turn that has a reader, and wait until it has said *pieces*."""
    turn = await worker.turns.start(Ask("hello"), ANN)
    worker.turns.attach(turn)
    for piece in pieces:
        worker.model.pieces.put_nowait(piece)
    async with asyncio.timeout(5):
        while turn.text() != "".join(pieces):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    return turn


@pytest.mark.parametrize("lost", [0.0, 0.3, 0.7])
async def test_followed_through_mail_that_gets_lost(make: Make, post: Post, lost: float) -> None:
    """However much of the mail is lost, a follower gets each character once, and the end with all that belongs to it."""
    dice = random.Random(int(10 * lost))
    a, b = make(), make()
    turn = await begin(a, "Bon")
    post.loses = lambda _: dice.random() < lost
    remote = await b.turns.find(ANN, turn.id)
    assert isinstance(remote, RemoteTurn)
    b.turns.attach(remote)
    reading = asyncio.create_task(read(remote))
    said = "Bon"
    for _ in range(40):
        piece = "".join(dice.choice("aé🙂 ") for _ in range(dice.randrange(1, 6)))
        said += piece
        a.model.pieces.put_nowait(piece)
        await asyncio.sleep(dice.choice((0, 0.002, 0.03)))
    a.model.pieces.put_nowait(Finish("stop", 41, "m"))
    steps, text = await reading
    assert text == said == turn.text()
    assert steps == list(Step)
    assert (remote.status, remote.reason, remote.tokens, remote.model) == (Status.COMPLETED, "stop", 41, "m")
    assert (remote.id, remote.user_message_id) == (turn.id, turn.user_message_id)
    assert remote.ended_at == turn.ended_at
    # Only whole turns have times, and they are those of the worker that took them.
    assert remote.timer.receipt == turn.timer.receipt
    assert (turn.timer.receipt.first_token_ms or -1) <= (turn.timer.receipt.total_ms or -1)


@pytest.mark.parametrize("early", [True, False], ids=["followed before", "followed after"])
async def test_discarded_text(make: Make, early: bool) -> None:
    """What a model's stream takes back is no follower's answer on another worker either."""
    a, b = make(), make()
    turn = await begin(a, "Okay, hm.")

    async def follow() -> Turn:
        remote = await b.turns.find(ANN, turn.id)
        b.turns.attach(remote)
        return remote

    remote = await follow() if early else None
    for piece in (Discard(), "Oui", "."):
        a.model.pieces.put_nowait(piece)
    async with asyncio.timeout(5):
        while turn.text() != "Oui.":  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    if remote is None:
        remote = await follow()
    reading = asyncio.create_task(read(remote))
    a.model.pieces.put_nowait(Finish("stop", 3, "m"))
    steps, text = await reading
    assert (remote.text(), turn.text()) == ("Oui.", "Oui.")
    assert text.endswith("Oui.")
    assert early or text == "Oui."
    assert steps == list(Step)


async def test_lost_end_beside_a_turn_that_goes_on(make: Make, post: Post) -> None:
    """That a worker lives and tells of another turn does not hide that the end of this one got lost."""
    a, b = make(), make()
    ending = await begin(a, "Bon")
    remote = await b.turns.find(ANN, ending.id)
    b.turns.attach(remote)
    a.model.pieces.put_nowait(Finish("stop", 1, "m"))
    post.loses = lambda data: isinstance(decode(data), Ended)
    await ending.wait_ended()
    other = await begin(a, "jour")
    followed = await b.turns.find(ANN, other.id)
    b.turns.attach(followed)
    assert (await read(remote, limit_s=2))[1] == "Bon"
    assert remote.status is Status.COMPLETED
    assert not followed.ended


@pytest.mark.parametrize("lost", [0.0, 0.5])
async def test_cancelled_through_mail_that_gets_lost(make: Make, post: Post, lost: float) -> None:
    """A cancel arrives in the end, and is answered when the turn has ended; its reason is the one that was given."""
    dice = random.Random(3)
    a, b = make(), make()
    turn = await begin(a, "Bon")
    post.loses = lambda _: dice.random() < lost
    remote = await b.turns.find(ANN, turn.id)
    async with asyncio.timeout(10):
        await b.turns.stop(remote, reason="cancelled")
    assert (turn.status, remote.status, remote.reason, remote.text()) == (
        Status.CANCELLED,
        Status.CANCELLED,
        "cancelled",
        "Bon",
    )
    assert (await b.turns.find(ANN, turn.id)).status is Status.CANCELLED


async def test_nothing_is_sent_unless_somebody_asks(make: Make, post: Post) -> None:
    """A turn that nobody follows elsewhere causes no mail, and one that is no longer followed none after that."""
    a, b = make(), make()
    turn = await begin(a, "Bon")
    await asyncio.sleep(0.3)
    assert post.carried == 0
    remote = await b.turns.find(ANN, turn.id)
    assert remote.text() == "Bon"
    async with asyncio.timeout(5):
        while a.remote_turns._forwards or b.remote_turns.followed:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    carried = post.carried
    a.model.pieces.put_nowait("jour")
    await asyncio.sleep(0.3)
    assert post.carried == carried


async def test_others_see_what_is_theirs(make: Make) -> None:
    """A turn that runs elsewhere is unknown to another user; each worker may be asked by several at once."""
    a, b = make(), make()
    turn = await begin(a, "Bon")
    with pytest.raises(NotFound):
        await b.turns.find(Caller("bob"), turn.id)
    remotes = await asyncio.gather(*(b.turns.find(ANN, turn.id) for _ in range(5)))
    assert len({id(remote) for remote in remotes}) == 1


async def test_worker_that_dies(make: Make, post: Post, pool: Pool) -> None:
    """A remote turn whose worker is gone ends when the store says so, with the text that it had seen or the store kept."""
    a, b = make(), make()
    turn = await begin(a, "Bon")
    remote = await b.turns.find(ANN, turn.id)
    b.turns.attach(remote)
    assert remote.text() == "Bon"
    del post.boxes[a.id]
    a.mail.state = "unavailable"
    await HeartbeatStore(pool, b.id, own_identity()).close_strays(at_once=True)
    steps, text = await read(remote)
    assert (remote.status, remote.reason, text) == (Status.INCOMPLETE, "server_stopped", "Bon")
    assert steps[-1] is Step.ENDED


@pytest.mark.parametrize(("kept", "told"), [("", ("Bon", "jour")), ("Bon", ("Bon", "jour")), ("Bonjour", ("Bonjour",))])
async def test_history_keeps_what_a_follower_was_told(
    make: Make, post: Post, pool: Pool, kept: str, told: tuple[str, ...]
) -> None:
    """What a worker said after its last checkpoint, before it was killed, is in the history once a reader has got it."""
    a, b = make(), make()
    turn = await begin(a, *told)
    remote = await b.turns.find(ANN, turn.id)
    b.turns.attach(remote)
    assert remote.text() == "Bonjour"
    await TurnStore(pool).checkpoint([(turn.id, kept, "m")])
    del post.boxes[a.id]
    a.mail.state = "unavailable"
    await HeartbeatStore(pool, b.id, own_identity()).close_strays(at_once=True)
    assert (await read(remote))[1] == remote.text() == "Bonjour"
    conversations = ConversationStore(pool)
    messages, _ = await conversations.fetch_history("ann", turn.conversation_id, limit=9, after=0)
    assert [(one.role, one.content, one.status) for one in messages] == [
        ("user", "hello", Status.COMPLETED),
        ("assistant", "Bonjour", Status.INCOMPLETE),
    ]
    assert (await conversations.fetch("ann", turn.conversation_id)).message_count == 2
    assert (await TurnStore(pool).fetch("ann", turn.id)).content == "Bonjour"


async def test_discard_that_got_lost(make: Make, post: Post) -> None:
    """A follower that never heard that a text was taken back is told the answer alone at the end."""
    a, b = make(), make()
    turn = await begin(a, "Okay, hm.")
    remote = await b.turns.find(ANN, turn.id)
    b.turns.attach(remote)
    reading = asyncio.create_task(read(remote))
    await asyncio.sleep(0)
    post.loses = lambda _: True
    for piece in (Discard(), "Oui.", Finish("stop", 1, "m")):
        a.model.pieces.put_nowait(piece)
    _, text = await reading
    assert (remote.status, remote.text(), text) == (Status.COMPLETED, "Oui.", "Okay, hm.Oui.")


async def test_without_mail(make: Make) -> None:
    """Without mail a turn is followed through the store, and cancelling it elsewhere is refused."""
    a, b = make(), make()
    turn = await begin(a, "Bon")
    b.mail.state = "unavailable"
    remote = await b.turns.find(ANN, turn.id)
    b.turns.attach(remote)
    with pytest.raises(Unavailable):
        await b.turns.stop(remote)
    assert turn.status is Status.RUNNING
    a.model.pieces.put_nowait("jour")
    a.model.pieces.put_nowait(Finish("stop", 2, "m"))
    assert (await read(remote))[1] == "Bonjour"


async def test_conversation_that_was_deleted(make: Make, pool: Pool) -> None:
    """A turn whose conversation was deleted elsewhere ends for its readers, and is unknown to who asks anew."""
    a, b = make(), make()
    turn = await begin(a, "Bon")
    remote = await b.turns.find(ANN, turn.id)
    b.turns.attach(remote)
    b.mail.state = "unavailable"
    await pool.execute("delete from conversations")
    await read(remote)
    assert (remote.status, remote.reason) == (Status.CANCELLED, "conversation_deleted")
    with pytest.raises(NotFound):
        await b.turns.find(ANN, turn.id)
