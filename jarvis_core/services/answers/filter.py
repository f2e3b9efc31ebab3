"""
What a language model writes beside its answer, taken out while it streams: thinking, control tokens, calls of tools.

No I/O. What is given does not depend on where the text was cut; a piece without any of ``<{[`◁`` passes as it is.

- **Thinking** is what stands in its tags, in gpt-oss' other channels, or before a closing tag that was never opened: some
  templates open it in the prompt. A tag in code is text; in thinking, so is a closing tag between two backticks.
- **After the end of its message** nothing is the answer: a model that misses its end goes on with the user's part.
- **A call of a tool** stands in its tags, or is JSON that names a tool and its arguments.
"""

from __future__ import annotations

import enum
import re

from jarvis_core.services.answers import template_marks as marks
from jarvis_core.services.answers.template_marks import FENCE, NEVER, TICKS_LIMIT, Mark
from jarvis_core.services.answers.tool_calls import CALL_LIMIT_CHARS, JsonEnd, begins_call, is_call, names_tool

HEADER_CHARS = 120
"""Of whose message it is, or the name of its channel; longer is none."""
THINKING_ENDS = (marks.THINKING_CLOSED, marks.CHANNEL_CLOSED, marks.BARE_FINAL)
PARTIAL_CHARS = 3
"""What has so many characters of a mark when the text ends was to be one."""
PART_CHARS = 2_048

_search_special = re.compile(r"[<{\[`◁]").search
_search_in_line = re.compile(r"[<`\n]").search
_search_in_fence = re.compile(r"[<`]").search


class _State(enum.Enum):
    TEXT = enum.auto()
    HIDDEN = enum.auto()
    HEADER = enum.auto()
    CHANNEL = enum.auto()
    CALL = enum.auto()
    OVER = enum.auto()


