"""What clients do with the items of their conversation: add and retrieve them."""

from __future__ import annotations

from jarvis_core.errors import InvalidRequest, NotFound
from jarvis_core.handlers.call import text_field
from jarvis_core.handlers.call_events import FunctionOutputItem
from jarvis_core.handlers.events import Item, item_of
from jarvis_core.handlers.realtime.dialogue import MESSAGE_LIMIT_CHARS, Dialogue, part_of
from jarvis_core.handlers.realtime.refusals import NotRetrievable
from jarvis_core.handlers.realtime.response import ResponseStream
from jarvis_core.handlers.realtime.socket import Socket
from jarvis_core.handlers.realtime.wire import ClientItem, ItemCreate, ItemRetrieve, OutputItem, RetrievedEvent
from jarvis_core.models import Caller, ToolOutput
from jarvis_core.tools.runner import bounded
from jarvis_core.turns.turns import Turns

TEXT_PARTS = ("input_text", "output_text", "text")


class Items:
    """The items of one session's conversation."""

    def __init__(
        self, turns: Turns, caller: Caller, socket: Socket, dialogue: Dialogue, response: ResponseStream
    ) -> None:
        self._turns = turns
        self._caller = caller
        self._socket = socket
        self._dialogue = dialogue
        self._response = response

    async def add(self, event: ItemCreate) -> None:
        """Store an item of the client's, and show it; raises ``InvalidRequest``, also where its id is known."""
        item = event.item
        if isinstance(item, OutputItem):
            await self._add_output(item)
            return
        text = text_of(item, "$.item")
        if item.id is not None:
            self._dialogue.check_free(item.id)
        message_id = await self._dialogue.store(item.role, text)
        shown = Item(item.id or message_id, item.role, [part_of(item.role, text)], "completed")
        await self._dialogue.show(self._socket, shown, message_id)

    async def _add_output(self, item: OutputItem) -> None:
        output = bounded(ToolOutput(item.output))
        if item.id is not None:
            self._dialogue.check_free(item.id)
        conversation_id = self._dialogue.conversation_id
        message_id = await self._turns.add_output(self._caller, conversation_id, item.call_id, output)
        if message_id is None:
            raise InvalidRequest.field("$.item.call_id", "is no call of this conversation that waits for its output")
        await self._dialogue.show_output(self._socket, FunctionOutputItem(item.id or message_id, item.call_id, output))

    async def retrieve(self, event: ItemRetrieve) -> None:
        """Tell the client of an item as it is now: of an answer what was heard, of a recording its words."""
        try:
            turn = await self._turns.find(self._caller, event.item_id)
        except NotFound:
            item = await self._dialogue.find(event.item_id)
        else:
            if turn.conversation_id != self._dialogue.conversation_id:
                raise NotRetrievable(event.item_id)
            item = item_of(turn, spoken=turn.id in self._response.ledgers)
        await self._socket.emit(lambda seq: RetrievedEvent(f"event_{seq}", seq, item))


def text_of(item: ClientItem, path: str) -> str:
    """Return the words of *item*, which stands at *path* of its event; raises ``InvalidRequest``."""
    for number, part in enumerate(item.content):
        if part.type not in TEXT_PARTS:
            raise InvalidRequest.field(
                f"{path}.content[{number}].type", "must be input_text; audio goes into the input audio buffer"
            )
        text_field(f"{path}.content[{number}].text", part.text or "")
    text = "\n".join(part.text or "" for part in item.content)
    if len(text) > MESSAGE_LIMIT_CHARS:
        raise InvalidRequest.field(f"{path}.content", f"must have at most {MESSAGE_LIMIT_CHARS} characters")
    return text
