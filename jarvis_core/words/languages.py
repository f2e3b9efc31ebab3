"""Languages: their codes and their names."""

from __future__ import annotations

LANGUAGE_NAMES = {
    "ar": "العربية",
    "bg": "Български",
    "ca": "Català",
    "cs": "Čeština",
    "da": "Dansk",
    "de": "Deutsch",
    "el": "Ελληνικά",
    "en": "English",
    "es": "Español",
    "et": "Eesti",
    "fa": "فارسی",
    "fi": "Suomi",
    "fr": "Français",
    "he": "עברית",
    "hi": "हिन्दी",
    "hr": "Hrvatski",
    "hu": "Magyar",
    "id": "Bahasa Indonesia",
    "it": "Italiano",
    "ja": "日本語",
    "ko": "한국어",
    "lt": "Lietuvių",
    "lv": "Latviešu",
    "nl": "Nederlands",
    "no": "Norsk",
    "pl": "Polski",
    "pt": "Português",
    "ro": "Română",
    "ru": "Русский",
    "sk": "Slovenčina",
    "sl": "Slovenščina",
    "sr": "Српски",
    "sv": "Svenska",
    "th": "ไทย",
    "tr": "Türkçe",
    "uk": "Українська",
    "vi": "Tiếng Việt",
    "zh": "中文",
}
"""Languages by their ISO 639-1 codes, each in its own words."""

OTHER_CODES = {
    other: code
    for code, others in (
        entry.split(maxsplit=1)
        for entry in """
        af afr; am amh; ar ara arb; as asm; az aze; ba bak; be bel; bg bul; bn ben; bo bod tib; br bre; bs bos; ca cat
        cs ces cze; cy cym wel; da dan; de deu ger; el ell gre; en eng; eo epo; es spa; et est ekk; eu eus baq
        fa fas per pes; fi fin; fo fao; fr fra fre; ga gle; gd gla; gl glg; gu guj; ha hau; he heb iw; hi hin; hr hrv
        ht hat; hu hun; hy hye arm; id ind in; is isl ice; it ita; ja jpn; jw jav jv; ka kat geo; kk kaz; km khm; kn kan
        ko kor; la lat; lb ltz; ln lin; lo lao; lt lit; lv lav lvs; mg mlg; mi mri mao; mk mkd mac; ml mal; mn mon; mr mar
        ms msa may zsm; mt mlt; my mya bur; ne nep; nl nld dut; nn nno; no nor nob nb; oc oci; pa pan; pl pol; ps pus
        pt por; ro ron rum mol mo; ru rus; sa san; sd snd; si sin; sk slk slo; sl slv; sn sna; so som; sq sqi alb
        sr srp scc; su sun; sv swe; sw swa swh; ta tam; te tel; tg tgk; th tha; tk tuk; tl tgl fil; tr tur; tt tat
        uk ukr; ur urd; uz uzb; vi vie; yi yid ji; yo yor; zh zho chi cmn
        """.replace("\n", ";").split(";")
        if entry.strip()
    )
    for other in others.split()
}
"""
Other codes of languages: those of three letters (ISO 639-2, both forms, and -3), and those of two that were given up.

Norwegian is what Whisper and the voices call it, whichever of its forms; nynorsk is one of its own. Javanese is Whisper's too.
"""
ENGLISH_NAMES = {
    "arabic": "ar", "bulgarian": "bg", "catalan": "ca", "chinese": "zh", "croatian": "hr", "czech": "cs", "danish": "da",
    "dutch": "nl", "english": "en", "estonian": "et", "finnish": "fi", "french": "fr", "german": "de", "greek": "el",
    "hebrew": "he", "hindi": "hi", "hungarian": "hu", "indonesian": "id", "italian": "it", "japanese": "ja", "korean": "ko",
    "latvian": "lv", "lithuanian": "lt", "norwegian": "no", "persian": "fa", "polish": "pl", "portuguese": "pt",
    "romanian": "ro", "russian": "ru", "serbian": "sr", "slovak": "sk", "slovenian": "sl", "spanish": "es", "swedish": "sv",
    "thai": "th", "turkish": "tr", "ukrainian": "uk", "vietnamese": "vi",
}  # fmt: skip
"""As speech models call them that do not answer with codes."""
DETECT = "auto"
"""In place of a language: the speech model is to find out."""


UNKNOWN = frozenset((DETECT, "und", "mul"))
"""What stands for no language in particular: here, and in ISO 639."""


def language_code(language: str) -> str | None:
    """
    Return the ISO 639-1 code of *language*; None where it is to be found out.

    It may have a region (``fr-FR``, ``fr_FR``), be one of three letters (``fra``, ``fre``), an old one (``iw``) or an
    English name; what is not known stays as it is.
    """
    code = language.replace("_", "-").partition("-")[0].strip().lower()
    if code in UNKNOWN:
        return None
    return OTHER_CODES.get(code) or ENGLISH_NAMES.get(code, code)
