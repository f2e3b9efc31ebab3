"""
``/v1/responses``: a turn of ours in the words of OpenAI's Responses API.

What is stored is a turn in a conversation like any other: ``previous_response_id`` goes on with its conversation, by whichever
door that came in. With ``store: false`` the model is asked and nothing is kept (``unstored_responses.py``).
"""

from __future__ import annotations

import msgspec

from jarvis_core.errors import InvalidRequest, NotFound, UnknownModel
from jarvis_core.handlers.call import Call, Reply
from jarvis_core.handlers.chat import error_of_turn, idempotency_key
from jarvis_core.handlers.openai import response_request
from jarvis_core.handlers.openai.models import ASSISTANT
from jarvis_core.handlers.openai.response_events import ResponseEvents, blank_response, response_of
from jarvis_core.handlers.openai.response_request import ConversationParam, ResponseRequest, Said
from jarvis_core.handlers.openai.response_wire import (
    ITEM_PREFIX,
    PREFIX,
    DeletedResponse,
    InputItems,
    InputMessage,
    InputText,
    Response,
)
from jarvis_core.handlers.openai.unstored_responses import UnstoredResponses
from jarvis_core.handlers.openai.warning import left_out
from jarvis_core.handlers.query import IntegerField
from jarvis_core.handlers.stream import send_events, wait_for_end
from jarvis_core.models import Caller, CompletionModel, Status, ToolOutput
from jarvis_core.tools.calls import GoingOn, Output
from jarvis_core.tools.runner import bounded
from jarvis_core.turns.ask import Ask
from jarvis_core.turns.conversations import Conversations
from jarvis_core.turns.log import Turn
from jarvis_core.turns.receipt import TurnTimer
from jarvis_core.turns.turns import Turns

TOKENS_LIMIT = 32_000
"""As ``/api/chat`` has it."""
CONVERSATION_PREFIX = "conv_"
AFTER = IntegerField("starting_after", "Go on after this event's number.", 0, 999_999_999, None)

_encode = msgspec.json.Encoder().encode


