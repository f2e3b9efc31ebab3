"""
One answer of a language model as it arrives: what every model's stream has in common, whatever its server calls things.

A stream that ends badly never ends well: a connection that broke, a silence, a flood of nothing, an error in any shape and an
end that is no good one are told as what they are. Thinking keeps the stream alive, and is not the answer.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import msgspec

from jarvis_core import log
from jarvis_core.errors import BadGateway, InvalidRequest, RateLimited, RequestError, Unavailable
from jarvis_core.models import Discard, Finish, ToolCall
from jarvis_core.services.answers.filter import AnswerFilter
from jarvis_core.services.answers.finish_reasons import LENGTH, STOP
from jarvis_core.services.answers.server_errors import ServerError, clean, error_in, error_in_body, error_of
from jarvis_core.services.answers.untold_thinking import UntoldThinking
from jarvis_core.services.answers.written_calls import read_calls
from jarvis_core.services.contract import NONSENSE
from jarvis_core.services.lines import LineBuffer
from jarvis_core.services.stream import Stream
from jarvis_core.services.transport import RATE_LIMIT_RETRY_AFTER_S, RETRY_AFTER_S, Refused, Transport

logger = log.get(__name__)
_reports = log.LogThrottle()

EMPTY_BURST = 10_000
EMPTY_PER_S = 1_000
"""
Network chunks and lines of a stream that bring nothing, beyond the burst, since it was asked for: comments, empty deltas.

