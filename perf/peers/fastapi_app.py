"""
The same assistant as one writes it with FastAPI, SQLAlchemy and httpx when one does what their documentation says.

Of the core it has the routes that are measured, with the same JSON, and the same durability: the user's message and the
turn are committed before the model is asked, the answer while it arrives about every second, the end before it is told.
What it leaves out (idempotency, resuming, cancelling, credentials, merging of memories, search by words, counters) makes
it cheaper than it would be.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any

import httpx
from fastapi import Depends, FastAPI, HTTPException, Query, WebSocket, WebSocketDisconnect
from fastapi.middleware.cors import CORSMiddleware
from fastapi.sse import EventSourceResponse, ServerSentEvent
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from perf.peers.fastapi_models import (
    AddMemory,
    Base,
    ChatReply,
    ChatRequest,
    Conversation,
    ConversationBody,
    ConversationPage,
    FoundMemory,
    HealthBody,
    HistoryPage,
    Memory,
    MemoryBody,
    MemoryPage,
    Message,
    MessageBody,
    SearchMemories,
    SearchReply,
    Turn,
)

OWNER = "local"
SYSTEM_PROMPT = "Tu es Jarvis, un assistant vocal. Réponds en quelques phrases."
CHECKPOINT_S = 1.0
STARTED = time.monotonic()

engine = create_async_engine(
    os.environ["DATABASE_URL"], pool_size=int(os.environ["POOL_SIZE"]), max_overflow=0, pool_timeout=120
)
sessions = async_sessionmaker(engine, expire_on_commit=False)
model = httpx.AsyncClient(
    base_url=os.environ["MODEL_URL"],
    timeout=httpx.Timeout(60, connect=30),
    # More cost more: for each request httpcore looks at every connection that it has.
    limits=httpx.Limits(max_connections=200, max_keepalive_connections=200),
)


@asynccontextmanager
async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
    async with engine.begin() as connection:
        await connection.execute(text("create extension if not exists vector"))
        await connection.run_sync(Base.metadata.create_all)
    yield
    await model.aclose()
    await engine.dispose()


async def lend_session() -> AsyncIterator[AsyncSession]:
    async with sessions() as session:
        yield session


Session = Annotated[AsyncSession, Depends(lend_session)]
Limit = Annotated[int, Query(ge=1, le=200)]

app = FastAPI(title="The assistant as a FastAPI application", lifespan=lifespan)
app.add_middleware(CORSMiddleware, allow_origins=["http://localhost:3000"], allow_methods=["*"], allow_headers=["*"])


@app.get("/health")
async def health() -> HealthBody:
    services = {"database": "healthy", "python_bridges": "healthy", "audio_engine": "disabled", "cache": "disabled"}
    return HealthBody(status="healthy", version="1.9.0", uptime_secs=int(time.monotonic() - STARTED), services=services)


@app.post("/api/memory/add")
async def add_memory(request: AddMemory, session: Session) -> MemoryBody:
    vector = await embed(request.content)
    memory = Memory(
        owner=OWNER, content=request.content, importance=request.importance, source=request.source, embedding=vector
    )
    session.add(memory)
    await session.commit()
    await session.refresh(memory)
    return MemoryBody.model_validate(memory)


@app.get("/api/memory/list")
async def list_memories(session: Session, limit: Limit = 50) -> MemoryPage:
    total = select(func.count()).select_from(Memory).where(Memory.owner == OWNER).scalar_subquery()
    page = select(Memory, total).where(Memory.owner == OWNER)
    rows = (await session.execute(page.order_by(Memory.created_at.desc(), Memory.id.desc()).limit(limit + 1))).all()
    memories = [MemoryBody.model_validate(row[0]) for row in rows[:limit]]
    cursor = memories[-1].created_at.isoformat() if len(rows) > limit else None
    return MemoryPage(memories=memories, total=rows[0][1] if rows else 0, next_cursor=cursor)


@app.post("/api/memory/search")
async def search_memories(request: SearchMemories, session: Session) -> SearchReply:
    found = await nearest(session, request.query, request.limit)
    return SearchReply(results=found, total=len(found))


@app.get("/api/chat/conversations")
async def list_conversations(session: Session, limit: Limit = 50) -> ConversationPage:
    page = select(Conversation).where(Conversation.owner == OWNER).order_by(Conversation.updated_at.desc())
    found = (await session.scalars(page.limit(limit + 1))).all()
    cursor = found[limit - 1].updated_at.isoformat() if len(found) > limit else None
    return ConversationPage(
        conversations=[ConversationBody.model_validate(one) for one in found[:limit]], next_cursor=cursor
    )


@app.get("/api/chat/history/{conversation_id}")
async def history(conversation_id: uuid.UUID, session: Session, limit: Limit = 50) -> HistoryPage:
    conversation = await session.get(Conversation, conversation_id)
    if conversation is None or conversation.owner != OWNER:
        raise HTTPException(404, "There is no such conversation.")
    page = select(Message).where(Message.conversation_id == conversation_id).order_by(Message.timestamp)
    messages = (await session.scalars(page.limit(limit))).all()
    return HistoryPage(
        conversation_id=conversation_id,
        messages=[MessageBody.model_validate(one) for one in messages],
        next_cursor=None,
    )


@app.post("/api/chat")
async def chat(request: ChatRequest) -> ChatReply:
    turn, body, memories = await begin(request)
    answer = (await model.post("/chat/completions", json=body)).raise_for_status().json()
    content = answer["choices"][0]["message"]["content"]
    tokens = answer["usage"]["completion_tokens"]
    ended_at = await end(turn, content, tokens, answer["model"])
    return ChatReply(
        id=turn.id,
        conversation_id=turn.conversation_id,
        content=content,
        timestamp=ended_at,
        tokens=tokens,
        model=answer["model"],
        status="completed",
        memories=memories,
    )


@app.post("/api/chat/stream", response_class=EventSourceResponse)
async def stream(request: ChatRequest) -> AsyncIterator[ServerSentEvent]:
    turn, body, _ = await begin(request)
    async for event in spoken(turn, body):
        yield ServerSentEvent(data=event, event=event["type"], id=str(event["seq"]))


@app.websocket("/ws")
async def realtime(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json(
        {"type": "session.created", "event_id": "event_1", "seq": 1, "session": {"model": "jarvis"}}
    )
    conversation_id: uuid.UUID | None = None
    content = ""
    try:
        while True:
            event = await websocket.receive_json()
            if event["type"] == "conversation.item.create":
                content = event["item"]["content"][0]["text"]
                async with sessions.begin() as session:
                    conversation = Conversation(owner=OWNER, title=content[:80])
                    message = Message(role="user", content=content)
                    conversation.messages.append(message)
                    session.add(conversation)
                conversation_id, message_id = conversation.id, message.id
                item = {"id": str(message_id), "type": "message", "role": "user", "content": event["item"]["content"]}
                for name in ("conversation.item.added", "conversation.item.done"):
                    await websocket.send_json({"type": name, "item": item})
            elif event["type"] == "response.create" and conversation_id is not None:
                async with sessions.begin() as session:
                    turn = Turn(conversation_id=conversation_id, owner=OWNER, user_message_id=message_id)
                    session.add(turn)
                async for told in spoken(turn, prompt([], content, ChatRequest(content=content))):
                    await websocket.send_json(told)
    except WebSocketDisconnect:
        return


async def begin(request: ChatRequest) -> tuple[Turn, dict[str, Any], list[uuid.UUID]]:
    """Commit the user's message and the turn; return the turn, what the model is asked, and the memories in it."""
    said: list[dict[str, str]] = []
    memories: list[uuid.UUID] = []
    message = Message(id=uuid.uuid4(), role="user", content=request.content)
    async with sessions.begin() as session:
        turn = Turn(id=uuid.uuid4(), owner=OWNER, user_message_id=message.id)
        if request.conversation_id is None:
            session.add(Conversation(owner=OWNER, title=request.content[:80], messages=[message], turns=[turn]))
        else:
            counted = {"updated_at": func.now(), "message_count": Conversation.message_count + 1}
            mine = (Conversation.id == request.conversation_id, Conversation.owner == OWNER)
            found = await session.execute(update(Conversation).where(*mine).values(counted).returning(Conversation.id))
            if found.scalar_one_or_none() is None:
                raise HTTPException(404, "There is no such conversation.")
            earlier = select(Message.role, Message.content).where(Message.conversation_id == request.conversation_id)
            rows = await session.execute(earlier.order_by(Message.timestamp.desc()).limit(200))
            said = [{"role": role, "content": content} for role, content in reversed(rows.all())]
            message.conversation_id = turn.conversation_id = request.conversation_id
            session.add_all([message, turn])
    if request.use_memory:
        async with sessions() as session:
            found_memories = await nearest(session, request.content, 8)
        memories = [one.id for one in found_memories]
        said.insert(0, {"role": "system", "content": "\n".join(one.content for one in found_memories)})
    return turn, prompt(said, request.content, request), memories


