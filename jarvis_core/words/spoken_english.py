"""How written English is read aloud: numbers, dates, hours, prices, units, abbreviations and signs as words."""

from __future__ import annotations

import re

from jarvis_core.words import english_readings as say
from jarvis_core.words.english_words import (
    ABBREVIATIONS,
    BEFORE_NUMBERS,
    ENDING,
    MONEY,
    MONTHS,
    NUMBERED,
    PER,
    RULERS,
    SHORT_MONTHS,
    SHORT_WORDS,
    SIGNS,
    STREETS,
    TITLES,
    UNITS,
    WORDS_TOO,
    YEAR_BEFORE,
)
from jarvis_core.words.numerals import (
    english_year,
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

NUMBER = r"(?<!\d)(?:\d++\.\d++(?!\.\d)|\d++)"
"""A number in digits, with decimals or without."""
PHRASES: tuple[Rule, ...] = (
    (re.compile(r"\b[Ee]\. ?g\."), "for example"),
    (re.compile(r"\b[Ii]\. ?e\."), "that is"),
    (re.compile(r"\b([ap])\.m\.(?=\W*$)", re.IGNORECASE), lambda found: found[1].upper() + "M."),
    (re.compile(r"\b([ap])\.m\.", re.IGNORECASE), lambda found: found[1].upper() + "M"),
    (re.compile(r"\bP\.S\."), "postscript"),
    (re.compile(r"\bN\.B\."), "nota bene"),
    (re.compile(r"\ba\.k\.a\."), "also known as"),
)


def _title(found: re.Match[str]) -> str:
    return TITLES[found[1]] + found[2]


def _street(found: re.Match[str]) -> str:
    ending = found[3] if not found.string[found.end() :].strip() else ""
    return f"{found[1]}{STREETS[found[2]]}{ending}"


def _abbreviation(found: re.Match[str]) -> str:
    word, text, end = found[1], found.string, found.end()
    lowered = word.lower()
    rest = text[end:].lstrip()
    # In a text of several sentences a capital may begin the next.
    is_last = not rest.strip(" )]") or rest[0].isupper()
    said = None
    if ROMAN_OR_DIGIT.match(rest):
        said = SHORT_MONTHS.get(word) or BEFORE_NUMBERS.get(lowered)
        is_last = is_last and said is None
    if said is None and not (is_last and lowered in WORDS_TOO) and not (word.isupper() and len(word) > 1):
        said = ABBREVIATIONS.get(lowered)
    if lowered in ("min", "mins", "sec", "secs", "hr", "hrs") and text[: found.start()].rstrip()[-1:].isdigit():
        said = word
    if said is None:
        return found[0]
    if word[0].isupper() and said[0].islower():
        said = said[0].upper() + said[1:]
    # The full stop may be the sentence's, too.
    return said + "." if not rest.strip(" )]") or (is_last and lowered in ENDING) else said


def _sign(found: re.Match[str]) -> str:
    return f" {SIGNS[found[0]]} "


def _bare_unit(found: re.Match[str]) -> str:
    unit, slash, per = found[1].partition("/")
    name = form_of(MONEY[unit][0] if unit in MONEY else UNITS[unit], many=True)
    return f"{name} per {PER[per]}" if slash else name


def _dotted(text: str) -> str:
    return text.replace(".", " dot ").replace("-", " dash ").replace("_", " ")


def _points(found: re.Match[str]) -> str:
    return found[0].replace(".", " point ")


_UNIT = rf"(?:{any_of(UNITS)})"
_PER = rf"(?:/ ?(?P<{{}}>{any_of(PER)})(?!\w))?"
_LARGE = "k|K|M|m|B|bn|b|T"
_MONTH = rf"({'|'.join((*MONTHS, *SHORT_MONTHS))})"
_HALF = r"[AaPp]\.?[Mm]\b"
_TIME = rf"\d{{1,2}}(?::\d{{2}})? ?(?:{_HALF})?"

WITH_STOPS: tuple[Rule, ...] = (
    *PHRASES,
    (
        re.compile(
            rf"\b((?:[A-Z][\w'’-]+|\d+(?:st|nd|rd|th)) )({any_of(STREETS)})(\.)(?=\W*$|,| [a-z]| [A-Z][\w.]*,? [A-Z]{{2}}\b)"
        ),
        _street,
    ),
    (re.compile(rf"\b({any_of(TITLES)})\.([ -])(?=[A-Z])"), _title),
    (re.compile(r"(?<![\w.'’])([A-Za-z]{1,6})\.(?=\s|$|[,;:)\d])"), _abbreviation),
)
TITLED: tuple[Rule, ...] = (
    (re.compile(r"\b(Mr|Mrs|Ms|Dr|Prof)( )(?=[A-Z])"), _title),
    (re.compile(r"(?<!\w)(?:w/o|w/|b/c)(?= |$)|\b(?:vs|approx)\b(?!\.)"), lambda found: SHORT_WORDS[found[0]]),
    (MAIL_NAME, lambda found: _dotted(found[1]) + " at "),
)
DOTTED: tuple[Rule, ...] = ((DOTTED_NAME, lambda found: _dotted(found[0])),)
NUMERALS: tuple[Rule, ...] = (
    (
        re.compile(
            rf"\b({RULERS}) ([IVX]{{2,}}|[VX]|I(?=$|[,.;:!?)’']| (?:of|was|became|died|reigned|and|in)\b))\b(?!['’.][^\Ws])"
        ),
        say.ruler,
    ),
    (re.compile(r"\b(World War) (I)\b"), say.numeral),
    (re.compile(rf"\b({NUMBERED}) ([IVXL]{{2,}}|[VX]|I(?=$|[,.;:!?)]))\b(?!['’.]\w)"), say.numeral),
    (
        re.compile(
            r"\b(?!(?:The|An|Her|His|My|Your|Our|Their|This|That|With|Use|In|On|By|From|Via|Start|Stop|Give) )"
            r"([A-Z][\w'’-]*[a-z]) ([IVX]{2,})\b(?!['’]\w)"
        ),
        say.numeral,
    ),
)
WITH_DIGITS: tuple[Rule, ...] = (
    (re.compile(r"(?<![\w+])(?:\+?\d{1,3}[ .-])?\(?\b\d{3}\)?[ .-]\d{3}[.-]\d{4}(?!\d)"), say.phone),
    (re.compile(r"(?<![\w+])\+\d{1,3}(?:[ .-]\d{2,4}){2,5}(?!\d)"), say.phone),
    (re.compile(r"(?<![\w+/.,-])\d{3}-\d{4}(?![\d-])|(?<![\w+/.,-])0\d{2,4} \d{3,4} \d{3,4}(?!\d)"), say.phone),
    (IP_ADDRESS, _points),
    (re.compile(r"(?<![\d./-])(\d{4})-(\d{2})-(\d{2})(?=T\d\d|(?![\d-]))T?"), say.year_month_day),
    (re.compile(r"(?<![\d./-])(\d{1,2})([/.-])(\d{1,2})\2(\d{4}|\d{2})(?![\d/]|[.-]\d)"), say.numeric_date),
    (re.compile(rf"\b{_MONTH}\.? (\d{{1,2}}) ?[-–] ?(\d{{1,2}})(?![\w:/%]|[.,]\d)"), say.days),
    (re.compile(rf"\b{_MONTH}\.? (\d{{1,2}})(?:st|nd|rd|th)?(?:,? (\d{{4}}))?(?![\w:/%$€£°]|[.,]\d)"), say.month_day),
    (
        re.compile(
            rf"(?<![\w.,/])((?:[Tt]he )?)(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? {_MONTH}\b\.?(?:,? (\d{{4}}))?(?!\w)"
        ),
        say.day_month,
    ),
    (re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!,?\d)"), lambda found: found[0].replace(",", "")),
    (re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?: \d{3}){2,}(?![\d])"), lambda found: found[0].replace(" ", "")),
    (VERSION, _points),
    (re.compile(rf"(?<![\d:])({_TIME}) ?[-–] ?(?=\d{{1,2}}(?::\d{{2}}| ?{_HALF}))"), r"\1 to "),
    (re.compile(rf"(?<![\d:.,])([01]?\d|2[0-4]):([0-5]\d)(?::([0-5]\d))?(?: ?({_HALF}))?(?![\d:])"), say.clock),
    (re.compile(rf"(?<![\d:.,])(1[0-2]|0?[1-9])\.([0-5]\d)()(?: ?({_HALF}))"), say.clock),
    (re.compile(rf"(?<![\d:.,])(1[0-2]|0?[1-9]) ?({_HALF})"), say.hour),
    (re.compile(r"(?<=\d) ?[-–] ?(?=[$€£]\d)|(?:(?<=[€%°])|(?<=°[CF])) ?[-–] ?(?=-?\d)"), " to "),
    (re.compile(rf"(?<=\d)( ?{_UNIT})[-–](?=\d++(?:\.\d+)? ?{_UNIT}(?!\w))"), r"\1 to "),
    (re.compile(r"(?<=\d) ?/ ?(?=[-−]\d)"), ", "),
    (re.compile(r"\b(1[1-9]|20)(\d)0['’]?s\b"), say.decade),
    (re.compile(r"\b((?:[Tt]he|[Ee]arly|[Ll]ate|[Mm]id)[ -])['’]?([1-9])0['’]?s\b"), say.short_decade),
    (re.compile(r"(?<![\d.,])([1-9])['’](\d{1,2})(?!\d)"), r"\1 foot \2"),
    (
        re.compile(r"(?<![\w.,/-])(?:1[1-9]\d\d|20\d\d) ?[-–] ?(?:1[1-9]\d\d|20\d\d)(?![\w.,]?\d)"),
        lambda found: " to ".join(english_year(int(year)) for year in re.findall(r"\d{4}", found[0])),
    ),
    (
        re.compile(
            rf"(?<=\b)(?:(?:{YEAR_BEFORE}),?|©|\() (?:1[1-9]\d\d|20\d\d)(?![\w%$€£°:/]|[.,]?\d| ?{_UNIT}(?!\w))",
            re.IGNORECASE,
        ),
        lambda found: found[0][:-4] + english_year(int(found[0][-4:])),
    ),
    (re.compile(r"(?<![\w)\]°%€$.,])[-−–](?=[\d$€£])|(?<=[A-Za-z] )−\s(?=\d)"), " minus "),
    (re.compile(r"(?<=[A-Za-z] )[-–] (?=\d++(?:\.\d+)? ?(?:°|degree))"), "minus "),
    (re.compile(r"(?<![\w)\]])\+ ?(?=\d)"), "plus "),
    (re.compile(r"[~≈] ?(?=[\d$€£])"), "about "),
    (re.compile(r"± ?(?=\d)"), "plus or minus "),
    (re.compile(rf"(?<=\d) - (?=\d++(?:\.\d+)?(?! ?{_UNIT}(?!\w))(?! [A-Za-z]))"), " minus "),
    (re.compile(r"(?<=\d) ?− ?(?=\d)"), " minus "),
    (re.compile(r"(?<![-–.,/\d])(\d++(?:\.\d+)?) ?[-–—] ?(?=(\d++(?:\.\d+)?)(?![-–/\d]))"), say.span),
    (re.compile(r"(?<=\d) ?[-–—] ?(?=minus )"), " to "),
    (re.compile(r"(?<=\d)[-–](?=\d)"), " "),
    (re.compile(r"(?<!\d)(?<!\d,)\d++(?:,\d++)+"), lambda found: found[0].replace(",", ", ")),
    (re.compile(r"\b[Nn](?:°|o\.) ?(?=\d)|#(?=\d)"), "number "),
    (
        re.compile(r"\b((?:ZIP|zip|PIN|[Pp]ost|[Cc]ode|[Pp]assword)(?: ?code)?(?: is|:)? )(\d{4,8})(?![\w.,]?\d)"),
        say.code,
    ),
    (
        re.compile(
            rf"(?P<second_symbol>US\$|[AC]\$|[$€£¥]) ?(?P<second>{NUMBER})(?:(?: ?(?P<second_large>{_LARGE}|million|billion|trillion|thousand)\b)?{_PER.format('second_per')})"
            rf"|(?P<number>{NUMBER}) ?(?:(?P<large>{_LARGE}) ?)?(?P<symbol>{any_of(MONEY)})(?!\w){_PER.format('per')}"
        ),
        say.price,
    ),
    (re.compile(rf"(?<![^\W\d_]-)({NUMBER}) ?({_UNIT})(?:/({any_of(PER)}))?(?![\w²³/])"), say.measure),
    (re.compile(r"(?<![\w.,])(\d{1,12})(?:st|nd|rd|th)\b"), say.ordinal),
    (re.compile(r"(?<![\d/,.])(\d{1,3}) ([1-8])/([2-9])(?![\d/]|[.,]\d)"), say.mixed),
    (re.compile(r"(?<![\d/,.])(\d{1,4}) ?/ ?(\d{1,4})(?![\d/]|[.,]\d)"), say.fraction),
    (re.compile(r"(?<=\d) ?x ?(?=\d)"), lambda found: " times " if " " in found[0] else " by "),
    (re.compile(r"(?<=\d):(?=\d)"), " to "),
    (re.compile(rf"(?:(?<!\d)(\d++) ?)?([{''.join(FRACTIONS)}])"), say.vulgar),
    (re.compile(r"(?<=[^\W_])[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+"), say.power),
    (re.compile(NUMBER), say.plain),
)
SIGNED: tuple[Rule, ...] = (
    (re.compile(rf"(?<![\w°])(km/h|m/s|km²|m²|m³|kWh|mph|°C|°F|[$€£]/(?:{any_of(PER)}))(?!\w)"), _bare_unit),
    (re.compile(rf" ?/ ?(?=(?:{any_of(word for word in PER if word.isalpha() and len(word) > 1)})\b)"), " per "),
    (re.compile(r"(?<=[^\W\d_])/(?=[^\W\d_])"), " "),
    (re.compile(r"(?<=\b[A-G])#"), " sharp"),
    (re.compile(f"[{re.escape(''.join(SIGNS))}]"), _sign),
)
_NEEDS_SIGNED = re.compile(f"[{re.escape(''.join(SIGNS))}/]|mph")
_NUMERAL = re.compile("[IVX]")


def spoken_english(text: str) -> str:
    """Return how *text*, of which nothing is markup, is read aloud."""
    if "." in text:
        text = apply(WITH_STOPS, text)
    text = apply(TITLED, text)
    if "." in text:
        text = apply(DOTTED, text)
    if _NUMERAL.search(text):
        text = apply(NUMERALS, text)
    if NUMERIC.search(text):
        text = apply(WITH_DIGITS, text)
    if _NEEDS_SIGNED.search(text):
        text = apply(SIGNED, text)
    return text
