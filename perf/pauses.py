"""
Sentences with the pauses of who thinks while speaking, and turns that are over: made with the local voices, in both languages.

A pause stands where the speaker looks for a word ("…") or between two clauses (","); a voice speaks the sentence whole, so
that its melody goes on, and silence is put where it is quietest there.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

from jarvis_core.local.kokoro import SAMPLE_RATE_HZ, Kokoro

Samples = NDArray[np.float32]

RATE_HZ = 16_000
FRENCH = (
    "Je voudrais que tu allumes la … lumière du salon et de la cuisine.",
    "Est-ce que tu peux me rappeler … demain à neuf heures d'appeler le dentiste ?",
    "J'aimerais savoir … quel temps il fera samedi à Lyon.",
    "Ajoute du lait , du beurre et … six œufs à la liste des courses.",
    "Hier soir , nous avons regardé un … film qui durait trois heures.",
    "Mon frère habite à … Bordeaux depuis qu'il a changé de travail.",
    "Il faudrait que je … parte avant la pluie.",
    "Si tu as le temps , baisse un peu le … chauffage de la chambre.",
    "Mets un minuteur de … douze minutes pour les pâtes.",
    "Le rendez-vous est avec … madame Lefèvre, au deuxième étage.",
    "Je cherche une recette avec des … courgettes et du fromage de chèvre.",
    "Dis-moi comment on dit … merci beaucoup en portugais.",
    "Parce que la voiture est en panne , je prendrai le … train de sept heures.",
    "Quand les enfants seront couchés , éteins toutes les … lampes du couloir.",
    "Je pense que … c'est une bonne idée.",
    "Écris à Paul que … j'arriverai en retard d'une demi-heure.",
    "Peux-tu chercher le prix d'un … billet pour Marseille ?",
    "Raconte-moi une histoire.",
    "Quelle heure est-il ?",
    "Arrête la musique.",
    "Merci, bonne nuit.",
    "Non merci.",
)
ENGLISH = (
    "I would like you to turn on the … lights in the living room.",
    "Can you remind me … tomorrow at nine to call the dentist?",
    "I'd like to know … what the weather will be like on Saturday in Boston.",
    "Add milk , butter and … six eggs to the shopping list.",
    "Last night , we watched a … film that was three hours long.",
    "My brother has lived in … Chicago since he changed his job.",
    "I should really … leave before it starts to rain.",
    "If you have the time , turn down the … heating in the bedroom.",
    "Set a timer for … twelve minutes for the pasta.",
    "The appointment is with … Doctor Miller, on the second floor.",
    "I am looking for a recipe with … zucchini and goat cheese.",
    "Tell me how you say … thank you very much in Portuguese.",
    "Because the car has broken down , I will take the … seven o'clock train.",
    "When the children are in bed , turn off all the … lamps in the hallway.",
    "I think that … this is a good idea.",
    "Write to Paul that … I will be half an hour late.",
    "Could you look up the price of a … ticket to Seattle?",
    "Tell me a story.",
    "What time is it?",
    "Stop the music.",
    "Thanks, good night.",
    "No, thank you.",
)
SPEAKERS = (("ff_siwis", FRENCH), ("af_heart", ENGLISH), ("am_michael", ENGLISH))
NEAR_S = 0.35
"""How far from where the letters say that a pause is it may be."""
STEP_SAMPLES = 160


class Said(NamedTuple):
    """A sentence as it was spoken, without silence around it."""

    voice: str
    text: str
    samples: Samples
    pauses: list[int]
    """Samples after which the speaker pauses."""


def speak(kokoro: Kokoro, voice: str, text: str) -> Said:
    """Speak a sentence, and find its pauses."""
    plain = text.replace(" ,", ",").replace(" …", "…")
    spoken = np.concatenate(list(kokoro.say(plain, voice, 1.0)))
    samples = soxr.resample(spoken, SAMPLE_RATE_HZ, RATE_HZ).astype(np.float32)
    loud = np.flatnonzero(_levels(samples) > 0.01) * STEP_SAMPLES
    samples = samples[max(0, loud[0] - 5 * STEP_SAMPLES) : loud[-1] + 3 * STEP_SAMPLES]
    letters = [sum(map(str.isalnum, part)) for part in text.replace(" ,", " …").split(" …")]
    levels = np.convolve(np.log(_levels(samples)), np.ones(7) / 7, "same")
    places = []
    for ends in np.cumsum(letters)[:-1]:
        expected = ends / sum(letters) * len(levels)
        off = np.abs(np.arange(len(levels)) - expected) / (NEAR_S * RATE_HZ / STEP_SAMPLES)
        places.append(int(np.argmin(np.where(off < 1, levels + off, np.inf))) * STEP_SAMPLES)
    return Said(voice, text, samples, places)


def load(weights: Callable[[], Path], cache: Path) -> list[Said]:
    """Return all sentences, spoken by the model of which *weights* tells the directory, or before, as *cache* has them."""
    kokoro: Kokoro | None = None
    cache.mkdir(parents=True, exist_ok=True)
    found = []
    for voice, texts in SPEAKERS:
        for number, text in enumerate(texts):
            path = cache / f"{voice}-{number}.npz"
            if path.exists():
                kept = np.load(path)
                if str(kept["text"]) == text:
                    found.append(Said(voice, text, kept["samples"], kept["pauses"].tolist()))
                    continue
            kokoro = kokoro or Kokoro(weights(), 1)
            said = speak(kokoro, voice, text)
            np.savez(path, text=text, samples=said.samples, pauses=np.array(said.pauses, int))
            found.append(said)
    return found


def _levels(samples: Samples) -> Samples:
    steps = samples[: len(samples) // STEP_SAMPLES * STEP_SAMPLES].reshape(-1, STEP_SAMPLES)
    levels: Samples = np.sqrt(np.mean(np.square(steps), axis=1)) + np.float32(1e-5)
    return levels
