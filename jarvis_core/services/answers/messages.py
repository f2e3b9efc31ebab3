"""
A prompt as chat messages, in the order that every chat template takes.

Templates raise for a system message behind the first one, for two messages of one role in a row, for an assistant that begins,
and for an assistant that says nothing; a conversation has all of these as soon as one turn of it failed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jarvis_core.models import Utterance
from jarvis_core.services.answers.filter import AnswerFilter
from jarvis_core.services.answers.template_marks import MAY_HAVE_MARKS
from jarvis_core.services.contract import CalledFunction, ChatMessage, MessageCall

BETWEEN = "\n\n"
"""What stands between messages that are sent as one."""
UNKNOWN_OUTPUT = "Outcome unknown: the call may have been made, and its output was lost."
SILENCE = "…"
"""
What the user says where a model is to speak without being asked, in whatever language: templates want a user's message first and
last, and servers take an assistant's that stands last for the beginning of what the model is to write.
"""


def in_order(history: Sequence[Utterance], content: str, context: str = "") -> list[ChatMessage]:
    """
    Return *history* and the user's newest *content* as messages of a user and an assistant in turn, a user's first.

    What one of them said in a row is one message; *context* stands before *content* in it. Where the assistant begins, and
    where nothing new is said, the user keeps silent (``SILENCE``). An assistant's thinking, which an older version of this
    server may have stored, is left out, and so is what the history's system messages say (``system_texts``).
    """
    messages: list[ChatMessage] = []
    for utterance in history:
        _add(messages, utterance)
    _append(messages, ChatMessage("user", with_context(content, context)))
    return messages


def with_calls(
    history: Sequence[Utterance], content: str, followed: Sequence[Utterance], context: str = ""
) -> list[ChatMessage]:
    """
    Return ``in_order``'s messages, and the calls and outputs of tools where they belong; *followed* comes after *content*.

    Each call has its output: one that is missing is told to be unknown. An output without a call is left out. Where nothing new
    is said behind an output, that is what the model answers.
    """
    goes_on = not content and any(one.role == "tool" or one.calls for one in history[-1:])
    newest = () if goes_on else (Utterance("user", with_context(content, context)),)
    messages: list[ChatMessage] = []
    waiting: list[str] = []
    for utterance in (*history, *newest, *followed):
        if utterance.role == "tool":
            if utterance.call_id in waiting:
                waiting.remove(utterance.call_id)
                messages.append(ChatMessage("tool", utterance.content, tool_call_id=utterance.call_id))
            continue
        if utterance.role == "system":
            continue
        _tell_unknown(messages, waiting)
        if not utterance.calls:
            _add(messages, utterance)
        elif messages:
            calls = [MessageCall(call.id, CalledFunction(call.name, call.arguments)) for call in utterance.calls]
            messages.append(ChatMessage("assistant", answer_in(utterance.content), tool_calls=calls))
            waiting = [call.id for call in utterance.calls]
    _tell_unknown(messages, waiting)
    return messages


def _tell_unknown(messages: list[ChatMessage], waiting: list[str]) -> None:
    messages.extend(ChatMessage("tool", UNKNOWN_OUTPUT, tool_call_id=call_id) for call_id in waiting)
    waiting.clear()


def _add(messages: list[ChatMessage], utterance: Utterance) -> None:
    role, text = utterance.role, utterance.content
    if role == "system" or role == "tool":
        return
    if role == "assistant":
        text = answer_in(text)
    if text.strip():
        if role == "assistant" and not messages:
            messages.append(ChatMessage("user", SILENCE))
        _append(messages, ChatMessage(role, text))


def with_context(content: str, context: str) -> str:
    """Return the user's newest *content* with *context* before it, in which no template wants a message of its own."""
    return BETWEEN.join(part for part in (context, content or SILENCE) if part)


def first_kept(sizes: Sequence[int], room: int, older: int = 0) -> int:
    """
    Return the index of the first message to keep, so that *sizes* from there on come to *room* at most.

    Where something has to go (now, or before: *older* messages of the conversation are not here) more goes at once than has
    to, down to half of *room*: the history begins with the message of the roundest number that may be the first, and so with
    the same one for many turns. A model that keeps what it has read would else read everything anew in each turn.
    """
    first, total = len(sizes), 0
    while first and total + sizes[first - 1] <= room:
        first -= 1
        total += sizes[first]
    if first == 0 and not older:
        return 0
    best = first
    for index in range(first, len(sizes)):
        if total * 2 < room:
            break
        if _roundness(older + index) > _roundness(older + best):
            best = index
        total -= sizes[index]
    return best


def _roundness(number: int) -> int:
    """Return the greatest power of two that divides *number*."""
    return number & -number if number else 1 << 62


def system_texts(history: Iterable[Utterance]) -> list[str]:
    """Return what the system messages in *history* say."""
    return [one.content for one in history if one.role == "system" and one.content.strip()]


def without_system(messages: Sequence[ChatMessage]) -> list[ChatMessage]:
    """Return *messages* with the system's words at the beginning of the user's first message."""
    if not messages or messages[0].role != "system":
        return list(messages)
    system, first, *others = messages
    return [ChatMessage("user", system.content + BETWEEN + first.content), *others]


def _append(messages: list[ChatMessage], message: ChatMessage) -> None:
    if messages and messages[-1].role == message.role and not messages[-1].tool_calls:
        messages[-1] = ChatMessage(message.role, messages[-1].content + BETWEEN + message.content)
    else:
        messages.append(message)


def answer_in(text: str) -> str:
    """Return what of a whole *text* that a model wrote is its answer."""
    if MAY_HAVE_MARKS.search(text) is None:
        return text
    whole = AnswerFilter()
    return whole.feed(text) + whole.end()
