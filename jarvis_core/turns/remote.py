"""
Follows and stops turns that run on other workers, and lets other workers follow and stop those that run here.

A turn belongs to the worker that began it. A worker that is asked for another's turn makes a ``RemoteTurn``: a log like
any other, so that every kind of reader works on it, filled from the mail of the turn's worker (``shared/mailbox.py``),
which sends only on request. Mail may be lost, and a worker may die: a remote turn without news is compared with the
store every half second, which has the text up to a second ago, and the end once there is one.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

import msgspec

from jarvis_core import cancellation, log
from jarvis_core.errors import RequestError, Unavailable, of_code
from jarvis_core.models import Caller, Heard, Status, TurnRecord
from jarvis_core.shared.mailbox import MAILBOX_TTL_S, Mailbox
from jarvis_core.store.turns import TurnEnd, TurnStore
from jarvis_core.tasks import start_in
from jarvis_core.turns.log import Reader, Turn
from jarvis_core.turns.mail import (
    Alive,
    Cancel,
    Ended,
    Follow,
    Leave,
    Message,
    Progress,
    SessionTaken,
    TakeSession,
    Unknown,
    decode,
    encode,
)
from jarvis_core.turns.remote_turn import LocalTurns, RemoteTurn

logger = log.get(__name__)

BATCH_S = 0.02
"""Text of a turn is collected for so long and sent together."""
ALIVE_INTERVAL_S = 1.0
"""How often followers are told that this worker lives, with or without news."""
SILENCE_S = 2.5
"""A worker that has sent nothing for so long may be dead."""
CHECK_INTERVAL_S = 0.5
"""How often remote turns without news are compared with the store."""
CHECK_TURNS = 200
"""Turns that one statement fetches."""
FIRST_MAIL_S = 0.5
"""Longest wait for the first mail about a turn before the stored text is shown."""
LAST_MAIL_S = 0.5
"""Longest wait, when this worker stops, for mail about ends to be sent."""
IDLE_S = 1.0
"""How long a remote turn is kept without readers."""
CANCEL_LIMIT_S = 8.0
"""Longest wait for the end of a remote turn that is cancelled from here."""
CANCEL_REPEAT_S = 1.0
SESSION_LIMIT_S = 2.0
"""Longest wait for another worker to hand a session over."""
MOVED_LIMIT = 1_000
HOPS_LIMIT = 8
LOST_S = 30.0
"""Readers get an error once neither the turn's worker nor the store has answered for so long."""
RETRY_AFTER_S = 2


