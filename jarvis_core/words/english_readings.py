"""How what the rules of English find is read: counts, prices, dates, hours, fractions, codes."""

from __future__ import annotations

import re

from jarvis_core.words.english_words import LARGE, MONEY, MONTHS, PER, SHORT_MONTHS, UNITS
from jarvis_core.words.numerals import (
    ENGLISH_DIGITS,
    english_cardinal,
    english_number,
    english_ordinal,
    english_year,
    roman,
    spell,
)
from jarvis_core.words.rules import FRACTIONS, RAISED, form_of, spaced

DENOMINATORS = {2: "half|halves", 4: "quarter*"}


def count(number: str, name: str) -> str:
    """Return a number and what it counts."""
    return f"{english_number(number)} {form_of(name, many=float(number) != 1)}"


def measure(found: re.Match[str]) -> str:
    """Return a number and its unit."""
    number, unit, per = found.groups()
    said = count(number, UNITS[unit])
    return f"{said} per {PER[per]}" if per else said


def price(found: re.Match[str]) -> str:
    """Return a sum of money: dollars and cents, thousands, millions."""
    number = found["number"] or found["second"]
    large = found["large"] or found["second_large"]
    whole, cents = MONEY[found["symbol"] or found["second_symbol"]]
    rate = found["per"] or found["second_per"]
    per = f" per {PER[rate]}" if rate else ""
    if large:
        return f"{english_number(number)} {LARGE[large]} {form_of(whole, many=True)}{per}"
    head, _, decimals = number.partition(".")
    if len(decimals) == 2 and cents:
        minor = int(decimals)
        if not minor:
            return count(head, whole) + per
        small = count(str(minor), cents)
        return (small if not int(head) else f"{count(head, whole)} and {small}") + per
    return count(number, whole) + per


def month_day(found: re.Match[str]) -> str:
    """Return a date that begins with the month."""
    month = SHORT_MONTHS.get(found[1], found[1])
    return date(month, found[2], found[3], found)


def days(found: re.Match[str]) -> str:
    """Return two days of a month."""
    month = SHORT_MONTHS.get(found[1], found[1])
    first, last = int(found[2]), int(found[3])
    return f"{month} {english_ordinal(first)} to {english_ordinal(last)}" if 0 < first < last <= 31 else found[0]


def day_month(found: re.Match[str]) -> str:
    """Return a date that begins with the day."""
    if not 1 <= int(found[2]) <= 31:
        return found[0]
    month = SHORT_MONTHS.get(found[3], found[3])
    year = f", {english_year(int(found[4]))}" if found[4] else ""
    return f"{found[1] or 'the '}{english_ordinal(int(found[2]))} of {month}{year}"


def date(month: str, day: str, year: str | None, found: re.Match[str]) -> str:
    """Return a month, a day and perhaps a year; what was *found* where no calendar has that day."""
    if not 1 <= int(day) <= 31:
        return found[0]
    said = f"{month} {english_ordinal(int(day))}"
    return f"{said}, {english_year(century(year))}" if year else said


def century(year: str) -> int:
    """Return a year, also of two digits."""
    return int(year) + (0 if len(year) > 2 else 2_000 if int(year) < 70 else 1_900)


def numeric_date(found: re.Match[str]) -> str:
    """Return a date in digits, in the American order unless it can only be the other."""
    month, day = int(found[1]), int(found[3])
    if month > 12:
        # Not the American order, then.
        month, day = day, month
    return date(MONTHS[month - 1], str(day), found[4], found) if 1 <= month <= 12 else found[0]


def year_month_day(found: re.Match[str]) -> str:
    """Return a date in the order of ISO 8601."""
    return date(MONTHS[int(found[2]) - 1], found[3], found[1], found) if 1 <= int(found[2]) <= 12 else found[0]


def clock(found: re.Match[str]) -> str:
    """Return an hour as clocks show it."""
    hour, minutes, seconds, half = found.groups()
    said = english_cardinal(int(hour))
    if int(minutes) or seconds:
        said += " " + ("" if int(minutes) > 9 else "oh ") + english_cardinal(int(minutes))
    elif not half:
        said += " o'clock" if int(hour) <= 12 else " hundred"
    if seconds:
        said += f" and {count(str(int(seconds)), 'second*')}"
    return f"{said} {half_of_day(half)}" if half else said


