"""How written French is read aloud: numbers, dates, hours, prices, units, abbreviations and signs as words."""

from __future__ import annotations

import re

from jarvis_core.words import french_readings as say
from jarvis_core.words.french_words import (
    ABBREVIATIONS,
    BEFORE_NAMES,
    BEFORE_NUMBERS,
    ENDING,
    FEMININE,
    HALVED,
    MONEY,
    NUMBERED,
    PER,
    RULERS,
    SHORT_MONTHS,
    SHORT_WORDS,
    SIGNS,
    TITLES,
    UNITS,
    WORDS_TOO,
)
from jarvis_core.words.rules import (
    DOTTED_NAME,
    FRACTIONS,
    IP_ADDRESS,
    MAIL_NAME,
    NUMERIC,
    ROMAN_OR_DIGIT,
    VERSION,
    Rule,
    any_of,
    apply,
    form_of,
)

NUMBER = r"(?<!\d)(?:(?<!\d,)\d++,\d++(?!,\d)|\d++\.\d++(?!\.\d)|\d++)"
"""A number in digits, with decimals or without; "1,2,3" is three of them."""
PHRASES = (
    (re.compile(r"\b[Pp]\. ?ex\."), "par exemple"),
    (re.compile(r"\b[Cc]\.-?à-d\."), "c'est-à-dire"),
    (re.compile(r"\bav\. ?J\.?-?C\b\.?"), "avant Jésus-Christ"),
    (re.compile(r"\bapr?\. ?J\.?-?C\b\.?"), "après Jésus-Christ"),
    (re.compile(r"\bJ\.-C\.(?= )"), "Jésus-Christ"),
    (re.compile(r"\b[Nn]\.(?:B|b)\."), "nota bene"),
    (re.compile(r"\b[Ss]\. ?[Vv]\. ?[Pp]\."), "s'il vous plaît"),
    (re.compile(r"\bP\.-?S\."), "post-scriptum"),
)


def _sign(found: re.Match[str]) -> str:
    return f" {SIGNS[found[0]]} "


def _title(found: re.Match[str]) -> str:
    return TITLES[found[1]] + found[2]


def _abbreviation(found: re.Match[str]) -> str:
    word, text, end = found[1], found.string, found.end()
    lowered = word.lower()
    if lowered == "min" and text[: found.start()].rstrip()[-1:].isdigit():
        return "min" if text[end:].strip(" )]") and not text[end:].lstrip()[0].isupper() else "min."
    rest = text[end:].lstrip()
    # In a text of several sentences a capital may begin the next.
    is_last = not rest.strip(" )]") or rest[0].isupper()
    said = BEFORE_NUMBERS.get(lowered) if ROMAN_OR_DIGIT.match(rest) else None
    is_last = is_last and said is None
    if said is None and text[: found.start()].rstrip()[-1:].isdigit():
        said = SHORT_MONTHS.get(lowered)
    if said is None:
        said = ABBREVIATIONS.get(lowered)
        if lowered in BEFORE_NAMES:
            is_meant = bool(rest) and (rest[0].isupper() or rest.startswith(("de ", "du ", "des ", "d'", "la ")))
        elif lowered == "ex":
            is_meant = rest.startswith(":")
        else:
            is_meant = not (is_last and lowered in WORDS_TOO)
        if said is None or not is_meant or (word.isupper() and len(word) > 1):
            return found[0]
    if word[0].isupper() and lowered not in SHORT_MONTHS:
        said = said[0].upper() + said[1:]
    # The full stop may be the sentence's, too.
    return said + "." if not rest.strip(" )]") or (is_last and lowered in ENDING) else said


def _short_word(found: re.Match[str]) -> str:
    return SHORT_WORDS[found[0].lower()]


_UNIT = rf"(?:{any_of(UNITS)})"
_TIME = r"\d{1,2} ?(?:h|:)(?: ?\d{2})?"

