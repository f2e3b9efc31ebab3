"""
Sets the parent-death signal in a child, changes its user where one is given, and executes the child's program.

Runs as a script, without the rest of this package: a parent with threads must not run Python between fork and exec,
because locks that other threads held stay locked there, and finalizers would work on the parent's connections.

``python -I -S pdeathsig.py PARENT SIGNAL UID:GID PERMISSIONS PROGRAM ARGUMENT…``, with ``-`` in place of UID:GID to keep the
user, and in place of PERMISSIONS (a text of ``permissions.py``) to keep those of the parent.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
"""``linux/prctl.h``."""


def main() -> int:
    """Execute the program; return 126, as shells do, where it cannot be executed."""
    parent, number, user, permissions, *arguments = sys.argv[1:]
    # All that is imported is imported first: the user may not be let in where this Python is, nor the permissions allow it.
    enforce = None if permissions == "-" else _enforcer(permissions)
    if user != "-":
        uid, gid = map(int, user.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # The setting is lost when the process changes its user (prctl(2)), and kept when it becomes another program.
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if enforce is not None:
        enforce()
    libc.prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != int(parent):
        return 1
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execv(arguments[0], arguments)  # noqa: S606 - the parent's arguments
    except OSError as exc:
        sys.stderr.write(f"{arguments[0]}: {exc.strerror}\n")
        return 126


def _enforcer(permissions: str) -> Callable[[], None]:
    """Return what leaves this process *permissions* alone."""
    spec = importlib.util.spec_from_file_location("permissions", Path(__file__).with_name("permissions.py"))
    assert spec is not None  # noqa: S101 - the file is beside this one
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return partial(module.enforce, module.Permissions.decode(permissions))


if __name__ == "__main__":
    sys.exit(main())
