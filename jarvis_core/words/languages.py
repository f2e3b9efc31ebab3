"""Languages: their codes and their names."""

from __future__ import annotations

LANGUAGE_NAMES = {
    "ar": "العربية",
    "cs": "Čeština",
    "da": "Dansk",
    "de": "Deutsch",
    "el": "Ελληνικά",
    "en": "English",
    "es": "Español",
    "fi": "Suomi",
    "fr": "Français",
    "hi": "हिन्दी",
    "hu": "Magyar",
    "it": "Italiano",
    "ja": "日本語",
    "ko": "한국어",
    "nl": "Nederlands",
    "no": "Norsk",
    "pl": "Polski",
    "pt": "Português",
    "ro": "Română",
    "ru": "Русский",
    "sv": "Svenska",
    "tr": "Türkçe",
    "uk": "Українська",
    "vi": "Tiếng Việt",
    "zh": "中文",
}
"""Languages by their ISO 639-1 codes, each in its own words."""
DETECT = "auto"
"""In place of a language: the speech model is to find out."""


def language_code(language: str) -> str | None:
    """Return the ISO 639 code in front of ``fr-FR`` or ``fr_FR``; None where it is to be found out."""
    code = language.replace("_", "-").partition("-")[0].lower()
    return None if code == DETECT else code
