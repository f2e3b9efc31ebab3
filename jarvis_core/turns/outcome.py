"""How a turn ends: what the end of a model's stream, an error and a request to stop come to together."""

from __future__ import annotations

from jarvis_core.errors import BadGateway, DeadlineExceeded, RequestError, Unavailable
from jarvis_core.models import Finish, Status

REASONS = {"length": "max_tokens", "lost": "stream_lost", "deadline": "timeout"}
"""Ends of a model's stream that clients know by another name."""
BROKEN = ("lost", "stalled", "deadline")
"""Ends that a turn has which was stopped at the same time only if it was not."""
WORDLESS = {
    "empty": "The language model ended its answer without a word.",
    "max_tokens": "The language model used up max_tokens before its first word; it may need more of them for its thinking.",
    "thinking": "The language model thought, and ended without an answer.",
    "tool_calls": "The language model called a tool that it was not offered, and said nothing.",
    "content_filter": "A filter took away what the language model would have said.",
    "refusal": "The language model refused to answer.",
    "flood": "The language model sent without end, and nothing of an answer.",
}
"""What an end means where there was no answer."""


def outcome(
    finish: Finish | None, stopped: tuple[Status, str] | None, error: RequestError | None, *, has_text: bool
) -> tuple[Status, str]:
    """Return how a turn ended, and why."""
    if error is not None:
        reason = (error.details or {}).get("reason", error.code)
        return (Status.INCOMPLETE if has_text else Status.FAILED), reason
    if finish is not None and finish.reason not in BROKEN:
        return (Status.COMPLETED if finish.reason == "stop" else Status.INCOMPLETE), _reason_of(finish)
    if stopped is not None:
        return stopped
    return Status.INCOMPLETE, "stream_lost" if finish is None else _reason_of(finish)


def error_without_text(finish: Finish) -> RequestError:
    """Return the error of a turn whose model ended its stream with *finish* before any text."""
    if finish.reason in ("stalled", "deadline"):
        return DeadlineExceeded("The language model broke off before its first word.")
    if finish.reason == "lost":
        return BadGateway("The language model broke off before its first word.")
    reason = "empty" if finish.reason == "stop" else _reason_of(finish)
    words = WORDLESS.get(reason, f"The language model ended without a word: {reason}.")
    return BadGateway(words, details={"reason": reason})


def error_without_end(reason: str) -> RequestError:
    """Return the error of an answer that broke off in the middle for *reason*, as a turn has it."""
    details = {"reason": reason}
    if reason in ("stalled", "timeout"):
        return DeadlineExceeded("The language model fell silent in the middle of its answer.", details=details)
    if reason == "stream_lost":
        return BadGateway("The language model broke off its answer.", details=details)
    if reason == "server_stopped":
        return Unavailable("The server was stopped in the middle of the answer.", details=details)
    return BadGateway(f"The answer did not come to its end: {reason}.", details=details)


def _reason_of(finish: Finish) -> str:
    return REASONS.get(finish.reason, finish.reason)
