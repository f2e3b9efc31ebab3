"""
What of a written sentence can be said, in any language: its words, numbers and punctuation, and the signs that mean
something; not the marks that only show how it looks.
"""

from __future__ import annotations

import re
import unicodedata

from jarvis_core.words.rules import DOMAINS

CHARACTERS_KEPT = 4_096
SIGNS = "%‰€$£¥°"
"""What a voice says by itself, besides letters and digits."""

# Between the marks of a line [^\S\n] stands for \s: from each of many line ends that would look on over all the others.
_FENCE = re.compile(r"^[^\S\n]*(?:(?:```|~~~).*|-{3,}|\*{3,}|_{3,}|={3,})$", re.MULTILINE)
_LINK = re.compile(r"(?:!?\[([^\[\]]*))?\]\((?:[^()\s]|\([^()\s]*\))*(?:\s[^)\n]{0,300})?\)")
"""A link, or the end of one whose text began in the sentence before."""
_ADDRESS = re.compile(
    r"<?\b(?:https?|ftp)://(?:[^\s/@<>]*@)?(?:www\.)?([^\s/:?#<>()\[\]]+)[^\s<>()\[\]]*>?|\bwww\.(?=\w)"
)
"""An address in the web, of which the name is enough."""
_TAG = re.compile(r"</?[A-Za-z][^<>]*>")
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9A-Fa-f]{1,6}|[A-Za-z][A-Za-z0-9]{1,30});")
_TABLE_RULE = re.compile(
    r"^[ \t]*\|?(?:[ \t]*:?-{2,}:?[ \t]*\|)+(?:[ \t]*:?-{2,}:?[ \t]*)?$|^[ \t]*[+|][-=+|:]{3,}[ \t]*$", re.MULTILINE
)
_CELL_END = re.compile(r"(?<!\s)\s+\|\s+")
_TABLE_ROW = re.compile(r"^[ \t]*\|(.*)$", re.MULTILINE)
_LINE_START = re.compile(r"^[^\S\n]*(?:(?:#{1,6}|[*+•‣▪–—-])[^\S\n]+|>+[^\S\n]*)+", re.MULTILINE)
_CIRCLED_ITEM = re.compile(r"^[^\S\n]*([\u2460-\u249b\u24ea-\u24ff\u2776-\u2793])\s*(?=[^\W\d])", re.MULTILINE)
_NOTE = re.compile(r"\[\^\w{1,20}\]|(?<=\w)\[\d{1,3}\]")
"""Where a note stands."""
_PATH = re.compile(rf"(?<![\w.@/])((?:[\w-]{{1,63}}\.)+(?:{DOMAINS}))/[^\s<>()]*")
_TIMES = re.compile(r"(?<=\d)(\s?)\*\1(?=\d)")
_ARROW = re.compile(r"(?<![-=<>!+])(?:<-{1,2}>|<=>|-{1,2}>|={1,2}>|<=|>=|!=|\+/-)(?![-=<>])")
_ARROWS = {
    "<->": "↔",
    "<-->": "↔",
    "<=>": "↔",
    "->": "→",
    "-->": "→",
    "=>": "⇒",
    "==>": "⇒",
    "<=": "≤",
    ">=": "≥",
    "!=": "≠",
    "+/-": "±",
}
_MARKUP = re.compile(
    r"[*`]+|~~+|~(?! ?[\d$€£.,-])|(?<!\w)_+|_+(?!\w)|(?<![^\W_])#+(?!\d)"
    r"|[«»‹›“”„‟\"「」『』\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ufe00-\ufe0f\u20e3]"
)
_GROUPED = re.compile(
    r"(?<![\d.,])[1-9]\d{0,2}(?:[\u00a0\u202f\u2007\u2009\u2008]\d{3})+(?!\d)|(?<![\d.,'’])[1-9]\d{0,2}(?:['’]\d{3})+(?!\d)"
)
"""A number in groups of three that nothing else can be: no plain space, no comma or point."""
_SPACE_BEFORE_STOP = re.compile(r"\s+(?=[.,](?:\s|$))")
_KEPT = SIGNS + ".,;:!?…。！？，、'’-‐‑‒–—−/()&+=<>×÷@§#~±≈≠≤≥→←↔⇒↑↓√∞^⁻"
_SAME = {"‘": "'", "⟶": "→", "➔": "→", "➜": "→", "➡": "→", "➞": "→", "⟹": "⇒", "№": "n° ", "⁄": "/", "∕": "/", "∶": ":", "∼": "~", "⩽": "≤", "⩾": "≥", "º": "°", "µ": "μ", "Ω": "Ω", "ª": "a"}  # fmt: skip
"""What is said as another sign is."""