class RemoteTurns:
    """
    The turns of other workers that are followed here, and the mail about this worker's turns.

    Owns a task for each turn that another worker follows or stops, and one that checks the remote turns.
    """

    def __init__(self, store: TurnStore, mailbox: Mailbox) -> None:
        self._store = store
        self._mailbox = mailbox
        self._turns: LocalTurns | None = None
        self._remote: dict[tuple[str, str], RemoteTurn] = {}
        """By user and turn."""
        self._heard: dict[str, float] = {}
        """By worker: when its last mail came."""
        self._forwards: dict[tuple[str, str], asyncio.Task[None]] = {}
        """Tasks that send a turn's text, by following worker and turn."""
        self._work: set[asyncio.Task[None]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self.hand_over: Callable[[str, str, int], Awaitable[bytes | None]] | None = None
        """Hands over a session as an encoded snapshot, by user, response and number of the last event seen."""
        self._moved: OrderedDict[str, str] = OrderedDict()
        """By response: the worker that its session was handed to."""
        self._question_ids = itertools.count()
        self._questions: dict[int, asyncio.Future[bytes | None]] = {}

    @property
    def followed(self) -> int:
        """The number of remote turns."""
        return len(self._remote)

    def serve(self, turns: LocalTurns) -> None:
        """Let other workers follow and stop *turns*, and start reading mail."""
        self._turns = turns
        self._mailbox.on_mail(self._receive, self._note_lost_mailbox)
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Send other workers the ends of this worker's turns, then cancel all tasks."""
        if self._forwards:
            await asyncio.wait(self._forwards.values(), timeout=LAST_MAIL_S)
        tasks = [*self._work, *([self._keeper] if self._keeper is not None else [])]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._work:
            # These count the followers out.
            await asyncio.wait(self._work, timeout=LAST_MAIL_S)

    # What others run

    async def follow(self, caller: Caller, record: TurnRecord) -> Turn:
        """
        Return the running turn *record* as a remote turn; waits at most ``FIRST_MAIL_S`` for mail from its worker.
        """
        name = (caller.user_id, record.id)
        remote = self._remote.get(name)
        if remote is None:
            remote = self._remote[name] = RemoteTurn(caller, record, self)
            remote.extend(0, record.content)
            remote.left_at = remote.told_at = asyncio.get_running_loop().time()
            self._ask(remote)
        if not remote.synced.is_set() and self._mailbox.state == "healthy":
            try:
                async with cancellation.timeout(FIRST_MAIL_S):
                    await remote.synced.wait()
            except TimeoutError:
                remote.needs_store_check = True
        return remote

    def let_go(self, remote: RemoteTurn) -> None:
        """Note when the last reader left; the turn is kept for ``IDLE_S``."""
        remote.left_at = asyncio.get_running_loop().time()

    async def stop(self, remote: RemoteTurn, reason: str, heard: Heard | None = None) -> None:
        """
        Ask the turn's worker to stop it; returns when the end is stored.

        Raises ``Unavailable`` where that worker cannot be reached, or the turn does not end in time.
        """
        remote.readers += 1
        reachable = self._mailbox.state == "healthy"
        try:
            async with cancellation.timeout(CANCEL_LIMIT_S if reachable else CANCEL_REPEAT_S):
                while not remote.ended:
                    self._post(remote.worker_id, Cancel(remote.id, remote.caller.user_id, reason, heard))
                    ended = asyncio.ensure_future(remote.wait_ended())
                    await asyncio.wait([ended], timeout=CANCEL_REPEAT_S)
                    ended.cancel()
        except TimeoutError as exc:
            raise Unavailable(
                "This response is made by another worker, which cannot be reached now.", retry_after_s=RETRY_AFTER_S
            ) from exc
        finally:
            remote.readers -= 1
            self.let_go(remote)

    async def take_session(self, worker_id: str, caller: Caller, turn_id: str, after: int) -> bytes | None:
        """
        Ask another worker to hand over the session of a response; None where it does not within ``SESSION_LIMIT_S``.
        """
        question = next(self._question_ids)
        future: asyncio.Future[bytes | None] = asyncio.get_running_loop().create_future()
        self._questions[question] = future
        try:
            message = TakeSession(question, self._store.worker_id, turn_id, caller.user_id, after)
            if not self._post(worker_id, message):
                return None
            async with cancellation.timeout(SESSION_LIMIT_S):
                snapshot = await future
            if snapshot is not None:
                self._moved.pop(turn_id, None)
            return snapshot
        except TimeoutError:
            return None
        finally:
            del self._questions[question]

    def moved_to(self, turn_id: str) -> str | None:
        """Return the worker that a response's session was handed to."""
        return self._moved.get(turn_id)

    async def _hand_over(self, message: TakeSession) -> None:
        snapshot = None if self.hand_over is None else await self.hand_over(message.user, message.turn, message.after)
        if snapshot is not None:
            self._moved[message.turn] = message.worker
            while len(self._moved) > MOVED_LIMIT:
                self._moved.popitem(last=False)
        elif (now_at := self._moved.get(message.turn)) is not None and message.hops < HOPS_LIMIT:
            self._post(now_at, msgspec.structs.replace(message, hops=message.hops + 1))
            return
        self._post(message.worker, SessionTaken(message.question, snapshot))

    def _ask(self, remote: RemoteTurn) -> None:
        self._post(remote.worker_id, Follow(remote.id, remote.caller.user_id, len(remote.logged_text())))

    def _post(self, worker_id: str, message: Message) -> bool:
        return bool(worker_id) and self._mailbox.post(worker_id, encode(message))

    # Mail

    def _receive(self, sender: str, data: bytes) -> None:
        message = decode(data)
        now = self._heard[sender] = asyncio.get_running_loop().time()
        match message:
            case Follow():
                self._forward(sender, message)
            case Leave():
                if (task := self._forwards.get((sender, message.turn))) is not None:
                    task.cancel()
            case Cancel():
                self._own(partial(self._cancel, sender, message))
            case TakeSession():
                self._own(partial(self._hand_over, message))
            case SessionTaken():
                if (future := self._questions.get(message.question)) is not None and not future.done():
                    future.set_result(message.snapshot)
            case Alive():
                sent = set(message.turns)
                for remote in self._turns_of(sender):
                    remote.needs_store_check = remote.needs_store_check or remote.id not in sent
            case _:
                for remote in self._turns_of(sender, message.turn):
                    remote.told_at = now
                    self._take(remote, message)

    def _take(self, remote: RemoteTurn, message: Progress | Ended | Unknown) -> None:
        remote.synced.set()
        if isinstance(message, Unknown):
            remote.needs_store_check = True
            return
        if not remote.extend(message.at, message.text):
            self._ask(remote)
            return
        if message.answer_at > remote.answer_at:
            remote.discard_text(message.answer_at)
        if not remote.ended:
            remote.memories = message.memories
            if isinstance(message, Ended) and message.has_calls:
                remote.needs_store_check = True
            elif isinstance(message, Ended):
                self._end(remote, _end_of(message))

    def _turns_of(self, worker_id: str, turn_id: str | None = None) -> list[RemoteTurn]:
        return [
            remote
            for (_, name), remote in self._remote.items()
            if remote.worker_id == worker_id and turn_id in (None, name)
        ]

    def _note_lost_mailbox(self, worker_id: str) -> None:
        """Note that a worker's mailbox is gone: the worker is dead, or has lost its Redis."""
        self._heard.pop(worker_id, None)
        loop = asyncio.get_running_loop()
        for name, task in self._forwards.items():
            if name[0] == worker_id:
                # The worker may only have lost its Redis, and ask again.
                loop.call_later(SILENCE_S, task.cancel)
        for remote in self._turns_of(worker_id):
            remote.synced.set()
            remote.needs_store_check = True

    # What runs here, for others

    def _forward(self, sender: str, follow: Follow) -> None:
        """Start sending a turn's text to *sender*; replaces what it was sent before from another code point."""
        name = (sender, follow.turn)
        turn = None if self._turns is None else self._turns.get(follow.user, follow.turn)
        if turn is None or self._turns is None:
            self._post(sender, Unknown(follow.turn))
            return
        # Attach before the replaced task detaches: a turn without readers is cancelled.
        self._turns.attach(turn)
        before = self._forwards.pop(name, None)
        task = self._forwards[name] = self._own(partial(self._send, sender, turn, follow.at))
        task.add_done_callback(lambda _: self._forwarded(name, task, turn))
        if before is not None:
            before.cancel()

    def _forwarded(self, name: tuple[str, str], task: asyncio.Task[None], turn: Turn) -> None:
        if self._forwards.get(name) is task:
            del self._forwards[name]
        if self._turns is not None:
            self._own(partial(self._turns.detach, turn))

    async def _send(self, sender: str, turn: Turn, at: int) -> None:
        loop = asyncio.get_running_loop()
        reader = Reader(turn)
        first = True
        posted_at = loop.time()
        while loop.time() - posted_at < MAILBOX_TTL_S:
            reader.take()
            ended, text = turn.ended, turn.logged_text()
            if ended or first or len(text) > at:
                message = (
                    _ended(turn, at, text[at:])
                    if ended
                    else Progress(turn.id, at, text[at:], turn.memories, turn.answer_at)
                )
                if not self._post(sender, message):
                    await asyncio.sleep(CHECK_INTERVAL_S)
                    continue
                if ended:
                    return
                at, first = len(text), False
            await asyncio.sleep(BATCH_S)
            if len(turn.logged_text()) == at:
                await reader.next()
            posted_at = loop.time()

    async def _cancel(self, sender: str, cancel: Cancel) -> None:
        turn = None if self._turns is None else self._turns.get(cancel.user, cancel.turn)
        if turn is None or self._turns is None:
            self._post(sender, Unknown(cancel.turn))
        else:
            await self._turns.stop(turn, Status.CANCELLED, cancel.reason, cancel.heard)

    def _own(self, work: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        return start_in(self._work, _logged(work))

    # Looking after all that

    async def _keep(self) -> None:
        """Tell followers that this worker lives, and compare remote turns without news with the store."""
        loop = asyncio.get_running_loop()
        alive_at = 0.0
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            try:
                if loop.time() >= alive_at and self._forwards:
                    alive_at = loop.time() + ALIVE_INTERVAL_S
                    for follower in {follower for follower, _ in self._forwards}:
                        self._post(follower, Alive([turn for who, turn in self._forwards if who == follower]))
                if self._remote:
                    self._drop_idle(loop.time())
                    await self._check_store(loop.time())
                elif self._heard:
                    self._heard.clear()
            except RequestError:
                self._give_up(loop.time())
            except Exception:
                logger.exception("turns of other workers were not looked after through a defect")

    def _drop_idle(self, now: float) -> None:
        for name, remote in list(self._remote.items()):
            if remote.readers == 0 and (remote.ended or now - remote.left_at > IDLE_S):
                del self._remote[name]
                if not remote.ended:
                    self._post(remote.worker_id, Leave(remote.id))

    async def _check_store(self, now: float) -> None:
        quiet = [
            remote
            for remote in self._remote.values()
            if not remote.ended
            and (
                remote.needs_store_check
                or self._mailbox.state != "healthy"
                or now - max(self._heard.get(remote.worker_id, 0.0), remote.told_at) > SILENCE_S
            )
        ]
        for start in range(0, len(quiet), CHECK_TURNS):
            batch = quiet[start : start + CHECK_TURNS]
            records = {record.id: record for record in await self._store.fetch_many([one.id for one in batch])}
            for remote in batch:
                remote.needs_store_check = False
                if not remote.ended:
                    await self._compare(remote, records.get(remote.id), now)

    async def _compare(self, remote: RemoteTurn, record: TurnRecord | None, now: float) -> None:
        """Bring *remote* to the stored state, and ask the turn's worker again."""
        if record is None:
            self._end(remote, TurnEnd(Status.CANCELLED, "conversation_deleted", ended_at=datetime.now(UTC)))
            return
        if record.status is Status.RUNNING:
            if not remote.answer_at and record.content.startswith(remote.text()):
                remote.extend(0, record.content)
            remote.worker_id = record.worker or ""
            if self._mailbox.state != "healthy" or self._heard.get(remote.worker_id, 0.0) < now - SILENCE_S:
                # Its worker sends nothing: the store is the only source.
                remote.needs_store_check = True
            remote.told_at = now
            self._ask(remote)
            return
        # Until it is told that it has ended, also where the store cannot be asked.
        remote.needs_store_check = True
        if await self._reconcile(remote, record) and not remote.ended:
            for call in (await self._store.calls.fetch(remote.id))[len(remote.calls) :]:
                remote.append_call(call)
            remote.memories = record.memories
            self._end(remote, TurnEnd.from_record(record))

    async def _reconcile(self, remote: RemoteTurn, record: TurnRecord) -> bool:
        """
        Have the text of *remote* and the history agree on a turn that has ended; return whether they do now.

        A worker that was killed stored its text up to a second before, and what it sent after that stands here alone.
        """
        told, kept = remote.text(), record.content
        if kept.startswith(told):
            remote.extend(remote.answer_at, kept)
            return True
        is_later = told.startswith(kept) or remote.logged_text()[: remote.answer_at].startswith(kept)
        if record.reason == "server_stopped" and is_later:
            return await self._store.keep_told(remote.id, kept=kept, told=told)
        # Its model took back what was told here, and the mail that told of it got lost.
        remote.discard_text()
        if kept:
            remote.append(kept)
        return True

    def _give_up(self, now: float) -> None:
        """End remote turns of which neither worker nor store has told for ``LOST_S``."""
        for remote in list(self._remote.values()):
            if not remote.ended and now - max(self._heard.get(remote.worker_id, 0.0), remote.told_at) > LOST_S:
                error = Unavailable(
                    "The worker that makes this response cannot be reached.", retry_after_s=RETRY_AFTER_S
                )
                status = Status.INCOMPLETE if remote.text() else Status.FAILED
                self._end(remote, TurnEnd(status, "unavailable", error, ended_at=datetime.now(UTC)))

    def _end(self, remote: RemoteTurn, end: TurnEnd) -> None:
        remote.synced.set()
        remote.end(end)
        self._remote.pop((remote.caller.user_id, remote.id), None)


def _ended(turn: Turn, at: int, text: str) -> Ended:
    error = None if turn.error is None else (turn.error.code, turn.error.message)
    ended_at = turn.ended_at or datetime.now(UTC)
    return Ended(
        turn.id,
        at,
        text,
        turn.status,
        turn.reason,
        error,
        turn.tokens,
        turn.model,
        turn.memories,
        ended_at,
        turn.answer_at,
        turn.timer.receipt,
        any(call.shown for call in turn.calls),
        turn.prompt_tokens,
    )


def _end_of(message: Ended) -> TurnEnd:
    error = None if message.error is None else of_code(*message.error)
    return TurnEnd(
        message.status,
        message.reason,
        error,
        message.tokens,
        message.model,
        message.ended_at,
        message.receipt,
        prompt_tokens=message.prompt_tokens,
    )


async def _logged(work: Callable[[], Awaitable[None]]) -> None:
    try:
        await work()
    except RequestError as exc:
        logger.warning("a request of another worker was not done", error=str(exc))
    except Exception:
        logger.exception("a request of another worker failed through a defect")
