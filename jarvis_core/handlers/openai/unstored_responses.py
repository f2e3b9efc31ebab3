"""Responses of which nothing is kept: the model is asked with what the client says, its tools among it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import msgspec
from msgspec import Raw, Struct

from jarvis_core.errors import RequestError
from jarvis_core.handlers.call import Call, Reply
from jarvis_core.handlers.openai import chat_request, response_request
from jarvis_core.handlers.openai.answer import end_of, recalled_for, whole_of, within_limit
from jarvis_core.handlers.openai.chat_request import SentMessage
from jarvis_core.handlers.openai.event_stream import Send, named_event, send_all
from jarvis_core.handlers.openai.models import ASSISTANT
from jarvis_core.handlers.openai.response_request import ResponseRequest
from jarvis_core.handlers.openai.response_wire import (
    ITEM_PREFIX,
    PREFIX,
    ArgumentsDelta,
    ArgumentsDone,
    Incomplete,
    ItemEvent,
    OutputItem,
    OutputMessage,
    OutputText,
    PartEvent,
    Response,
    ResponseEvent,
    TextDone,
    call_item,
    failure_of,
    usage_of,
)
from jarvis_core.handlers.openai.warning import left_out
from jarvis_core.memory import Memories
from jarvis_core.models import Caller, Completion, CompletionAnswer, CompletionModel, Finish, new_id
from jarvis_core.settings import Llm
from jarvis_core.turns.conversations import Conversations

HISTORY_PAGE = 200
HISTORY_PAGES = 10
"""So much of a stored conversation is read for a response that is not stored; the latest page of it counts."""

_encode = msgspec.json.Encoder().encode


class _Outcome(Struct):
    """What a model's answer came to."""

    text: str = ""
    finish: Finish | None = None


