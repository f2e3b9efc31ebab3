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
    "session.push_to_talk": Behaviour(
        OPENAI, "With `turn_detection: null` the client says what is a turn: append, commit, `response.create`."
    ),
    "session.create_response": Behaviour(OURS, "With `audio.input.create_response` a commit is answered by itself."),
    "session.shown": Behaviour(VOICE, "`session.updated` shows what holds now, and what it shows is what is done."),
    "session.noise_reduction": Behaviour(
        OPENAI,
        "`noise_reduction` has the audio engine clean what is transcribed; null leaves the sound as it came.",
        "Speech is looked for in the sound as it came: the engine takes whole recordings, and a pause would wait for it. "
        "`far_field` is `near_field`, which is also the default: the engine has one way. Without an engine null is shown.",
    ),
    "session.format": Behaviour(
        OPENAI,
        "The formats of sound are set each way; one that cannot be is named.",
        "`audio/pcm` has 8,000 to 48,000 Hz; OpenAI's has 24,000 alone.",
    ),
    "session.format.begun": Behaviour(
        VOICE, "The format of sound that has begun stays until it is an item, or cleared."
    ),
    "session.g711": Behaviour(OPENAI, "`audio/pcmu` and `audio/pcma` both ways."),
    "detection.samples": Behaviour(VOICE, "Places are counted in samples, never by the clock."),
    "detection.pause": Behaviour(OPENAI, "A pause shorter than the silence ends no turn."),
    "detection.noise": Behaviour(VOICE, "Noise is no turn of speech."),
    "detection.events": Behaviour(
        OPENAI, "`speech_started`, `speech_stopped`, `committed`, the item and the words have one `item_id`."
    ),
    "detection.short_word": Behaviour(VOICE, "A word of a tenth of a second is a turn; a click is none."),
    "detection.changed": Behaviour(VOICE, "A silence that is set in the middle of a pause holds in this pause."),
    "detection.limit": Behaviour(
        VOICE,
        "Speech without a pause is cut at its quietest place before ten minutes are full, and nothing is left out.",
    ),
    "detection.semantic_vad": Behaviour(
        OPENAI,
        "`semantic_vad` waits the less the surer a model is that the turn is over; `eagerness` says how sure and how long.",
        "The model is another, so its waits are ours; `docs/realtime.md` has them.",
    ),
    "detection.semantic_vad.again": Behaviour(
        VOICE,
        "The model is asked in each pause, by eight seconds of sound at most; one of which it is not sure is no end.",
    ),
    "detection.semantic_vad.fallback": Behaviour(
        OURS, 'Without a model a fixed silence ends a turn, and the session shows `fallback: "silence"`.'
    ),
    "detection.semantic_vad.late": Behaviour(
        VOICE, "A model that is late or broken in the middle of a conversation leaves the fixed silence."
    ),
    "detection.semantic_vad.one_word": Behaviour(
        VOICE, "A single word is waited for no longer than without a model, which is never sure of it."
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
    "barge_in.length": Behaviour(
        VOICE,
        "Speech of 200 ms interrupts; what is shorter, or below -35 dB, does not.",
        'OpenAI interrupts as soon as speech is found. A "mm-hmm" of 200 ms interrupts too: steps of the recorded one have up to '
        "four fifths of their power above 700 Hz, as words have.",
    ),
    "barge_in.noise": Behaviour(VOICE, "Neither noise nor the assistant's own voice from a loudspeaker interrupts."),
    "barge_in.off": Behaviour(
        OPENAI, "With `interrupt_response: false` an answer comes to its end, and what was said is answered behind it."
    ),
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
    "heard.unsaid": Behaviour(
        VOICE,
        "Where the client says nothing the server works out what was heard, within 0.4 s, also after `response.cancel`.",
        "OpenAI leaves it to the client over a WebSocket.",
    ),
    "heard.history": Behaviour(OURS, "REST has `heard_ms` beside the text, and with `?unheard=true` the rest of it."),
    "heard.early": Behaviour(OPENAI, "To truncate what is still being spoken ends it."),
    "heard.late": Behaviour(
        OPENAI,
        "A truncate after the cancel, a second one, one beyond the end and one at 0 are taken.",
        "OpenAI refuses a place beyond the end; frameworks count by the clock, and one ends its session for any error.",
    ),
    "heard.no_sound": Behaviour(
        VOICE,
        "Of an answer without sound nothing is lost but by a truncate at 0.",
    ),
    "heard.elsewhere": Behaviour(
        VOICE,
        "A session that did not speak an answer may truncate it: at 0 nothing is kept, else what was kept stays.",
        "The place of its words in its sound is known to the session that spoke it.",
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
    "transcription": Behaviour(
        OPENAI, "The words of a recording follow its item in `.completed`, and are the user's message under its id."
    ),
    "transcription.delta": Behaviour(
        OPENAI,
        "Words are told in `.delta` as they are known, of a long recording before all are.",
        "A short one has one `.delta`, and none comes before the commit: what is heard early may be dropped.",
    ),
    "transcription.early": Behaviour(
        VOICE,
        "Words are looked for in the first pause, told and stored only with the commit, and dropped if speech goes on.",
    ),
    "transcription.failed": Behaviour(
        OPENAI, "Words that cannot be had are `.failed`, and what waited for them is told."
    ),
    "transcription.order": Behaviour(VOICE, "Recordings become messages in the order of their commits."),
    "transcription.language": Behaviour(OPENAI, "`transcription.language` is what the recogniser is told."),
    "transcription.empty": Behaviour(VOICE, "Silence has an empty transcript, and is no message and no question."),
    "buffer.pieces": Behaviour(
        OPENAI, "Sound comes in pieces that are cut anywhere.", "Binary messages are taken too, beside base64."
    ),
    "buffer.clear": Behaviour(OPENAI, "A cleared buffer is empty, and to commit an empty one is an error."),
    "buffer.limit": Behaviour(VOICE, "The buffer takes ten minutes; more is refused, and what there is stays."),
    "buffer.expires": Behaviour(OURS, "Sound that nothing is added to is dropped after a while, and the client told."),
    "tools": Behaviour(
        OPENAI,
        "A call of the client's function is an item of the response; its output is one of the conversation, and is gone on with.",
        "The arguments come in one `.delta`.",
    ),
    "tools.refused": Behaviour(
        OPENAI, "Tools that cannot be are named, and what else is set holds.", "OpenAI refuses the whole update."
    ),
    "response.events": Behaviour(
        VOICE,
        "Each response has one end, and nothing of it comes behind; `seq` grows by one; deltas are the whole in pieces.",
    ),
    "response.waits": Behaviour(OPENAI, "`response.create` waits for the words of what was committed."),
    "response.again": Behaviour(VOICE, "What was left without an answer, because that failed, can be asked for again."),
    "response.overrides": Behaviour(OPENAI, "A response may have settings of its own, which end with it."),
    "response.spoken": Behaviour(OPENAI, "A voice comes sentence by sentence: its words, then their sound."),
    "response.spoken.ahead": Behaviour(
        VOICE, "A voice is no more than two sentences ahead of its listener.", "OpenAI sends as fast as it speaks."
    ),
    "response.spoken.failed": Behaviour(VOICE, "Where the voice fails one error says so, and the words go on."),
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
    "recording.lost": Behaviour(VOICE, "What was committed before the connection was lost is still heard, and kept."),
    "socket.stalled": Behaviour(VOICE, "A client that does not read holds up nobody else."),
    "socket.stop": Behaviour(VOICE, "A server that stops lets responses end, then closes with 1001."),
    "socket.expiry": Behaviour(
        OPENAI, "A session ends with what it was opened by: `session_expired`.", "With its token, not after an hour."
    ),
    "resume": Behaviour(OURS, "`?resume=` goes on behind the last event that was seen."),
    "resume.voice": Behaviour(OURS, "A voice that is resumed misses no word and no sample."),
    "resume.detection": Behaviour(OURS, "A resumed session finds turns as it was told to before."),
}
"""By id."""