def prompt(said: list[dict[str, str]], content: str, request: ChatRequest) -> dict[str, Any]:
    system = {"role": "system", "content": request.system_prompt or SYSTEM_PROMPT}
    return {
        "model": "measured",
        "messages": [system, *said, {"role": "user", "content": content}],
        "temperature": 0.5 if request.temperature is None else request.temperature,
        "max_tokens": request.max_tokens or 1_024,
    }


async def spoken(turn: Turn, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """Give the events of an answer while the model says it; its end is committed before it is told."""
    seq = 1
    common = {"response_id": str(turn.id), "item_id": str(turn.id), "output_index": 0, "content_index": 0}
    yield {"type": "response.created", "event_id": "event_1", "seq": 1, "response": {"id": str(turn.id)}}
    parts: list[str] = []
    tokens = 0
    kept = time.monotonic()
    asked = {**body, "stream": True, "stream_options": {"include_usage": True}}
    async with model.stream("POST", "/chat/completions", json=asked) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line[6:])
            if chunk.get("usage"):
                tokens = chunk["usage"]["completion_tokens"]
            for choice in chunk["choices"]:
                delta = choice["delta"].get("content")
                if delta:
                    seq += 1
                    parts.append(delta)
                    kind = "response.output_text.delta"
                    yield {"type": kind, **common, "event_id": f"event_{seq}", "seq": seq, "delta": delta}
            if time.monotonic() - kept > CHECKPOINT_S:
                kept = time.monotonic()
                async with sessions.begin() as session:
                    await session.execute(update(Turn).where(Turn.id == turn.id).values(content="".join(parts)))
    content = "".join(parts)
    await end(turn, content, tokens, "measured")
    for name in ("response.output_text.done", "response.content_part.done", "response.output_item.done"):
        seq += 1
        yield {"type": name, **common, "event_id": f"event_{seq}", "seq": seq, "text": content}
    response_body = {"id": str(turn.id), "status": "completed", "usage": {"output_tokens": tokens}}
    yield {"type": "response.done", "event_id": f"event_{seq + 1}", "seq": seq + 1, "response": response_body}


