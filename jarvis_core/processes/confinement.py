"""
What a process gives up that reads strangers' words and files: root's rights, files, the network, other processes.

Each step that the kernel, a container or a user's rights do not allow is left out: one lock less is better than no service.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from jarvis_core.processes.child import User, become, end_with_parent, gain_nothing
from jarvis_core.processes.environment import library_directories
from jarvis_core.processes.permissions import NOTHING, Permissions, enforce

CODEC_ID, ENGINES_ID, VALKEY_ID = 65_530, 65_531, 65_532
"""Users and groups of confined processes where root starts them: nobody's else, and no service's (systemd leaves them free)."""

SYSTEM = (
    *("/usr", "/lib", "/lib64", "/bin", "/nix/store", "/gnu/store"),
    *("/etc/ld.so.cache", "/etc/localtime", "/etc/nsswitch.conf", "/etc/passwd", "/etc/ssl/openssl.cnf"),
    *("/proc", "/sys/devices", "/sys/bus/pci", "/sys/fs/cgroup", "/sys/kernel/mm", "/dev/urandom"),
)  # fmt: skip
"""What programs read: their libraries, the machine's description. Of other processes /proc shows what everybody may see."""
DEVICES = ("/dev/null",)
"""What programs write besides."""

PR_GET_PDEATHSIG = 2
"""``linux/prctl.h``."""

_libc = ctypes.CDLL(None, use_errno=True)


def restrict(permissions: Permissions = NOTHING, *, user_id: int = CODEC_ID) -> None:
    """
    Give up all but *permissions*, for good: root's rights, files, the network, other processes.

    Call it before anything of a stranger's is read and before there is another thread. Root becomes *user_id*, or where
    that user may not read what it needs, root without any right. What ends it with its parent still does.
    """
    parent_pid = os.getppid()
    death_signal = ctypes.c_int()
    _libc.prctl(PR_GET_PDEATHSIG, ctypes.byref(death_signal), 0, 0, 0)
    if os.geteuid() == 0:
        hidden = hidden_from((user_id, user_id), (*permissions.readable, *permissions.writable))
        if hidden is None:
            # Not in a container that has no such user to give, or no right to become one.
            with contextlib.suppress(OSError):
                become((user_id, user_id))
        else:
            sys.stderr.write(
                f"jarvis-core: {hidden} is closed to other users: what reads it stays root, without rights\n"
            )
    gain_nothing()
    enforce(permissions)
    if death_signal.value:
        # A change of user has cleared it (prctl(2)).
        end_with_parent(parent_pid, signal.Signals(death_signal.value))


def hidden_from(user: User, paths: Iterable[str]) -> str | None:
    """
    Return the first of *paths* that *user* may not read, or of which it may not read what is right below; else None.

    Asks the kernel in a child that has become that user, which needs root; where it cannot be become, nothing is told.
    Paths that are not there are no matter.
    """
    asked = [path for path in paths if path not in (*SYSTEM, *DEVICES) and Path(path).exists()]
    if not asked:
        return None
    status = _as_user(user, lambda: next((number for number, path in enumerate(asked, 1) if not _readable(path)), 0))
    return asked[status - 1] if 0 < status <= len(asked) else None


def can_become(user: User) -> bool:
    """Return whether this process may become *user*."""
    return _as_user(user, lambda: 0) == 0


def python_paths() -> Permissions:
    """Return what this program's interpreter reads and executes, with the libraries of the system."""
    package = Path(__file__).parents[1]
    prefixes = {sys.prefix, sys.base_prefix, sys.exec_prefix, sys.base_exec_prefix}
    # Where it was started may be anywhere; and the package's folder has more in it than the package, such as .env.
    others = [path for path in sys.path if path and path != str(package.parent) and path != os.getcwd()]  # noqa: PTH109
    readable = (
        *SYSTEM,
        *sorted(prefixes),
        *others,
        *library_directories(),
        str(package),
        str(Path(sys.executable).resolve()),
    )
    return Permissions(readable=readable, listable=(str(package.parent),), writable=DEVICES)


def weights_paths(*weights: Path | None) -> tuple[str, ...]:
    """Return what is read of *weights*, files or directories: where they lead, too, as those of a hub's cache do."""
    given = [path for path in weights if path is not None]
    links = [entry for path in given if path.is_dir() for entry in path.iterdir() if entry.is_symlink()]
    return tuple(str(path) for path in (*given, *(link.resolve() for link in links)))


def _as_user(user: User, work: Callable[[], int]) -> int:
    """Return what *work* returns, 0 to 254, in a child that has become *user*; 255 where that cannot be."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            become(user)
            status = work()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _readable(path: str) -> bool:
    if not os.access(path, os.R_OK):
        return False
    if not os.path.isdir(path):  # noqa: PTH112 - of a child that is to end soon
        return True
    return os.access(path, os.X_OK) and all(os.access(entry.path, os.R_OK) for entry in os.scandir(path))
