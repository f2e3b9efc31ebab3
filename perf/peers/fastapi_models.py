"""What FastAPI's application stores (SQLAlchemy), and what its clients send and see (Pydantic)."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from pgvector.sqlalchemy import Vector
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import DateTime, ForeignKey, Index, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


class Base(DeclarativeBase):
    type_annotation_map = {datetime: DateTime(timezone=True)}  # noqa: RUF012 - as SQLAlchemy's documentation has it


class Conversation(Base):
    __tablename__ = "conversations"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    owner: Mapped[str]
    title: Mapped[str]
    summary: Mapped[str | None]
    archived: Mapped[bool] = mapped_column(default=False)
    message_count: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    messages: Mapped[list[Message]] = relationship(lazy="raise")
    turns: Mapped[list[Turn]] = relationship(lazy="raise")
    __table_args__ = (Index("conversations_newest", "owner", "updated_at"),)


class Message(Base):
    __tablename__ = "messages"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    conversation_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("conversations.id", ondelete="cascade"))
    role: Mapped[str]
    content: Mapped[str]
    timestamp: Mapped[datetime] = mapped_column(server_default=func.clock_timestamp())
    tokens: Mapped[int | None]
    model: Mapped[str | None]
    status: Mapped[str] = mapped_column(default="completed")
    __table_args__ = (Index("messages_in_order", "conversation_id", "timestamp"),)


class Turn(Base):
    __tablename__ = "turns"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    conversation_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("conversations.id", ondelete="cascade"), index=True)
    owner: Mapped[str]
    user_message_id: Mapped[uuid.UUID]
    status: Mapped[str] = mapped_column(default="running")
    content: Mapped[str] = mapped_column(default="")
    tokens: Mapped[int] = mapped_column(default=0)
    model: Mapped[str] = mapped_column(default="")
    started_at: Mapped[datetime] = mapped_column(server_default=func.now())
    ended_at: Mapped[datetime | None]


class Memory(Base):
    __tablename__ = "memories"
    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    owner: Mapped[str]
    content: Mapped[str]
    importance: Mapped[float]
    source: Mapped[str | None]
    embedding: Mapped[Any] = mapped_column(Vector(384), deferred=True)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())
    __table_args__ = (Index("memories_newest", "owner", "created_at"),)


class HealthBody(BaseModel):
    status: str
    version: str
    uptime_secs: int
    services: dict[str, str]


class ChatRequest(BaseModel):
    content: str = Field(min_length=1, max_length=10_000)
    conversation_id: uuid.UUID | None = None
    system_prompt: str | None = Field(default=None, max_length=5_000)
    temperature: float | None = Field(default=None, ge=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1, le=32_000)
    use_memory: bool = True


class ChatReply(BaseModel):
    id: uuid.UUID
    conversation_id: uuid.UUID
    content: str
    timestamp: datetime
    tokens: int
    model: str
    status: str
    memories: list[uuid.UUID]
    role: str = "assistant"


class MessageBody(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: uuid.UUID
    conversation_id: uuid.UUID
    role: str
    content: str
    timestamp: datetime
    tokens: int | None
    model: str | None
    status: str


class HistoryPage(BaseModel):
    conversation_id: uuid.UUID
    messages: list[MessageBody]
    next_cursor: str | None


class ConversationBody(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: uuid.UUID
    title: str
    summary: str | None
    created_at: datetime
    updated_at: datetime
    message_count: int
    archived: bool


class ConversationPage(BaseModel):
    conversations: list[ConversationBody]
    next_cursor: str | None


class AddMemory(BaseModel):
    content: str = Field(min_length=1, max_length=50_000)
    importance: float = Field(default=0.5, ge=0, le=1)
    source: str | None = None


class MemoryBody(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: uuid.UUID
    content: str
    importance: float
    created_at: datetime
    updated_at: datetime
    source: str | None


class MemoryPage(BaseModel):
    memories: list[MemoryBody]
    total: int
    next_cursor: str | None


class SearchMemories(BaseModel):
    query: str = Field(min_length=1, max_length=1_000)
    limit: int = Field(default=10, ge=1, le=100)


class FoundMemory(MemoryBody):
    score: float


class SearchReply(BaseModel):
    results: list[FoundMemory]
    total: int