WITH_STOPS: tuple[Rule, ...] = (
    *PHRASES,
    (re.compile(r"\bM\.(?= (?:le|la|l'|et M|ou M))"), "Monsieur"),
    (re.compile(r"\b(MM?)\.(?P<gap>[ -])(?=[^\W\d_a-zà-ÿ])"), lambda found: TITLES[found[1]] + found["gap"]),
    (re.compile(r"(?<![\w.'’])([^\W\d_]{1,6})\.(?=\s|$|[,;:)\d])"), _abbreviation),
)
TITLED: tuple[Rule, ...] = (
    (re.compile(r"\b(Mmes?|Mlles?|Mr|Drs?|Pr|Me|Mgr|Stes?|Sts?)\.?([ -])(?=[^\W\d_a-zà-ÿ])"), _title),
    (re.compile(r"\b(?:svp|stp|rdv|bd|blvd|rte|tél|SVP|STP|RDV)\b(?!\.)"), _short_word),
    (MAIL_NAME, lambda found: _dotted(found[1]) + " arobase "),
)
DOTTED: tuple[Rule, ...] = ((DOTTED_NAME, lambda found: _dotted(found[0])),)
WITH_DIGITS: tuple[Rule, ...] = (
    (re.compile(r"(?<![\w+])(?:\+33[ .-]?(?:\(0\)[ .-]?)?|0)[1-9](?:[ .-]?\d{2}){4}(?!\d)"), say.phone),
    (re.compile(r"(?<!\d)0 ?8\d{2}(?: ?\d{3}){2}(?!\d)"), say.free_phone),
    (IP_ADDRESS, lambda found: _points(found[1])),
    (re.compile(r"(?<![\d./-])(\d{4})-(\d{2})-(\d{2})(?=T\d\d|(?![\d-]))T?"), say.year_month_day),
    (re.compile(r"(?<![\d./-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})(?![\d/]|[.-]\d)"), say.day_month_year),
    (
        re.compile(
            r"(\b(?:[Ll]e|[Dd]u|[Aa]u|[Dd]ès|[Dd]epuis|[Aa]vant|[Aa]près|lundi|mardi|mercredi|jeudi|vendredi|samedi|dimanche) )"
            r"(\d{1,2})/(\d{1,2})(?![\d/,.]?\d)"
        ),
        say.day_month,
    ),
    (re.compile(r"((?<![\d/.,]))(0[1-9]|[12]\d(?=/0)|3[01](?=/0))/(0[1-9]|1[0-2])(?![\d/]|[.,]\d)"), say.day_month),
    (
        re.compile(
            r"(?<![\d,./])1(?:er)? (?=(?:janvier|février|mars|avril|mai|juin|juillet|août|septembre|octobre|novembre|décembre)\b)"
        ),
        "premier ",
    ),
    (
        re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3})+(?![\d]| \d{1,2}\b(?! ?[%€$£°]))"),
        lambda found: found[0].replace(" ", ""),
    ),
    (re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:\.\d{3}){2,}(?![\d.])"), lambda found: found[0].replace(".", "")),
    (re.compile(r"(?<![\d.,])([1-9]\d{0,2})\.(\d{3})(?=,\d\d\b| ?€)"), r"\1\2"),
    (VERSION, lambda found: _points(found[0])),
    (
        re.compile(r"(?<![\d/,.])([1-9]) ?/ ?([2-9]) ?h\b"),
        lambda found: f"{say.part(int(found[1]), int(found[2]))} d'heure",
    ),
    (
        re.compile(r"\b24 ?h/24\b(?: et 7 ?j/7\b)?"),
        lambda found: "vingt-quatre heures sur vingt-quatre" + (" et sept jours sur sept" if "7" in found[0] else ""),
    ),
    (re.compile(r"\b7 ?j/7\b"), "sept jours sur sept"),
    (re.compile(r"\b24/7\b"), "vingt-quatre heures sur vingt-quatre"),
    (re.compile(rf"(?<![\d:])({_TIME}|\d{{1,2}}) ?[-–] ?(?={_TIME}(?!\w))"), r"\1 à "),
    (re.compile(r"(?<![\d:,.])(\d{1,2}) ?[hH](?: ?([0-5]\d)(?: ?(min|mn)\b)?)?(?![\w/])"), say.hour),
    (re.compile(r"(?<![\d:.,])([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?![\d:])"), say.clock),
    (re.compile(r"(?:(?<=[€%°])|(?<=°C)) ?[-–] ?(?=-?\d)"), " à "),
    (re.compile(rf"(?<=\d)( ?{_UNIT})[-–](?=\d++(?:,\d+)? ?{_UNIT}(?!\w))"), r"\1 à "),
    (re.compile(r"(?<![\w)\]°%€$.,])[-−–](?=\d)|(?<=\bJ)-(?=\d)|(?<=[^\W\d] )−\s(?=\d)"), " moins "),
    (re.compile(r"(?<=[^\W\d] )[-–] (?=\d++(?:,\d+)? ?(?:°|degré))"), "moins "),
    (re.compile(r"(?<![\w)\]])\+ ?(?=\d)"), "plus "),
    (re.compile(r"[~≈] ?(?=\d)"), "environ "),
    (re.compile(r"± ?(?=\d)"), "plus ou moins "),
    (re.compile(rf"(?<=\d) - (?=\d++(?:,\d+)?(?! ?(?:{any_of(UNITS)}|€|\$)(?!\w))(?! [^\W\d_]))"), " moins "),
    (re.compile(r"(?<=\d) ?− ?(?=\d)"), " moins "),
    (re.compile(r"(?<![-–.,/\d])(\d++(?:[.,]\d+)?) ?[-–—] ?(?=(\d++(?:[.,]\d+)?)(?![-–/\d]))"), say.span),
    (re.compile(r"(?<=\d) ?[-–—] ?(?=moins )"), " à "),
    (re.compile(r"(?<!\d)(?<!\d,)\d++(?:,\d++){2,}"), lambda found: found[0].replace(",", ", ")),
    (re.compile(rf"(?<![\d.,])(\d+) ?(?:½|(?<= )1/2)(?= ?{_UNIT}(?!\w))"), r"\1,5"),
    (re.compile(r"(?<![\d.,])(\d+) ?(?:½|(?<= )1/2) ([^\W\d_]+)"), say.half),
    (re.compile(r",--?(?= ?€)"), ""),
    (re.compile(r"(?<=\d) ?/ ?(?=moins )"), ", "),
    (re.compile(rf"({NUMBER}) ?(Mds?|M)(?= (?:de |d['’]))"), say.millions),
    (re.compile(r"(?<=\d)[-–](?=\d)"), " "),
    (re.compile(r"\b[Nn](?:°|o\.) ?(?=\d)|#(?=\d)"), "numéro "),
    (re.compile(r"\b[Nn]os? ?(?=\d)"), "numéro "),
    (re.compile(r"(?<![\d.,])(\d+) ?€ ?(\d{2})(?!\d)"), r"\1,\2 €"),
    (
        re.compile(
            rf"(?P<number>{NUMBER}) ?(?P<large>Mds|Mrd|Md|[kKM])? ?(?P<symbol>{any_of(MONEY)})(?!\w)(?:/ ?(?P<per>{any_of(PER)})(?!\w))?".replace(
                "(?P<per>", "(?P<per>", 1
            )
            + rf"|(?P<second_symbol>US\$|[€$£¥]) ?(?P<second>{NUMBER})(?: ?(?P<second_large>Mds|Mrd|Md|[kKM])\b)?"
        ),
        say.price,
    ),
    (re.compile(rf"(?<![^\W\d_]-)({NUMBER}) ?({_UNIT})(?:/({any_of(PER)}))?(?![\w²³/])"), say.measure),
    (
        re.compile(r"(?<![\w.,])(\d{1,12})(ers?|ères?|eres?|res?|e|es|ès|èmes?|emes?|ièmes?|iemes?|ndes?|nds?)(?!\w)"),
        say.ordinal,
    ),
    (re.compile(rf"½ (?=({HALVED})\b)"), "une demi-"),
    (re.compile(r"(?<![\d/,.])(\d{1,3}) ([1-8])/([2-9])(?![\d/]|[.,]\d)"), say.mixed),
    (re.compile(r"(?<![\d/,.])(\d{1,4}) ?/ ?(\d{1,4})(?![\d/]|[.,]\d)"), say.fraction),
    (re.compile(r"(?<=\d) ?x(?= ?/)"), " fois"),
    (re.compile(r"\b4x4\b"), "quatre-quatre"),
    (re.compile(r"(?<=\d) ?x ?(?=\d)"), lambda found: " fois " if " " in found[0] else " par "),
    (re.compile(r"(?<=\d):(?=\d)"), " "),
    (re.compile(rf"(?<![\d.,])(\d*(?<!1)1) (?=(?:{FEMININE})s?\b)"), say.ones),
)
LAST: tuple[Rule, ...] = (
    (re.compile(rf"(?:(?<!\d)(\d++) ?)?([{''.join(FRACTIONS)}])"), say.vulgar),
    (re.compile(r"(?<=[^\W_])[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+"), say.power),
    (re.compile(NUMBER), say.plain),
)
NUMERALS: tuple[Rule, ...] = (
    (re.compile(r"\b([IVX]+)(er|re|ère|e|ème|es)\b(?!\.)"), say.ordinal),
    (re.compile(rf"\b({RULERS})[- ]([IVX]{{2,}}|[VX])\b(?!['’.]\w)"), say.numeral),
    (re.compile(rf"\b({NUMBERED}) ([IVX]+)\b(?!['’.]\w)"), say.numeral),
    (re.compile(r"\b([^\W\d_a-zà-ÿ][\w'’-]*[a-zà-ÿ]) ([IVX]{2,})\b(?!['’]\w)"), say.numeral),
)
BARE_UNITS: Rule = (
    re.compile(
        rf"(?<![\w°])(km/h|m/s|km²|m²|m³|kWh|°C|°F|€/({any_of(PER)})|Mbit/s|Mb/s|(?<=\b(?:de|en) )(?:km|kg|cm|mm|Go|Mo|To|kW|ml|cl))(?!\w)"
    ),
    lambda found: _bare_unit(found),
)
SIGNED: tuple[Rule, ...] = (
    (re.compile(r"(millions?|milliards?) ?(?:€|d'€)"), r"\1 d'euros"),
    (re.compile(r"(millions?|milliards?) ?\$"), r"\1 de dollars"),
    (
        re.compile(
            rf" ?/ ?(?=(?:{any_of(word for word in PER if (word.isalpha() and len(word) > 1) or word == 'h')})\b)"
        ),
        " par ",
    ),
    (re.compile(r"(?<=[^\W\d_])/(?=[^\W\d_])"), " "),
    (re.compile(r"(?<=\b[A-G])#"), " dièse"),
    (re.compile(f"[{re.escape(''.join(SIGNS))}]"), _sign),
)


def _bare_unit(found: re.Match[str]) -> str:
    unit, slash, per = found[1].partition("/")
    name = form_of(MONEY[unit][0] if unit in MONEY else UNITS[unit], many=True)
    return f"{name} {say.rate(per)}" if slash else name


def _dotted(text: str) -> str:
    return text.replace(".", " point ").replace("-", " tiret ").replace("_", " ")


def _points(text: str) -> str:
    return re.sub(r"\.", " point ", text)


_NEEDS_SIGNED = re.compile(f"[{re.escape(''.join(SIGNS))}/]|\\b(?:de|en) [kcmGMT]")
_NUMERAL = re.compile("[IVX]")


def spoken_french(text: str) -> str:
    """Return how *text*, of which nothing is markup, is read aloud."""
    if "." in text:
        text = apply(WITH_STOPS, text)
    text = apply(TITLED, text)
    if "." in text:
        text = apply(DOTTED, text)
    if _NUMERAL.search(text):
        text = apply(NUMERALS, text)
    if NUMERIC.search(text):
        text = apply((*WITH_DIGITS, *LAST), text)
    if _NEEDS_SIGNED.search(text):
        text = apply((BARE_UNITS, *SIGNED), text)
    return text
