"""Prompts: what of a conversation is sent, within the neighbours' limits."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from jarvis_core.models import Prompt, Utterance
from jarvis_core.services.openai_compatible import BYTES_PER_TOKEN, TOKENS_PER_MESSAGE, estimate_tokens, fit
from jarvis_core.services.python_bridges import PROMPT_LIMIT_CHARS, SYSTEM_LIMIT_CHARS, pack
from tests.fakes.content import last_words


def make_prompt(
    content: str, *history: str, system: str = "", temperature: float = 0.5, max_tokens: int = 100
) -> Prompt:
    """Make a prompt whose history begins with the user and alternates."""
    utterances = [Utterance("assistant" if index % 2 else "user", text) for index, text in enumerate(history)]
    return Prompt(system, utterances, content, temperature, max_tokens)


def sent(prompt: Prompt) -> dict[str, Any]:
    """Return what goes over the wire to the bridges."""
    return msgspec.json.decode(msgspec.json.encode(pack(prompt)), type=dict[str, Any])


def test_without_history() -> None:
    """The first message of a conversation is sent bare, and absent fields are left out."""
    assert sent(make_prompt("Bonjour")) == {
        "prompt": "Bonjour",
        "temperature": 0.5,
        "max_tokens": 100,
        "stream": True,
    }


def test_with_history() -> None:
    """History stands before the newest message, in order, and once more in the chat form."""
    body = sent(make_prompt("Et toi ?", "Salut", "Ça va ?", "Oui", system="Sois bref."))
    assert body["system_prompt"] == "Sois bref."
    assert body["prompt"] == (
        "Conversation so far:\nUser: Salut\nAssistant: Ça va ?\nUser: Oui\n\nUser: Et toi ?\nAssistant:"
    )
    assert body["messages"] == [
        {"role": "user", "content": "Salut"},
        {"role": "assistant", "content": "Ça va ?"},
        {"role": "user", "content": "Oui\n\nEt toi ?"},
    ]
    assert last_words(body["prompt"]) == "Et toi ?"


def test_no_field_is_null() -> None:
    """No field is ever null: the bridges answer 500 to those."""
    for prompt in (make_prompt("a"), make_prompt("a", "b", "c", system="d")):
        assert None not in sent(prompt).values()


@pytest.mark.parametrize("character", ["a", "é", "漢", "🙂"])
@pytest.mark.parametrize("length", [9_900, 9_960, 9_961, 9_962, 9_999, 10_000])
def test_newest_message_is_never_cut(character: str, length: int) -> None:
    """A newest message of up to 10,000 code points is whole, and the prompt is within 10,000 with it."""
    content = character * length
    prompt = make_prompt(content, "Salut", "Ça va ?", character * 5_000, "ok")
    packed = pack(prompt)
    assert len(packed.prompt) <= PROMPT_LIMIT_CHARS
    assert content in packed.prompt
    assert isinstance(packed.messages, msgspec.UnsetType) or packed.messages[-1].content == content


def test_as_much_history_as_fits() -> None:
    """A prompt may be exactly 10,000 code points long, and one more makes it leave out the oldest message."""
    overhead = len(pack(make_prompt("x", "", "")).prompt) - 1
    full = make_prompt("x", "a" * 5_000, "b" * (PROMPT_LIMIT_CHARS - 5_000 - 1 - overhead))
    assert len(pack(full).prompt) == PROMPT_LIMIT_CHARS
    over = make_prompt("xy", "a" * 5_000, "b" * (PROMPT_LIMIT_CHARS - 5_000 - 1 - overhead))
    assert "aaa" not in pack(over).prompt
    assert "bbb" in pack(over).prompt


def test_latest_messages_are_kept() -> None:
    """What does not fit is left out from the oldest on, without a gap, the same in both forms; a template wants a user first."""
    history = [f"message {index} " + "x" * 1_000 for index in range(30)]
    packed = pack(make_prompt("now", *history))
    kept = [index for index, text in enumerate(history) if text in packed.prompt]
    assert kept == list(range(30 - len(kept), 30))
    assert not isinstance(packed.messages, msgspec.UnsetType)
    assert [message.content for message in packed.messages] == [*history[kept[0] + kept[0] % 2 :], "now"]


@pytest.mark.parametrize("form", ["bridges", "openai"])
def test_history_is_dropped_in_blocks(form: str) -> None:
    """The history of a long conversation begins with the same message for many turns, and with half of what fits at least."""
    texts = [f"message {number} " + "x" * 230 for number in range(400)]
    firsts = []
    for turn in range(20, 190):
        # As the store gives it: the latest messages that may be of use.
        given = texts[: 2 * turn][-50:]
        prompt = msgspec.structs.replace(make_prompt("now", *given), older=2 * turn - len(given))
        messages = pack(prompt).messages if form == "bridges" else fit(prompt, 4_096)
        assert not isinstance(messages, msgspec.UnsetType)
        firsts.append(messages[0].content)
        assert len(messages) > 15
    assert len(set(firsts)) < len(firsts) / 6
    assert firsts == sorted(firsts, key=texts.index)


def test_context() -> None:
    """What concerns the newest message alone stands right before it, behind the history, in both forms of a prompt."""
    prompt = msgspec.structs.replace(make_prompt("Et toi ?", "Salut", "Ça va ?", system="S"), context="(midi)")
    packed = pack(prompt)
    assert packed.prompt.endswith("Assistant: Ça va ?\n\n(midi)\nUser: Et toi ?\nAssistant:")
    assert not isinstance(packed.messages, msgspec.UnsetType)
    assert [one.content for one in packed.messages] == ["Salut", "Ça va ?", "(midi)\n\nEt toi ?"]
    assert [one.content for one in fit(prompt, 1_000)] == ["S", "Salut", "Ça va ?", "(midi)\n\nEt toi ?"]
    bare = pack(msgspec.structs.replace(prompt, history=[]))
    assert (bare.prompt, bare.messages) == ("(midi)\n\nEt toi ?", msgspec.UNSET)


def test_context_gives_way() -> None:
    """A context for which a long message leaves no room is left out, and the message is whole."""
    prompt = msgspec.structs.replace(make_prompt("x" * 9_990), context="(midi)" * 20)
    assert pack(prompt).prompt == prompt.content


def test_limits_hold_whatever_the_texts() -> None:
    """Whatever lengths the texts have, no limit is exceeded."""
    dice = random.Random(11)
    for _ in range(300):
        texts = [dice.choice("aé漢🙂\n") * dice.choice((0, 1, 50, 999, 4_000)) for _ in range(dice.randrange(30))]
        content = dice.choice("aé🙂") * dice.randrange(1, PROMPT_LIMIT_CHARS + 1)
        packed = pack(make_prompt(content, *texts, system="s" * dice.randrange(6_000)))
        assert len(packed.prompt) <= PROMPT_LIMIT_CHARS
        assert content in packed.prompt
        assert isinstance(packed.system_prompt, msgspec.UnsetType) or len(packed.system_prompt) <= SYSTEM_LIMIT_CHARS


# OpenAI-compatible servers


def test_fit_keeps_order_and_roles() -> None:
    """Messages are the system's, the history's and the newest, in this order; an empty system prompt is left out."""
    messages = fit(make_prompt("now", "one", "two", system="be brief"), 1_000)
    assert [(message.role, message.content) for message in messages] == [
        ("system", "be brief"),
        ("user", "one"),
        ("assistant", "two"),
        ("user", "now"),
    ]
    assert [message.role for message in fit(make_prompt("now"), 1_000)] == ["user"]


def test_fit_leaves_room_for_the_answer() -> None:
    """By estimate, the messages and the answer fit into the context; with more room more history does."""
    history = ["x" * 300] * 100
    counts = []
    for context_tokens in (512, 1_024, 4_096, 8_192):
        prompt = make_prompt("now", *history, system="be brief", max_tokens=200)
        messages = fit(prompt, context_tokens)
        assert sum(estimate_tokens(message.content) for message in messages) + 200 <= context_tokens
        counts.append(len(messages))
    assert counts == sorted(set(counts))


def test_fit_reserves_at_most_half() -> None:
    """An answer that may be longer than the context takes half of it at most, so history still fits."""
    messages = fit(make_prompt("now", *["x" * 30] * 100, max_tokens=32_000), 1_024)
    estimate = sum(estimate_tokens(message.content) for message in messages)
    assert 256 < estimate <= 512


def test_fit_never_drops_the_newest() -> None:
    """The newest message is sent whole even where it alone is over the context: the server is the judge."""
    content = "x" * 10_000
    messages = fit(make_prompt(content, "one", "two", system="s"), 512)
    assert [message.content for message in messages] == ["s", content]


@pytest.mark.parametrize("text", ["", "hello world", "déjà vu", "漢字" * 100, "🙂" * 10])
def test_estimate_counts_bytes(text: str) -> None:
    """A token is taken for three bytes of UTF-8, and each message has its overhead."""
    assert estimate_tokens(text) == len(text.encode()) // BYTES_PER_TOKEN + TOKENS_PER_MESSAGE


@pytest.mark.behaviour("session.instructions.length")
def test_long_instructions() -> None:
    """Instructions over their field's limit go on before the conversation, to half of its room; whole words are in the field."""
    system = " ".join(f"rule{index:05}" for index in range(3_200))
    length = 0
    for history in ((), ("Salut", "Ça va ?")):
        packed = pack(make_prompt("Et toi ?", *history, system=system))
        assert isinstance(packed.system_prompt, str)
        assert packed.system_prompt.endswith(" ")
        length = len(packed.system_prompt)
        assert length <= SYSTEM_LIMIT_CHARS
        told = packed.system_prompt + packed.prompt
        assert told.startswith(system[:9_500])
        assert len(packed.prompt) <= PROMPT_LIMIT_CHARS
        assert packed.prompt.endswith("Et toi ?" if not history else "User: Et toi ?\nAssistant:")
        assert all(one in packed.prompt for one in history)
    assert not isinstance(packed.messages, msgspec.UnsetType)
    assert packed.messages[0].content.endswith("Salut")
    assert packed.messages[0].content.startswith(system[length:][:4_000])
