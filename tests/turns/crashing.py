"""
Kills processes in the middle of turns that call tools, and retries the turns by their keys.

``python -m tests.turns.crashing CONNINFO FILE ROUNDS SEED``: FILE gets a line for each call that a tool was really asked for.
Prints a JSON object: how many turns completed, how many calls were made, and which of them more than once.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
from msgspec import Raw

from jarvis_core.models import (
    Caller,
    Finish,
    HealthState,
    IdempotencyKey,
    Prompt,
    Status,
    Tool,
    ToolCall,
    ToolOutput,
    new_id,
)
from jarvis_core.processes.child import own_identity
from jarvis_core.settings import Database, Llm, Tools
from jarvis_core.store.heartbeats import HeartbeatStore
from jarvis_core.store.migrations import migrate
from jarvis_core.store.pool import Pool
from jarvis_core.store.turns import TurnStore
from jarvis_core.tools.toolbox import Toolbox
from jarvis_core.turns.ask import Ask
from jarvis_core.turns.tool_loop import ToolLoop
from jarvis_core.turns.turns import Turns

CALLER = Caller("ann")
STEPS = 3
KILLS_LIMIT = 3
LONGEST_S = 0.08
"""From a child's start to its death; it needs about half of that where nobody kills it."""
RUN_LIMIT_S = 20.0


class CountingServer:
    """Tools that leave a line in a file for each call."""

    name = "house"
    state: HealthState = "healthy"
    tools = (Tool("house__step", server="house", own_name="step"),)

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def call(self, tool: Tool, arguments: Raw, caller: Caller) -> ToolOutput:
        """Note the call, and take a little while to answer."""
        del tool, caller
        await asyncio.sleep(random.uniform(0, 0.004))
        os.write(self._file, bytes(arguments) + b"\n")
        await asyncio.sleep(random.uniform(0, 0.008))
        return ToolOutput("done")


class Model:
    """Calls one step after the other, each twice side by side, and then says that all is done."""

    reads_ahead = False
    history_limit_chars = 1_000

    async def read_ahead(self, prompt: Prompt, caller: Caller) -> None:
        """Do nothing: there is nothing to gain."""

    @asynccontextmanager
    async def generate(self, prompt: Prompt, caller: Caller) -> AsyncIterator[AsyncIterator[str | Finish]]:
        """Answer by what was done until now."""
        del caller
        yield self._pieces(prompt)

    async def _pieces(self, prompt: Prompt) -> AsyncIterator[str | Finish]:
        await asyncio.sleep(random.uniform(0, 0.004))
        done = sum(bool(one.calls) for one in prompt.followed)
        if done == STEPS:
            yield "All is done."
            yield Finish("stop", 1, "model")
            return
        calls = [
            ToolCall(f"call_{new_id()}", "house__step", f'{{"turn":"{prompt.content}","step":{done},"side":{side}}}')
            for side in (0, 1)
        ]
        yield Finish("tool_calls", 1, "model", tuple(calls))


async def run_turn(conninfo: str, file: Path, content: str) -> bool:
    """Begin the turn, or take it up; return whether it completed."""
    pool = Pool(Database(max_connections=2), conninfo)
    await pool.open()
    try:
        worker_id = new_id()
        await HeartbeatStore(pool, worker_id, own_identity()).close_strays(at_once=True)
        store = TurnStore(pool, worker_id)
        tools = ToolLoop(store.calls, Toolbox((CountingServer(file),), Tools(call_limit=2 * STEPS)))
        turns = Turns(store, Model(), Llm(), tools=tools)
        turn = await turns.start(Ask(content), CALLER, IdempotencyKey(content, b"hash"))
        await turn.wait_ended()
        await turns.close(drain_timeout_s=1)
        return turn.status is Status.COMPLETED
    finally:
        await pool.close()


def fork(conninfo: str, file: Path, content: str) -> int:
    """Run the turn in a child; return its id. It exits with 0 where the turn completed."""
    pid = os.fork()
    if pid:
        return pid
    try:
        random.seed(os.getpid())
        os._exit(0 if asyncio.run(run_turn(conninfo, file, content)) else 2)
    finally:
        os._exit(1)


def main(conninfo: str, file: Path, rounds: int, seed: int) -> dict[str, object]:
    """Run so many turns, each killed a few times."""

    async def prepare() -> None:
        pool = Pool(Database(max_connections=2), conninfo)
        await pool.open()
        await migrate(pool)
        await pool.close()

    asyncio.run(prepare())
    chance = random.Random(seed)
    completed = killed = 0
    for number in range(rounds):
        content = f"turn {seed} {number}"
        for _ in range(chance.randint(1, KILLS_LIMIT)):
            pid = fork(conninfo, file, content)
            time.sleep(chance.uniform(0, LONGEST_S))
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            killed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        pid = fork(conninfo, file, content)
        signal.alarm(int(RUN_LIMIT_S))
        completed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        signal.alarm(0)
    made = Counter(file.read_text().splitlines())
    twice = [call for call, times in made.items() if times > 1]
    return {"completed": completed, "killed": killed, "calls": made.total(), "twice": twice}


if __name__ == "__main__":
    result = main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
    sys.stdout.write(msgspec.json.encode(result).decode() + "\n")
