"""What is taken out of a model's text, and what stays, wherever the text is cut."""

from __future__ import annotations

import pytest

from jarvis_core.services.answers.filter import AnswerFilter
from jarvis_core.services.answers.messages import answer_in

CALL = '{"name": "HassTurnOn", "parameters": {"area": "}"}}'
FINAL = "<|start|>assistant<|channel|>final<|message|>"


def read(*pieces: str) -> tuple[str, AnswerFilter]:
    """Return the answer in *pieces*, and the filter that found it."""
    found = AnswerFilter()
    given = ""
    for piece in (*pieces, None):
        before = found.withdrawals
        text = found.end() if piece is None else found.feed(piece)
        given = text if found.withdrawals != before else given + text
    return given, found


CASES = {
    "nothing": ("Bonjour.", "Bonjour."),
    "white space first": (" Bonjour.", " Bonjour."),
    "tags": ("<think>hm</think>Oui.", "Oui."),
    "tags and lines": ("\n<think>\nhm\n</think>\n\nOui.", "Oui."),
    "capitals": ("<Think>hm</THINK>Oui.", "Oui."),
    "attributes": ('<thinking mode="deep">hm</thinking>Oui.', "Oui."),
    "a space before the end": ("<think>hm</think >Oui.", "Oui."),
    "nothing thought": ("<think>\n\n</think>\n\nOui.", "Oui."),
    "in the middle": ("Un <think>hm</think>deux.", "Un deux."),
    "twice": ("<think>a</think>Un <think>b</think>deux.", "Un deux."),
    "twice opened": ("<think><think>hm</think>Oui.", "Oui."),
    "twice closed": ("<think>hm</think>Oui </think>non.", "Oui non."),
    "only closed": ("hm hm</think>Oui.", "Oui."),
    "only closed, in lines": ("Okay, hm.\n</think>\n\nOui.", "Oui."),
    "never closed": ("<think>hm", ""),
    "closed by itself": ("<think/>Oui.", "Oui."),
    "seed": ("<seed:think>hm</seed:think>Oui.", "Oui."),
    "Mistral": ("[THINK]hm[/THINK]Oui.", "Oui."),
    "Kimi": ("◁think▷hm◁/think▷Oui.", "Oui."),
    "Cohere": ("<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>Oui.<|END_RESPONSE|>", "Oui."),
    "Sky": ("<|begin_of_thought|>hm<|end_of_thought|>\n\n<|begin_of_solution|>Oui.<|end_of_solution|>", "Oui."),
    "Gemma": ("<|channel>thought\nhm<channel|>Oui.<turn|>", "Oui."),
    "in code": ("Écris `<think>` ici.", "Écris `<think>` ici."),
    "in code with other words": ("Écris `a <think> b` ici.", "Écris `a <think> b` ici."),
    "in two ticks": ("Écris ``<think>`` ici.", "Écris ``<think>`` ici."),
    "in a fence": ("Ainsi :\n```xml\n<think>a</think>\n```\nVoilà.", "Ainsi :\n```xml\n<think>a</think>\n```\nVoilà."),
    "after code": ("`x` <think>hm</think>Oui.", "`x` Oui."),
    "after a lone tick": ("a ` b\n<think>hm</think>Oui.", "a ` b\nOui."),
    "a closing tag in code": ("Puis `</think>`.", "Puis `</think>`."),
    "quoted in thinking": ("<think>pas `</think>` ici</think>Oui.", "Oui."),
    "quoted long before the end": (f"<think>`</think>`{'y' * 300}</think>Oui.", "Oui."),
    "a tick before the end of thinking": ("<think>a `</think>Oui.", "Oui."),
    "tags of other kinds": ("<b>gras</b> et 1 < 2 > 0, <br/>, <thin>", "<b>gras</b> et 1 < 2 > 0, <br/>, <thin>"),
    "arrows": ("a <- b, a <= b, x <| f |> g, <3, <|>", "a <- b, a <= b, x <| f |> g, <3, <|>"),
    "links": ("[lien](http://x), [THIS], [1]", "[lien](http://x), [THIS], [1]"),
    "braces": ("{x} et {\"a\"} et {}", "{x} et {\"a\"} et {}"),
    "ChatML": ("<|im_start|>assistant\nOui.<|im_end|>\n", "Oui."),
    "ChatML that goes on": ("Oui.<|im_end|>\n<|im_start|>user\nEt ?<|im_end|>", "Oui."),
    "ChatML that begins with an end": ("<|im_end|>\n<|im_start|>assistant\nOui.<|im_end|>", "Oui."),
    "a role in a header": ("Oui.<|start_header_id|>user<|end_header_id|>\n\nEt ?", "Oui."),
    "Llama": ("<|start_header_id|>assistant<|end_header_id|>\n\nOui.<|eot_id|>", "Oui."),
    "Phi": ("Oui.<|end|><|user|>Et ?", "Oui."),
    "Zephyr": ("<|assistant|>\nOui.</s>", "Oui."),
    "DeepSeek": ("<｜Assistant｜>Oui.<｜end▁of▁sentence｜>", "Oui."),
    "DeepSeek that goes on": ("Oui.<｜User｜>Et ?", "Oui."),
    "Gemma's turns": ("<start_of_turn>model\nOui.<end_of_turn>", "Oui."),
    "Mistral's turns": ("Oui.</s>[INST] Et ? [/INST]", "Oui."),
    "a begin and an end": ("<s>Oui.</s>", "Oui."),
    "struck out": ("Prix : <s>10 €</s> 8 €", "Prix : <s>10 €</s> 8 €"),
    "padding": ("Oui.<pad><pad>", "Oui."),
    "unknown tokens": ("Oui<|vision_pad|>.", "Oui."),
    "the end in open code": ("```python\nprint(1)<|im_end|>\n", "```python\nprint(1)"),
    "tokens in code": ("`<|im_end|>` finit.", "`<|im_end|>` finit."),
    "half a token": ("Oui.<|im_en", "Oui."),
    "half a tag": ("Oui.<thi", "Oui."),
    "an angle at the end": ("a <", "a <"),
    "channels": (f"<|channel|>analysis<|message|>hm<|end|>{FINAL}Oui.<|return|>", "Oui."),
    "channels and a preamble": (
        f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>a<|end|>{FINAL}Oui.", "Oui.",
    ),
    "a channel that begins in the prompt": (f"analysis<|message|>hm<|end|>{FINAL}Oui.", "Oui."),
    "the final channel at once": ("<|channel|>final<|message|>Oui.<|return|>", "Oui."),
    "channels without tokens": ("analysisThe user …assistantfinalOui.", "Oui."),
    "a word like a channel": ("analysis of it", "analysis of it"),
    "a call": (CALL, ""),
    "a call in a sentence": (f"Oui. {CALL} Fait.", "Oui.  Fait."),
    "arguments": ('{"name": "f", "arguments": "{\\"a\\": 1}"}', ""),
    "a function": ('{"type": "function", "function": {"name": "f", "arguments": {}}}', ""),
    "an action": ('{"action": "f", "action_input": "x"}', ""),
    "calls": ('{"tool_calls": [{"name": "f"}]}', ""),
    "a list of calls": (f"[{CALL}, {CALL}]", ""),
    "a call in Python's quotes": ("{'name': 'f', 'parameters': {}}", ""),
    "a call in a fence": (f"```json\n{CALL}\n```\n", ""),
    "a call in a fence, and words": (f"```json\n{CALL}\n```\nFait.", "Fait."),
    "a call that was cut": (CALL[:35], ""),
    "a call in tags": (f"<tool_call>\n{CALL}\n</tool_call>", ""),
    "a call in tags of its own": ("<function=lights><parameter=a>1</parameter></function>", ""),
    "Mistral's call": (f"[TOOL_CALLS][{CALL}]", ""),
    "Llama's call": (f"<|python_tag|>{CALL}<|eom_id|>", ""),
    "Kimi's call": ("Oui.<|tool_calls_section_begin|><|tool_call_begin|>f<|tool_call_end|><|tool_calls_section_end|>", "Oui."),
    "gpt-oss' call": ("<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>", ""),
    "JSON": ('{"name": "Zoé", "age": 7}', '{"name": "Zoé", "age": 7}'),
    "JSON with an input": ('{"name": "Zoé", "input": "x"}', '{"name": "Zoé", "input": "x"}'),
    "JSON in JSON": ('{"all": [{"name": "f", "parameters": {}}]}', '{"all": [{"name": "f", "parameters": {}}]}'),
    "JSON in a fence": ('```json\n{"a": 1}\n```', '```json\n{"a": 1}\n```'),
    "JSON that was cut": ('{"name": "Zoé", "a', '{"name": "Zoé", "a'),
    "the word function": ("La balise <function> existe.", "La balise <function> existe."),
}  # fmt: skip


