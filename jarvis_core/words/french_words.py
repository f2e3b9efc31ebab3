"""The words of French that stand behind abbreviations, units, prices, signs and fractions."""

from __future__ import annotations

MONTHS = (
    "janvier", "février", "mars", "avril", "mai", "juin", "juillet", "août", "septembre", "octobre", "novembre",
    "décembre",
)  # fmt: skip
SHORT_MONTHS = {
    "janv": "janvier", "jan": "janvier", "févr": "février", "fév": "février", "fevr": "février", "avr": "avril",
    "juil": "juillet", "sept": "septembre", "oct": "octobre", "nov": "novembre", "déc": "décembre", "dec": "décembre",
}  # fmt: skip
TITLES = {
    "M": "Monsieur", "MM": "Messieurs", "Mme": "Madame", "Mmes": "Mesdames", "Mlle": "Mademoiselle",
    "Mlles": "Mesdemoiselles", "Dr": "Docteur", "Drs": "Docteurs", "Pr": "Professeur", "Me": "Maître",
    "Mgr": "Monseigneur", "Mr": "Monsieur", "St": "Saint", "Ste": "Sainte", "Sts": "Saints", "Stes": "Saintes",
}  # fmt: skip
ABBREVIATIONS = {
    "etc": "et cétéra", "cf": "voir", "env": "environ", "tél": "téléphone", "tel": "téléphone", "bd": "boulevard",
    "blvd": "boulevard", "boul": "boulevard", "bld": "boulevard", "av": "avenue", "pl": "place", "rte": "route",
    "fg": "faubourg", "fbg": "faubourg", "sq": "square", "imp": "impasse", "chem": "chemin", "ch": "chemin",
    "hab": "habitants", "max": "maximum", "min": "minimum", "approx": "approximativement", "éd": "édition",
    "arr": "arrondissement", "arrt": "arrondissement", "dép": "département", "cie": "compagnie", "sté": "société",
    "rdv": "rendez-vous", "qqn": "quelqu'un", "qqch": "quelque chose", "ex": "exemple", "resp": "respectivement",
    "dr": "docteur", "pr": "professeur", "st": "saint", "ste": "sainte", "mme": "madame", "mlle": "mademoiselle",
    "svp": "s'il vous plaît",
    "stp": "s'il te plaît", "réf": "référence", "apt": "appartement", "appt": "appartement", "app": "appartement",
    "ét": "étage", "bât": "bâtiment", "suppl": "supplément", "vs": "contre", "moy": "moyenne", "pers": "personnes",
}  # fmt: skip
"""With a full stop behind them."""
WORDS_TOO = frozenset({
    "tel", "max", "min", "arr", "cie", "ex", "dr", "pr", "st", "apt", "app", "ét", "vs", "imp", "ch", "pl", "sq",
    "fg", "av", "bd", "moy", "resp", "éd",
})  # fmt: skip
"""Those that are words or names, too: "Je m'appelle Max." They are meant where the sentence goes on."""
ENDING = frozenset(
    {"etc", "hab", "cie", "sté", "svp", "stp", "pers", "qqn", "qqch", "min", "rdv", "arrt", "dép", "appt"}
) | frozenset(SHORT_MONTHS)
"""Those that may stand at the end of a sentence."""
BEFORE_NUMBERS = {
    "p": "page", "pp": "pages", "vol": "volume", "chap": "chapitre", "art": "article", "fig": "figure",
    "t": "tome", "no": "numéro", "nos": "numéros", "sect": "section", "lun": "lundi", "mar": "mardi",
    "mer": "mercredi", "jeu": "jeudi", "ven": "vendredi", "sam": "samedi", "dim": "dimanche",
    "ch": "chapitre",
} | SHORT_MONTHS  # fmt: skip
BEFORE_NAMES = frozenset({"bd", "av", "pl", "ch", "st", "ste", "imp", "sq", "fg"})
"""Words of their own, or parts of others, but where a name or "de" follows."""
SHORT_WORDS = {"svp": "s'il vous plaît", "stp": "s'il te plaît", "rdv": "rendez-vous", "bd": "boulevard", "blvd": "boulevard", "tél": "téléphone", "rte": "route"}  # fmt: skip
"""Without a full stop, too."""
UNITS = {
    "km": "kilomètre*", "m": "mètre*", "dm": "décimètre*", "cm": "centimètre*", "mm": "millimètre*",
    "μm": "micromètre*", "km²": "kilomètre* carré*", "m²": "mètre* carré*", "cm²": "centimètre* carré*",
    "m³": "mètre* cube*", "cm³": "centimètre* cube*", "km2": "kilomètre* carré*", "m2": "mètre* carré*",
    "m3": "mètre* cube*", "ha": "hectare*", "kg": "kilo*", "g": "gramme*", "mg": "milligramme*", "μg": "microgramme*",
    "t": "+tonne*", "l": "litre*", "L": "litre*", "dl": "décilitre*", "cl": "centilitre*", "cL": "centilitre*",
    "ml": "millilitre*", "mL": "millilitre*", "hl": "hectolitre*", "min": "+minute*", "mn": "+minute*", "s": "+seconde*",
    "sec": "+seconde*", "ms": "+milliseconde*", "h": "+heure*", "j": "jour*", "°C": "degré* Celsius",
    "°F": "degré* Fahrenheit", "°": "degré*", "%": "pour cent", "‰": "pour mille", "W": "watt*",
    "kW": "kilowatt*", "MW": "mégawatt*", "GW": "gigawatt*", "Wh": "wattheure*", "kWh": "kilowattheure*",
    "MWh": "mégawattheure*", "V": "volt*", "kV": "kilovolt*", "mV": "millivolt*", "A": "ampère*", "mA": "milliampère*",
    "Ah": "ampère*-heure*", "mAh": "milliampère*-heure*", "Ω": "ohm*", "Hz": "hertz", "kHz": "kilohertz",
    "MHz": "mégahertz", "GHz": "gigahertz", "ko": "kilooctet*", "Ko": "kilooctet*", "Mo": "mégaoctet*",
    "Go": "gigaoctet*", "To": "téraoctet*", "KB": "kilooctet*", "MB": "mégaoctet*", "GB": "gigaoctet*",
    "TB": "téraoctet*", "bit": "bit*", "kbit": "kilobit*", "Mbit": "mégabit*", "Gbit": "gigabit*", "Mb": "mégabit*",
    "Gb": "gigabit*", "Pa": "pascal*", "hPa": "hectopascal*", "kPa": "kilopascal*", "bar": "bar*", "mbar": "millibar*",
    "dB": "décibel*", "lm": "lumen*", "lx": "lux", "kJ": "kilojoule*", "cal": "+calorie*",
    "kcal": "+kilocalorie*", "ppm": "ppm", "px": "pixel*", "tr": "tour*", "mol": "+mole*", "lb": "+livre*", "oz": "+once*", "ct": "centime*", "cts": "centime*",
}  # fmt: skip
"""What is said behind a number: ``*`` is the plural's s, ``+`` tells a feminine."""
PER = {
    "h": "heure", "s": "seconde", "min": "minute", "j": "jour", "jour": "jour", "mois": "mois", "an": "an",
    "semaine": "semaine", "nuit": "nuit", "personne": "personne", "pers": "personne", "heure": "heure", "kg": "kilo",
    "g": "gramme", "l": "litre", "L": "litre", "dl": "décilitre", "ml": "millilitre", "m": "mètre", "km": "kilomètre",
    "m²": "mètre carré", "m³": "mètre cube", "m2": "mètre carré", "m3": "mètre cube", "km²": "kilomètre carré",
    "kWh": "kilowattheure", "ha": "hectare", "cm²": "centimètre carré", "100 km": "cent kilomètres", "100": "cent",
    "pièce": "pièce", "unité": "unité", "minute": "minute", "seconde": "seconde", "tr": "tour", "année": "année",
}  # fmt: skip
MONEY = {
    "€": ("euro*", "centime*"), "EUR": ("euro*", "centime*"), "$": ("dollar*", "cent*"), "USD": ("dollar*", "cent*"),
    "$US": ("dollar*", "cent*"), "US$": ("dollar*", "cent*"), "CAD": ("dollar* canadien*", "cent*"),
    "£": ("+livre*", "pence"), "GBP": ("+livre* sterling", "pence"), "¥": ("yen*", ""), "JPY": ("yen*", ""),
    "CHF": ("franc* suisse*", "centime*"), "Fr": ("franc*", "centime*"),
}  # fmt: skip
LARGE = {"k": 10**3, "K": 10**3, "M": 10**6, "Md": 10**9, "Mrd": 10**9, "Mds": 10**9}
SIGNS = {
    "%": "pour cent", "‰": "pour mille", "&": "et", "+": "plus", "=": "égale", "±": "plus ou moins", "≈": "environ",
    "~": "environ", "≠": "différent de", "≤": "inférieur ou égal à", "≥": "supérieur ou égal à", "<": "inférieur à",
    ">": "supérieur à", "×": "fois", "÷": "divisé par", "→": "vers", "←": "depuis", "↔": "et", "⇒": "donc",
    "↑": "en hausse", "↓": "en baisse", "√": "racine de", "∞": "infini", "§": "paragraphe", "@": "arobase",
    "€": "euros", "$": "dollars", "£": "livres", "¥": "yens", "°": "degrés", "^": "puissance", "−": "moins",
    "²": "au carré", "³": "au cube", "#": "",
}  # fmt: skip
DENOMINATORS = {2: "demi", 3: "tiers", 4: "quart"}
HALVED = r"heures?|journées?|tasses?|cuillères?|cuillerées?|douzaines?|bouteilles?|livres?|pommes?|baguettes?|tomates?|gousses?|portions?|tablettes?|finales?|lunes?"
RULERS = (
    "Louis|Charles|Henri|Henry|George|Elizabeth|François|Philippe|Jean|Paul|Pie|Benoît|Léon|Clément|Grégoire|Innocent|Urbain|Napoléon|"
    "Guillaume|Élisabeth|Elisabeth|Édouard|Edouard|Georges|Jacques|Richard|Robert|Alexandre|Nicolas|Pierre|Catherine|"
    "Frédéric|Ferdinand|Alphonse|Boniface|Christian|Gustave|Albert|Léopold|Baudouin|Rainier|Victor-Emmanuel|Ramsès"
)
NUMBERED = (
    "[Cc]hapitre|[Tt]ome|[Aa]cte|[Ss]cène|[Pp]artie|[Vv]olume|[Ll]ivre|[Aa]rticle|[Tt]itre|[Aa]nnexe|[Pp]hase|[Tt]ype|"
    "[Cc]lasse|[Nn]iveau|[Ss]ection|[Éé]tape|[Gg]roupe|[Dd]ivision|[Éé]pisode|[Ss]aison|[Mm]ondiale|[Zz]one|[Pp]aris"
)

