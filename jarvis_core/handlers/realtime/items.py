"""What clients do with the items of their conversation: add, retrieve and delete them."""

from __future__ import annotations

from jarvis_core.errors import InvalidRequest, NotFound
from jarvis_core.handlers.call import text_field
from jarvis_core.handlers.call_events import FunctionOutputItem
from jarvis_core.handlers.events import Item, item_of
from jarvis_core.handlers.realtime.dialogue import MESSAGE_LIMIT_CHARS, Dialogue, part_of
from jarvis_core.handlers.realtime.interruption import Interrupter
from jarvis_core.handlers.realtime.refusals import NotDeletable, NotRetrievable, PreviousItemUnknown
from jarvis_core.handlers.realtime.response import ResponseStream
from jarvis_core.handlers.realtime.socket import Socket
from jarvis_core.handlers.realtime.wire import (
    ClientItem,
    DeletedEvent,
    ItemCreate,
    ItemDelete,
    ItemRetrieve,
    OutputItem,
    RetrievedEvent,
)
from jarvis_core.models import Caller, ToolOutput
from jarvis_core.tools.runner import bounded
from jarvis_core.turns.turns import Turns

TEXT_PARTS = ("input_text", "output_text", "text")
SPOKEN_PARTS = ("input_audio", "output_audio", "audio")
ROOT = "root"
"""Stands for what is before the first item."""


class Items:
    """The items of one session's conversation."""

    def __init__(
        self,
        turns: Turns,
        caller: Caller,
        socket: Socket,
        dialogue: Dialogue,
        response: ResponseStream,
        interrupter: Interrupter,
    ) -> None:
        self._turns = turns
        self._caller = caller
        self._socket = socket
        self._dialogue = dialogue
        self._response = response
        self._interrupter = interrupter

    async def add(self, event: ItemCreate) -> None:
        """
        Store an item of the client's where it says, and show it.

        Raises ``InvalidRequest``, also where its id is known, and ``PreviousItemUnknown``.
        """
        item, dialogue = event.item, self._dialogue
        if isinstance(item, OutputItem):
            await self._add_output(item)
            return
        text = text_of(item, "$.item")
        if item.id is not None:
            dialogue.check_free(item.id)
        behind = None if event.previous_item_id == ROOT else event.previous_item_id
        if event.previous_item_id is None or (behind == dialogue.last_item_id and (behind or dialogue.is_new)):
            message_id = await dialogue.store(item.role, text)
            await dialogue.show(self._socket, _shown(item, text, message_id), message_id)
            return
        stored = None if dialogue.is_new else await dialogue.insert(item.role, text, behind)
        if stored is not None:
            await dialogue.show(self._socket, _shown(item, text, stored), stored, behind=behind)
        elif behind is not None and dialogue.has_shown(behind):
            # An answer that is being given, or a recording whose words are not known yet: they are stored when they are.
            stored = await dialogue.store(item.role, text)
            await dialogue.show(self._socket, _shown(item, text, stored), stored)
        else:
            raise PreviousItemUnknown(event.previous_item_id)

    async def delete(self, event: ItemDelete) -> None:
        """Remove an item, and its message from the history; an answer that is being given ends. Raises ``NotDeletable``."""
        item_id, response = event.item_id, self._response
        if response.active and response.turn is not None and response.turn.id == item_id:
            await self._interrupter.interrupt("cancelled")
        if not await self._dialogue.remove(item_id):
            raise NotDeletable(item_id)
        response.ledgers.pop(item_id, None)
        await self._socket.emit(lambda seq: DeletedEvent(f"event_{seq}", seq, item_id))

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
    texts = []
    for number, part in enumerate(item.content):
        place = f"{path}.content[{number}]"
        if part.type in SPOKEN_PARTS and part.transcript is not None:
            texts.append(part.transcript)
            text_field(f"{place}.transcript", part.transcript)
        elif part.type in TEXT_PARTS:
            texts.append(part.text or "")
            text_field(f"{place}.text", texts[-1])
        else:
            raise InvalidRequest.field(
                f"{place}.type", "must be input_text; audio goes into the input audio buffer, or has its transcript"
            )
    text = "\n".join(texts)
    if len(text) > MESSAGE_LIMIT_CHARS:
        raise InvalidRequest.field(f"{path}.content", f"must have at most {MESSAGE_LIMIT_CHARS} characters")
    return text


def _shown(item: ClientItem, text: str, message_id: str) -> Item:
    return Item(item.id or message_id, item.role, [part_of(item.role, text)], "completed")
