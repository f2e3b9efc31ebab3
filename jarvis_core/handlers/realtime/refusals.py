"""Errors with codes of the Realtime API, which its clients look at."""

from __future__ import annotations

from jarvis_core.errors import InvalidRequest, NotFound, Overloaded, Unauthenticated


class CommitEmpty(InvalidRequest):
    """There is no audio to commit."""

    code = "input_audio_buffer_commit_empty"

    def __init__(self) -> None:
        super().__init__("The input audio buffer is empty; append audio first.", details={"path": "$.type"})


class BufferExpired(InvalidRequest):
    """The client has added nothing to its buffer for *idle_s* seconds, or too little in all."""

    code = "input_audio_buffer_expired"

    def __init__(self, idle_s: float) -> None:
        super().__init__(
            f"The input audio buffer was cleared: nothing was added for {idle_s:g} s; commit audio sooner.",
            details={"path": "$.audio", "limit_s": idle_s},
        )


class BufferGaveWay(Overloaded):
    """The buffer was cleared because somebody with less audio needed the room."""

    code = "input_audio_buffer_dropped"

    def __init__(self) -> None:
        super().__init__(
            "The input audio buffer was cleared: nothing was added for some seconds, and others needed the room; send it"
            " again.",
            retry_after_s=2,
        )


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


class PreviousItemUnknown(NotFound):
    """The conversation has no item behind which the new one could be put; the code is ours."""

    code = "item_create_invalid_previous_item_id"

    def __init__(self, item_id: str) -> None:
        super().__init__(f"There is no item {item_id!r}.", details={"path": "$.previous_item_id"})


class NotDeletable(NotFound):
    """The conversation has no such item."""

    code = "item_delete_invalid_item_id"

    def __init__(self, item_id: str) -> None:
        super().__init__(f"There is no item {item_id!r}.", details={"path": "$.item_id"})


class NotTruncatable(NotFound):
    """There is no such answer of the assistant's."""

    code = "item_truncate_invalid_item_id"

    def __init__(self, item_id: str) -> None:
        super().__init__(f"There is no item {item_id!r} of the assistant's.", details={"path": "$.item_id"})


class NotRetrievable(NotFound):
    """The conversation has no such item."""

    code = "item_retrieve_invalid_item_id"

    def __init__(self, item_id: str) -> None:
        super().__init__(f"There is no item {item_id!r}.", details={"path": "$.item_id"})


class SessionExpired(Unauthenticated):
    """The credentials have ended with which the socket was opened."""

    code = "session_expired"

    def __init__(self) -> None:
        super().__init__("The credentials of this session have expired; connect again with new ones.")
