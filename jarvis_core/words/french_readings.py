"""How what the rules of French find is read: counts, prices, dates, hours, fractions, codes."""

from __future__ import annotations

import re

from jarvis_core.words.french_words import DENOMINATORS, FEMININE, LARGE, MONEY, MONTHS, PER, UNITS
from jarvis_core.words.numerals import FRENCH_DIGITS, french_cardinal, french_number, french_ordinal, roman
from jarvis_core.words.rules import FRACTIONS, RAISED, form_of, spaced


def count(number: str, name: str) -> str:
    """Return a number and what it counts."""
    many = float(number.replace(",", ".")) >= 2
    said = french_number(number, feminine=name.startswith("+"), unit=True)
    noun = form_of(name, many=many)
    if said.endswith(("million", "millions", "milliard", "milliards", "billion", "billions")):
        return f"{said} {'d' + chr(39) if noun[0] in 'aeioéœhuy' else 'de '}{noun}"
    return f"{said} {noun}"


def measure(found: re.Match[str]) -> str:
    """Return a number and its unit."""
    number, unit, per = found.groups()
    said = count(number, UNITS[unit])
    return f"{said} {rate(per)}" if per else said


def rate(what: str) -> str:
    """Return what something is counted by: ``par heure``, ``aux cent kilomètres``."""
    said = PER[what]
    return f"aux {said}" if what.startswith("100") else f"par {said}"


def price(found: re.Match[str]) -> str:
    """Return a sum of money: euros and cents, thousands, millions."""
    number, large, symbol = found["number"] or found["second"], found["large"] or found["second_large"], ""
    symbol = found["symbol"] or found["second_symbol"]
    whole, cents = MONEY[symbol]
    per = f" {rate(found['per'])}" if found["per"] else ""
    if large:
        value = float(number.replace(",", ".")) * LARGE[large]
        if value.is_integer() and LARGE[large] == 10**3:
            return count(str(int(value)), whole) + per
        unit = {10**3: "mille", 10**6: "million", 10**9: "milliard"}[LARGE[large]]
        many = float(number.replace(",", ".")) >= 2 and unit != "mille"
        noun = form_of(whole, many=True)
        link = " " if unit == "mille" else " d'" if noun[0] in "aeiou" else " de "
        return f"{french_number(number, unit=True)} {unit}{'s' if many else ''}{link}{noun}{per}"
    head, _, decimals = number.replace(".", ",").partition(",")
    if len(decimals) in (1, 2) and cents:
        minor = int(decimals.ljust(2, "0"))
        if not int(head) and minor:
            return count(str(minor), cents) + per
        said = count(head, whole)
        return (f"{said} {french_cardinal(minor)}" if minor else said) + per
    return count(number, whole) + per


def date(day: str, month: str, year: str | None) -> str:
    """Return a day, with its year where there is one."""
    number = int(day)
    said = f"{'premier' if number == 1 else french_cardinal(number)} {MONTHS[int(month) - 1]}"
    if year is None:
        return said
    count = int(year)
    if len(year) == 2:
        count += 2_000 if count < 70 else 1_900
    return f"{said} {french_cardinal(count)}"


def day_month_year(found: re.Match[str]) -> str:
    """Return a date in the order of Europe."""
    return date(found[1], found[3], found[4]) if is_day(found[1], found[3]) else found[0]


def year_month_day(found: re.Match[str]) -> str:
    """Return a date in the order of ISO 8601."""
    return date(found[3], found[2], found[1]) if is_day(found[3], found[2]) else found[0]


def day_month(found: re.Match[str]) -> str:
    """Return a day without its year."""
    return found[1] + date(found[2], found[3], None) if is_day(found[2], found[3]) else found[0]


def is_day(day: str, month: str) -> bool:
    """Whether a calendar has that day."""
    return 1 <= int(day) <= 31 and 1 <= int(month) <= 12


def hour(found: re.Match[str]) -> str:
    """Return an hour of the day, or how long something takes."""
    hours, minutes, unit = found[1], found[2], found[3]
    said = count(hours, "+heure*")
    if unit:
        return f"{said} {count(minutes, '+minute*')}"
    if minutes and int(minutes):
        said += " " + french_cardinal(int(minutes), feminine=True)
    return said


def clock(found: re.Match[str]) -> str:
    """Return an hour as clocks show it."""
    hours, minutes, seconds = found.groups()
    said = count(str(int(hours)), "+heure*")
    if int(minutes) or seconds:
        said += " " + french_cardinal(int(minutes), feminine=True)
    return f"{said} et {count(str(int(seconds)), '+seconde*')}" if seconds else said


