"""Makes, finds, changes and deletes conversations and their messages."""

from __future__ import annotations

import contextlib
import uuid
from datetime import datetime

from jarvis_core.errors import NotFound
from jarvis_core.models import Conversation, Message, Role, new_id
from jarvis_core.store.conversations import ConversationStore
from jarvis_core.turns.turns import Turns
from jarvis_core.words.titles import NEW_TITLE, title_from

NAMES = uuid.UUID("6f0b6c1e-7a52-5c39-9a3b-6c1f3a0c7d11")
"""The namespace of the names that clients give to conversations."""


class Conversations:
    """The conversations of all users; every call is scoped to one of them, and raises ``NotFound`` for another's."""

    def __init__(self, store: ConversationStore, turns: Turns) -> None:
        self._store = store
        self._turns = turns

    async def create(self, owner: str, title: str | None = None) -> Conversation:
        """Store an empty conversation."""
        return await self._store.create(owner, new_id(), NEW_TITLE if title is None else title)

    async def named(self, owner: str, name: str, first_words: str) -> str:
        """
        Return the id of the conversation that a client calls *name*: its own id, or any text of the client's.

        Such a text means the same conversation of *owner* always and on every worker, which is made where it is not there,
        with a title from *first_words*: its id is worked out from the text (UUID version 5, RFC 9562).
        """
        with contextlib.suppress(NotFound):
            return (await self._store.fetch(owner, name.lower())).id
        conversation_id = str(uuid.uuid5(NAMES, f"{owner}\0{name}"))
        await self._store.ensure(owner, conversation_id, title_from(first_words))
        return conversation_id

    async def fetch(self, owner: str, conversation_id: str) -> Conversation:
        """Return one conversation."""
        return await self._store.fetch(owner, conversation_id)

    async def fetch_page(
        self, owner: str, *, limit: int, after: tuple[datetime, str] | None, query: str | None, archived: bool | None
    ) -> tuple[list[Conversation], bool]:
        """
        Return at most *limit* conversations, the newest first, and whether there are more.

        *after* is the (updated_at, id) of the last one seen.
        """
        found = await self._store.fetch_page(owner, limit=limit + 1, after=after, query=query, archived=archived)
        return found[:limit], len(found) > limit

    async def change(
        self, owner: str, conversation_id: str, *, title: str | None, archived: bool | None
    ) -> Conversation:
        """Change the fields that are not None."""
        return await self._store.change(owner, conversation_id, title=title, archived=archived)

    async def delete(self, owner: str, conversation_id: str) -> None:
        """Remove a conversation with its messages; cancels a turn that runs in it first, on any worker."""
        turn = await self._turns.find_running(owner, conversation_id)
        if turn is not None:
            await self._turns.stop(turn, reason="conversation_deleted")
        await self._store.delete(owner, conversation_id)
        self._turns.forget_conversation(owner, conversation_id)

    async def fetch_history(
        self, owner: str, conversation_id: str, *, limit: int, after: int, unheard: bool = False
    ) -> tuple[list[Message], int | None]:
        """
        Return at most *limit* messages after the position *after*, the oldest first, with *unheard* words on demand.

        Also returns the position to go on after, None at the end.
        """
        return await self._store.fetch_history(owner, conversation_id, limit=limit, after=after, unheard=unheard)

    async def fetch_message(self, owner: str, conversation_id: str, message_id: str) -> Message:
        """Return one message of a conversation."""
        return await self._store.fetch_message(owner, conversation_id, message_id)

    async def add_message(
        self,
        owner: str,
        conversation_id: str | None,
        role: Role,
        content: str,
        *,
        message_id: str | None = None,
        entitle: bool = False,
    ) -> tuple[str, str]:
        """
        Store a message without beginning a turn; makes a conversation where *conversation_id* is None, and an id where
        *message_id* is. With *entitle* a conversation that has no title yet gets one from it.

        Returns the ids of the conversation and the message.
        """
        message_id = message_id or new_id()
        title = title_from(content) if conversation_id is None or entitle else None
        untitled = NEW_TITLE if conversation_id is not None and entitle else None
        conversation_id = conversation_id or new_id()
        await self._store.add_message(owner, conversation_id, title, message_id, role, content, untitled=untitled)
        return conversation_id, message_id

    async def insert_message(
        self, owner: str, conversation_id: str, behind: str | None, role: Role, content: str
    ) -> str | None:
        """Store a message right behind *behind*, None for the beginning; return its id, None where there is no such message."""
        message_id = new_id()
        stored = await self._store.insert_message(owner, conversation_id, behind, message_id, role, content)
        return message_id if stored else None

    async def remove_message(self, owner: str, conversation_id: str, message_id: str) -> bool:
        """Remove a message, also from what is kept of ended turns; return whether there was one."""
        removed = await self._store.remove_message(owner, conversation_id, message_id)
        self._turns.forget_turn(message_id)
        return removed