FEMININE = (
    "adresse|alarme|ampoule|année|application|armoire|assiette|baguette|banane|barre|boîte|bouteille|branche|caisse|calorie|"
    "caméra|carotte|carte|case|cause|cave|chaise|chambre|chanson|chemise|chose|clé|clef|colonne|copie|couche|couleur|courbe|"
    "cuillère|cuillerée|demande|dizaine|dose|douche|douzaine|émission|enceinte|enveloppe|équipe|erreur|étagère|étape|étoile|"
    "famille|femme|fenêtre|feuille|fiche|figure|fille|fin|fleur|fois|forme|fraise|gare|gorgée|gousse|goutte|heure|histoire|"
    "huile|idée|image|journée|lampe|langue|leçon|lettre|ligne|liste|livre|lumière|machine|main|maison|marche|masse|matinée|"
    "mesure|minute|montre|mouche|musique|note|nuit|orange|page|paire|part|partie|pause|période|personne|phase|photo|phrase|"
    "pièce|pile|pincée|place|plante|plaque|poire|pomme|porte|portion|prise|question|radio|raison|rangée|recette|réponse|route|"
    "rue|salle|scène|seconde|semaine|série|soirée|sorte|table|tablette|tâche|tasse|télé|température|tête|tomate|tonne|touche|"
    "tranche|valise|vidéo|ville|visite|voie|voiture|voix|zone|"
    r"[^\W\d_]+(?:tion|sion|ette|ance|ence|esse|trice|euse)"
)
"""Nouns before which it is "une" and "vingt et une": the commonest, and by their endings."""
