"""
What people told their assistant and what they ask it later: made from templates, the same every time.

Each person has a circle of people of whom the same kinds of facts are known, so that a name or a kind alone never tells
which entry is meant; small talk shares names and words with the facts. Statements and questions of a kind are worded
differently on purpose, and some questions come in the other language, with a name misspelt, or ask for a code.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal, NamedTuple

Language = Literal["fr", "en"]
Kind = Literal[
    "same words", "paraphrase", "other language", "misspelt name", "number or code", "detail", "vague", "several"
]
"""How a question relates to what answers it; `memory_heldout` has other kinds than are made here."""


class Question(NamedTuple):
    """A question, and which entries answer it."""

    text: str
    kind: Kind
    language: Language
    answers: frozenset[int]
    """Places in the person's entries."""


class Person(NamedTuple):
    """What one person told, in order, and asks."""

    name: str
    entries: list[str]
    questions: list[Question]


class Attribute(NamedTuple):
    """A kind of fact: how it is told, how it is asked for, and what it may be, each in (French, English)."""

    values: list[tuple[str, str]]
    told: tuple[list[str], list[str]]
    asked: tuple[list[str], list[str]]


NAMES = [
    "Gaëlle", "Mathieu", "Sébastien", "Camille", "Aurélie", "Noémie", "Théo", "Océane", "Jérôme", "Benoît", "Clémence", "Édouard", "Françoise", "Hélène", "Yannick", "Maëlys", "Loïc", "Solène", "Thibault", "Véronique", "Olivia", "Callum", "Freya", "Hamish", "Imogen", "Jasper", "Keira", "Lachlan", "Matilda", "Nigel", "Priya", "Rohan", "Saoirse", "Tabitha", "Umberto", "Wilhelmina", "Xavier", "Yolanda", "Zachary", "Beatrix", "Cedric", "Dorothea", "Ezekiel", "Felicity", "Gideon", "Harriet",
]  # fmt: skip
RELATIONS = [
    ("ma sœur", "my sister"), ("mon frère", "my brother"), ("ma cousine", "my cousin"), ("mon voisin", "my neighbour"),
    ("ma collègue", "my colleague"), ("mon oncle", "my uncle"), ("ma tante", "my aunt"), ("mon neveu", "my nephew"),
    ("ma belle-mère", "my mother-in-law"), ("mon patron", "my boss"), ("ma nièce", "my niece"), ("mon dentiste", "my dentist"),
    ("mon ami d'enfance", "my childhood friend"), ("ma marraine", "my godmother"), ("mon coloc", "my flatmate"),
    ("mon entraîneur", "my coach"), ("ma professeure", "my teacher"), ("mon filleul", "my godson"),
]  # fmt: skip
CITIES = [
    (name, name) for name in (
        "Grenoble", "Nantes", "Rennes", "Toulouse", "Metz", "Dijon", "Bristol", "Leeds", "Cardiff", "Aberdeen", "Oslo", "Porto", "Turin", "Ghent", "Bilbao", "Graz",
    )
]  # fmt: skip
ATTRIBUTES: dict[str, Attribute] = {
    "home": Attribute(
        CITIES,
        (
            ["{n} habite à {v} depuis l'automne.", "{n} vient de s'installer à {v}.", "Je passe chez {n}, son appartement est à {v}."],
            ["{n} has lived in {v} since autumn.", "{n} just moved to {v}.", "I am visiting {n}, the flat is in {v}."],
        ),
        (
            ["Dans quelle ville réside {n} ?", "C'est où, le domicile de {n} ?"],
            ["Which town is {n}'s home in?", "Where does {n} reside these days?"],
        ),
    ),
    "job": Attribute(
        [("infirmière", "nurse"), ("plombier", "plumber"), ("architecte", "architect"), ("boulanger", "baker"), ("avocate", "lawyer"),
         ("pompier", "firefighter"), ("comptable", "accountant"), ("vétérinaire", "vet"), ("menuisier", "carpenter"), ("traductrice", "translator")],
        (
            ["{n} travaille comme {v}.", "{n} a été embauchée comme {v}.", "{n} a repris ses études pour devenir {v}."],
            ["{n} works as a {v}.", "{n} got hired as a {v}.", "{n} went back to school to become a {v}."],
        ),
        (["Quel est le métier de {n} ?", "{n} fait quoi dans la vie ?"], ["What does {n} do for a living?", "What is {n}'s profession?"]),
    ),
    "pet": Attribute(
        [("un lapin nommé Biscuit", "a rabbit named Biscuit"), ("un perroquet nommé Pacha", "a parrot named Pacha"),
         ("une tortue nommée Flash", "a tortoise named Flash"), ("un labrador nommé Nougat", "a labrador named Nougat"),
         ("un chat siamois nommé Moka", "a siamese cat named Moka"), ("un hamster nommé Plume", "a hamster named Plume")],
        (
            ["{n} a adopté {v}.", "{n} s'occupe de {v}.", "Chez {n} il y a maintenant {v}."],
            ["{n} adopted {v}.", "{n} looks after {v}.", "At {n}'s there is now {v}."],
        ),
        (["Quel animal de compagnie a {n} ?", "{n} possède une bête à la maison ?"], ["What pet does {n} have?", "Which animal does {n} keep at home?"]),
    ),
    "allergy": Attribute(
        [("aux noix", "nuts"), ("au pollen", "pollen"), ("aux fruits de mer", "shellfish"), ("à la pénicilline", "penicillin"),
         ("au lait", "milk"), ("aux piqûres de guêpe", "wasp stings"), ("à la poussière", "dust")],
        (
            ["{n} est allergique {v}.", "{n} a fait une réaction {v}, il a fallu appeler le médecin.", "Attention, {n} ne supporte pas d'être exposé {v}."],
            ["{n} is allergic to {v}.", "{n} had a reaction to {v} and we called the doctor.", "Careful, {n} cannot stand any {v}."],
        ),
        (["Qu'est-ce qui rend {n} malade ?", "Que faut-il éviter quand {n} vient manger ?"], ["What makes {n} ill?", "What must be avoided when {n} comes for dinner?"]),
    ),
    "hobby": Attribute(
        [("l'escalade", "climbing"), ("la poterie", "pottery"), ("les échecs", "chess"), ("l'aquarelle", "watercolour"), ("le kayak", "kayaking"),
         ("le tricot", "knitting"), ("l'apiculture", "beekeeping"), ("la photographie", "photography"), ("l'escrime", "fencing")],
        (
            ["{n} s'est mis à {v}.", "Tous les samedis {n} pratique {v}.", "{n} ne parle plus que d'une chose : {v}."],
            ["{n} took up {v}.", "Every Saturday {n} goes {v}.", "{n} talks of nothing but {v}."],
        ),
        (["Quel est le passe-temps de {n} ?", "Comment {n} occupe ses loisirs ?"], ["What is {n}'s hobby?", "How does {n} spend free time?"]),
    ),
    "dish": Attribute(
        [("la raclette", "raclette"), ("les lasagnes", "lasagna"), ("le couscous", "couscous"), ("la bouillabaisse", "bouillabaisse"),
         ("les sushis", "sushi"), ("la tarte au citron", "lemon tart"), ("le curry de pois chiches", "chickpea curry"), ("la ratatouille", "ratatouille")],
        (
            ["{n} adore {v}.", "Pour faire plaisir à {n}, on prépare toujours {v}.", "{n} a repris trois fois de {v}."],
            ["{n} loves {v}.", "To please {n} we always cook {v}.", "{n} had three helpings of {v}."],
        ),
        (["Quel est le plat préféré de {n} ?", "Que cuisiner pour {n} ?"], ["What is {n}'s favourite meal?", "What should I cook for {n}?"]),
    ),
    "birthday": Attribute(
        [(f"{d} {f}", f"{e} {d}") for d, f, e in [(3, "mars", "March"), (17, "juillet", "July"), (28, "novembre", "November"), (9, "mai", "May"),
         (21, "octobre", "October"), (14, "janvier", "January"), (30, "août", "August"), (6, "décembre", "December")]],
        (
            ["{n} est né le {v}.", "On a soufflé les bougies de {n} le {v}.", "La naissance de {n}, c'était un {v}."],
            ["{n} was born on {v}.", "We blew out {n}'s candles on {v}.", "{n} turned a year older on {v}."],
        ),
        (["C'est quand l'anniversaire de {n} ?", "À quelle date faut-il fêter {n} ?"], ["When is {n}'s birthday?", "On which date do we celebrate {n}?"]),
    ),
    "car": Attribute(
        [("une Twingo jaune", "a yellow Twingo"), ("une Dacia grise", "a grey Dacia"), ("une Mini rouge", "a red Mini"), ("un fourgon blanc", "a white van"),
         ("une Tesla noire", "a black Tesla"), ("une vieille Saab verte", "an old green Saab")],
        (
            ["{n} roule en {v}.", "{n} s'est acheté {v}.", "{n} m'a ramené dans {v}."],
            ["{n} drives {v}.", "{n} bought {v}.", "{n} gave me a lift in {v}."],
        ),
        (["Quelle voiture a {n} ?", "Quel est le véhicule de {n} ?"], ["What car does {n} have?", "What vehicle does {n} own?"]),
    ),
    "instrument": Attribute(
        [("du violoncelle", "the cello"), ("de l'accordéon", "the accordion"), ("de la harpe", "the harp"), ("du saxophone", "the saxophone"),
         ("de la batterie", "the drums"), ("du piano", "the piano"), ("de la flûte", "the flute")],
        (
            ["{n} joue {v}.", "{n} prend des cours pour apprendre à jouer {v}.", "Au mariage, {n} a joué {v}."],
            ["{n} plays {v}.", "{n} takes lessons to learn {v}.", "At the wedding {n} performed on {v}."],
        ),
        (["Quel est l'instrument de musique de {n} ?", "{n} est musicien, de quoi ?"], ["Which musical instrument does {n} practise?", "What kind of musician is {n}?"]),
    ),
    "trip": Attribute(
        [("Islande", "Iceland"), ("Japon", "Japan"), ("Maroc", "Morocco"), ("Pérou", "Peru"), ("Norvège", "Norway"), ("Grèce", "Greece"), ("Canada", "Canada")],
        (
            ["{n} revient de deux semaines en {v}.", "{n} a pris l'avion pour : {v}.", "Les vacances de {n}, c'était {v}."],
            ["{n} is back from two weeks in {v}.", "{n} flew to {v}.", "{n} spent the holidays in {v}."],
        ),
        (["Où {n} est parti en voyage ?", "Quel pays étranger {n} a visité ?"], ["Where did {n} travel?", "Which foreign country has {n} visited?"]),
    ),
    "gift": Attribute(
        [("une montre ancienne", "an antique watch"), ("un télescope", "a telescope"), ("une écharpe en laine", "a woollen scarf"),
         ("un jeu de société", "a board game"), ("une cafetière italienne", "a moka pot"), ("un vélo pliant", "a folding bike")],
        (
            ["J'ai offert {v} à {n}.", "{n} a déballé {v} à Noël.", "Pour {n} j'avais choisi {v}."],
            ["I gave {n} {v}.", "{n} unwrapped {v} at Christmas.", "For {n} I had picked {v}."],
        ),
        (["Quel cadeau a reçu {n} ?", "Qu'est-ce que j'ai déjà donné comme présent à {n} ?"], ["What present did {n} get?", "Which gift have I already bought for {n}?"]),
    ),
    "health": Attribute(
        [("opéré du genou", "knee surgery"), ("soigné pour une migraine", "treatment for migraine"), ("vacciné contre la grippe", "a flu vaccination"),
         ("plâtré au poignet", "a cast on the wrist"), ("suivi pour le cœur", "a heart check-up")],
        (
            ["{n} a été {v}.", "À l'hôpital, {n} a été {v}.", "La semaine dernière {n} a été {v}."],
            ["{n} had {v}.", "At the hospital {n} had {v}.", "Last week {n} had {v}."],
        ),
        (["Quel problème de santé a eu {n} ?", "Pourquoi {n} a vu un docteur ?"], ["What health trouble did {n} have?", "Why did {n} see a physician?"]),
    ),
}  # fmt: skip
SMALL_TALK = (
    [
        "J'ai croisé {n} au marché, il pleuvait.", "{n} m'a appelé mais je n'ai pas répondu.", "Rappelle-moi d'écrire à {n} demain.",
        "{n} et {m} se sont encore disputés.", "On a bien ri avec {n} hier soir.", "{n} est passé en coup de vent.",
        "Je dois rendre son livre à {n}.", "{n} trouve que je travaille trop.", "{n} a oublié notre rendez-vous en ville.",
        "Le chien du voisin a aboyé quand {n} est arrivé.", "{n} m'a prêté sa voiture une fois.", "J'ai montré mes photos de voyage à {n}.",
        "{n} a demandé à {m} quel plat apporter.", "Au restaurant, {n} a payé pour {m}.", "{n} était en retard à cause du train.",
    ],
    [
        "I ran into {n} at the market, it was raining.", "{n} called but I did not pick up.", "Remind me to write to {n} tomorrow.",
        "{n} and {m} had another argument.", "We had a good laugh with {n} last night.", "{n} dropped by for a minute.",
        "I have to give {n} the book back.", "{n} thinks that I work too much.", "{n} forgot our appointment in town.",
        "The neighbour's dog barked when {n} arrived.", "{n} lent me a car once.", "I showed my travel photos to {n}.",
        "{n} asked {m} which meal to bring.", "At the restaurant {n} paid for {m}.", "{n} was late because of the train.",
    ],
)  # fmt: skip
OWN = [
    # (told in French, told in English, asked in French, asked in English): what is exact, and of the person's own.
    ("Le code du portail est {c}.", "The gate code is {c}.", "Comment j'ouvre l'entrée du jardin, c'est quoi le code ?", "What do I type to open the gate?"),
    ("Mon numéro d'adhérent à la salle de sport est {c}.", "My gym membership number is {c}.", "Numéro de la carte de la salle de sport ?", "What is my number at the gym?"),
    ("La référence du contrat d'assurance est {c}.", "The insurance policy reference is {c}.", "Quelle référence donner à l'assurance ?", "Which reference does the insurance want?"),
    ("La plaque de la remorque est {c}.", "The trailer's plate is {c}.", "Immatriculation de la remorque ?", "What is the registration of the trailer?"),
    ("Le mot de passe du wifi est {c}.", "The wifi password is {c}.", "Comment se connecter à internet à la maison ?", "How do guests get on the internet at home?"),
]  # fmt: skip
# What is asked of a long message is one detail of it, often by another word: (thing told, thing asked).
THINGS: tuple[list[tuple[str, str]], list[tuple[str, str]]] = (
    [
        ("le parapluie", "le parapluie"),
        ("la tondeuse", "la tondeuse"),
        ("le vélo", "la bicyclette"),
        ("les clés", "les clés"),
        ("le violon", "le violon"),
        ("la tente", "la tente"),
        ("le canapé", "le sofa"),
        ("la perceuse", "la perceuse"),
        ("le bocal de miel", "le miel"),
        ("les skis", "les skis"),
        ("le portable", "le téléphone"),
        ("la guirlande", "la guirlande"),
        ("la poussette", "la poussette"),
        ("l'imprimante", "l'imprimante"),
        ("le passeport", "le passeport"),
        ("les jumelles", "les jumelles"),
        ("le manteau", "le manteau"),
        ("la brouette", "la brouette"),
        ("l'échelle", "l'échelle"),
        ("le barbecue", "le barbecue"),
    ],
    [
        ("the umbrella", "the umbrella"),
        ("the lawnmower", "the lawnmower"),
        ("the bike", "the bicycle"),
        ("the keys", "the keys"),
        ("the violin", "the violin"),
        ("the tent", "the tent"),
        ("the couch", "the sofa"),
        ("the drill", "the drill"),
        ("the jar of honey", "the honey"),
        ("the skis", "the skis"),
        ("the mobile", "the phone"),
        ("the fairy lights", "the fairy lights"),
        ("the pushchair", "the stroller"),
        ("the printer", "the printer"),
        ("the passport", "the passport"),
        ("the binoculars", "the binoculars"),
        ("the coat", "the coat"),
        ("the wheelbarrow", "the wheelbarrow"),
        ("the ladder", "the ladder"),
        ("the barbecue", "the grill"),
    ],
)
PLACES = (
    [
        "au grenier",
        "dans la cave",
        "à la bibliothèque",
        "sous l'escalier",
        "au bureau",
        "chez le coiffeur",
        "dans le coffre",
        "à la gare",
        "au chalet",
        "derrière la haie",
        "sur le balcon",
        "au gymnase",
    ],
    [
        "in the attic",
        "in the cellar",
        "at the library",
        "under the stairs",
        "at the office",
        "at the hairdresser's",
        "in the boot",
        "at the station",
        "at the cabin",
        "behind the hedge",
        "on the balcony",
        "at the gym",
    ],
)
DEEDS = (
    [
        ("{n} a laissé {o} {p}", "Où {n} a-t-il mis {q} ?"),
        ("{n} a réparé {o} {p}", "Qui s'est occupé de réparer {q} ?"),
        ("{n} a vendu {o} pour {k} euros", "À quel prix {n} a cédé {q} ?"),
        ("{n} a emprunté {o} pour {k} jours", "Combien de temps {n} garde {q} ?"),
        ("{n} a retrouvé {o} {p}", "{q}, {n} l'a retrouvé où ?"),
        ("{n} a cassé {o} {p}", "Qui a abîmé {q} ?"),
    ],
    [
        ("{n} left {o} {p}", "Where did {n} put {q}?"),
        ("{n} repaired {o} {p}", "Who took care of fixing {q}?"),
        ("{n} sold {o} for {k} euros", "What price did {n} get for {q}?"),
        ("{n} borrowed {o} for {k} days", "How long does {n} keep {q}?"),
        ("{n} found {o} {p}", "{q}, where did {n} find it?"),
        ("{n} broke {o} {p}", "Who damaged {q}?"),
    ],
)
ASIDES = (
    [
        "il a fait un temps affreux toute la matinée",
        "le repas s'est éternisé comme d'habitude",
        "je suis rentré épuisé vers minuit",
        "il faut que je pense à rappeler la mairie",
        "les enfants couraient partout dans le jardin",
        "la réunion de lundi a été repoussée",
        "j'ai fini par regarder un vieux film",
        "le supermarché était déjà fermé",
        "on a parlé politique pendant des heures",
    ],
    [
        "the weather was dreadful all morning",
        "dinner dragged on as usual",
        "I came home exhausted around midnight",
        "I must remember to call the town hall",
        "the children were running all over the garden",
        "Monday's meeting was put off",
        "I ended up watching an old film",
        "the supermarket had already closed",
        "we talked politics for hours",
    ],
)
LONG_MESSAGES = 90

