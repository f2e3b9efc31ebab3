"""Messages in the order that every chat template takes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jarvis_core.models import Prompt, Utterance
from jarvis_core.services.answers.messages import in_order, without_system
from jarvis_core.services.contract import ChatMessage
from jarvis_core.services.openai_compatible import fit

TEXTS = st.sampled_from(["", " ", "a", "b\n", "<think>hm</think>", "<think>hm</think>c", "d<|im_end|>", "hm</think>"])
HISTORIES = st.lists(st.builds(Utterance, st.sampled_from(["system", "user", "assistant"]), TEXTS), max_size=12)


@given(HISTORIES, st.sampled_from(["", "Be brief."]), st.sampled_from([16, 64, 1_000]), st.sampled_from(["now", ""]))
def test_any_history(history: list[Utterance], system: str, context_tokens: int, content: str) -> None:
    """Whatever was said, one system message at most comes first, then a user and an assistant in turn, and nobody says nothing."""
    messages = fit(Prompt(system, history, content, 0, 10), context_tokens)
    if messages[0].role == "system":
        assert messages[0].content.startswith(system)
        assert without_system(messages)[0].content.startswith(messages[0].content)
        messages = messages[1:]
    assert [one.role for one in messages] == ["user", "assistant"] * (len(messages) // 2) + ["user"]
    assert all(one.content.strip() for one in messages)
    assert messages[-1].content.endswith(content)
    assert not any(mark in one.content for one in messages if one.role == "assistant" for mark in ("think", "|", "hm"))


def test_what_users_wrote_stays() -> None:
    """A user's own words are sent as they are, tags and tokens included."""
    history = [Utterance("user", "<think>a</think>"), Utterance("assistant", "b")]
    assert in_order(history, "</think>") == [
        ChatMessage("user", "<think>a</think>"),
        ChatMessage("assistant", "b"),
        ChatMessage("user", "</think>"),
    ]


def test_system_messages_are_joined() -> None:
    """What system messages say in mid-conversation follows the instructions, in order."""
    history = [Utterance("system", "a"), Utterance("user", "b"), Utterance("system", "c")]
    assert fit(Prompt("Be brief.", history, "d", 0, 10), 1_000) == [
        ChatMessage("system", "Be brief.\n\na\n\nc"),
        ChatMessage("user", "b\n\nd"),
    ]