async def end(turn: Turn, content: str, tokens: int, model_name: str) -> datetime:
    """Commit how a turn ended, with the assistant's message."""
    async with sessions.begin() as session:
        ended = {"status": "completed", "content": "", "tokens": tokens, "model": model_name, "ended_at": func.now()}
        done = update(Turn).where(Turn.id == turn.id, Turn.status == "running").values(ended).returning(Turn.ended_at)
        ended_at: datetime = (await session.execute(done)).scalar_one()
        counted = {"updated_at": func.now(), "message_count": Conversation.message_count + 1}
        await session.execute(update(Conversation).where(Conversation.id == turn.conversation_id).values(counted))
        session.add(
            Message(
                id=turn.id,
                conversation_id=turn.conversation_id,
                role="assistant",
                content=content,
                tokens=tokens,
                model=model_name,
            )
        )
    return ended_at


async def embed(content: str) -> list[float]:
    answer = (await model.post("/embeddings", json={"model": "measured", "input": [content]})).raise_for_status()
    vector: list[float] = answer.json()["data"][0]["embedding"]
    return vector


async def nearest(session: AsyncSession, query: str, limit: int) -> list[FoundMemory]:
    distance = Memory.embedding.cosine_distance(await embed(query))
    page = select(Memory, distance).where(Memory.owner == OWNER).order_by(distance).limit(limit)
    rows = (await session.execute(page)).all()
    return [
        FoundMemory(**MemoryBody.model_validate(memory).model_dump(), score=max(0.0, 1 - far)) for memory, far in rows
    ]