class ResponseHandlers:
    """The routes below ``/v1/responses``."""

    def __init__(
        self,
        turns: Turns,
        conversations: Conversations,
        model: CompletionModel,
        unstored: UnstoredResponses,
        *,
        body_limit_bytes: int,
    ) -> None:
        self._turns = turns
        self._conversations = conversations
        self._model = model
        self._unstored = unstored
        self._body_limit_bytes = body_limit_bytes

    async def respond(self, call: Call) -> Reply | None:
        """Answer ``POST /v1/responses``, whole or as events."""
        request, fields = response_request.read(await call.json_body(self._body_limit_bytes))
        if request.model != ASSISTANT and request.model != await self._model.fetch_name():
            raise UnknownModel(request.model)
        previous = await self._previous(request, call.caller)
        conversation_id = _conversation(request) if previous is None else previous.conversation_id
        if request.store is False:
            return await self._unstored.respond(call, request, fields, conversation_id)
        said = response_request.said_in(request)
        if said.outputs and previous is None:
            # Its client keeps the history; which turn waits for these is not to be told.
            call.headers = [*call.headers, *left_out(["store"])]
            return await self._unstored.respond(call, request, fields, conversation_id)
        if not response_request.is_plain_text(request):
            raise InvalidRequest.field("$.text.format", "can only be had with store: false")
        if said.outputs and previous is not None:
            outputs = [Output(call_id, bounded(ToolOutput(text))) for call_id, text in said.outputs.items()]
            going_on = GoingOn("waiting", outputs)
            turn = await self._turns.go_on(call.caller, previous.id, going_on, TurnTimer(call.started_s))
        else:
            ask = _ask(request, said, conversation_id)
            turn = await self._turns.start(ask, call.caller, idempotency_key(call, ask), TurnTimer(call.started_s))
        response = _with_request(blank_response(turn, request.model), request)
        call.headers = [*call.headers, *left_out(response_request.unknown_fields(fields, stored=True))]
        if request.stream:
            events, after = ResponseEvents(turn, response), turn.went_on_at
            begin = events.begin(after) if after else b""
            await send_events(call, self._turns, turn, after, events, first=begin)
            return None
        await wait_for_end(call, self._turns, turn)
        if turn.status is Status.FAILED:
            raise error_of_turn(turn)
        return Reply(_encode(response_of(turn, response)))

    async def response(self, call: Call) -> Reply | None:
        """Answer ``GET /v1/responses/{id}``, with ``stream=true`` as events from the beginning, or from a number on."""
        turn = await self._find(call)
        response = blank_response(turn, turn.model)
        query = call.query()
        if query.get("stream") == "true":
            await send_events(call, self._turns, turn, AFTER.read(query) or 0, events=ResponseEvents(turn, response))
            return None
        return Reply(_encode(response_of(turn, response)))

    async def input_items(self, call: Call) -> Reply:
        """Answer ``GET /v1/responses/{id}/input_items`` with what the user said."""
        turn = await self._find(call)
        if turn.user_message_id is None:
            return Reply(_encode(InputItems([], None, None)))
        message = await self._conversations.fetch_message(
            call.caller.user_id, turn.conversation_id, turn.user_message_id
        )
        item = InputMessage(ITEM_PREFIX + message.id, [InputText(message.content)])
        return Reply(_encode(InputItems([item], item.id, item.id)))

    async def cancel(self, call: Call) -> Reply:
        """Answer ``POST /v1/responses/{id}/cancel`` once the model's connection is closed."""
        turn = await self._find(call)
        await self._turns.stop(turn)
        return Reply(_encode(response_of(turn, blank_response(turn, turn.model))))

    async def delete(self, call: Call) -> Reply:
        """Answer ``DELETE /v1/responses/{id}``: the question and the answer are gone from the history."""
        turn = await self._find(call)
        await self._turns.delete(call.caller, turn)
        return Reply(_encode(DeletedResponse(PREFIX + turn.id)))

    async def _find(self, call: Call) -> Turn:
        return await self._turns.find(call.caller, call.path_param.removeprefix(PREFIX))

    async def _previous(self, request: ResponseRequest, caller: Caller) -> Turn | None:
        """Return the response to go on from, None where none is named; raises ``InvalidRequest`` for an unknown one."""
        if request.previous_response_id is None:
            return None
        if request.conversation is not None:
            raise InvalidRequest.field("$.conversation", "cannot be there with previous_response_id")
        try:
            return await self._turns.find(caller, request.previous_response_id.lower().removeprefix(PREFIX))
        except NotFound as exc:
            raise InvalidRequest.field("$.previous_response_id", "there is no such response") from exc


def _conversation(request: ResponseRequest) -> str | None:
    """Return the conversation that the request names."""
    given = request.conversation
    if given is None:
        return None
    name = given.id if isinstance(given, ConversationParam) else given
    return name.lower().removeprefix(CONVERSATION_PREFIX)


def _ask(request: ResponseRequest, said: Said, conversation_id: str | None) -> Ask:
    """Return what a turn is asked."""
    tools, tool_choice = response_request.tools_in(request)
    own = request.model != ASSISTANT
    max_tokens = request.max_output_tokens
    return Ask(
        content=said.content,
        conversation_id=conversation_id,
        # The model under its own name has no instructions but the client's.
        system_prompt="\n\n".join(said.instructions) if said.instructions or own else None,
        temperature=request.temperature,
        max_tokens=None if max_tokens is None else min(max_tokens, TOKENS_LIMIT),
        use_memory=not own,
        ask_house=not own,
        before=said.before,
        tools=tools,
        tool_choice=tool_choice,
    )


def _with_request(response: Response, request: ResponseRequest) -> Response:
    """Return *response* with what the request has said of it."""
    return msgspec.structs.replace(
        response,
        previous_response_id=request.previous_response_id,
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        metadata=request.metadata or {},
        user=request.user,
    )
