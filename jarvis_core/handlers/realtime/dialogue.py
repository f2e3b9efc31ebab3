"""The conversation of a session: its last item, and the user's message that waits for an answer."""

from __future__ import annotations

from typing import Final

from msgspec import UNSET, Struct, UnsetType

from jarvis_core.errors import InvalidRequest, NotFound
from jarvis_core.handlers.call_events import FunctionOutputItem
from jarvis_core.handlers.events import ContentPart, Item
from jarvis_core.handlers.realtime.refusals import DuplicateItem, NotRetrievable
from jarvis_core.handlers.realtime.socket import Socket
from jarvis_core.handlers.realtime.wire import ConversationItemEvent
from jarvis_core.models import Message, Role
from jarvis_core.turns.conversations import Conversations
from jarvis_core.turns.receipt import TurnTimer

MESSAGE_LIMIT_CHARS = 10_000
HEARD: Final = "input_audio"
"""The part of an item that was spoken."""
SHOWN_LIMIT = 1_000
"""Items of which a session knows more than is stored; of older ones that are asked for, the stored words are told."""


class Shown(Struct, array_like=True, frozen=True):
    """An item that a client was told of."""

    message_id: str
    """The same as its own id, unless the client has chosen that."""
    kind: str
    """The type of its part."""


class DialogueState(Struct, array_like=True):
    """What a session that is taken up again has to know of its dialogue."""

    last_item_id: str | None
    pending: tuple[str, str] | None
    asked: tuple[str, str] | None
    untitled: bool
    shown: dict[str, Shown]
    """By the item's id, the oldest first."""