def hour(found: re.Match[str]) -> str:
    """Return an hour with its half of the day."""
    return f"{english_cardinal(int(found[1]))} {half_of_day(found[2])}"


def half_of_day(text: str) -> str:
    """Return AM or PM."""
    return f"{text[0].upper()}M"


def phone(found: re.Match[str]) -> str:
    """Return a telephone number, digit by digit."""
    groups = re.findall(r"\d+", found[0])
    said = ", ".join(spell(group, ENGLISH_DIGITS) for group in groups)
    return ("plus " if "+" in found[0] else "") + said


def ordinal(found: re.Match[str]) -> str:
    """Return an ordinal."""
    number = int(found[1].replace(",", ""))
    return spaced(found, english_ordinal(number) if number else found[0])


def ruler(found: re.Match[str]) -> str:
    """Return who is the second, or the eighth, of that name."""
    number = roman(found[2])
    return f"{found[1]} the {english_ordinal(number)}" if number else found[0]


def numeral(found: re.Match[str]) -> str:
    """Return a name with the Roman numeral behind it as a number."""
    number = roman(found[2])
    return f"{found[1]} {english_cardinal(number)}" if number else found[0]


def year(found: re.Match[str]) -> str:
    """Return a year."""
    return english_year(int(found[0]))


def decade(found: re.Match[str]) -> str:
    """Return ten years of a century."""
    if found[2] == "0":
        return f"{english_year(int(found[1] + '00'))}s"
    return f"{english_cardinal(int(found[1]))} {tens(found[2])}"


def short_decade(found: re.Match[str]) -> str:
    """Return ten years without their century."""
    return found[1] + tens(found[2])


def tens(digit: str) -> str:
    """Return ten years by their first digit."""
    return english_cardinal(int(digit) * 10)[:-1] + "ies" if digit != "1" else "tens"


def fraction(found: re.Match[str]) -> str:
    """Return a fraction, or a mark out of so many."""
    above, below = int(found[1]), int(found[2])
    if (above, below) == (24, 7):
        return "twenty-four seven"
    if above == below == 50:
        return f"{english_cardinal(above)} {english_cardinal(below)}"
    if not 2 <= below <= 9 or not 0 < above < below:
        return f"{english_cardinal(above)} {'over' if above > below else 'out of'} {english_cardinal(below)}"
    return part(above, below)


def mixed(found: re.Match[str]) -> str:
    """Return a number and a fraction."""
    above, below = int(found[2]), int(found[3])
    if above >= below:
        return found[0]
    said = part(above, below)
    return f"{english_number(found[1])} and {'a' + said[3:] if above == 1 else said}"


def part(above: int, below: int) -> str:
    """Return a fraction of one: ``three quarters``."""
    name = DENOMINATORS.get(below) or english_ordinal(below) + "*"
    return f"{english_cardinal(above)} {form_of(name, many=above > 1)}"


def vulgar(found: re.Match[str]) -> str:
    """Return a fraction that is one character."""
    above, below = FRACTIONS[found[2]]
    said = part(above, below)
    if not found[1]:
        return spaced(found, said)
    return spaced(found, f"{english_number(found[1])} and {'a' + said[3:] if said.startswith('one ') else said}")


def power(found: re.Match[str]) -> str:
    """Return a raised number."""
    exponent = found[0].translate(RAISED)
    if exponent in ("2", "3"):
        return spaced(found, " squared" if exponent == "2" else " cubed")
    return spaced(found, f" to the power of {exponent.replace('-', 'minus ')}")


def span(found: re.Match[str]) -> str:
    """Return the first number of two with a dash between them, and the word for the dash."""
    first, second = (float(part) for part in found.groups())
    return f"{found[1]} {'to' if first < second or first < 100 else 'dash'} "


def plain(found: re.Match[str]) -> str:
    """Return a number."""
    return spaced(found, english_number(found[0]))


def code(found: re.Match[str]) -> str:
    """Return a code, digit by digit."""
    return found[1] + spell(found[2], ENGLISH_DIGITS)
