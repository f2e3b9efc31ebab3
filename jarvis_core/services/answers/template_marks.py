"""
The marks that chat templates put around what a model says, as they come out in its text.

Models write them where a server does not take them out: tags around thinking and calls of tools, tokens around messages
(``<|im_end|>``, ``<｜User｜>``, ``[INST]``), and the channels of gpt-oss (https://cookbook.openai.com/articles/openai-harmony).
"""

from __future__ import annotations

import enum
import re


class Mark(enum.Enum):
    """What a mark stands for."""

    UNDECIDED = enum.auto()
    """More of the text is needed."""
    THINKING = enum.auto()
    THINKING_END = enum.auto()
    CALL = enum.auto()
    """A tool is called, to the call's end."""
    CALL_TO_END = enum.auto()
    """A tool is called, to the message's end."""
    HEADER = enum.auto()
    """Whose message follows, to a line end or the next mark."""
    OTHERS = enum.auto()
    """What follows is not the assistant's."""
    CHANNEL = enum.auto()
    """The name of a channel follows."""
    END = enum.auto()
    """Of the message."""
    STRUCK = enum.auto()
    """HTML's ``<s>``, or the token that begins a text."""
    STRUCK_END = enum.auto()
    """HTML's ``</s>``, or the token that ends a text."""
    NOTHING = enum.auto()
    """Left out, and no more."""


THINKING_TAGS = ("think", "thinking", "thought", "thoughts", "reasoning", "seed:think")
CALL_TAGS = (
    "tool_call", "tool_calls", "tool_use", "tool_code", "function_call", "function_calls", "function", "invoke",
    "minimax:tool_call", "start_function_call",
)  # fmt: skip
_TAGS = {
    **dict.fromkeys(THINKING_TAGS, Mark.THINKING),
    **dict.fromkeys(CALL_TAGS, Mark.CALL),
    "end_function_call": Mark.NOTHING,
    "start_of_turn": Mark.HEADER,
    "end_of_turn": Mark.END,
    "eos": Mark.END,
    "bos": Mark.NOTHING,
    "pad": Mark.NOTHING,
    "unk": Mark.NOTHING,
    "s": Mark.STRUCK,
}
_BARE_ONLY = ("function", "invoke")
"""Words of ordinary markup: only with an attribute (``<function=lights>``) do they call a tool."""

_TOKENS = {
    **dict.fromkeys(("start_thinking", "begin_of_thought", "begin_of_thinking"), Mark.THINKING),
    **dict.fromkeys(("end_thinking", "end_of_thought", "end_of_thinking"), Mark.THINKING_END),
    **dict.fromkeys(("im_start", "start_header_id", "header_start", "start", "start_of_role"), Mark.HEADER),
    **dict.fromkeys(
        ("user", "system", "human", "developer", "observation", "environment", "prompter", "ipython"), Mark.OTHERS
    ),
    "channel": Mark.CHANNEL,
    **dict.fromkeys(
        ("im_end", "eot_id", "eom_id", "eot", "eom", "endoftext", "end_of_text", "end", "end_of_sentence", "end_of_turn",
         "end_of_turn_token", "end_of_message", "return", "call", "eos", "eod"), Mark.END,
    ),
}  # fmt: skip
_CALL_WORDS = ("tool", "function", "action", "plugin", "python_tag")
_HALF_TOKENS = {
    "<|channel>": Mark.THINKING,
    "<channel|>": Mark.THINKING_END,
    "<|turn>": Mark.HEADER,
    "<turn|>": Mark.END,
    "<|tool_call>": Mark.CALL,
    "<tool_call|>": Mark.NOTHING,
}
"""Gemma's newer ones."""
_SQUARE = {
    "[THINK]": Mark.THINKING,
    "[/THINK]": Mark.THINKING_END,
    "[TOOL_CALLS]": Mark.CALL_TO_END,
    "[INST]": Mark.OTHERS,
    "[/INST]": Mark.NOTHING,
    "[AVAILABLE_TOOLS]": Mark.OTHERS,
    "[TOOL_RESULTS]": Mark.OTHERS,
    "◁think▷": Mark.THINKING,
    "◁/think▷": Mark.THINKING_END,
}
_WHOLE = {**_HALF_TOKENS, **_SQUARE}

_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z:_]*)((?:[\s=/][^<>]{0,200})?)>")
_TAG_BEGUN = re.compile(r"</?(?:([A-Za-z][A-Za-z:_]*)([\s=/][^<>]{0,200})?)?")
_TOKEN = re.compile(r"<[|｜]([^\s<>|｜]{1,60})[|｜]>")
_TOKEN_BEGUN = re.compile(r"<(?:[|｜](?:[^\s<>|｜]{1,60}[|｜]?)?)?")


def mark_at(text: str) -> tuple[Mark, int] | None:
    """Return the mark that *text* begins with and its length; None where it begins with none."""
    if text[:1] == "<" and len(text) > 1 and not (text[1].isalpha() or text[1] in "/|｜"):
        return None
    whole = next((mark for mark in _WHOLE if text.startswith(mark)), None)
    if whole is not None:
        return _WHOLE[whole], len(whole)
    if (token := _TOKEN.match(text)) is not None:
        return _token_mark(token[1]), token.end()
    if (tag := _TAG.match(text)) is not None:
        mark = _tag_mark(tag[2].lower(), tag[3], closing=bool(tag[1]))
        return None if mark is None else (mark, tag.end())
    if any(mark.startswith(text) for mark in _WHOLE) or _TOKEN_BEGUN.fullmatch(text):
        return Mark.UNDECIDED, 0
    begun = _TAG_BEGUN.fullmatch(text)
    if begun is None:
        return None
    name = (begun[1] or "").lower()
    known = (name in _TAGS and name != "s") if begun[2] else any(tag.startswith(name) for tag in _TAGS)
    return (Mark.UNDECIDED, 0) if known else None