What models need is far less: a sign of life for each token that is hidden is a few hundred a second.
"""
LOG2_BYTES_AS_ONE = 12
"""So many bytes that bring nothing (4 KiB) count as one more."""
MODEL_LIMIT_CHARS = 200
BEGINS_JSON = re.compile(rb"\{|\[\s*[\[{\"]")
SOUNDS_BAD = re.compile(rb"error|exception|fail|denied|unavailable|exceeded", re.IGNORECASE)
"""In a line of data that is not JSON."""

_ESCAPED_BYTES = re.compile(r"(?<![\ud800-\udbff])[\udc80-\udcff]+")
_HALF_AT_END = re.compile(r"(?:[\ud800-\udbff]|[\udc80-\udcff]{1,3})\Z")

MAY_HAVE_CALLED = (STOP, LENGTH, "tool_calls")

Piece = str | Discard | Finish


class AnswerStream:
    """
    One answer, read from *stream*; subclasses know how its server writes.

    *limit_chars* bounds what is not the answer; with *opened* all up to a closing tag is taken for thinking.
    """

    def __init__(
        self, transport: Transport, stream: Stream, *, model: str, limit_chars: int, opened: bool = False
    ) -> None:
        self.model = model
        self.reason: str | None = None
        """Why the model stopped, by our names; None while the server has not said."""
        self.tokens: int | None = None
        self.prompt_tokens = 0
        """Read by the model; 0 where its server has not said."""
        self.over = False
        """Whether the server has said that nothing follows."""
        self.called = False
        """Whether a tool was called."""
        self.offered = False
        """Whether there are tools that it may call."""
        self.plain = True
        """Whether a piece of text is nothing but the next piece of text."""
        self.odd = False
        """Whether the text may have halves of characters."""
        self.filter = AnswerFilter()
        self._untold = UntoldThinking() if opened else None
        """Holds back what may be thinking, as long as that is not known."""
        self._transport = transport
        self._stream = stream
        self._limit_chars = limit_chars
        self._hidden_chars = 0
        """How much of what came was not the answer."""
        self._buffer = LineBuffer()
        self._lines: list[bytes] = []
        """Read and not yet taken."""
        self._ended = False
        self._cut = False
        """Whether the body ended in the middle of an item."""
        self._begun = False
        self._half = ""
        """Of a character whose other half is still to come."""
        self._brought = 0
        """Lines that brought something."""
        self._withdrawals = 0
        """Of the filter, as far as they were told."""
        self._units = 0
        self._allowed = float(EMPTY_BURST)

    async def wait_begun(self) -> ServerError | None:
        """Wait for the first that the server says; return the error, where it is one."""
        while not (self._lines or self._ended or self._buffer.error):
            self._lines = self._read(await self._stream.read())
        if self._buffer.error and not self._lines:
            return error_of_text(self._buffer.error)
        if not self._lines or (b'"choices"' in self._lines[0] and b'"error"' not in self._lines[0]):
            return None
        try:
            return error_in(msgspec.json.decode(self._lines[0]))
        except NONSENSE:
            return None

    async def pieces(self) -> AsyncIterator[Piece]:
        """
        Give the answer as it arrives, then how it ended; raises ``RequestError`` where the server tells of an error.

        What came in one read is one piece: each costs its readers as much as several times its text.
        """
        lines, self._lines = self._lines, []
        while True:
            texts: list[str] = []
            try:
                self._take_lines(lines, texts)
            except RequestError:
                # What came before the error is of the answer.
                for piece in self._pieces_of(texts):
                    yield piece
                raise
            for piece in self._pieces_of(texts):
                yield piece
            if self.over:
                break
            if self._buffer.error is not None:
                raise self.failed(error_of_text(self._buffer.error))
            if self._ended:
                break
            lines = self._read(await self._stream.read())
        if self.over:
            await self._stream.finish()
        rest = self.say("\ufffd", half=False) if self._half else ""
        if not self.over:
            rest = self.rest() + rest
        cut = not (self.reason == STOP or (self.over and self.reason is None))
        if self._untold is not None:
            # What is cut off while the end of thinking is waited for is thinking.
            held = self._untold.end(cut=cut)
            self._go_on(self._untold)
            rest += self.filter.feed(held)
        rest += self.filter.end(cut=cut)
        for piece in self._pieces_of([rest] if rest else []):
            yield piece
        yield self._finish()

    def _take_lines(self, lines: list[bytes], texts: list[str]) -> None:
        """Take *lines* up to the answer's end, and add what they add to it to *texts*."""
        withdrawals = self.filter.withdrawals
        for line in lines:
            text = self.take(line)
            if self.filter.withdrawals != withdrawals:
                withdrawals = self.filter.withdrawals
                texts.clear()
            if text:
                texts.append(text)
            if self.over:
                return

    def _pieces_of(self, texts: list[str]) -> list[Piece]:
        """Return what *texts*, the next ones of the answer, are told as."""
        pieces: list[Piece] = []
        if self.filter.withdrawals != self._withdrawals:
            self._withdrawals = self.filter.withdrawals
            pieces.append(Discard())
        if texts:
            pieces.append("".join(texts))
        return pieces

    def take(self, line: bytes) -> str:
        """Take a line of the stream; return what it adds to the answer."""
        raise NotImplementedError

    def rest(self) -> str:
        """Return what was held back of an answer whose stream ended without an end."""
        return ""

    def say(self, text: str, *, half: bool = True) -> str:
        """
        Return what *text*, the next of what the model wrote, adds to the answer.

        It may be the other *half* of a character that the last one ended with.
        """
        self._brought += 1
        if not self._begun:
            self._begin()
        if half and not self.plain and (self._half or self.odd):
            text = self._whole_characters(text)
        given = self.filter.feed(text) if self._untold is None else self._hold_back(self._untold, text)
        if not given:
            self._hide(len(text))
        return given

    def think(self, chars: int) -> str:
        """Take note of so much thinking that is told apart from the answer; return what that decides of the answer."""
        self._brought += 1
        if not self._begun:
            self._begin()
        self.filter.note_thinking(chars)
        self._hide(chars)
        if self._untold is None:
            return ""
        # It is told in another way, and not in the text.
        held, self._untold = self._untold.end(cut=False), None
        return self.filter.feed(held)

    def note_hidden(self, chars: int) -> None:
        """Take note of so much that is neither the answer nor thinking."""
        self._brought += 1
        if not self._begun:
            self._begin()
        self._hide(chars)

    def _whole_characters(self, text: str) -> str:
        """
        Return *text*, which may have halves of characters, with these joined, or else replaced.

        Halves are lone surrogates, and bytes that were no UTF-8, as ``surrogateescape`` has them. One at the end waits for
        the other.
        """
        text = self._half + text
        half = _HALF_AT_END.search(text)
        self._half = half[0] if half is not None and text != self._half else ""
        text = text[: len(text) - len(self._half)]
        text = _ESCAPED_BYTES.sub(
            lambda found: found[0].encode(errors="surrogateescape").decode(errors="replace"), text
        )
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")

    def name_model(self, model: object) -> None:
        """Take note of what the server calls its model."""
        if isinstance(model, str) and model:
            self.model = "".join(filter(str.isprintable, model[:MODEL_LIMIT_CHARS]))

    def take_words(self, line: bytes) -> None:
        """Take a line that is not JSON: raises ``RequestError`` where it sounds like an error, or is half of one."""
        if BEGINS_JSON.match(line):
            if self._ended:
                self._cut = True
                return
            raise self.nonsense()
        if SOUNDS_BAD.search(line):
            raise self.failed(error_of_text(line))

    def failed(self, error: ServerError) -> RequestError:
        """Return the request's error for what the server told."""
        return request_error(self._transport, error)

    def nonsense(self) -> BadGateway:
        """Return the error for what no server of this kind sends."""
        self._transport.health.learn("degraded", "it answered nonsense")
        return BadGateway(
            f"{self._transport.name} sent what is not its contract.", details={"neighbour": self._transport.name}
        )

    def _begin(self) -> None:
        self._begun = True
        self._stream.begin()

    def _read(self, data: bytes) -> list[bytes]:
        """Return the lines that *data* completes, the last ones where it is empty."""
        stream, buffer = self._stream, self._buffer
        if not data:
            self._ended = True
            if stream.lost is not None:
                return []  # what is left of a line was cut off
            return buffer.end()
        lines = buffer.feed(data)
        self._units += len(lines) + (len(data) >> LOG2_BYTES_AS_ONE)
        empty = self._units + stream.parts + buffer.skipped - 2 * self._brought
        if empty > self._allowed:
            self._allowed = EMPTY_BURST + EMPTY_PER_S * stream.age_s
            if empty > self._allowed:
                stream.give_up("flood")
                self._ended = True
        return lines

    def _hold_back(self, untold: UntoldThinking, text: str) -> str:
        rest = untold.feed(text)
        if rest is None:
            return ""
        self._go_on(untold)
        return self.filter.feed(rest)

    def _go_on(self, untold: UntoldThinking) -> None:
        """Go on with what is not held back any more."""
        self._untold = None
        if untold.closed:
            self.filter.begin_after_thinking()
        self.filter.thinking_chars += untold.chars

    def _hide(self, chars: int) -> None:
        """Count what is not the answer; have done with a model that thinks, or goes on after its message, without end."""
        self._hidden_chars += chars
        if self._hidden_chars > self._limit_chars:
            self.reason, self.over = LENGTH, True

    def _finish(self) -> Finish:
        """Return how the answer ended; raises ``RequestError`` where there is none because the stream broke."""
        stream, found = self._stream, self.filter
        if self.reason is None and not self.over:
            if not found.given:
                raise self.no_answer() if stream.lost is None else self._transport.lost(stream)
            if stream.lost is None:
                self._transport.health.learn("degraded", "it ended its answer in the middle")
            elif stream.lost != "deadline":
                self._transport.note_loss(stream.lost)
            return Finish(stream.lost or "lost", self.tokens, self.model, prompt_tokens=self.prompt_tokens)
        reason = self.reason or STOP
        if reason == LENGTH and found.over:
            reason = STOP  # it went on after the end of its message
        if self.offered and reason in MAY_HAVE_CALLED:
            # Whatever it was said to have ended with: a call that is whole is one, and without any nothing was called.
            calls = tuple(self.made_calls(cut=reason == LENGTH))
            if calls or reason == "tool_calls":
                return Finish("tool_calls" if calls else STOP, self.tokens, self.model, calls, self.prompt_tokens)
        elif reason == STOP:
            if found.called or self.called:
                reason = "tool_calls"
            elif found.thinking or (found.thinking_chars and not found.given):
                reason = "thinking"
        return Finish(reason, self.tokens, self.model, prompt_tokens=self.prompt_tokens)

    def made_calls(self, *, cut: bool) -> list[ToolCall]:
        """Return the calls of tools; where the answer was *cut*, those that are whole."""
        return read_calls(self.filter.calls)

    def no_answer(self) -> BadGateway:
        """Return the error for a body in which there was nothing of an answer."""
        name, content_type = self._transport.name, self._stream.content_type
        details: dict[str, str | int] = {"neighbour": name}
        if not self._buffer.strange or content_type == "text/event-stream":
            return BadGateway(f"{name} ended its stream without an answer.", details=details)
        words = self._buffer.strange.decode(errors="replace")
        if not words.startswith("<"):
            details["neighbour_error"] = clean(words)
        return BadGateway(
            f"{name} answered with {content_type or 'something'} that is no answer of a model.", details=details
        )


