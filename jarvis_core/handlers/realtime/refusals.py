"""Errors with codes of the Realtime API, which its clients look at."""

from __future__ import annotations

from jarvis_core.errors import InvalidRequest, NotFound


class CommitEmpty(InvalidRequest):
    """There is no audio to commit."""

    code = "input_audio_buffer_commit_empty"

    def __init__(self) -> None:
        super().__init__("The input audio buffer is empty; append audio first.", details={"path": "$.type"})


class NothingToCancel(NotFound):
    """No response is active, or not the one that the event names; frameworks match the beginning of the message."""

    code = "response_cancel_not_active"

    def __init__(self) -> None:
        super().__init__("Cancellation failed: there is no such active response.", details={"path": "$.response_id"})


class AlreadyActive(InvalidRequest):
    """A response is active, or waits for the words of a recording."""

    code = "conversation_already_has_active_response"

    def __init__(self, message: str) -> None:
        super().__init__(message, details={"path": "$.type"})


class DuplicateItem(InvalidRequest):
    """The session has an item of this id."""

    code = "item_create_duplicate_item_id"

    def __init__(self, item_id: str) -> None:
        super().__init__(f"There is an item {item_id!r} already.", details={"path": "$.item.id"})
