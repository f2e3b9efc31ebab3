"""What children know and may do, as /proc tells it: no secret, no privilege, no file, no network."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys

import pytest

from jarvis_core.processes.confinement import CODEC_ID
from jarvis_core.processes.environment import for_children

CONFINED = """
import os, signal, socket, sys, pathlib
from jarvis_core.processes.child import end_with_parent
from jarvis_core.processes.confinement import restrict
kept = open("/proc/self/status")
end_with_parent(os.getppid(), signal.SIGKILL)
restrict()
def refused(work):
    try:
        work()
    except PermissionError:
        return True
    except OSError as exc:
        return repr(exc)
    return False
listener = int(sys.argv[1])
print(refused(lambda: open("/etc/hostname")))
print(refused(lambda: open("/tmp/confined-would-write", "w")))
print(refused(lambda: os.listdir("/")))
print(refused(lambda: socket.socket().connect(("127.0.0.1", listener))))
print(refused(lambda: os.kill(os.getppid(), 0)))
print(kept.read())
sys.stdout.flush()
sys.stdin.read()
"""


def test_only_known_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child gets what runtimes read, and nothing under a name that nobody listed, whatever it holds."""
    for name in (
        "JWT_SECRET",
        "API_KEYS",
        "DATABASE_URL",
        "LLM_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "PGPASSWORD",
        "PIP_INDEX_URL",
        "anything",
    ):
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("https_proxy", "http://proxy.example")
    known = for_children()
    assert "secret" not in known.values()
    assert {"PATH", "LC_ALL"} <= set(known)
    downloads = for_children(downloads=True)
    assert {name for name, value in downloads.items() if value == "secret"} == {"PIP_INDEX_URL"}
    assert downloads["https_proxy"] == "http://proxy.example"
    worker = for_children(worker=True)
    assert {name for name, value in worker.items() if value == "secret"} == {"PGPASSWORD"}


def test_a_confined_process() -> None:
    """It opens nothing, reaches nobody, is not root, and cannot become it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-c", CONFINED, port],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
    *refused, status = done.stdout.split("\n", 5)
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    if _has_landlock():
        assert refused[:4] == ["True"] * 4
    assert fields["NoNewPrivs"] == "1"
    if os.geteuid() == 0:
        assert fields["Uid"].split() == [str(CODEC_ID)] * 4
        assert fields["Gid"].split() == [str(CODEC_ID)] * 4
        assert fields["Groups"].strip() == ""
        assert refused[4] == "True"
    for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
        assert int(fields[name], 16) == 0


def test_it_still_ends_with_its_parent() -> None:
    """A change of user clears what is to end it with its parent; it is set again."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, CONFINED], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    descriptor = os.pidfd_open(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait(10)
    assert select.select([descriptor], [], [], 10)[0], "it outlived its parent"
    os.close(descriptor)
    parent.stdout.close()
    assert parent.stdin is not None
    parent.stdin.close()


PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], "1"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
for _ in range(5):
    child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def _has_landlock() -> bool:
    libc = ctypes.CDLL(None)
    return bool(libc.syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1)) >= 1)
