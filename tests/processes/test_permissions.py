"""What a confined process may still do, by what it is left: paths, ports, programs; and where the kernel has no Landlock."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jarvis_core.processes.child import spawn
from jarvis_core.processes.confinement import DEVICES, SYSTEM, hidden_from, python_paths, weights_paths
from jarvis_core.processes.permissions import Permissions, landlock_version

needs_landlock = pytest.mark.skipif(landlock_version() < 4, reason="the kernel's Landlock knows no ports")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

TRIES = """
import os, socket, subprocess, sys
readable, writable, elsewhere, port, other, listener = sys.argv[1:]
def refused(work):
    try:
        work()
    except OSError as exc:
        return type(exc).__name__
    return "done"
def listen(port):
    with socket.create_server(("127.0.0.1", int(port))):
        pass
def connect(port):
    with socket.create_connection(("127.0.0.1", int(port))):
        pass
print("read", refused(lambda: open(readable + "/file").read()))
print("change", refused(lambda: open(readable + "/file", "a")))
print("add", refused(lambda: open(readable + "/more", "w")))
print("write", refused(lambda: open(writable + "/file", "w").write("x")))
print("make", refused(lambda: os.mkdir(writable + "/directory")))
print("remove", refused(lambda: (os.remove(writable + "/file"), os.rmdir(writable + "/directory"))))
print("elsewhere", refused(lambda: open(elsewhere + "/file").read()))
print("list", refused(lambda: os.listdir(elsewhere)))
print("listen", refused(lambda: listen(port)))
print("listen elsewhere", refused(lambda: listen(other)))
print("connect", refused(lambda: connect(listener)))
print("execute", refused(lambda: subprocess.run([sys.executable, "-c", ""], check=True)))
print("null", refused(lambda: open("/dev/null", "w")))
"""
ALLOWED = {"read", "write", "make", "remove", "listen", "execute", "null"}

NO_LANDLOCK = """
import ctypes, os, struct, sys
# Each system call of Landlock is unknown, as to a kernel or a container without it: seccomp(2), BPF_RET with ENOSYS.
instructions = [(0x20, 0, 0, 0), (0x35, 0, 3, 444), (0x25, 2, 0, 446), (0x06, 0, 0, 0x0005_0000 | 38), (0x06, 0, 0, 0), (0x06, 0, 0, 0x7FFF_0000)]
filters = b"".join(struct.pack("HBBI", *one) for one in instructions)
buffer = ctypes.create_string_buffer(filters)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(instructions), ctypes.addressof(buffer)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, program, 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    """Make three directories with a file in each."""
    places = {name: tmp_path / name for name in ("readable", "writable", "elsewhere")}
    for place in places.values():
        place.mkdir()
        (place / "file").write_text("text")
    return places


def free_ports() -> list[int]:
    """Return two ports that are free."""
    with socket.socket() as first, socket.socket() as second:
        for probe in (first, second):
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in (first, second)]


