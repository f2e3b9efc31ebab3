"""``POST /v1/realtime/client_secrets``: a ticket for one WebSocket, for a page that is not to have its caller's key."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from jarvis_core.access.credentials import Credentials
from jarvis_core.access.tickets import Tickets
from jarvis_core.handlers.call import Call, Reply
from jarvis_core.handlers.openai.models import ASSISTANT
from jarvis_core.handlers.openai.warning import left_out
from jarvis_core.models import new_id


class ExpiresAfter(Struct, frozen=True):
    """How long the ticket is good for."""

    anchor: Literal["created_at"] = "created_at"
    seconds: Annotated[int, Meta(ge=10, le=7_200)] = 600


class ClientSecretRequest(Struct, frozen=True):
    """What a ticket is to be."""

    expires_after: ExpiresAfter = ExpiresAfter()
    session: dict[str, Any] | None = None
    """Of the session only its type and model are known here; the rest is for its ``session.update``."""


class RealtimeSession(Struct, frozen=True):
    """The session that it lets in, as it begins."""

    id: str
    model: str = ASSISTANT
    type: Literal["realtime"] = "realtime"
    object: Literal["realtime.session"] = "realtime.session"


class ClientSecret(Struct, frozen=True):
    """A ticket."""

    value: str
    """In place of a key, once: ``Authorization: Bearer``, or the subprotocol that browsers send."""
    expires_at: int
    """In seconds since 1970; what it let in goes on, as long as the credentials of who asked for it."""
    session: RealtimeSession


_decoder = msgspec.json.Decoder(ClientSecretRequest)
_encode = msgspec.json.Encoder().encode


class ClientSecretHandlers:
    """The route for tickets."""

    def __init__(self, tickets: Tickets, credentials: Credentials, *, body_limit_bytes: int) -> None:
        self._tickets = tickets
        self._credentials = credentials
        self._body_limit_bytes = body_limit_bytes

    async def create(self, call: Call) -> Reply:
        """Answer ``POST /v1/realtime/client_secrets``."""
        request = msgspec.json.decode(b"{}", type=ClientSecretRequest)
        if call.body_pending and call.header(b"content-length") != "0":
            request = await call.decode(_decoder, self._body_limit_bytes)
        value, good_until_s = self._tickets.issue(
            "socket",
            call.caller,
            lifetime_s=request.expires_after.seconds,
            ends_at_s=self._credentials.ends_at_s(call.header(b"authorization")),
        )
        unused = [f"session.{name}" for name in request.session or {} if name not in ("type", "model")]
        body = ClientSecret(value, int(good_until_s), RealtimeSession(f"sess_{new_id()}"))
        return Reply(_encode(body), headers=left_out(unused))
