"""Which files of weights are known to be whole, so that half a gigabyte is not hashed at each start.

``FILE.verified`` beside a file notes that it was; everything here blocks.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import msgspec

from jarvis_core.local.catalogue import File


class Marker(msgspec.Struct, frozen=True):
    """The content of ``FILE.verified``: the hash of the file, valid while its size and time are unchanged."""

    sha256: str
    size_bytes: int
    modified_ns: int


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