def phone(found: re.Match[str]) -> str:
    """Return a telephone number, in pairs."""
    digits = re.sub(r"\D", "", found[0])
    country = "plus trente-trois, " if digits.startswith("33") else ""
    if country:
        digits = digits[2:]
        head, digits = FRENCH_DIGITS[int(digits[0])], digits[1:]
    else:
        head, digits = f"zéro {FRENCH_DIGITS[int(digits[1])]}", digits[2:]
    pairs = [french_number(digits[at : at + 2]) for at in range(0, 8, 2)]
    return country + ", ".join([head, *pairs])


def free_phone(found: re.Match[str]) -> str:
    """Return a telephone number that begins with 08, in threes."""
    digits = found[0].replace(" ", "")
    return ", ".join(
        ["zéro " + french_cardinal(int(digits[1:4])), *(french_number(digits[at : at + 3]) for at in (4, 7))]
    )


def ordinal(found: re.Match[str]) -> str:
    """Return an ordinal, of digits or of a Roman numeral."""
    number = int(found[1]) if found[1].isdecimal() else roman(found[1])
    ending = found[2].lower()
    if not number:
        return found[0]
    plural = "s" if ending.endswith("s") else ""
    if ending.startswith("nd"):
        return ("seconde" if "e" in ending else "second") + plural
    return french_ordinal(number, feminine=number == 1 and ending.startswith(("r", "è", "ere"))) + plural


def numeral(found: re.Match[str]) -> str:
    """Return a name with the Roman numeral behind it as a number."""
    number = roman(found[2])
    return f"{found[1]} {french_cardinal(number)}" if number else found[0]


def fraction(found: re.Match[str]) -> str:
    """Return a fraction, or a mark out of so many."""
    above, below = int(found[1]), int(found[2])
    if above == below == 50:
        return f"{french_cardinal(above)} {french_cardinal(below)}"
    # Out of ten is a mark, as is out of twenty.
    if not 2 <= below <= 9 or not 0 < above < below:
        return f"{french_cardinal(above)} sur {french_cardinal(below)}"
    return part(above, below)


def part(above: int, below: int) -> str:
    """Return a fraction of one: ``trois quarts``."""
    part = DENOMINATORS.get(below) or french_ordinal(below)
    return f"{french_cardinal(above)} {part}{'s' if above > 1 and not part.endswith('s') else ''}"


def millions(found: re.Match[str]) -> str:
    """Return a number of millions or milliards."""
    many = float(found[1].replace(",", ".")) >= 2
    return f"{french_number(found[1], unit=True)} {'million' if found[2] == 'M' else 'milliard'}{'s' if many else ''}"


def mixed(found: re.Match[str]) -> str:
    """Return a number and a fraction."""
    above, below = int(found[2]), int(found[3])
    if above >= below:
        return found[0]
    return f"{french_number(found[1])} et {'demi' if (above, below) == (1, 2) else part(above, below)}"


def half(found: re.Match[str]) -> str:
    """Return so many and a half of what is named."""
    number, noun = found.groups()
    feminine = re.fullmatch(FEMININE, noun.rstrip("s")) is not None
    return f"{french_number(number, feminine=feminine)} {noun} et demi{'e' if feminine else ''}"


def vulgar(found: re.Match[str]) -> str:
    """Return a fraction that is one character."""
    above, below = FRACTIONS[found[2]]
    said = part(above, below)
    if not found[1]:
        return spaced(found, said)
    return spaced(found, f"{french_number(found[1])} et {'demi' if below == 2 else said}")


def power(found: re.Match[str]) -> str:
    """Return a raised number."""
    exponent = found[0].translate(RAISED)
    if exponent in ("2", "3"):
        return spaced(found, " au carré" if exponent == "2" else " au cube")
    return spaced(found, f" puissance {exponent.replace('-', 'moins ')}")


def span(found: re.Match[str]) -> str:
    """Return the first number of two with a dash between them, and the word for the dash."""
    first, second = (float(part.replace(",", ".")) for part in found.groups())
    # A code, if it is no range and no score.
    return f"{found[1]} {'à' if first < second or first < 100 else 'tiret'} "


def ones(found: re.Match[str]) -> str:
    """Return a number that ends in one before a feminine noun."""
    return f"{french_number(found[1], feminine=True)} "


def plain(found: re.Match[str]) -> str:
    """Return a number."""
    return spaced(found, french_number(found[0]))
