"""Asks the bridges whether a turn of speech is over: an optional path of ours, which the reference does not have."""

from __future__ import annotations

import msgspec

from jarvis_core.errors import BadGateway, NotFound, Unavailable
from jarvis_core.models import Caller
from jarvis_core.services.contract import NONSENSE, TurnEndAnswer
from jarvis_core.services.tokens import TokenMint
from jarvis_core.services.transport import Refused, Transport

PATH = "/api/turn/end"
TIMEOUT_S = 3.0
"""For the first answer, which loads the model; who waits for one in a conversation waits less."""
ABSENT = (404, 405, 501)
"""What says that there is no such path, or no such model behind it."""

_decoder = msgspec.json.Decoder(TurnEndAnswer)


class BridgesTurnEnd:
    """
    ``TurnEndModel`` behind the bridges' HTTP service.

    Over a transport of its own: an answer that is late here says nothing of the bridges' health.
    """

    def __init__(self, transport: Transport, mint: TokenMint | None) -> None:
        self._transport = transport
        self._mint = mint

    async def end_probability(self, audio: bytes, caller: Caller) -> float:
        """Ask how likely *audio* is the end of a turn, as ``TurnEndModel`` has it."""
        headers = {"Content-Type": "application/json"}
        if self._mint is not None:
            headers["Authorization"] = "Bearer " + self._mint.token(caller)
        body = b'{"audio_data":"%s","sample_rate":16000}' % audio
        try:
            answer = await self._transport.call("POST", PATH, body=body, headers=headers, timeout_s=TIMEOUT_S)
        except Refused as exc:
            if exc.status in ABSENT:
                raise NotFound("No model tells the end of a turn.") from exc
            raise
        except Unavailable as exc:
            if (exc.details or {}).get("status") in ABSENT:
                raise NotFound("No model tells the end of a turn.") from exc
            raise
        try:
            return _decoder.decode(answer.body).probability
        except NONSENSE as exc:
            self._transport.breaker.failed()
            raise BadGateway(f"{self._transport.name} sent what is not its contract.") from exc
