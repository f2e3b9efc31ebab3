"""What servers say of why a model stopped, and what that means: the one table of it."""

from __future__ import annotations

import re

STOP = "stop"
LENGTH = "length"

ENDS = {
    **dict.fromkeys(
        ("stop", "eos", "eos_token", "eos_found", "end_turn", "end_of_turn", "stop_sequence", "stop_token", "eot", "end",
         "complete", "completed", "done", "finished", "finish", "normal", "success", "null", "none", ""), STOP,
    ),
    **dict.fromkeys(("length", "max_tokens", "max_output_tokens", "model_length", "max_length"), LENGTH),
    **dict.fromkeys(("function_call", "tool_call", "tool_use", "tool_calls"), "tool_calls"),
    **dict.fromkeys(("content_filter", "safety", "content_filtered", "prohibited_content", "blocklist"), "content_filter"),
    "refusal": "refusal",
}  # fmt: skip
"""By what they say, in lower case; what is not here is an end of its own, and no good one."""

_NOT_IN_NAMES = re.compile(r"[^a-z0-9_.-]+")
NAME_LIMIT_CHARS = 64


def end_named(said: object) -> str | None:
    """Return our name for an end as a server *said* it; None where it has not said that anything ended."""
    if said == STOP:
        return STOP
    if said is None or said is False:
        return None
    word = str(said).strip().lower() if not isinstance(said, dict | list) else ""
    known = ENDS.get(word)
    if known is not None:
        return known
    return _NOT_IN_NAMES.sub("_", word)[:NAME_LIMIT_CHARS].strip("_") or STOP