PEOPLE: list[tuple[str, tuple[Language, ...]]] = [
    ("fr one", ("fr",)), ("fr two", ("fr",)), ("en one", ("en",)), ("en two", ("en",)), ("both one", ("fr", "en")), ("both two", ("fr", "en")),
]  # fmt: skip
CIRCLE = 18
SMALL_TALK_EACH = 14


def people(seed: int = 7) -> Iterator[Person]:
    """Give everybody with their entries and questions."""
    for number, (name, languages) in enumerate(PEOPLE):
        yield _person(name, languages, random.Random(seed * 1_000 + number))


def _person(name: str, languages: tuple[Language, ...], rng: random.Random) -> Person:
    circle = rng.sample(NAMES, CIRCLE)
    relations = rng.sample(RELATIONS, CIRCLE)
    told: list[tuple[str, str]] = []  # (key, text)
    asked: list[tuple[str, str, Kind, Language]] = []
    for friend, relation in zip(circle, relations, strict=True):
        language = rng.choice(languages)
        told.append(
            (
                f"{friend} relation",
                ["{n} est {r}.", "{n} is {r}."][language == "en"].format(n=friend, r=relation[language == "en"]),
            )
        )
        for kind, attribute in ATTRIBUTES.items():
            language = rng.choice(languages)
            side = int(language == "en")
            key = f"{friend} {kind}"
            value = rng.choice(attribute.values)[side]
            told.append((key, rng.choice(attribute.told[side]).format(n=friend, v=value)))
            draw = rng.random()
            if draw < 0.45:
                asked.append((key, rng.choice(attribute.asked[side]).format(n=friend), "paraphrase", language))
            elif draw < 0.65:
                asked.append(
                    (
                        key,
                        rng.choice(attribute.asked[1 - side]).format(n=friend),
                        "other language",
                        "fr" if side else "en",
                    )
                )
            elif draw < 0.8:
                asked.append(
                    (key, rng.choice(attribute.asked[side]).format(n=misspell(friend, rng)), "misspelt name", language)
                )
        for _ in range(SMALL_TALK_EACH):
            text = rng.choice(SMALL_TALK[rng.choice(languages) == "en"])
            told.append(("", text.format(n=friend, m=rng.choice(circle))))
    for number in range(LONG_MESSAGES):
        language = rng.choice(languages)
        side = int(language == "en")
        clauses = []
        for _ in range(2):
            friend = rng.choice(circle)
            thing, thing_asked = rng.choice(THINGS[side])
            deed, wording = rng.choice(DEEDS[side])
            clauses.append(deed.format(n=friend, o=thing, p=rng.choice(PLACES[side]), k=rng.randrange(3, 90)))
            if rng.random() < 0.5:
                text = wording.format(n=friend, q=thing_asked)
                asked.append((f"message {number}", text[0].upper() + text[1:], "detail", language))
        clauses += rng.sample(ASIDES[side], 3)
        rng.shuffle(clauses)
        told.append((f"message {number}", ", ".join(clauses).replace(", ", ". ", 1) + "."))
    for in_french, in_english, asked_french, asked_english in OWN:
        language = rng.choice(languages)
        code = (
            "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(3))
            + "-"
            + "".join(rng.choice("0123456789") for _ in range(4))
        )
        told.append((code, (in_english if language == "en" else in_french).format(c=code)))
        asked.append((code, asked_english if language == "en" else asked_french, "paraphrase", language))
        for wording in (f"{code} ?", f"À quoi sert {code} ?", f"What is {code.replace('-', '').lower()} for?"):
            asked.append((code, wording, "number or code", language))  # noqa: PERF401 - one shape for all that is asked
    rng.shuffle(told)
    places: dict[str, list[int]] = {}
    for place, (key, _) in enumerate(told):
        places.setdefault(key, []).append(place)
    questions = [Question(text, kind, language, frozenset(places[key])) for key, text, kind, language in asked]
    return Person(name, [text for _, text in told], questions)


def misspell(name: str, rng: random.Random) -> str:
    """Return *name* as somebody writes it who only heard it: a letter doubled, lost, swapped or another one."""
    for _ in range(20):
        place = rng.randrange(1, len(name) - 1)
        change = rng.randrange(4)
        if change == 0:
            other = name[:place] + name[place] + name[place:]
        elif change == 1:
            other = name[:place] + name[place + 1 :]
        elif change == 2:
            other = name[:place] + name[place + 1] + name[place] + name[place + 2 :]
        else:
            swap = {
                "c": "k",
                "k": "c",
                "s": "z",
                "z": "s",
                "i": "y",
                "y": "i",
                "f": "ph",
                "a": "e",
                "e": "a",
                "t": "d",
                "m": "n",
            }
            other = name[:place] + swap.get(name[place], "e") + name[place + 1 :]
        if other != name:
            return other
    return name + "e"
