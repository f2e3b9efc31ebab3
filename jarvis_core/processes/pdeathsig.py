"""
Sets the parent-death signal in a child, changes its user where one is given, and executes the child's program.

Runs as a script, without the rest of this package: a parent with threads must not run Python between fork and exec,
because locks that other threads held stay locked there, and finalizers would work on the parent's connections.

``python -I -S pdeathsig.py PARENT SIGNAL UID:GID PROGRAM ARGUMENT…``, with ``-`` in place of UID:GID to keep the user.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""``linux/prctl.h``."""


def main() -> int:
    """Execute the program; return 126, as shells do, where it cannot be executed."""
    parent, number, user, *arguments = sys.argv[1:]
    if user != "-":
        uid, gid = map(int, user.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    # The setting is lost when the process changes its user (prctl(2)), and kept when it becomes another program.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != int(parent):
        return 1
    for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python
        signal.signal(ignored, signal.SIG_DFL)
    try:
        os.execv(arguments[0], arguments)  # noqa: S606 - the parent's arguments
    except OSError as exc:
        sys.stderr.write(f"{arguments[0]}: {exc.strerror}\n")
        return 126


if __name__ == "__main__":
    sys.exit(main())
