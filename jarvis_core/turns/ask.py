"""What a user wants said, as every road into a turn brings it."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, Struct, UnsetType

from jarvis_core.models import Tool, Utterance


class Ask(Struct, frozen=True):
    """What a user wants said."""

    content: str
    """Empty where nothing new is said: the assistant is to begin, or to go on."""
    conversation_id: str | None = None
    """None makes a conversation."""
    system_prompt: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    use_memory: bool = True
    stored_message_id: str | None = None
    """The user's message, where it was stored before."""
    spoken: bool = False
    """Whether the answer is for the ear."""
    language: str | None = None
    """In which it was said; None where nobody knows."""
    ask_house: bool = True
    """Whether the house is asked before the model, where there is one."""
    before: list[Utterance] = []
    """What was said between the history and the content, which the client keeps: the model is told, and it is not stored."""
    tools: list[Tool] | UnsetType = UNSET
    """The client's own."""
    tool_choice: str | UnsetType = UNSET
    """As a prompt's."""
    context: list[Utterance] | None = None
    """What the model is told was said before, in place of the conversation's history and of what is remembered."""
    aside: bool = False
    """Whether the answer belongs to no conversation: nothing is stored or remembered, and it runs beside others."""

    def latest(self, history: list[Utterance]) -> tuple[list[Utterance], str]:
        """Return what was said before and what the user said last, which is in *history* where nothing new is said."""
        history = history if self.context is None else self.context
        if not self.content and history and history[-1].role == "user":
            return history[:-1], history[-1].content
        return history, self.content


encode_ask = msgspec.json.Encoder().encode
decode_ask = msgspec.json.Decoder(Ask).decode
