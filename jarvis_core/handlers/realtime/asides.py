"""Responses out of band: they belong to no conversation, are stored nowhere, and run beside the conversation's own."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from jarvis_core import log
from jarvis_core.handlers.call import BoundedSends, ClientLeft
from jarvis_core.handlers.realtime.output import Output
from jarvis_core.handlers.realtime.refusals import AlreadyActive
from jarvis_core.handlers.realtime.socket import DEFECT, Socket
from jarvis_core.handlers.realtime.transcriptions import ASIDES_LIMIT
from jarvis_core.speech.narration import START
from jarvis_core.turns.turns import Turns

logger = log.get(__name__)


class Asides:
    """
    The responses out of band of one session: they end with its socket.

    Owns a task for each, which sends its events.
    """

    def __init__(self, turns: Turns, socket: Socket) -> None:
        self._turns = turns
        self._socket = socket
        self._running: dict[str, tuple[Output, asyncio.Task[None]]] = {}

    def admit(self) -> None:
        """Raise ``AlreadyActive`` where as many are active as may."""
        if len(self._running) >= ASIDES_LIMIT:
            raise AlreadyActive(
                f"{ASIDES_LIMIT} responses out of band are active; wait for response.done or cancel one."
            )

    def begin(self, output: Output) -> None:
        """Send a response from its start."""
        self._turns.attach(output.turn)
        task = asyncio.get_running_loop().create_task(self._send_events(output))
        self._running[output.turn.id] = output, task

    async def cancel(self, response_id: str | None) -> bool:
        """Stop a response, and return whether there was one; waits until its end is told."""
        found = self._running.get(response_id or "")
        if found is None:
            return False
        output, task = found
        output.silence("cancelled")
        await self._turns.stop(output.turn)
        await asyncio.wait([task])
        return True

    async def leave(self) -> None:
        """Stop all of them: nobody hears their ends."""
        tasks = [task for _, task in self._running.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for output, _ in self._running.values():
            # Its task was cancelled before its first step.
            await self._turns.detach(output.turn)
        self._running.clear()

    async def _send_events(self, output: Output) -> None:
        socket, turn = self._socket, output.turn
        log.bind_turn(turn.id, "")
        try:
            async with BoundedSends() as sends, aclosing(output.events(START)) as events:
                async for event in events:
                    if not socket.is_free:
                        await sends.wait(socket.free())
                    if socket.gone:
                        return
                    socket.seq += 1
                    socket.begin(event.write(socket.seq).decode())
        except ClientLeft:
            socket.lose()
        except Exception:
            logger.exception("the events of a response out of band failed through a defect")
            socket.close(DEFECT)
        finally:
            del self._running[turn.id]
            await self._turns.detach(turn)
