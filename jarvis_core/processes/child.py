"""
Starts child processes that end with their parent, however the parent ends.

Linux sends a child the signal that it chose with ``PR_SET_PDEATHSIG`` when the *thread* that forked it ends, so
children are forked from a thread that lives as long as the process (the main one). A change of user clears the setting
(prctl(2)): it is made after that, and before exec.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple, Protocol

from jarvis_core.processes.environment import for_children
from jarvis_core.processes.permissions import Permissions, enforce

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
"""``linux/prctl.h``."""

M_MMAP_THRESHOLD = -3
M_ARENA_MAX = -8
"""``malloc.h`` of glibc (mallopt(3))."""

OPEN_FILES = 1 << 17
CGROUP_USES = (Path("/sys/fs/cgroup/memory.current"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"))
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of a container's own control group, of the second version and of the first (cgroups(7))."""

User = tuple[int, int]
"""A uid and a gid."""


class Child(Protocol):
    """A service that runs in a process of its own, and is started again where it was when it ends."""

    @property
    def name(self) -> str:
        """The name that people know it by."""
        ...

    @property
    def process(self) -> subprocess.Popen[bytes] | None:
        """The process that was started last."""
        ...

    def start(self) -> str:
        """Start it again if it has ended, also from another thread; raises ``StartError``."""
        ...


YOUNG_S = 30.0
"""A process that lives longer has not failed to start: its death counts as the first failure."""


class Backoff:
    """Delays before the restarts of one process, which grow with each failure in a row; the last of *delays_s* repeats."""

    def __init__(self, delays_s: Sequence[float]) -> None:
        self._delays_s = delays_s
        self._failures = 0

    def delay_s(self, lived_s: float = 0.0) -> float:
        """Count the failure of a process that lived *lived_s* seconds; return how long to wait before its restart."""
        self._failures = 1 if lived_s > YOUNG_S else self._failures + 1
        return self._delays_s[min(self._failures, len(self._delays_s)) - 1]


_libc = ctypes.CDLL(None, use_errno=True)


class Identity(NamedTuple):
    """A process, told from all others that are, were or will be."""

    machine: str
    """The scope in which *pid* has a meaning: the kernel since its boot, the pid namespace, and the user."""
    pid: int
    started: int
    """In clock ticks since that boot."""


def own_identity() -> Identity:
    """
    Return this process's identity; without /proc its *machine* is random, so that no other process compares pids with
    it.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Other users' processes may be hidden (proc(5), hidepid), and would look dead.
        machine = f"{boot}/{Path('/proc/self/ns/pid').stat().st_ino}/{os.getuid()}"
    except OSError:
        return Identity(os.urandom(16).hex(), os.getpid(), 0)
    return Identity(machine, os.getpid(), _started(os.getpid()) or 0)


def lives(pid: int, started: int) -> bool:
    """Whether the process *pid* that was started at *started* runs on this machine."""
    return _started(pid) == started


def _started(pid: int) -> int | None:
    """Return when the process was started; None where there is none, or where it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def give_memory_back() -> None:
    """
    Have large buffers of this process, and of all its threads, given back to the system when they are freed.

    By default glibc keeps up to eight arenas a core, and raises what it maps by itself to 32 MiB once it has freed that
    much: after some uploads of 25 MiB a server would stay at several times its size. Does nothing without glibc.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 2)
        mallopt(M_MMAP_THRESHOLD, 1 << 18)


def trim_heap() -> None:
    """
    Give the free pages in the midst of the heap back to the system, which glibc does not do by itself (malloc_trim(3)).

    Takes 20 µs where there are none, and 50 ms for 200 MB. Does nothing without glibc.
    """
    malloc_trim = getattr(_libc, "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


def raise_open_files_limit() -> int:
    """
    Let this process have as many files open as it is allowed to have, at most ``OPEN_FILES``; return how many.

    A connection is a file, and many systems start a service with 1,024 and let it have 500 times as many.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return OPEN_FILES if soft == resource.RLIM_INFINITY else soft


