"""Titles of conversations: one line that shows where others' words stand, and acts on nothing that it is shown on."""

from __future__ import annotations

TITLE_CHARS = 80
NEW_TITLE = "New conversation"
"""Of a conversation in which the user has said nothing yet."""
REFUSED = dict.fromkeys(
    [*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)
"""
Controls, line and paragraph ends, and what embeds, overrides or isolates a direction of writing (UAX #9), by number.

Marks of a direction (U+061C, U+200E, U+200F) and joiners belong to words, and stay.
"""


def title_from(content: str) -> str:
    """Return a conversation's title: the start of its first message, on one line, cut between words."""
    line = clean_title(" ".join(content[: 4 * TITLE_CHARS].split()))
    if len(line) <= TITLE_CHARS:
        return line
    cut = line[: TITLE_CHARS - 1]
    return (cut.rpartition(" ")[0] or cut) + "…"


def clean_title(title: str) -> str:
    """Return *title* without what no title may have, as those have that older versions stored."""
    if not is_title(title):
        # White space first, because line ends are between words, and again for what was between two of it.
        title = " ".join(" ".join(title.split()).translate(REFUSED).split())
    return title or "…"


def is_title(text: str) -> bool:
    """Whether *text* has nothing that no title may have."""
    return text.isprintable() or REFUSED.keys().isdisjoint(map(ord, text))
