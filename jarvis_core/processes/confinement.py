"""
What a process gives up that reads strangers' files: root's rights, files, the network, other processes.

Each step that the kernel, a container or a user's rights do not allow is left out: one lock less is better than no service.
"""

from __future__ import annotations

import ctypes
import os
import signal

from jarvis_core.processes.child import end_with_parent

CONFINED_ID = 65_530
"""User and group of a confined process where its parent is root: nobody's else, and no service's (systemd leaves it free)."""

PR_SET_NO_NEW_PRIVS = 38
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446
"""System calls, under the same numbers on all machines (landlock(7))."""
LANDLOCK_VERSION = 1
"""The flag with which the first of them tells the version."""
FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All that there is to do to files, by the version; later ones have the fifth's."""
NETWORK_RIGHTS_SINCE = 4
NETWORK_RIGHTS = 0b11
"""To bind and to connect."""
SCOPES_SINCE = 6
SCOPES = 0b11
"""No signals and no abstract sockets to processes outside."""

_libc = ctypes.CDLL(None, use_errno=True)


def restrict(parent_pid: int, death_signal: signal.Signals) -> None:
    """
    Give up what this process does not need any more, for good: root's rights, files, the network, other processes.

    Call it before anything of a stranger's is read, and with all modules imported. *death_signal* is what it gets when
    its parent ends, as ``end_with_parent`` has it: a change of user clears that.
    """
    if os.geteuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(CONFINED_ID, CONFINED_ID, CONFINED_ID)
            os.setresuid(CONFINED_ID, CONFINED_ID, CONFINED_ID)
        except OSError:
            pass  # a container that has no such user to give, or no right to become one
    _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _close_the_world()
    end_with_parent(parent_pid, death_signal)


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


def _close_the_world() -> None:
    """Have the kernel refuse every file, bind, connect and outside process from now on, as far as it knows how (Landlock)."""
    version = _libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(LANDLOCK_VERSION))
    if version < 1:
        return
    rules = _Ruleset(
        FILE_RIGHTS[min(version, max(FILE_RIGHTS))],
        NETWORK_RIGHTS if version >= NETWORK_RIGHTS_SINCE else 0,
        SCOPES if version >= SCOPES_SINCE else 0,
    )
    ruleset = _libc.syscall(
        LANDLOCK_CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(ctypes.sizeof(rules)), ctypes.c_uint32(0)
    )
    if ruleset < 0:
        return
    _libc.syscall(LANDLOCK_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    os.close(ruleset)