def _tag_mark(name: str, attributes: str, *, closing: bool) -> Mark | None:
    mark = _TAGS.get(name)
    if mark is Mark.STRUCK:
        return None if attributes.strip(" /") else Mark.STRUCK_END if closing else mark
    if name in _BARE_ONLY and not closing and not attributes.strip(" /"):
        return None
    if attributes.endswith("/") and mark is not Mark.END:
        return None if mark is None else Mark.NOTHING
    if closing:
        return Mark.THINKING_END if mark is Mark.THINKING else Mark.NOTHING if mark is Mark.CALL else None
    return mark


def _token_mark(name: str) -> Mark:
    name = name.lower().replace("▁", "_")
    mark = _TOKENS.get(name)
    if mark is not None:
        return mark
    if not any(word in name for word in _CALL_WORDS) or name.startswith("/") or "end" in name:
        return Mark.NOTHING
    return Mark.CALL if "begin" in name or "start" in name else Mark.CALL_TO_END


_thinking = "|".join(THINKING_TAGS)
_calls = "|".join(CALL_TAGS)
THINKING_CLOSED = re.compile(
    rf"</(?:{_thinking})\s{{0,3}}>|\[/THINK\]|◁/think▷|<\|end_(?:of_)?(?:thinking|thought)\|>|<channel\|>",
    re.IGNORECASE,
)
CALL_CLOSED = re.compile(
    rf"</(?:{_calls})\s{{0,3}}>|<end_function_call>|<tool_call\|>"
    r"|<[|｜](?:/[^\s<>|｜]{1,50}|[^\s<>|｜]{0,50}end[^\s<>|｜]{0,50})[|｜]>",
    re.IGNORECASE,
)
CHANNEL_CLOSED = re.compile(r"<\|(?:end|return|call|start|channel)\|>")
HEADER_CLOSED = re.compile(r"\n|<[|｜][^\s<>|｜]{1,60}[|｜]>")
CHANNEL_NAMED = re.compile(r"<\|message\|>")
NEXT_MESSAGE = re.compile(r"<\|(?:start|channel)\|>")
"""After the end of one of gpt-oss' messages."""
FIRST_MESSAGE = re.compile(r"<\|(?:start|channel|im_start|start_header_id|header_start)\|>|<start_of_turn>")
ANALYSIS = "analysis"
MESSAGE = "<|message|>"
BARE_FINAL = re.compile(r"assistantfinal")
"""Where a server took the tokens out and left the words: ``analysisThe user …assistantfinalBonjour``."""
OTHERS_ROLES = frozenset({"user", "system", "human", "tool", "function", "developer", "observation", "ipython"})

MAY_HAVE_MARKS = re.compile(
    rf"</?(?:{'|'.join(re.escape(name) for name in _TAGS)})[\s=/>]|<[|｜]|[|]>|\[/?[A-Z_]{{4,}}\]|◁"
    r"|[\"'](?:parameters|arguments|args|kwargs|input|tool_input|action_input|params|tool_calls?|function_calls?|tool_uses)[\"']\s*(?::|\Z)"
    r"|<[^\s<>]{0,40}\Z|\A\s*analysis",
    re.IGNORECASE,
)
"""Found in every text in which there is a mark, or a call; cheap to look for in one that was said long ago."""

LONGEST_CHARS = 120
"""Of what closes something."""

FENCE = 3
"""So many backticks and more are a fence, fewer are code within a line."""
TICKS_LIMIT = 64
"""Backticks that are looked at as one run."""
TICKS = re.compile(f"`{{1,{TICKS_LIMIT}}}")
FENCE_BEFORE_CALL = re.compile(r"`{3,64}[ \t]{0,4}[A-Za-z_]{0,12}[ \t]{0,4}\n?\s{0,20}")
FENCE_CLOSED = re.compile(r"```")
NEVER = re.compile(r"(?!)")


def bare_channel(text: str, *, final: bool) -> tuple[re.Pattern[str] | None, int] | None:
    """
    Return what ends the channel that *text* begins in with its bare name, and the length of that; None where it does not.

    Nothing ends it while more of the text is needed.
    """
    begun = text.lstrip()
    if not begun.startswith(ANALYSIS[: len(begun)]) or (final and len(begun) <= len(ANALYSIS)):
        return None
    behind = begun[len(ANALYSIS) : len(ANALYSIS) + len(MESSAGE)]
    length = len(text) - len(begun) + len(ANALYSIS)
    if MESSAGE.startswith(behind):
        # Where it is one, its beginning is in the prompt.
        whole = behind == MESSAGE or (final and behind)
        return CHANNEL_CLOSED if whole else None, length + len(behind)
    if behind[0].isupper() or (behind[0].isalpha() and not behind[0].islower()):
        return BARE_FINAL, length
    return None


def find_closed(closed: re.Pattern[str], text: str, *, quoting: bool, final: bool) -> tuple[int, int] | None:
    """
    Return where the first mark of *closed* in *text* begins and ends; None where there is none.

    With *quoting* one between backticks is none; one at the end that may yet be is one only where nothing follows (*final*).
    """
    for found in closed.finditer(text):
        if not (quoting and found.start() and text[found.start() - 1] == "`"):
            return found.span()
        if found.end() == len(text):
            return found.span() if final else None
        if text[found.end()] != "`":
            return found.span()
    return None