@needs_landlock
@pytest.mark.parametrize("threaded", [False, True])
def test_no_more_than_it_is_left(places: dict[str, Path], threaded: bool) -> None:
    """A child does what its permissions say and nothing else, also one that is started where there are threads."""
    port, other = free_ports()
    python = python_paths()
    permissions = Permissions(
        readable=(*python.readable, str(places["readable"])),
        listable=python.listable,
        writable=(*python.writable, str(places["writable"])),
        listens_at=(port,),
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = [*map(str, places.values()), str(port), str(other), str(listener.getsockname()[1])]
        process = spawn(
            [sys.executable, "-c", TRIES, *arguments],
            death_signal=signal.SIGKILL,
            output=subprocess.PIPE,
            permissions=permissions,
            threaded=threaded,
        )
        output, _ = process.communicate(timeout=30)
    told = dict(line.rsplit(" ", 1) for line in output.decode().splitlines())
    assert {what for what, how in told.items() if how == "done"} == ALLOWED, told
    assert {how for how in told.values() if how != "done"} == {"PermissionError"}
    assert (places["readable"] / "file").read_text() == "text"


@needs_landlock
def test_everything_where_nothing_is_said(places: dict[str, Path]) -> None:
    """A child without permissions may do what its parent may."""
    port, other = free_ports()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        arguments = [*map(str, places.values()), str(port), str(other), str(listener.getsockname()[1])]
        process = spawn([sys.executable, "-c", TRIES, *arguments], death_signal=signal.SIGKILL, output=subprocess.PIPE)
        output, _ = process.communicate(timeout=30)
    assert {line.rsplit(" ", 1)[1] for line in output.decode().splitlines()} == {"done"}


def test_what_is_beside_the_package_is_closed(tmp_path: Path) -> None:
    """The interpreter's paths have the package in them, and not the folder that it is in, nor where it was started."""
    permissions = python_paths()
    package = Path(__file__).parents[2] / "jarvis_core"
    assert str(package) in permissions.readable
    assert str(package.parent) not in permissions.readable
    assert str(Path.cwd()) not in permissions.readable
    assert "/" not in (*permissions.readable, *permissions.listable)
    assert permissions.listable == (str(package.parent),)
    assert not {str(Path.home()), "/etc", "/home", "/var", "/tmp"} & {*permissions.readable, *permissions.writable}


def test_weights_that_are_links(tmp_path: Path) -> None:
    """Of a directory of links, as a model hub's cache has them, what they lead to may be read too."""
    blob = tmp_path / "blobs" / "0123"
    blob.parent.mkdir()
    blob.write_text("weights")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.bin").symlink_to("../blobs/0123")
    assert weights_paths(None, snapshot) == (str(snapshot), str(blob.resolve()))


@needs_root
def test_who_may_read_it(tmp_path: Path) -> None:
    """What is closed to a user is found: above a path, the path itself, and what is right below it."""
    nobody = (65_534, 65_534)
    # pytest's own directories are closed to others.
    assert hidden_from(nobody, ["/usr/bin", *SYSTEM, *DEVICES, "/no/such/path"]) is None
    assert hidden_from(nobody, ["/usr/bin", str(tmp_path)]) == str(tmp_path)
    open_directory = Path("/tmp") / f"jarvis-hidden-{os.getpid()}"
    open_directory.mkdir(0o755)
    try:
        (open_directory / "file").write_text("")
        assert hidden_from(nobody, [str(open_directory)]) is None
        (open_directory / "file").chmod(0o600)
        assert hidden_from(nobody, [str(open_directory)]) == str(open_directory)
    finally:
        (open_directory / "file").unlink()
        open_directory.rmdir()


def test_without_landlock() -> None:
    """Where the kernel knows no Landlock a process gives up the rest all the same, and goes on."""
    script = (
        "from jarvis_core.processes.confinement import restrict\n"
        "from jarvis_core.processes.permissions import landlock_version\n"
        "restrict()\n"
        "print(landlock_version(), open('/proc/self/status').read())"
    )
    done = subprocess.run(
        [sys.executable, "-c", NO_LANDLOCK, sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.startswith("0 ")
    assert "NoNewPrivs:\t1" in done.stdout
    assert f"CapEff:\t{0:016x}" in done.stdout


@pytest.mark.parametrize("threaded", [False, True])
def test_root_that_stays_root(threaded: bool) -> None:
    """A child that keeps its parent's user has no right of root's, and gets none back by what it executes."""
    script = (
        "import subprocess; print(subprocess.run(['cat', '/proc/self/status'], capture_output=True, text=True).stdout)"
    )
    python = python_paths()
    process = spawn(
        [sys.executable, "-c", script],
        death_signal=signal.SIGKILL,
        output=subprocess.PIPE,
        permissions=python._replace(readable=(*python.readable, "/usr/bin", "/bin")),
        threaded=threaded,
    )
    output, _ = process.communicate(timeout=30)
    fields = dict(line.split(":\t", 1) for line in output.decode().splitlines() if ":\t" in line)
    assert fields["Uid"].split() == [str(os.geteuid())] * 4
    assert fields["NoNewPrivs"] == "1"
    assert {int(fields[name], 16) for name in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}


def test_root_of_a_container_without_other_users() -> None:
    """Where there is nobody to become, root gives up its rights all the same, says nothing, and goes on."""
    unshare = ["unshare", "--user", "--map-root-user"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no user namespaces here")
    script = (
        "import os\n"
        "from jarvis_core.processes.confinement import can_become, python_paths, restrict\n"
        "print(can_become((65531, 65531)), os.getuid())\n"
        "restrict(python_paths(), user_id=65531)\n"
        "print(open('/proc/self/status').read())"
    )
    done = subprocess.run(
        [*unshare, sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.startswith("False 0\n")
    assert f"CapEff:\t{0:016x}" in done.stdout
    assert done.stderr == ""
