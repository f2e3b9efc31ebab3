"""The words of English that stand behind abbreviations, units, prices, signs and fractions."""

from __future__ import annotations

MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
SHORT_MONTHS = {
    "Jan": "January", "Feb": "February", "Mar": "March", "Apr": "April", "Jun": "June", "Jul": "July", "Aug": "August",
    "Sep": "September", "Sept": "September", "Oct": "October", "Nov": "November", "Dec": "December",
}  # fmt: skip
TITLES = {
    "Mr": "Mister", "Mrs": "Missus", "Ms": "Miz", "Dr": "Doctor", "Drs": "Doctors", "Prof": "Professor",
    "St": "Saint", "Sts": "Saints", "Gen": "General", "Col": "Colonel", "Capt": "Captain", "Lt": "Lieutenant",
    "Sgt": "Sergeant", "Gov": "Governor", "Sen": "Senator", "Rep": "Representative", "Pres": "President",
    "Rev": "Reverend", "Hon": "Honorable", "Mt": "Mount", "Ft": "Fort", "Messrs": "Messieurs", "Maj": "Major",
    "Cpl": "Corporal", "Adm": "Admiral", "Fr": "Father", "Supt": "Superintendent",
}  # fmt: skip
"""Before a name."""
STREETS = {
    "St": "Street", "Ave": "Avenue", "Av": "Avenue", "Blvd": "Boulevard", "Rd": "Road", "Dr": "Drive", "Ln": "Lane",
    "Hwy": "Highway", "Pkwy": "Parkway", "Sq": "Square", "Ct": "Court", "Pl": "Place", "Ter": "Terrace",
}  # fmt: skip
"""Behind a name, or a number that is one: 5th Ave."""
ABBREVIATIONS = {
    "etc": "et cetera", "vs": "versus", "approx": "approximately", "dept": "department", "jr": "junior",
    "sr": "senior", "inc": "incorporated", "ltd": "limited", "corp": "corporation", "co": "company", "max": "maximum",
    "min": "minimum", "est": "established", "ext": "extension", "apt": "apartment", "tel": "telephone",
    "misc": "miscellaneous", "hrs": "hours", "hr": "hour", "mins": "minutes", "secs": "seconds",
    "yrs": "years", "cf": "compare", "viz": "namely", "al": "al", "ca": "circa", "govt": "government",
    "univ": "university", "assn": "association", "bldg": "building", "mr": "mister", "mrs": "missus", "dr": "doctor",
    "prof": "professor", "ave": "avenue", "blvd": "boulevard", "rd": "road",
}  # fmt: skip
"""With a full stop behind them."""
ENDING = frozenset({
    "etc", "inc", "ltd", "corp", "dept", "govt", "bldg", "univ", "assn", "misc", "min", "mins", "sec", "secs", "hr",
    "hrs", "yrs", "blvd",
})  # fmt: skip
"""Those that may stand at the end of a sentence."""
BEFORE_NUMBERS = {
    "no": "number", "nos": "numbers", "p": "page", "pp": "pages", "vol": "volume", "fig": "figure", "ch": "chapter",
    "chap": "chapter", "sec": "section", "art": "article", "eq": "equation", "ver": "version", "v": "version",
    "para": "paragraph", "mon": "Monday", "tue": "Tuesday", "tues": "Tuesday", "wed": "Wednesday",
    "thu": "Thursday", "thurs": "Thursday", "fri": "Friday", "sat": "Saturday", "sun": "Sunday",
}  # fmt: skip
WORDS_TOO = frozenset({"co", "al", "est", "min", "max", "apt", "ca", "hr", "tel", "ext", "dr", "ave", "rd"})
"""Those that are words or names, too: "His name is Max." They are meant where the sentence goes on."""
SHORT_WORDS = {"w/o": "without", "w/": "with", "b/c": "because", "vs": "versus", "approx": "approximately"}
UNITS = {
    "km": "kilometer*", "m": "meter*", "cm": "centimeter*", "mm": "millimeter*", "μm": "micrometer*", "mi": "mile*",
    "yd": "yard*", "ft": "foot|feet", "km²": "square kilometer*", "m²": "square meter*", "cm²": "square centimeter*",
    "ft²": "square foot|square feet", "sq ft": "square foot|square feet", "km2": "square kilometer*",
    "m2": "square meter*", "m³": "cubic meter*", "m3": "cubic meter*", "cm³": "cubic centimeter*", "ha": "hectare*",
    "kg": "kilogram*", "g": "gram*", "mg": "milligram*", "μg": "microgram*", "lb": "pound*", "lbs": "pound*",
    "oz": "ounce*", "fl oz": "fluid ounce*", "t": "ton*", "l": "liter*", "L": "liter*", "dl": "deciliter*",
    "cl": "centiliter*", "ml": "milliliter*", "mL": "milliliter*", "gal": "gallon*", "pt": "pint*", "qt": "quart*",
    "tsp": "teaspoon*", "tbsp": "tablespoon*", "h": "hour*", "hr": "hour*", "hrs": "hour*", "min": "minute*",
    "mins": "minute*", "s": "second*", "sec": "second*", "secs": "second*", "ms": "millisecond*", "yr": "year*",
    "yrs": "year*", "°C": "degree* Celsius", "°F": "degree* Fahrenheit", "°": "degree*", "%": "percent",
    "‰": "per thousand", "mph": "mile* per hour", "mpg": "mile* per gallon", "kph": "kilometer* per hour",
    "fps": "frame* per second", "rpm": "revolution* per minute", "W": "watt*", "kW": "kilowatt*", "MW": "megawatt*",
    "GW": "gigawatt*", "Wh": "watt hour*", "kWh": "kilowatt hour*", "MWh": "megawatt hour*", "V": "volt*",
    "kV": "kilovolt*", "mV": "millivolt*", "A": "amp*", "mA": "milliamp*", "Ah": "amp hour*", "mAh": "milliamp hour*",
    "Ω": "ohm*", "Hz": "hertz", "kHz": "kilohertz", "MHz": "megahertz", "GHz": "gigahertz", "KB": "kilobyte*",
    "kB": "kilobyte*", "MB": "megabyte*", "GB": "gigabyte*", "TB": "terabyte*", "bit": "bit*", "kbit": "kilobit*",
    "Mbit": "megabit*", "Gbit": "gigabit*", "Mb": "megabit*", "Gb": "gigabit*", "Mbps": "megabit* per second",
    "Gbps": "gigabit* per second", "kbps": "kilobit* per second", "Pa": "pascal*", "hPa": "hectopascal*",
    "kPa": "kilopascal*", "bar": "bar*", "mbar": "millibar*", "psi": "p s i", "dB": "decibel*", "lm": "lumen*",
    "lx": "lux", "kJ": "kilojoule*", "cal": "calorie*", "kcal": "kilocalorie*", "ppm": "parts per million",
    "px": "pixel*", "mol": "mole*",
}  # fmt: skip
"""What is said behind a number: ``*`` is the plural's s."""
PER = {
    "h": "hour", "hr": "hour", "hour": "hour", "s": "second", "sec": "second", "second": "second", "min": "minute",
    "minute": "minute", "day": "day", "d": "day", "week": "week", "wk": "week", "month": "month", "mo": "month",
    "year": "year", "yr": "year", "night": "night", "person": "person", "kg": "kilogram", "g": "gram", "lb": "pound",
    "oz": "ounce", "l": "liter", "L": "liter", "dl": "deciliter", "ml": "milliliter", "gal": "gallon", "m": "meter",
    "km": "kilometer", "mi": "mile", "ft": "foot", "m²": "square meter", "m2": "square meter", "m³": "cubic meter",
    "m3": "cubic meter", "km²": "square kilometer", "cm²": "square centimeter", "kWh": "kilowatt hour",
    "ha": "hectare", "100 km": "hundred kilometers", "100": "hundred", "unit": "unit", "user": "user",
}  # fmt: skip
MONEY = {
    "$": ("dollar*", "cent*"), "USD": ("dollar*", "cent*"), "US$": ("dollar*", "cent*"), "€": ("euro*", "cent*"),
    "EUR": ("euro*", "cent*"), "£": ("pound*", "penny|pence"), "GBP": ("pound*", "penny|pence"), "¥": ("yen", ""),
    "JPY": ("yen", ""), "CHF": ("Swiss franc*", "centime*"), "CAD": ("Canadian dollar*", "cent*"),
    "A$": ("Australian dollar*", "cent*"), "C$": ("Canadian dollar*", "cent*"),
}  # fmt: skip
LARGE = {
    "k": "thousand", "K": "thousand", "M": "million", "m": "million", "B": "billion", "bn": "billion", "b": "billion",
    "T": "trillion", "million": "million", "billion": "billion", "trillion": "trillion", "thousand": "thousand",
}  # fmt: skip
SIGNS = {
    "%": "percent", "‰": "per thousand", "&": "and", "+": "plus", "=": "equals", "±": "plus or minus",
    "≈": "about", "~": "about", "≠": "is not equal to", "≤": "at most", "≥": "at least", "<": "less than",
    ">": "greater than", "×": "times", "÷": "divided by", "→": "to", "←": "from", "↔": "and", "⇒": "so", "↑": "up",
    "↓": "down", "√": "the square root of", "∞": "infinity", "§": "section", "@": "at", "€": "euros", "$": "dollars",
    "£": "pounds", "¥": "yen", "°": "degrees", "^": "to the power of", "−": "minus", "#": "",
}  # fmt: skip
RULERS = (
    "Louis|Charles|Henry|Francis|Philip|John|Paul|Pius|Benedict|Leo|Clement|Gregory|Innocent|Urban|Napoleon|William|"
    "Elizabeth|Edward|George|James|Richard|Robert|Alexander|Nicholas|Peter|Catherine|Frederick|Ferdinand|Alfonso|"
    "Boniface|Christian|Gustav|Albert|Leopold|Mary|Victoria|Ivan|Ramesses|Ramses|Rudolf|Wilhelm|Victor|Margaret|Umberto"
)
NUMBERED = (
    "[Cc]hapter|[Vv]olume|[Aa]ct|[Ss]cene|[Pp]art|[Bb]ook|[Aa]rticle|[Tt]itle|[Aa]nnex|[Pp]hase|[Tt]ype|[Cc]lass|"
    "[Ll]evel|[Ss]ection|[Ss]tep|[Gg]roup|[Dd]ivision|[Ee]pisode|[Ss]eason|[Ww]ar|[Zz]one|[Mm]ark|[Vv]ersion|Bowl|Tier"
)
YEAR_BEFORE = (
    "in|since|from|until|till|by|before|after|around|about|circa|year|during|early|late|mid|spring|summer|autumn|fall|"
    "winter|of|and|to|between|class|January|February|March|April|May|June|July|August|September|October|November|December"
)
"""Words behind which four digits are a year."""
