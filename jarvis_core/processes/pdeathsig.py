"""
What a child does before it becomes the program that it is for: see to it that it ends with its parent.

Run as a file of its own, with nothing else of this package: a parent with many threads must not run Python between fork
and exec, where whatever the other threads held locked stays locked, and finalizers would work on its connections.

``python -I -S pdeathsig.py PARENT SIGNAL UID:GID PROGRAM ARGUMENT…``; without a user to become in place of the third ``-``.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
"""``linux/prctl.h``."""


def main() -> int:
    """Become the program; return what shells return for one that cannot be executed."""
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