class UnstoredResponses:
    """Answers ``POST /v1/responses`` with ``store: false``."""

    def __init__(self, model: CompletionModel, memories: Memories, conversations: Conversations, settings: Llm) -> None:
        self._model = model
        self._memories = memories
        self._conversations = conversations
        self._settings = settings

    async def respond(
        self, call: Call, request: ResponseRequest, fields: dict[str, Raw], conversation_id: str | None
    ) -> Reply | None:
        """Answer whole or as events; *conversation_id* is read, and not written to."""
        completion = await self._completion(request, fields, conversation_id, call.caller)
        response = Response(
            id=PREFIX + new_id(),
            created_at=time.time(),
            status="in_progress",
            model=request.model,
            output=[],
            previous_response_id=request.previous_response_id,
            instructions=request.instructions,
            max_output_tokens=request.max_output_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            store=False,
            metadata=request.metadata or {},
            tools=request.tools or [],
            tool_choice=request.tool_choice or "auto",
            user=request.user,
        )
        unused = response_request.unknown_fields(fields, stored=False)
        headers: list[tuple[bytes, bytes]] = []
        if request.stream:
            await send_all(
                call,
                lambda send: self._send_events(send, completion, call.caller, response, unused, headers),
                headers=headers,
            )
            return None
        whole = await call.unless_left(self._whole(completion, call.caller, response, unused, headers))
        return Reply(_encode(whole), headers=headers)

    async def _completion(
        self, request: ResponseRequest, fields: dict[str, Raw], conversation_id: str | None, caller: Caller
    ) -> Completion:
        instructions, messages = response_request.sent_in(request)
        if conversation_id is not None:
            messages = [*await self._history(caller.user_id, conversation_id), *messages]
        parameters, needed = response_request.parameters_of(request, fields)
        assistant = request.model == ASSISTANT
        context = ""
        if assistant:
            context = await recalled_for(self._memories, caller, chat_request.question_in(messages))
        return chat_request.asked_of_model(
            messages,
            chat_request.BETWEEN.join(filter(None, instructions)),
            context,
            parameters,
            self._settings,
            assistant=assistant,
            max_tokens=request.max_output_tokens,
            temperature=request.temperature,
            needed=needed,
            tools=[str(tool.get("name", "")) for tool in request.tools or ()],
        )

    async def _history(self, owner: str, conversation_id: str) -> list[SentMessage]:
        page: list[SentMessage] = []
        after: int | None = 0
        for _ in range(HISTORY_PAGES):
            found, after = await self._conversations.fetch_history(
                owner, conversation_id, limit=HISTORY_PAGE, after=after or 0
            )
            page = [*page, *(SentMessage(one.role, one.content) for one in found if one.content)][-HISTORY_PAGE:]
            if after is None:
                break
        return page

    async def _whole(
        self,
        completion: Completion,
        caller: Caller,
        response: Response,
        unused: list[str],
        headers: list[tuple[bytes, bytes]],
    ) -> Response:
        async with self._model.complete(completion, caller) as answer:
            headers += left_out([*unused, *answer.left_out])
            text, finish = await whole_of(answer, completion)
        return _ended(response, text, end_of(finish), finish, answer)

    async def _send_events(
        self,
        send: Send,
        completion: Completion,
        caller: Caller,
        response: Response,
        unused: list[str],
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        numbers = itertools.count()
        outcome = _Outcome()
        async with self._model.complete(completion, caller) as answer:
            headers += left_out([*unused, *answer.left_out])
            await send(_named(ResponseEvent("response.created", next(numbers), response)))
            await send(_named(ResponseEvent("response.in_progress", next(numbers), response)))
            try:
                await _send_text(send, answer, completion, response, outcome, numbers.__next__)
                reason = end_of(outcome.finish)
            except RequestError as error:
                failed = msgspec.structs.replace(response, status="failed", error=failure_of(error))
                if outcome.text:
                    failed.output = [_message(response, outcome.text, whole=False)]
                await send(_named(ResponseEvent("response.failed", next(numbers), failed)))
                return
        whole = _ended(response, outcome.text, reason, outcome.finish, answer)
        for index, item in enumerate(whole.output):
            if isinstance(item, OutputMessage):
                part = item.content[0]
                await send(_named(TextDone(next(numbers), item.id, part.text)))
                await send(_named(PartEvent("response.content_part.done", next(numbers), item.id, part)))
            else:
                begun = msgspec.structs.replace(item, arguments="", status="in_progress")
                await send(_named(ItemEvent("response.output_item.added", next(numbers), index, begun)))
                await send(_named(ArgumentsDelta(next(numbers), item.id, index, item.arguments)))
                await send(_named(ArgumentsDone(next(numbers), item.id, index, item.name, item.arguments)))
            await send(_named(ItemEvent("response.output_item.done", next(numbers), index, item)))
        await send(_named(ResponseEvent(f"response.{whole.status}", next(numbers), whole)))


async def _send_text(
    send: Send,
    answer: CompletionAnswer,
    completion: Completion,
    response: Response,
    outcome: _Outcome,
    number: Callable[[], int],
) -> None:
    """Send the events of an answer's text, and note in *outcome* what it came to."""
    item_id = _item_id(response)
    head = (
        b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":"%s",'
        b'"output_index":0,"content_index":0,"logprobs":[],"sequence_number":' % item_id.encode()
    )
    texts: list[str] = []
    try:
        async for piece in within_limit(answer, completion):
            if isinstance(piece, str):
                if not texts:
                    item = OutputMessage(item_id, [], "in_progress")
                    await send(_named(ItemEvent("response.output_item.added", number(), 0, item)))
                    await send(_named(PartEvent("response.content_part.added", number(), item_id, OutputText(""))))
                texts.append(piece)
                await send(b'%s%d,"delta":%s}\n\n' % (head, number(), _encode(piece)))
            elif isinstance(piece, Finish):
                outcome.finish = piece
    finally:
        outcome.text = "".join(texts)


def _ended(
    response: Response,
    text: str,
    reason: str,
    finish: Finish | None,
    answer: CompletionAnswer,
) -> Response:
    """Return the response as it is in the end."""
    good = reason in ("stop", "tool_calls")
    calls = finish.calls if finish is not None else ()
    output: list[OutputItem] = [_message(response, text, whole=good)] if text or not calls else []
    output += [call_item(call, number) for number, call in enumerate(calls)]
    return msgspec.structs.replace(
        response,
        status="completed" if good else "incomplete",
        incomplete_details=None
        if good
        else Incomplete("max_output_tokens" if reason == "length" else "content_filter"),
        output=output,
        usage=usage_of(answer.prompt_tokens, max((finish.tokens if finish else 0) or 0, 0)),
    )


def _message(response: Response, text: str, *, whole: bool) -> OutputMessage:
    return OutputMessage(_item_id(response), [OutputText(text)], "completed" if whole else "incomplete")


def _item_id(response: Response) -> str:
    return ITEM_PREFIX + response.id.removeprefix(PREFIX)


def _named(body: ResponseEvent | ItemEvent | PartEvent | TextDone | ArgumentsDelta | ArgumentsDone) -> bytes:
    return named_event(body.type, body)