@pytest.mark.parametrize(("text", "answer"), CASES.values(), ids=CASES.keys())
def test_answer(text: str, answer: str) -> None:
    """The answer is the same whether its text comes whole, a letter at a time, or cut in two anywhere."""
    assert read(text)[0] == answer
    assert read(*text)[0] == answer
    for place in range(1, len(text)):
        assert read(text[:place], text[place:])[0] == answer
    assert answer_in(text) == answer


@pytest.mark.parametrize(
    ("text", "thought", "called", "over"),
    [
        ("Oui.", False, False, False),
        ("<think>hm</think>Oui.", True, False, False),
        ("hm</think>Oui.", True, False, False),
        (CALL, False, True, False),
        (f"<tool_call>{CALL}</tool_call>", False, True, False),
        ("Oui.<|im_end|>", False, False, True),
        ("<|channel|>analysis<|message|>hm<|end|>", True, False, False),
        ("<|channel|>commentary to=f<|message|>{}<|call|>", True, True, False),
    ],
)
def test_what_it_was(text: str, thought: bool, called: bool, over: bool) -> None:
    """What was left out is known for what it was."""
    _, found = read(*text)
    assert (found.thinking_chars > 0, found.called, found.over) == (thought, called, over)


@pytest.mark.parametrize("mark", ["<thi", "<|im_e", "[THI", "[/THIN"])
def test_cut_in_a_mark(mark: str) -> None:
    """What has begun as a mark where an answer was cut is left out."""
    assert read(f"Oui. {mark}")[0] == "Oui. "
    assert read(*f"Oui. {mark}")[0] == "Oui. "


def test_text_is_given_at_once() -> None:
    """A piece that cannot be the beginning of anything is given as it comes."""
    found = AnswerFilter()
    assert [found.feed(piece) for piece in ("Bon", "jour", " 1 ", "< 2", ".")] == ["Bon", "jour", " 1 ", "< 2", "."]
    assert found.feed("a <t") == "a "
    assert found.feed("a>") == "<ta>"


def test_withdrawn() -> None:
    """Where thinking is closed that was not opened, what was given until then is withdrawn, once."""
    found = AnswerFilter()
    assert found.feed("Okay, hm.") == "Okay, hm."
    assert (found.feed("</think>Oui"), found.withdrawals, found.unopened) == ("Oui", 1, True)
    assert (found.feed(".</think>"), found.withdrawals) == (".", 1)


def test_long_json_is_not_held_for_ever() -> None:
    """JSON that may be a call is held up to a limit."""
    found = AnswerFilter()
    text = '{"name": "Zoé", "notes": "' + "x" * 20_000
    assert len(found.feed(text)) == len(text)
    found = AnswerFilter()
    assert found.feed('{"name": "f", "parameters": {"a": "' + "x" * 20_000) == ""
    assert found.called
