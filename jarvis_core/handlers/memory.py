"""The routes that add, search, list, change and delete memories."""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import UNSET

from jarvis_core.errors import InvalidRequest
from jarvis_core.handlers.call import Call, Reply, text_field
from jarvis_core.handlers.cursor import encoded, time_and_id
from jarvis_core.handlers.query import LIMIT
from jarvis_core.handlers.wire import (
    AddMemory,
    ChangeMemory,
    Deleted,
    FoundMemory,
    MemoryBody,
    MemoryPage,
    SearchMemories,
    SearchReply,
    StoredMemory,
    Why,
)
from jarvis_core.memory import Memories
from jarvis_core.models import Memory

_encoder = msgspec.json.Encoder()
_add_decoder = msgspec.json.Decoder(AddMemory)
_search_decoder = msgspec.json.Decoder(SearchMemories)
_change_decoder = msgspec.json.Decoder(ChangeMemory)


class MemoryHandlers:
    """The routes below ``/api/memory``."""

    def __init__(self, memories: Memories, *, body_limit_bytes: int) -> None:
        self._memories = memories
        self._body_limit_bytes = body_limit_bytes

    async def add_memory(self, call: Call) -> Reply:
        """Answer ``POST /api/memory/add``."""
        request = await call.decode(_add_decoder, self._body_limit_bytes)
        stored = await self._memories.add(
            call.caller,
            text_field("$.content", request.content),
            importance=request.importance,
            source=None if request.source is None else text_field("$.source", request.source),
            supersedes=None if request.supersedes is None else request.supersedes.lower(),
        )
        body = StoredMemory(*_fields(stored.memory), merged=stored.merged)
        return Reply(_encoder.encode(body))

    async def search_memories(self, call: Call) -> Reply:
        """Answer ``POST /api/memory/search``."""
        request = await call.decode(_search_decoder, self._body_limit_bytes)
        found = await self._memories.search(call.caller, text_field("$.query", request.query), limit=request.limit)
        results = [
            FoundMemory(
                *_fields(one.memory),
                score=one.score,
                why=Why(one.semantic, one.lexical, one.importance, one.recency),
            )
            for one in found.results
        ]
        return Reply(_encoder.encode(SearchReply(results, found.total, found.mode)))

    async def list_memories(self, call: Call) -> Reply:
        """Answer ``GET /api/memory/list``."""
        query = call.query()
        limit = LIMIT.read(query)
        page, more, total = await self._memories.fetch_page(
            call.caller.user_id, limit=limit, after=time_and_id(query["cursor"]) if query.get("cursor") else None
        )
        cursor = encoded(f"{page[-1].created_at.isoformat()} {page[-1].id}") if more else None
        return Reply(_encoder.encode(MemoryPage([_body(one) for one in page], total, cursor)))

    async def get_memory(self, call: Call) -> Reply:
        """Answer ``GET /api/memory/entry/{id}``."""
        return Reply(_encoder.encode(_body(await self._memories.fetch(call.caller.user_id, call.path_param))))

    async def change_memory(self, call: Call) -> Reply:
        """Answer ``PATCH /api/memory/entry/{id}``."""
        request = await call.decode(_change_decoder, self._body_limit_bytes)
        if request.content is UNSET and request.importance is UNSET:
            raise InvalidRequest.field("$", "must have content or importance")
        changed = await self._memories.change(
            call.caller,
            call.path_param,
            content=None if request.content is UNSET else text_field("$.content", request.content),
            importance=None if request.importance is UNSET else request.importance,
        )
        return Reply(_encoder.encode(_body(changed)))

    async def delete_memory(self, call: Call) -> Reply:
        """Answer ``DELETE /api/memory/entry/{id}``."""
        await self._memories.delete(call.caller.user_id, call.path_param)
        return Reply(_encoder.encode(Deleted(call.path_param)))


def _fields(memory: Memory) -> tuple[str, str, float, datetime, datetime, str | None, bool]:
    return (
        memory.id,
        memory.content,
        memory.importance,
        memory.created_at,
        memory.updated_at,
        memory.source,
        memory.embedded,
    )


def _body(memory: Memory) -> MemoryBody:
    return MemoryBody(*_fields(memory))
