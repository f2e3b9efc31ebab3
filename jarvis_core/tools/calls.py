"""The calls of a turn, and what its client does for those that wait for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

from jarvis_core.errors import Conflict, InvalidRequest

CallState = Literal["waiting", "asked", "begun", "finished", "failed", "unknown"]
"""
``waiting`` for the client's output, ``asked`` whether it may be made, ``begun`` (it may have been made); then what became of
it: ``unknown`` where its output was lost.
"""
WAITING_REASONS = ("tool_calls", "approval_required")
"""Why a turn ended that goes on once its client has done its part."""


class CallRecord(Struct):
    """A call of a turn, and what became of it until now."""

    id: str
    """Of its item, and its message in the history."""
    call_id: str
    name: str
    arguments: str
    server: str
    """Whose tool it is; empty where the client's."""
    round: int
    """Those of one answer of the model are of one round."""
    text_at: int
    """How much the turn had said before it, in code points."""
    asked: bool
    """Whether somebody was asked to allow it."""
    state: CallState
    output: str | None = None
    elapsed_ms: int | None = None

    @property
    def shown(self) -> bool:
        """Whether it is the client's to see: its own, or one that it is asked to allow."""
        return self.asked or not self.server


class Output(Struct, frozen=True):
    """What a client gives for a call that waits for it."""

    call_id: str
    output: str
    state: CallState = "finished"


class GoingOn(Struct, frozen=True):
    """What a client has done for a turn that waits for it."""

    waited_for: Literal["waiting", "asked"]
    """The state of the calls that it is about."""
    outputs: Sequence[Output] = ()
    allowed: Sequence[str] = ()
    """The ids of the calls that may be made now."""

    def is_done(self, calls: Sequence[CallRecord]) -> bool:
        """Whether *calls* of a turn have had all of this before: the request has come again."""
        had = {call.call_id for call in calls if call.state not in ("waiting", "asked")}
        ids = {*self.allowed, *(one.call_id for one in self.outputs)}
        return bool(ids) and ids <= had

    def apply(self, calls: Sequence[CallRecord]) -> None:
        """Have *calls* of a turn show what was done."""
        outputs = {one.call_id: one for one in self.outputs}
        for call in calls:
            if (output := outputs.get(call.call_id)) is not None:
                call.output, call.state = output.output, output.state
            elif call.call_id in self.allowed:
                call.state = "begun"

    def check(self, calls: Sequence[CallRecord]) -> None:
        """Raise ``InvalidRequest`` where this is not all that *calls* of a turn wait for in this way; ``Conflict`` where none does."""
        waiting = [call.call_id for call in calls if call.state == self.waited_for]
        if not waiting:
            raise Conflict("This response does not wait for its client.")
        ids = [*self.allowed, *(one.call_id for one in self.outputs)]
        unknown = next((one for one in ids if one not in waiting), None)
        if unknown is not None or len(set(ids)) < len(ids):
            rule = "one is given twice" if unknown is None else f"{unknown[:64]!r} is no call that waits"
            raise InvalidRequest.field("$.outputs", rule)
        missing = next((one for one in waiting if one not in ids), None)
        if missing is not None:
            raise InvalidRequest.field("$.outputs", f"the output of the call {missing!r} is missing")