def is_spoken(character: str) -> bool:
    """Whether a voice says *character*."""
    return character.isalnum() or character in SIGNS


def speakable(text: str) -> str:
    """
    Return what a voice should say of a sentence, on one line; empty when there is nothing.

    Markdown, tags, rules of tables, targets of links, emoji, quotes and signs that cannot be said are left out; entities
    are what they stand for, digits of any script are digits, and of an address in the web the name stays, as does the
    number of a list item. Also empty for a few texts that have letters: the line that opens a block of code, a link
    without text.
    """
    if not text.isascii() or _MARKED.search(text):
        text = _without_markup(text)
    text = _SPACE_BEFORE_STOP.sub("", " ".join(text.split()))
    return text if any(map(is_spoken, text)) else ""


_MARKED = re.compile(r"[\"#$&*+<>\[\\\]^_`{|}~=@\x00-\x1f]|^\s*-|--|/|www\.|\d'\d")
"""What plain text in ASCII has to have if anything of it is to be left out."""


def _without_markup(text: str) -> str:
    text = _FENCE.sub("", text)
    if "<!--" in text:
        text = _without_comments(text)
    if "](" in text:
        text = _LINK.sub(r"\1", text)
    if "://" in text or "www." in text:
        text = _ADDRESS.sub(_name_of, text)
    if "/" in text:
        text = _PATH.sub(r"\1", text)
    if "[" in text:
        text = _NOTE.sub("", text)
    if ">" in text or "=" in text or "+/-" in text:
        text = _TAG.sub(" ", _ARROW.sub(lambda found: _ARROWS[found[0]], text))
    if "&" in text:
        text = _ENTITY.sub(_character_of, text)
    if "|" in text or text.lstrip()[:1] == "+":
        text = _TABLE_ROW.sub(_cells_of, _TABLE_RULE.sub("", text))
        text = _CELL_END.sub(", ", text)
    text = _CIRCLED_ITEM.sub(lambda found: f"{int(unicodedata.numeric(found[1]))}. ", _LINE_START.sub("", text))
    text = _MARKUP.sub("", _TIMES.sub(" × ", text))
    text = _GROUPED.sub(lambda found: "".join(filter(str.isdigit, found[0])), text)
    return text.translate(_SAID)


def _character_of(found: re.Match[str]) -> str:
    import html  # two thousand names, which few texts need

    return html.unescape(found[0])


def _without_comments(text: str) -> str:
    """Return *text* with a space for each comment; one that does not end stays. A pattern would look for the end anew each time."""
    kept: list[str] = []
    at = 0
    while (start := text.find("<!--", at)) >= 0 and (end := text.find("-->", start + 4)) >= 0:
        kept.append(text[at:start])
        at = end + 3
    return " ".join([*kept, text[at:]])


def _name_of(found: re.Match[str]) -> str:
    name = found[1]
    if name is None:
        return ""
    # The full stop of the sentence is none of the address.
    end = found[0].rstrip(">")
    return name.rstrip(".,;:!?") + (end[len(end.rstrip(".,;:!?")) :])


def _cells_of(found: re.Match[str]) -> str:
    return ", ".join(filter(None, map(str.strip, found[1].split("|"))))


def _said_for(character: str) -> str:
    """Return what is said for one character: itself, what it is a form of, or a space."""
    if character.isascii():
        return character if character.isalnum() or character in _KEPT else " "
    if character in _SAME:
        return _SAME[character]
    if character in _KEPT:
        return character
    category = unicodedata.category(character)
    if category == "Nd":
        return str(unicodedata.decimal(character))
    if category == "No":
        return _said_for_number(character)
    if category[0] == "L" or category in ("Mn", "Mc", "Nl", "So"):
        # Bold, wide and raised letters are letters, and ℃ is two signs; but ™ is a mark.
        form = unicodedata.decomposition(character).partition(" ")[0]
        plain = unicodedata.normalize("NFKC", character) if form.startswith("<") else character
        if category != "So" or (form in ("<compat>", "<circle>", "<square>") and all(map(is_spoken, plain))):
            return plain
    return " "


def _said_for_number(character: str) -> str:
    """Return a circled digit as a number; powers and fractions stay, their language says them."""
    decomposition = unicodedata.decomposition(character)
    if decomposition.startswith(("<super>", "<fraction>")):
        return character
    value = unicodedata.numeric(character)
    if not value.is_integer():
        return character
    return str(int(value)) if decomposition.startswith("<sub>") else f" {int(value)} "


class _Said(dict[int, str]):
    """What is said for each character, by its code; found out once, for as many as a few languages have."""

    def __missing__(self, code: int) -> str:
        said = _said_for(chr(code))
        if len(self) < CHARACTERS_KEPT:
            self[code] = said
        return said


_SAID = _Said()