class Dialogue:
    """Stores a session's messages; the first message makes a conversation where there is none."""

    def __init__(self, conversations: Conversations, user_id: str, conversation_id: str | None) -> None:
        self.conversation_id = conversation_id
        self.last_item_id: str | None = None
        self.pending: tuple[str, str] | None = None
        """(id, text) of the user's last message while no response answers it."""
        self.timer: TurnTimer | None = None
        """Takes the times of the turn that will answer ``pending``, from the end of the speech; None for what was written."""
        self.asked: tuple[str, str] | None = None
        """(id, text) of the message that the current or last response answers; None where it answers none."""
        self.untitled = False
        """Whether the conversation has no title because the assistant began it."""
        self._conversations = conversations
        self._user_id = user_id
        self._shown: dict[str, Shown] = {}
        """By the id of the item, the oldest first."""

    def state(self) -> DialogueState:
        """Return what ``restore`` needs."""
        return DialogueState(self.last_item_id, self.pending, self.asked, self.untitled, self._shown)

    def restore(self, state: DialogueState) -> None:
        """Continue the dialogue of another session of the same conversation."""
        self.last_item_id, self.pending, self.asked = state.last_item_id, state.pending, state.asked
        self.untitled, self._shown = state.untitled, state.shown

    @property
    def is_new(self) -> bool:
        """Whether there is no conversation yet."""
        return self.conversation_id is None

    def message_of(self, item_id: str) -> str:
        """Return the id of the message that an item is, or will be."""
        known = self._shown.get(item_id)
        return item_id if known is None else known.message_id

    def has_shown(self, item_id: str) -> bool:
        """Whether the client was told of the item in this session."""
        return item_id in self._shown

    def note_answer(self, item_id: str) -> str | None:
        """Make the assistant's item the conversation's last, and return the one before."""
        previous, self.last_item_id = self.last_item_id, item_id
        self._remember(item_id, Shown(item_id, "output_text"))
        return previous

    def forget(self, item_id: str) -> None:
        """Let go of an item that is gone: it is not the last any more, and nobody answers it."""
        message_id = self.message_of(item_id)
        self._shown.pop(item_id, None)
        if self.last_item_id == item_id:
            self.last_item_id = next(reversed(self._shown), None)
        if self.pending is not None and self.pending[0] == message_id:
            self.pending = None
        if self.asked is not None and self.asked[0] == message_id:
            self.asked = None

    def check_free(self, item_id: str) -> None:
        """Raise ``DuplicateItem`` where an item of the session has the id *item_id*."""
        if item_id in self._shown or item_id == self.last_item_id:
            raise DuplicateItem(item_id)

    async def store(self, role: Role, text: str, message_id: str | None = None, timer: TurnTimer | None = None) -> str:
        """Store a message and return its id; a user's message becomes ``pending``."""
        conversation_id, message_id = await self._conversations.add_message(
            self._user_id,
            self.conversation_id,
            role,
            text,
            message_id=message_id,
            entitle=self.untitled and role == "user",
        )
        if self.conversation_id is None:
            self.conversation_id = conversation_id
        if role == "user":
            self.pending, self.timer = (message_id, text), timer
            self.untitled = False
        return message_id

    async def insert(self, role: Role, text: str, behind: str | None) -> str | None:
        """Store a message behind that of the item *behind*, None for the beginning; return its id, None without that item."""
        assert self.conversation_id is not None  # noqa: S101 - there is nothing in none
        place = None if behind is None else self.message_of(behind)
        return await self._conversations.insert_message(self._user_id, self.conversation_id, place, role, text)

    async def remove(self, item_id: str) -> bool:
        """Remove an item and its message; return whether there was one."""
        removed = False
        if self.conversation_id is not None:
            message_id = self.message_of(item_id)
            removed = await self._conversations.remove_message(self._user_id, self.conversation_id, message_id)
        was_shown = item_id in self._shown
        self.forget(item_id)
        return removed or was_shown

    async def fetch(self, item_id: str, path: str) -> Message:
        """Return the message of an item that *path* of an event refers to; raises ``InvalidRequest``."""
        try:
            if self.conversation_id is None:
                raise NotRetrievable(item_id)
            return await self._conversations.fetch_message(
                self._user_id, self.conversation_id, self.message_of(item_id)
            )
        except NotFound as exc:
            raise InvalidRequest.field(path, f"there is no item {item_id!r} with words") from exc

    async def find(self, item_id: str) -> Item:
        """Return an item that is none of the model's, as it is stored; raises ``NotRetrievable``."""
        known = self._shown.get(item_id)
        message_id, kind = (item_id, "") if known is None else (known.message_id, known.kind)
        try:
            if self.conversation_id is None:
                raise NotRetrievable(item_id)
            message = await self._conversations.fetch_message(self._user_id, self.conversation_id, message_id)
        except NotFound as exc:
            if kind == HEARD:
                # Its words are not known yet, or there are none.
                return Item(item_id, "user", [ContentPart(HEARD, transcript=None)], "completed")
            raise NotRetrievable(item_id) from exc
        return Item(item_id, message.role, [part_of(message.role, message.content, kind)], "completed")

    async def show(
        self, socket: Socket, item: Item, message_id: str | None = None, *, behind: str | UnsetType | None = UNSET
    ) -> None:
        """
        Tell the client of an item, the message *message_id* where that is another.

        It becomes the last, unless it is *behind* another, None for the beginning.
        """
        self._remember(item.id, Shown(message_id or item.id, item.content[0].type))
        await self._tell(socket, item, behind)

    async def show_output(self, socket: Socket, item: FunctionOutputItem) -> None:
        """Tell the client of what it told of a call, which becomes the last item."""
        await self._tell(socket, item, UNSET)

    async def _tell(self, socket: Socket, item: Item | FunctionOutputItem, behind: str | UnsetType | None) -> None:
        previous = behind
        if previous is UNSET:
            previous, self.last_item_id = self.last_item_id, item.id
        conversation_id = self.conversation_id
        for name in ("conversation.item.added", "conversation.item.done"):
            await socket.emit(
                lambda seq, name=name: ConversationItemEvent(name, f"event_{seq}", seq, conversation_id, previous, item)  # type: ignore[misc]
            )

    def _remember(self, item_id: str, shown: Shown) -> None:
        self._shown[item_id] = shown
        while len(self._shown) > SHOWN_LIMIT:
            del self._shown[next(iter(self._shown))]

    def ask_again(self) -> None:
        """Make ``asked``, which was answered with no text, ``pending`` again, unless a newer message is."""
        if self.pending is None:
            self.pending = self.asked


def part_of(role: Role, text: str, kind: str = "") -> ContentPart:
    """Return the part of an item that has *text*; *kind* is its type, where that is not what the role has."""
    if kind == HEARD:
        return ContentPart(HEARD, transcript=text)
    return ContentPart("output_text" if role == "assistant" else "input_text", text)
