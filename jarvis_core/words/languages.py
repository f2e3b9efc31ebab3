"""Languages: their codes and their names."""

from __future__ import annotations

import re
from collections.abc import Collection

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


COMMON_WORDS = {
    code: frozenset(words.split())
    for code, words in {
        "fr": """
        le la les un une des du de au aux et ou où est es suis sont sommes êtes était sera serons ai as avons avez ont fait
        faire fais faut peux peut pouvez veux je tu il elle nous vous ils elles moi toi lui mon ma mes ton ta tes son sa ses
        notre votre leur ce cet cette ces ça c qui que qu quoi quel quelle quels quelles quand comment combien pourquoi ne
        pas jamais rien dans sur sous pour par avec sans chez entre vers depuis à y en se s te me d l n j m t si oui non
        merci bonjour bonsoir salut bonne nuit plaît alors aussi très bien mais donc car parce tout tous toute cela
        aujourd'hui aujourd hui demain hier maintenant heure heures jour temps maison lumière allume éteins mets raconte deux trois quatre cinq sept huit neuf dix vingt cent dis
        dit donne appelle ferme ouvre lance joue baisse monte météo
        """,
        "en": """
        the a an of to and or is are am was were be been being do does did done have has had can could will would shall
        should may must i you he she it we they me him her us them my your his its our their this that these those what
        which who whom whose when where why how not no yes never nothing in on at by for with without from about into over
        under there here than then so but because if as up down out off some any much many more most very well just please
        thanks thank hello hi good morning evening night today tomorrow yesterday now time day turn set play tell call say
        send give open close stop start light lights weather plus one two three four five six seven eight nine ten twenty hundred let's don t s m re ll ve
        """,
        "de": """
        der die das den dem des ein eine einen einem einer und oder ist sind bin bist war waren sein hat habe haben hast
        wird werden kann kannst können ich du er sie es wir ihr mich dich mir dir uns mein dein nicht kein keine ja nein
        was wer wie wo wann warum welche welcher in im am auf mit von zu zum zur für bei aus nach über unter auch noch nur
        sehr bitte danke hallo guten morgen heute gestern jetzt uhr
        """,
        "es": """
        el la los las un una unos unas de del al y o es son soy eres está están fue ser estar hay ha he han tengo tiene yo
        tú él ella nosotros ellos me te se mi tu su nuestro qué quién cómo cuándo dónde cuánto cuánta cuántos cuál por
        para con sin en sobre no sí muy más pero porque que gracias hola buenos buenas días noches hoy mañana ayer ahora
        hora
        """,
        "it": """
        il lo la i gli le un uno una di del della dei delle al alla e o è sono sei era essere ho hai ha abbiamo io tu lui
        lei noi voi loro mi ti si mio tuo suo che chi cosa come quando dove perché quanto quanti quale per con senza in su
        da non sì molto più ma anche grazie ciao buongiorno buonasera oggi domani ieri adesso ora ore
        """,
        "pt": """
        o a os as um uma de do da dos das ao à e ou é são sou está estão foi ser estar há tem tenho eu tu ele ela nós eles
        me te se meu minha seu sua que quem como quando onde quanto quantos qual por para com sem em no na não sim muito
        mais mas porque obrigado obrigada olá bom boa dia noite hoje amanhã ontem agora horas
        """,
        "nl": """
        de het een en of is zijn ben bent was waren heb hebt heeft hebben kan kunt kunnen wil zal ik jij je hij zij ze wij
        we jullie mij mijn jouw zijn haar ons niet geen ja nee wat wie hoe waar wanneer waarom welke in op aan met van
        naar voor bij uit over ook nog maar zeer alsjeblieft dank bedankt hallo goedemorgen vandaag morgen gisteren nu uur
        """,
    }.items()
}
"""The words that a language is known by, for those that a house is likely to speak."""
LOOKED_AT_CHARS = 400
"""Of a text: enough to tell, however long it is."""
_WORD = re.compile(r"[^\W\d_]+")


def language_of(text: str, languages: Collection[str]) -> str | None:
    """
    Return the one of *languages* (codes) whose most common words *text* has most of; None where its words do not tell.

    A language without a list of words here is never found.
    """
    words = _WORD.findall(text[:LOOKED_AT_CHARS].lower())
    counts = sorted(
        ((sum(word in COMMON_WORDS[code] for word in words), code) for code in languages if code in COMMON_WORDS),
        reverse=True,
    )
    if not counts or not counts[0][0] or (len(counts) > 1 and counts[0][0] == counts[1][0]):
        return None
    return counts[0][1]
