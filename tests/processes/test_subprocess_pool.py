"""Child processes that answer requests: their order, their deaths, their ends."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from jarvis_core.errors import DeadlineExceeded, Overloaded, RateLimited, RequestError, Unavailable
from jarvis_core.processes.subprocess_pool import Message, Part, Session, SubprocessDied, SubprocessPool
from jarvis_core.shares import current_user
from tests.system.server import REPOSITORY, Process, family_of, wait_gone

CHILD = "tests.fakes.pooled_process"
LONG_S = 20.0
MakePool = Callable[..., SubprocessPool]


@pytest.fixture
async def make_pool() -> AsyncIterator[MakePool]:
    """Make pools of the test's own; afterwards they are closed and none of their processes is left."""
    made: list[SubprocessPool] = []

    def make(module: str = CHILD, **options: object) -> SubprocessPool:
        made.append(SubprocessPool("test process", module, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for pool in made:
        await pool.close()
        assert pool.running == 0
    assert not children()


def children() -> set[Process]:
    """Return this process' pool."""
    mine = {process for process in family_of(os.getpid()) if process.pid != os.getpid()}
    return {one for one in mine if CHILD.encode() in _command(one.pid)}


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def ask(pool: SubprocessPool | Session, header: str = "echo", timeout_s: float = LONG_S) -> tuple[int, int]:
    """Return the pid of who answered, and the how many-th request it was."""
    pid, _, number = (await pool.call(header.encode(), timeout_s=timeout_s))[0].partition(b" ")
    return int(pid), int(number)


async def gone(pid: int) -> None:
    """Wait until a child has ended and was waited for."""
    async with asyncio.timeout(5):
        while Path(f"/proc/{pid}").exists():  # noqa: ASYNC110, ASYNC240 - nothing tells of it
            await asyncio.sleep(0.005)


class Held:
    """A request that is being answered until ``release``."""

    def __init__(self, pool: SubprocessPool | Session, path: Path, timeout_s: float = LONG_S) -> None:
        self._path = path
        self.task = asyncio.create_task(ask(pool, f"wait {path}", timeout_s))

    def release(self) -> None:
        self._path.touch()


@pytest.fixture
def hold(tmp_path: Path) -> Callable[..., Held]:
    """Make requests that are answered when the test says so."""
    numbers = iter(range(100))
    return lambda pool, timeout_s=LONG_S: Held(pool, tmp_path / str(next(numbers)), timeout_s)


# Answers


async def test_answers_come_back(make_pool: MakePool) -> None:
    """An answer has its header and its payloads, empty ones and views included."""
    pool = make_pool()
    parts: list[Part] = [b"", b"one", bytearray(b"two"), memoryview(b"-three-")[1:-1], bytes(70_000)]
    answer: Message = await pool.call(b"echo", parts, timeout_s=LONG_S)
    assert answer[1:] == [bytes(part) for part in parts]
    assert await pool.call(b"echo", [b"x"] * 5_000, timeout_s=LONG_S) != []


async def test_one_after_another(make_pool: MakePool) -> None:
    """One process answers in the order of the questions, and it is the same one all the time."""
    pool = make_pool()
    answers = await asyncio.gather(*(ask(pool) for _ in range(40)))
    assert [number for _, number in answers] == list(range(1, 41))
    assert len({pid for pid, _ in answers}) == pool.running == 1
    assert pool.pending == 0


async def test_side_by_side(make_pool: MakePool, hold: Callable[..., Held]) -> None:
    """So many processes as are allowed work side by side; the next request goes to the one with the least to do."""
    pool = make_pool(limit=2)
    first, second = hold(pool), hold(pool)
    third = asyncio.create_task(ask(pool))
    await asyncio.sleep(0.05)
    assert (pool.running, pool.pending) == (2, 3)
    second.release()
    pid, _ = await second.task
    assert await ask(pool) == (pid, 2)
    first.release()
    assert {(await first.task)[0], (await third)[0]} == {(await first.task)[0]}
    assert pid != (await first.task)[0]


async def test_no_more_than_needed(make_pool: MakePool) -> None:
    """Requests that do not overlap need one process."""
    pool = make_pool(limit=3)
    assert len({(await ask(pool))[0] for _ in range(5)}) == 1


async def test_start(make_pool: MakePool) -> None:
    """A process can be started ahead of its first request, once."""
    pool = make_pool(limit=3)
    assert pool.running == 0
    pool.start()
    pool.start()
    (child,) = children()
    assert (await ask(pool))[0] == child.pid


async def test_large_payloads(make_pool: MakePool) -> None:
    """Fifty megabytes each way arrive whole, and the loop is free for others meanwhile."""
    pool = make_pool()
    await ask(pool)
    payload = os.urandom(1 << 20) * 50
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            gaps.append(time.perf_counter() - before)

    ticking = asyncio.create_task(tick())
    answer = await pool.call(b"echo", [payload], timeout_s=LONG_S)
    ticking.cancel()
    assert answer[1] == payload
    assert len(gaps) > 20
    assert max(gaps) < 0.3


# Deaths


@pytest.mark.parametrize(
    ("header", "crashed"),
    [
        (f"signal {int(signal.SIGSEGV)}", True),
        (f"signal {int(signal.SIGABRT)}", True),
        (f"signal {int(signal.SIGKILL)}", False),
        ("exit 0", False),
        ("exit 3", False),
        ("raise on purpose", False),
    ],
)
async def test_death(make_pool: MakePool, header: str, crashed: bool) -> None:
    """A process that ends in a request is an error that says whether it crashed; the next request has a new one."""
    pool = make_pool()
    pid, _ = await ask(pool)
    with pytest.raises(SubprocessDied) as caught:
        await ask(pool, header)
    assert caught.value.crashed is crashed
    assert caught.value.retry_after_s
    other, number = await ask(pool)
    assert (number, pool.running) == (1, 1)
    assert other != pid
    await gone(pid)


async def test_death_at_the_start(make_pool: MakePool) -> None:
    """A module that cannot be run is no crash."""
    with pytest.raises(SubprocessDied) as caught:
        await ask(make_pool("tests.fakes.no_such_module"))
    assert not caught.value.crashed


async def test_no_process(make_pool: MakePool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no process can be started the request is told so."""
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    pool = make_pool()
    with pytest.raises(Unavailable):
        await ask(pool)
    assert pool.running == 0


async def test_death_while_idle(make_pool: MakePool) -> None:
    """A process that was killed while it had nothing to do is no request's business."""
    pool = make_pool()
    pid, _ = await ask(pool)
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while b"State:\tZ" not in Path(f"/proc/{pid}/status").read_bytes():  # noqa: ASYNC110, ASYNC240
            await asyncio.sleep(0.005)
    other, number = await ask(pool)
    assert (number, pool.running) == (1, 1)
    assert other != pid
    await gone(pid)


async def test_death_harms_one_request(make_pool: MakePool) -> None:
    """Requests that waited behind one that killed the process are answered by the next process."""
    pool = make_pool()
    fatal = asyncio.create_task(ask(pool, f"signal {int(signal.SIGKILL)}"))
    waiting = [asyncio.create_task(ask(pool)) for _ in range(5)]
    with pytest.raises(SubprocessDied):
        await fatal
    answers = await asyncio.gather(*waiting)
    assert [number for _, number in answers] == [1, 2, 3, 4, 5]


# Time


@pytest.mark.every_python
async def test_timeout(make_pool: MakePool, hold: Callable[..., Held]) -> None:
    """A request that takes too long is an error and its process is killed; the next one has a fresh process."""
    pool = make_pool()
    pid, _ = await ask(pool)
    with pytest.raises(DeadlineExceeded):
        await hold(pool, 0.1).task
    await gone(pid)
    assert (await ask(pool))[1] == 1
    assert pool.pending == 0


@pytest.mark.every_python
async def test_timeout_harms_one_request(make_pool: MakePool, hold: Callable[..., Held]) -> None:
    """Requests that waited behind one that took too long are answered by the next process."""
    pool = make_pool()
    slow = hold(pool, 0.2)
    waiting = [asyncio.create_task(ask(pool)) for _ in range(3)]
    with pytest.raises(DeadlineExceeded):
        await slow.task
    assert [number for _, number in await asyncio.gather(*waiting)] == [1, 2, 3]


@pytest.mark.every_python
async def test_timeout_of_one_that_waits(make_pool: MakePool, hold: Callable[..., Held]) -> None:
    """A request whose time runs out behind others is taken back: they are answered, and it never is."""
    pool = make_pool()
    first = hold(pool)
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await ask(pool, timeout_s=0.1)
    assert caught.value.retry_after_s
    await asyncio.sleep(0.01)
    assert pool.pending == 1
    first.release()
    pid, number = await first.task
    assert number == 1
    assert await ask(pool) == (pid, 2)


@pytest.mark.every_python
async def test_time_begins_with_the_turn(make_pool: MakePool, hold: Callable[..., Held]) -> None:
    """A request that has waited for its turn has all of its time from then on."""
    pool = make_pool()
    first = hold(pool)
    second = hold(pool, 1.2)
    await asyncio.sleep(0.7)
    first.release()
    await first.task
    await asyncio.sleep(0.7)
    second.release()
    assert (await second.task)[1] == 2


# Cancelling


@pytest.mark.every_python
async def test_cancelled_while_the_process_hangs(make_pool: MakePool, hold: Callable[..., Held]) -> None:
    """A process that does not answer is killed when its time is over, also where nobody waits for it any more."""
    pool = make_pool()
    pid, _ = await ask(pool)
    os.kill(pid, signal.SIGSTOP)
    held = hold(pool, 0.3)
    await asyncio.sleep(0.05)
    held.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held.task
    assert (await ask(pool))[1] == 1
    await gone(pid)


@pytest.mark.every_python
async def test_cancelled(make_pool: MakePool, hold: Callable[..., Held]) -> None:
    """A process goes on with a request that was cancelled, and its answer is nobody else's."""
    pool = make_pool()
    pid, _ = await ask(pool)
    held = hold(pool)
    await asyncio.sleep(0.05)
    held.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held.task
    assert pool.pending == 1
    following = asyncio.create_task(pool.call(b"echo", [b"mine"], timeout_s=LONG_S))
    held.release()
    assert await following == [b"%d 3" % pid, b"mine"]


@pytest.mark.every_python
async def test_cancelled_and_killed(make_pool: MakePool, hold: Callable[..., Held]) -> None:
    """With ``kill_cancelled`` the process is ended instead, and whoever waited behind it gets another one."""
    pool = make_pool(kill_cancelled=True)
    pid, _ = await ask(pool)
    held = hold(pool)
    await asyncio.sleep(0.05)
    following = asyncio.create_task(ask(pool))
    await asyncio.sleep(0)
    held.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await held.task
    await gone(pid)
    assert (await following)[1] == 1
    assert pool.pending == 0


@pytest.mark.every_python
@pytest.mark.parametrize("kill_cancelled", [False, True])
async def test_cancelled_while_it_waits(make_pool: MakePool, hold: Callable[..., Held], kill_cancelled: bool) -> None:
    """A request that is cancelled behind others is taken back, and kills nothing."""
    pool = make_pool(kill_cancelled=kill_cancelled)
    first = hold(pool)
    waiting = asyncio.create_task(ask(pool))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert pool.pending == 1
    first.release()
    pid, _ = await first.task
    assert await ask(pool) == (pid, 2)


# Limits


@pytest.mark.every_python
async def test_too_many_wait(make_pool: MakePool, hold: Callable[..., Held]) -> None:
    """More requests than may wait are refused at once; those that were taken are answered."""
    pool = make_pool(waiting_limit=3)
    first = hold(pool)
    others = [asyncio.create_task(ask(pool)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Overloaded) as caught:
        await ask(pool)
    assert caught.value.retry_after_s
    first.release()
    assert [number for _, number in await asyncio.gather(first.task, *others)] == [1, 2, 3]
    assert (await ask(pool))[1] == 4


async def test_users_have_turns(make_pool: MakePool, hold: Callable[..., Held]) -> None:
    """A request of who asks little is answered in its turn, and not after all that another user has sent before."""
    pool = make_pool()

    async def ask_as(user: str) -> int:
        current_user.set(user)
        return (await ask(pool))[1]

    first = hold(pool)
    others = [asyncio.create_task(ask_as("ann")) for _ in range(20)]
    await asyncio.sleep(0)
    one = asyncio.create_task(ask_as("ben"))
    await asyncio.sleep(0)
    first.release()
    assert await one == 3
    assert await asyncio.gather(*others) == [2, *range(4, 23)]
    await first.task


async def test_share_of_what_waits(make_pool: MakePool, hold: Callable[..., Held]) -> None:
    """One user cannot have all places in the queue, nor all sessions, and is told so; another gets one."""
    pool = make_pool(waiting_limit=8, session_limit=8)
    current_user.set("ann")
    async with AsyncExitStack() as stack:
        first = hold(pool)
        others = [asyncio.create_task(ask(pool)) for _ in range(6)]
        for _ in range(7):
            await stack.enter_async_context(pool.session())
        await asyncio.sleep(0)
        with pytest.raises(RateLimited) as caught:
            await ask(pool)
        assert caught.value.retry_after_s
        with pytest.raises(RateLimited):
            await stack.enter_async_context(pool.session())
        current_user.set("ben")
        others.append(asyncio.create_task(ask(pool)))
        await stack.enter_async_context(pool.session())
        first.release()
        assert len(await asyncio.gather(first.task, *others)) == 8


async def test_session_is_let_in_once(make_pool: MakePool, hold: Callable[..., Held]) -> None:
    """So many sessions are lent and no more; the requests of one that was lent are never refused."""
    pool = make_pool(waiting_limit=1, session_limit=1)
    async with pool.session() as session:
        with pytest.raises(Overloaded):
            async with pool.session():
                pass
        first = hold(pool)
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await ask(pool)
        asking = asyncio.create_task(ask(session))
        await asyncio.sleep(0)
        first.release()
        assert (await asking)[1] == 2
    async with pool.session():
        pass


# Sessions


async def test_session(make_pool: MakePool) -> None:
    """A session's requests go to one process, others' sessions to others while there are some, and all may mix."""
    pool = make_pool(limit=2)
    async with pool.session() as one, pool.session() as two:
        first, second = (await ask(one))[0], (await ask(two))[0]
        assert first != second
        for _ in range(3):
            assert {(await ask(one))[0] for _ in range(3)} == {first}
            assert (await ask(two))[0] == second
            await ask(pool)
        async with pool.session() as three:
            assert (await ask(three))[0] in (first, second)
    assert pool.running == 2


async def test_session_ends_with_its_process(make_pool: MakePool) -> None:
    """When a session's process dies the session is over; another has a process."""
    pool = make_pool()
    async with pool.session() as session:
        await ask(session)
        for header in (f"signal {int(signal.SIGKILL)}", "echo", "echo"):
            with pytest.raises(SubprocessDied):
                await ask(session, header)
        async with pool.session() as another:
            assert (await ask(another))[1] == 1
    assert pool.running == 1


# Ends


async def test_idle(make_pool: MakePool, hold: Callable[..., Held]) -> None:
    """A process ends when it has been idle for long, not while it works or a session needs it."""
    pool = make_pool(idle_s=0.15)
    held = hold(pool)
    await asyncio.sleep(0.3)
    held.release()
    pid, _ = await held.task
    for _ in range(3):
        await asyncio.sleep(0.05)
        assert (await ask(pool))[0] == pid
    async with pool.session() as session:
        await asyncio.sleep(0.3)
        assert (await ask(session))[0] == pid
    await gone(pid)
    assert pool.running == 0
    assert (await ask(pool))[1] == 1


async def test_idle_without_a_request(make_pool: MakePool) -> None:
    """A process that was started for a request that never came ends too."""
    pool = make_pool(idle_s=0.05)
    pool.start()
    (child,) = children()
    await gone(child.pid)
    assert pool.running == 0


@pytest.mark.every_python
async def test_close(make_pool: MakePool, hold: Callable[..., Held]) -> None:
    """Closing ends every process, those that work too; what is asked then and afterwards fails."""
    pool = make_pool(limit=3, idle_s=60)
    running = [hold(pool), hold(pool)]
    waiting = [asyncio.create_task(ask(pool)) for _ in range(4)]
    async with pool.session() as session:
        await asyncio.sleep(0.1)
        before = children()
        assert len(before) == 3
        await pool.close()
        assert not wait_gone(before, 0)
        results = await asyncio.gather(*(held.task for held in running), return_exceptions=True)
        assert all(isinstance(result, RequestError) for result in results)
        await asyncio.gather(*waiting, return_exceptions=True)
        for asked in (pool, session):
            with pytest.raises(Unavailable):
                await ask(asked)
    assert (pool.running, pool.pending) == (0, 0)
    pool.start()
    assert not children()
    await pool.close()


async def test_close_without_any(make_pool: MakePool) -> None:
    """A pool that was never used closes."""
    await make_pool().close()


def test_processes_end_with_their_parent(tmp_path: Path) -> None:
    """Processes end when the one that started them is killed, idle or busy."""
    script = (
        "import asyncio, os, signal\n"
        "from jarvis_core.processes.subprocess_pool import SubprocessPool\n"
        "async def main():\n"
        f"    pool = SubprocessPool('x', {CHILD!r}, limit=2)\n"
        "    async with pool.session() as one, pool.session() as two:\n"
        "        await one.call(b'echo', timeout_s=20)\n"
        "        await two.call(b'echo', timeout_s=20)\n"
        f"        asyncio.ensure_future(one.call(b'wait {tmp_path}/never', timeout_s=20))\n"
        "        await asyncio.sleep(0.05)\n"
        "        print('ready', flush=True)\n"
        "        await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], cwd=REPOSITORY, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        family = family_of(parent.pid)
        assert len(family) == 3
        parent.kill()
    left = wait_gone(family)
    for process in left:
        os.kill(process.pid, signal.SIGKILL)
    assert not left
