"""A model's answer as the routes read it that store nothing: bounded, whole, and why it ended."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Literal

from jarvis_core.memory import Memories
from jarvis_core.models import CHARS_PER_TOKEN_LIMIT, Caller, Completion, CompletionAnswer, Discard, Finish
from jarvis_core.turns.outcome import REASONS as REASONS_OF_TURNS
from jarvis_core.turns.outcome import error_without_end

FinishReason = Literal["stop", "length", "tool_calls", "content_filter"]

RECALL_CHARS = 5_000
"""Room for what is remembered."""
REASONS: dict[str, FinishReason] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "content_filter",
    "refusal": "content_filter",
}
"""Ends that OpenAI's vocabulary has a word for; every other one is an error."""


async def recalled_for(memories: Memories, caller: Caller, question: str) -> str:
    """Return what is remembered that matters for *question*; empty where nothing is."""
    if not question:
        return ""
    return (await memories.recall(caller, question, room_chars=RECALL_CHARS, look_first=True)).text


async def within_limit(
    answer: CompletionAnswer, completion: Completion
) -> AsyncGenerator[str | Discard | Finish, None]:
    """Give the pieces of *answer*, cut off where it is longer than what was allowed can be."""
    length = 0
    limit = completion.prompt.max_tokens * CHARS_PER_TOKEN_LIMIT
    async for piece in answer.pieces():
        if isinstance(piece, str):
            length += len(piece)
        yield piece
        if length > limit:
            yield Finish("length")
            return


async def whole_of(answer: CompletionAnswer, completion: Completion) -> tuple[str, Finish | None]:
    """Return the text of *answer* and how it ended, None where it broke off."""
    texts: list[str] = []
    finish: Finish | None = None
    async for piece in within_limit(answer, completion):
        if isinstance(piece, str):
            texts.append(piece)
        elif isinstance(piece, Finish):
            finish = piece
        else:
            texts.clear()
    return "".join(texts), finish


def end_of(finish: Finish | None) -> FinishReason:
    """Return why an answer ended; raises the error of one that ended badly."""
    reason = "lost" if finish is None else finish.reason
    known = REASONS.get(reason)
    if known is None or (finish is not None and known == "tool_calls" and not finish.calls):
        raise error_without_end(REASONS_OF_TURNS.get(reason, reason))
    return known