class AnswerFilter:
    """Gives a model's answer without what is not the answer."""

    __slots__ = (
        "_buffer", "_calling", "_closed", "_code", "_fence", "_fresh", "_hid", "_json", "_last", "_lead", "_out", "_plain",
        "_quoting", "_state", "_struck", "_thought", "called", "calls", "given", "over", "thinking_chars", "unopened",
        "withdrawals",
    )  # fmt: skip

    def __init__(self) -> None:
        self.given = False
        """Whether any of the answer was given."""
        self.thinking_chars = 0
        """How much thinking was left out."""
        self.called = False
        """Whether a tool was called."""
        self.calls: list[str] = []
        """What was left out as calls, each with the mark that began it; its beginning, where it is long."""
        self.over = False
        """Whether the end of the message stood in the text."""
        self.unopened = False
        """Whether thinking was closed that had not been opened."""
        self.withdrawals = 0
        """How often what was given before turned out to be thinking."""
        self._state = _State.TEXT
        self._buffer = ""
        """What is not decided yet."""
        self._plain = False
        """Whether a piece without a special character may pass."""
        self._fresh = True
        """Whether nothing has come."""
        self._code = 0
        """How many backticks began the code that the text is in."""
        self._closed = NEVER
        """What ends that which is hidden."""
        self._calling = False
        """Whether that is a call."""
        self._quoting = False
        """Whether a closing tag between backticks ends nothing."""
        self._json: JsonEnd | None = None
        self._fence = ""
        """What stood before a call that is in a fence of its own."""
        self._hid = False
        """Whether something was hidden before the answer began."""
        self._lead = ""
        """White space before the answer."""
        self._last = ""
        """The last piece that was given."""
        self._struck = False
        self._thought = False
        """Whether there was any thinking that was told as such."""
        self._out: list[str] = []

    @property
    def thinking(self) -> bool:
        """Whether the text is in the middle of thinking."""
        return self._state is _State.HIDDEN and self._closed in THINKING_ENDS

    def feed(self, text: str) -> str:
        """Return what is certain now of the answer, *text* being the next of what the model wrote."""
        if self._plain and _search_special(text) is None:
            if not text.isspace():
                self._last = text
            return text
        if self._fresh and text[:1].isalpha() and text[0] != "a" and _search_special(text) is None:
            self._fresh, self.given, self._plain, self._last = False, True, True, text
            return text
        self._fresh = False
        return self._run(text, final=False)

    def end(self, *, cut: bool = False) -> str:
        """Return what is left of the answer: nothing follows; *cut* where something should."""
        if cut and self._state is _State.CALL and names_tool(self._buffer):
            self.called = True
            self._buffer, self._state = "", _State.TEXT
        return self._run("", final=True) if self._buffer else ""

    def note_thinking(self, chars: int) -> None:
        """Take note of so much thinking that came by another way."""
        self.thinking_chars += chars
        self._thought = True

    def begin_after_thinking(self) -> None:
        """Take note that the answer begins here, and that nothing told of the thinking before it but its end."""
        self._thought = self._hid = self.unopened = True
        self._fresh = False

    def _run(self, text: str, *, final: bool) -> str:
        # Each step copies what is left of the buffer: a long text is read in parts, so that time is by its length.
        for start in range(0, len(text), PART_CHARS):
            self._buffer += text[start : start + PART_CHARS]
            self._read(final=False)
        if final:
            self._read(final=True)
        self._plain = self.given and self._state is _State.TEXT and not (self._buffer or self._code)
        if not self._out:
            return ""
        given = "".join(self._out)
        self._out.clear()
        return given

    def _read(self, *, final: bool) -> None:
        while self._buffer:
            before = self._state, len(self._buffer)
            match self._state:
                case _State.TEXT:
                    self._read_text(final=final)
                case _State.HIDDEN:
                    self._hide(final=final)
                case _State.HEADER:
                    self._read_header(final=final)
                case _State.CHANNEL:
                    self._read_channel(final=final)
                case _State.CALL:
                    self._read_call(final=final)
                case _State.OVER:
                    self._pass_over(final=final)
            if (self._state, len(self._buffer)) == before:
                break

    def _give(self, text: str) -> None:
        if not self.given:
            stripped = text.lstrip()
            if not stripped:
                self._lead += text
                return
            text = stripped if self._hid else self._lead + text
            self.given = True
        if not text.isspace():
            self._last = text
        self._out.append(text)

    def _take(self, length: int) -> str:
        taken, self._buffer = self._buffer[:length], self._buffer[length:]
        return taken

    def _hide_until(self, closed: re.Pattern[str], *, quoting: bool = False, call: str = "") -> None:
        self._state, self._closed, self._quoting = _State.HIDDEN, closed, quoting
        self._calling = bool(call)
        if call:
            self.calls.append(call)
        self._thought = self._thought or closed in THINKING_ENDS
        if not self.given:
            self._hid = True

    def _read_text(self, *, final: bool) -> None:
        search = _search_special if not self._code else _search_in_fence if self._code >= FENCE else _search_in_line
        if not self.given and not self._lead and not self._code and self._is_bare_channel(final=final):
            return
        special = search(self._buffer)
        if special is None:
            self._give(self._take(len(self._buffer)))
            return
        if special.start():
            self._give(self._take(special.start()))
        decided = True
        match special[0]:
            case "`":
                decided = self._read_ticks(final=final)
            case "\n":
                self._code = 0
                self._give(self._take(1))
            case "{":
                decided = self._read_bracket(final=final)
            case "<" if self._code:
                decided = self._read_end_in_code(final=final)
            case _:
                decided = self._read_mark(final=final)
        if not decided and final:
            partial = special[0] in "<◁[" and len(self._buffer) >= PARTIAL_CHARS and not self._code
            rest = self._take(len(self._buffer))
            if not partial:
                self._give(rest)

    def _is_bare_channel(self, *, final: bool) -> bool:
        """Take the name of a channel that the answer begins with; whether nothing else is to be done now."""
        found = marks.bare_channel(self._buffer, final=final)
        if found is not None and found[0] is not None:
            self._take(found[1])
            self._hide_until(found[0])
        return found is not None

    def _read_ticks(self, *, final: bool) -> bool:
        run = marks.TICKS.match(self._buffer)
        count = run.end() if run is not None else 1
        if count == len(self._buffer) and count < TICKS_LIMIT and not final:
            return False
        if not self._code and count >= FENCE and not self.given:
            fence = marks.FENCE_BEFORE_CALL.match(self._buffer)
            if fence is not None:
                behind = self._buffer[fence.end() :]
                if not behind and not final:
                    return False
                if behind[:1] in ("{", "["):
                    begins = begins_call(behind)
                    if begins is None and not final:
                        return False
                    if begins:
                        self._fence = self._take(fence.end())
                        self._begin_call()
                        return True
        if not self._code:
            self._code = count
        elif count == self._code or (self._code >= FENCE and count > self._code):
            self._code = 0
        self._give(self._take(count))
        return True

    def _read_end_in_code(self, *, final: bool) -> bool:
        """Give a mark in code, but the end of the message where nothing follows."""
        mark = marks.mark_at(self._buffer)
        if mark is not None and mark[0] is Mark.UNDECIDED:
            return False
        length = 1 if mark is None else mark[1]
        if mark is not None and mark[0] in (Mark.END, Mark.STRUCK_END) and not self._buffer[length:].strip():
            if final:
                self._take(len(self._buffer))
                self.over = True
            return final
        self._give(self._take(length))
        return True

    def _read_bracket(self, *, final: bool) -> bool:
        # What stands in other JSON, or in a formula, is no call.
        begins = False if self._last.rstrip()[-1:] in tuple(":,[{(") else begins_call(self._buffer)
        if begins is None and not final:
            return False
        if begins:
            self._begin_call()
        else:
            self._give(self._take(1))
        return True

    def _begin_call(self) -> None:
        self._state, self._json = _State.CALL, JsonEnd()

    def _read_mark(self, *, final: bool) -> bool:
        mark = marks.mark_at(self._buffer)
        if mark is None:
            if self._buffer[0] == "[":
                return self._read_bracket(final=final)
            self._give(self._take(1))
            return True
        kind, length = mark
        if kind is Mark.UNDECIDED:
            return False
        if (kind is Mark.STRUCK and self.given) or (kind is Mark.STRUCK_END and self._struck):
            self._struck = kind is Mark.STRUCK
            self._give(self._take(length))
            return True
        begun = self._take(length)
        if not self.given:
            self._hid = True
        match kind:
            case Mark.THINKING:
                self._hide_until(marks.THINKING_CLOSED, quoting=True)
            case Mark.THINKING_END:
                self._withdraw()
            case Mark.CALL | Mark.CALL_TO_END:
                self.called = True
                self._hide_until(marks.CALL_CLOSED if kind is Mark.CALL else NEVER, call=begun)
            case Mark.HEADER:
                self._state = _State.HEADER
            case Mark.CHANNEL:
                self._state = _State.CHANNEL
            case Mark.END | Mark.STRUCK_END | Mark.OTHERS:
                self._state, self.over = _State.OVER, True
        return True

    def _withdraw(self) -> None:
        """Take all until now for thinking, unless there was some that was told as such."""
        if self._thought:
            return
        self._thought = self.unopened = self._hid = True
        if self.given:
            self.thinking_chars += 1
            self.given = False
            self.withdrawals += 1
        self._out.clear()
        self._lead = self._last = ""

    def _hide(self, *, final: bool) -> None:
        found = marks.find_closed(self._closed, self._buffer, quoting=self._quoting, final=final)
        kept = 0 if final else marks.LONGEST_CHARS
        end = found[0] if found is not None else max(0, len(self._buffer) - kept)
        if found is None and end and self._buffer[end - 1] == "`":
            end -= 1  # it may quote what follows
        if self._closed in THINKING_ENDS:
            self.thinking_chars += end
        hidden = self._take(end)
        if self._calling and len(self.calls[-1]) < CALL_LIMIT_CHARS:
            self.calls[-1] += hidden
        if found is None:
            return
        closing = self._take(found[1] - end)
        if self._closed is not marks.CHANNEL_CLOSED:
            self._state = _State.TEXT
        elif marks.NEXT_MESSAGE.fullmatch(closing):
            self._buffer = closing + self._buffer
            self._state = _State.TEXT
        else:
            self._state = _State.OVER

    def _read_header(self, *, final: bool) -> None:
        closed = marks.HEADER_CLOSED.search(self._buffer)
        if closed is None and len(self._buffer) <= HEADER_CHARS:
            if final:
                self._take(len(self._buffer))
            return
        self._state = _State.TEXT
        if closed is None or closed.start() > HEADER_CHARS:
            return
        role = self._take(closed.start()).strip().lower()
        self._buffer = self._buffer.removeprefix("\n")
        if role.partition(" ")[0] in marks.OTHERS_ROLES:
            self._state, self.over = _State.OVER, True

    def _read_channel(self, *, final: bool) -> None:
        named = marks.CHANNEL_NAMED.search(self._buffer)
        if named is None and len(self._buffer) <= HEADER_CHARS and not final:
            return
        name = self._take(len(self._buffer) if named is None else named.end()).partition("<|message|>")[0].strip()
        to_tool = "to=" in name
        self.called = self.called or to_tool
        if name.startswith("final"):
            self._state = _State.TEXT
        else:
            self._hide_until(marks.CHANNEL_CLOSED, call=name if to_tool else "")

    def _read_call(self, *, final: bool) -> None:
        end = self._json.find(self._buffer) if self._json is not None else 0
        if not end and not final and len(self._buffer) <= CALL_LIMIT_CHARS:
            return
        length = end or len(self._buffer)
        fence, self._fence = self._fence, ""
        self._state = _State.TEXT
        if is_call(self._buffer[:length]):
            self.called = True
            if not self.given:
                self._hid = True
            self.calls.append(self._take(length))
            if not end:
                self._hide_until(NEVER)
            elif fence:
                self._hide_until(marks.FENCE_CLOSED)
        elif fence:
            self._code = len(fence) - len(fence.lstrip("`"))
            self._give(fence)
        else:
            self._give(self._take(1))

    def _pass_over(self, *, final: bool) -> None:
        found = (marks.NEXT_MESSAGE if self.given else marks.FIRST_MESSAGE).search(self._buffer)
        if found is None:
            self._take(len(self._buffer) - (0 if final else min(marks.LONGEST_CHARS, len(self._buffer))))
            return
        self._take(found.start())
        self._state, self.over = _State.TEXT, False