def machine_memory_bytes() -> int:
    """Return how much memory this process may use: the machine's, or its container's where that has less."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for path in CGROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max"
            memory = min(memory, int(path.read_text()))
    return memory


def free_memory_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """
    Return how much memory processes may take now without others having to give theirs up.

    What a container has in its page cache counts as taken: how much of it would be given up is not told.
    """
    memory = machine_memory_bytes()
    with contextlib.suppress(OSError, ValueError):
        found = re.search(r"^MemAvailable:\s+(\d+) kB$", meminfo.read_text(), re.MULTILINE)
        memory = memory if found is None else 1_024 * int(found[1])
    for limit, use in zip(CGROUP_LIMITS, CGROUP_USES, strict=True):
        with contextlib.suppress(OSError, ValueError):
            memory = min(memory, int(limit.read_text()) - int(use.read_text()))
    return max(memory, 0)


def end_with_parent(parent_pid: int, death_signal: signal.Signals) -> None:
    """
    Have this process get *death_signal* when the thread that forked it ends.

    Exits at once when the parent was gone before the setting was made.
    """
    _libc.prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)


def become(user: User) -> None:
    """Turn this process into one of *user*, without supplementary groups and for good; needs root."""
    os.setgroups([])
    os.setgid(user[1])
    os.setuid(user[0])


def gain_nothing() -> None:
    """Keep this process, and all that it starts, from rights that a program's file would give it (set-user-ID and the like)."""
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def spawn(
    arguments: Sequence[str | Path],
    *,
    death_signal: signal.Signals,
    environment: Mapping[str, str] | None = None,
    user: User | None = None,
    directory: Path | None = None,
    source: IO[bytes] | int = subprocess.DEVNULL,
    output: IO[bytes] | int | None = subprocess.DEVNULL,
    inherited: Sequence[int] = (),
    permissions: Permissions | None = None,
    threaded: bool = False,
) -> subprocess.Popen[bytes]:
    """
    Start a child in a session of its own.

    A terminal's Ctrl-C then reaches only the parent, which stops its children in order. No child gains rights by what it
    executes.

    Without an *environment* the child gets the variables of ``environment.for_children``.
    *user* is the user to become, which needs root; None keeps this process' own. *source* is stdin; *output* takes both
    stdout and stderr, None inherits them. *inherited* are descriptors that the child gets under the same numbers.
    *permissions* are all that it may do, where the kernel has Landlock; None leaves it what this process may.
    Raises ``OSError`` when the program cannot be executed, ``subprocess.SubprocessError`` when *user* cannot be become.

    Where this process is *threaded*, as it is at a restart, the child first runs ``pdeathsig.py``: the program has to
    be a path then, and errors show in the child's exit status and on its stderr.
    """
    launcher = _launcher(death_signal, user, permissions) if threaded else []
    return subprocess.Popen(
        [str(argument) for argument in (*launcher, *arguments)],
        stdin=source,
        stdout=output,
        stderr=None if output is None else subprocess.STDOUT,
        env=for_children() if environment is None else dict(environment),
        cwd=directory,
        start_new_session=True,
        pass_fds=inherited,
        # The only way to run code between setuid and exec. Popen's own user= and extra_groups= are not used: Python
        # 3.12.0 keeps root's groups when they are to be empty (CVE-2023-6507).
        preexec_fn=None if threaded else _preparation(death_signal, user, permissions),
    )


def _launcher(death_signal: signal.Signals, user: User | None, permissions: Permissions | None) -> list[str | Path]:
    """Return the program that makes a child's settings and then becomes what stands behind it."""
    become_who = "-" if user is None else f"{user[0]}:{user[1]}"
    program = Path(__file__).with_name("pdeathsig.py")
    allowed = "-" if permissions is None else permissions.encode()
    return [sys.executable, "-I", "-S", program, str(os.getpid()), str(int(death_signal)), become_who, allowed]


def _preparation(
    death_signal: signal.Signals, user: User | None, permissions: Permissions | None
) -> Callable[[], None]:
    """Return what makes a child's settings in the child, before its program."""
    parent_pid = os.getpid()

    def prepare() -> None:
        if user is not None:
            become(user)
        gain_nothing()
        if permissions is not None:
            enforce(permissions)
        end_with_parent(parent_pid, death_signal)

    return prepare


def stop(process: subprocess.Popen[bytes], *, first: signal.Signals, patience_s: float) -> int:
    """Send *first*, wait *patience_s* seconds, then kill; return the exit status."""
    if process.poll() is None:
        process.send_signal(first)
        try:
            return process.wait(patience_s)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()