def error_of_text(text: bytes) -> ServerError:
    """Return the error that *text* tells, whether it is JSON or not."""
    try:
        value: object = msgspec.json.decode(text)
    except NONSENSE:
        return ServerError(clean(text.decode(errors="replace")))
    return error_in(value) or error_of(value)


def error_of_status(refused: Refused) -> ServerError:
    """Return what a server said that *refused* with a status."""
    return error_in_body(refused.answer, refused.status) or ServerError("", status=refused.status)


def refusal_error(
    transport: Transport, error: ServerError, refused: Refused, *, hint: str = "", key: str = "LLM_API_KEY"
) -> RequestError:
    """Return the request's error for *error*, with which a server *refused*; a sentence of ours has its words in it."""
    told = request_error(transport, error, hint=hint, key=key)
    if type(told) is not BadGateway or told.details is None:
        return told
    message = told.message
    if not (error.is_key or error.is_filtered):
        words = transport.without_secrets(error.words)
        message = f"{transport.name} refused with status {refused.status}{f': {words}' if words else '.'}{hint}"
    return Refused(message, status=refused.status, answer=refused.answer, details=told.details)


def request_error(
    transport: Transport, error: ServerError, *, hint: str = "", key: str = "LLM_API_KEY"
) -> RequestError:
    """
    Return the request's error for one of a model's server, and have its words logged.

    *hint* is what may be done, *key* the setting that has what the server is sent as credentials.
    """
    name = transport.name
    details: dict[str, str | int] = {"neighbour": name}
    words = transport.without_secrets(error.words)
    # So many kinds at most: what a server calls its errors may be different each time.
    held_back = _reports.held_back(f"{name} {error.status} {hash(error.kind) % 16}")
    if held_back is not None:
        logger.warning("a model's server reported an error", neighbour=name, said=words, held_back=held_back)
    if error.status:
        details["status"] = error.status
    if words:
        details["neighbour_error"] = words
    if error.is_context:
        return InvalidRequest(
            "$.content: is longer than the model can read",
            details={"path": "$.content", "rule": "is longer than the model can read", **details},
        )
    if error.is_filtered:
        details["reason"] = "content_filter"
        return BadGateway(f"{name} has a content filter, which keeps this from its model.", details=details)
    if error.is_limited:
        return RateLimited(
            f"{name} takes no more requests for now.", details=details, retry_after_s=RATE_LIMIT_RETRY_AFTER_S
        )
    if error.is_busy:
        transport.health.learn("unavailable", words)
        return Unavailable(f"{name} is not available.", details=details, retry_after_s=RETRY_AFTER_S)
    transport.health.learn("degraded", words)
    if error.is_key:
        return BadGateway(f"{name} does not accept its key: {key} is wrong, or missing.", details=details)
    return BadGateway(f"{name} reported that its language model failed.{hint}", details=details)
