"""
What the realtime socket does: each behaviour with an id, where it comes from, and where we differ from that, why.

Tests name the ids (``@pytest.mark.behaviour("item.delete")``); ``test_behaviours.py`` holds that none of either is left over. It
stands beside the tests of ``handlers/realtime``, which it is about.
"""

from __future__ import annotations

from typing import NamedTuple

OPENAI = "https://platform.openai.com/docs/api-reference/realtime"
"""The vocabulary's own reference, and the types of its client library."""
FRAMEWORKS = "openai-agents, @openai/agents-realtime, pipecat, livekit"
"""What frameworks send by themselves, and wait for."""
VOICE = "a conversation by voice"
"""What makes a conversation by voice hold, where the vocabulary says nothing or others fall short."""
OURS = "ours"
"""Not of the vocabulary: clients that know nothing of it see no difference."""


class Behaviour(NamedTuple):
    """Something that clients can rely on."""

    source: str
    what: str
    differs: str = ""
    """How, and why, where it is not as its source has it."""


BEHAVIOURS = {
    "session.defaults": Behaviour(
        OPENAI,
        "`turn_detection` is `server_vad`; `/v1/realtime` speaks, `/ws` writes.",
        "`/ws` writes unless told otherwise: it is ours, and older than the voice.",
    ),
    "session.update.partial": Behaviour(
        OPENAI,
        "What can be set of an update is set; each value that cannot be is named.",
        "OpenAI refuses the whole update; frameworks send fields that not every server knows, and one ends its session for any error.",
    ),
    "session.update.null": Behaviour(VOICE, 'Null is "not said", at every depth, but for what it switches off.'),
    "session.update.unknown": Behaviour(
        FRAMEWORKS,
        "What nobody knows here, and a voice that there is not, is ignored without an error.",
        "OpenAI names unknown fields in an error.",
    ),
    "session.update.flat": Behaviour(FRAMEWORKS, "The older flat shape is understood."),
    "session.instructions.length": Behaviour(
        VOICE,
        "Instructions may have 32,000 characters.",
        "OpenAI counts tokens; behind the bridges less is told to the model.",
    ),
    "session.transcription": Behaviour(
        OPENAI,
        'A session of `type: "transcription"` is told what is said and answers nothing.',
        "Its words are not stored; a session may change its type.",
    ),
    "session.g711": Behaviour(OPENAI, "`audio/pcmu` and `audio/pcma` both ways."),
    "detection.samples": Behaviour(VOICE, "Places are counted in samples, never by the clock."),
    "detection.pause": Behaviour(OPENAI, "A pause shorter than the silence ends no turn."),
    "detection.noise": Behaviour(VOICE, "Noise is no turn of speech."),
    "detection.events": Behaviour(
        OPENAI, "`speech_started`, `speech_stopped`, `committed`, the item and the words have one `item_id`."
    ),
    "detection.idle_timeout": Behaviour(
        OPENAI,
        "Behind an answer that was played, `idle_timeout_ms` of silence has the assistant go on.",
        "Counted in samples: where none come nothing is triggered.",
    ),
    "barge_in.reason": Behaviour(
        OPENAI, "Speech interrupts: `cancelled`, `turn_detected`; the client's own is `client_cancelled`."
    ),
    "barge_in.at_once": Behaviour(VOICE, "The voice stops at once, and its end waits until what was heard is stored."),
    "barge_in.untold": Behaviour(VOICE, "Words that were not spoken are not told."),
    "heard.with_the_end": Behaviour(VOICE, "What was heard is stored in the statement that ends the turn."),
    "heard.closed_by_others": Behaviour(VOICE, "What was heard holds where others have closed the turn."),
    "heard.everywhere": Behaviour(
        VOICE,
        "The history, the next prompt and REST have what was heard, to a word's end.",
        "OpenAI truncates the sound and removes the transcript.",
    ),
    "heard.client_corrects": Behaviour(
        OPENAI,
        "The client's truncate takes the place of what was worked out; of several the least counts.",
        "OpenAI's server works nothing out over a WebSocket.",
    ),
    "heard.told": Behaviour(OURS, '`audio.output.truncate: "server"` tells what the server keeps.'),
    "item.assistant": Behaviour(OPENAI, "`conversation.item.added` and `.done` also of the assistant's item."),
    "item.retrieve": Behaviour(
        OPENAI, "An item is told as it is now.", "Sound is not kept: of a recording there are the words."
    ),
    "item.delete": Behaviour(OPENAI, "A deleted item is gone from the history and the next prompt too."),
    "item.previous": Behaviour(OPENAI, "`previous_item_id` is honoured, `root` is the beginning."),
    "item.previous.unknown": Behaviour(
        OPENAI,
        "An item behind one that there is not is refused.",
        "The code, `item_create_invalid_previous_item_id`, is ours: OpenAI documents none.",
    ),
    "item.ids": Behaviour(OPENAI, "Ids that clients bring are kept, and used once."),
    "response.unasked": Behaviour(
        OPENAI,
        "`response.create` without a user's message is answered.",
        "The model is told that the user keeps silent (…): templates want a message of the user.",
    ),
    "response.metadata": Behaviour(OPENAI, "`metadata` is told again in `response.created` and `response.done`."),
    "response.input": Behaviour(OPENAI, "`input` replaces the context, `[]` is none, `item_reference` an item."),
    "response.out_of_band": Behaviour(
        OPENAI,
        '`conversation: "none"`: no `conversation_id`, nothing stored.',
        "It ends with its socket, and remembers nothing.",
    ),
    "response.out_of_band.beside": Behaviour(
        OPENAI, "It may run beside another, and is cancelled by its `response_id`.", "Four at a time."
    ),
    "response.usage": Behaviour(
        OPENAI,
        "`usage` has input, output and total tokens.",
        "0 where the model's server does not count what it reads.",
    ),
    "response.receipt": Behaviour(OURS, "`response.done` has the times of the turn's parts."),
    "rate_limits": Behaviour(
        OPENAI,
        "`rate_limits.updated` with each response where there is a limit.",
        "It counts requests, and may come before `response.created`.",
    ),
    "error.codes": Behaviour(OPENAI, "Errors have the API's codes and the client's `event_id`."),
    "error.active": Behaviour(OPENAI, "A second response is `conversation_already_has_active_response`."),
    "frame.too_large": Behaviour(VOICE, "A message over its limit is an `error`, and the socket stays open."),
    "recording.odd_byte": Behaviour(VOICE, "An odd byte at the end of a recording is dropped, not the recording."),
    "resume": Behaviour(OURS, "`?resume=` goes on behind the last event that was seen."),
}
"""By id."""
