"""
What a process may still do: no right of root's (capabilities(7)), and of files, ports and other processes what it needs
(Landlock, landlock(7)), as far as the kernel knows how.

Stands alone, so that ``pdeathsig.py`` can use it: nothing of this package is imported.
"""

from __future__ import annotations

import ctypes
import json
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446
"""System calls, under the same numbers on all machines."""
TELL_VERSION = 1
"""The flag with which the first of them tells the version."""
BELOW_PATH, PORT = 1, 2
"""Kinds of rules."""

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, TRUNCATE = (
    1 << bit for bit in (0, 1, 2, 3, 4, 5, 7, 8, 14)
)
OF_FILES = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE
"""What can be done to a file that is no directory."""
READ = EXECUTE | READ_FILE | READ_DIR
WRITE = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | TRUNCATE

FILE_RIGHTS = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
"""All that there is to do to files, by the version; later ones have the fifth's."""
NETWORK_SINCE = 4
BIND, CONNECT = 1, 2
SCOPES_SINCE = 6
SCOPES = 0b11
"""No signals and no abstract sockets to processes outside."""

CAPABILITIES_VERSION = 0x2008_0522
"""``linux/capability.h``."""
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
"""``linux/prctl.h``."""

_libc = ctypes.CDLL(None, use_errno=True)


class Permissions(NamedTuple):
    """What a process may still do. Paths that are not there are left out; links in them are followed."""

    readable: tuple[str, ...] = ()
    """Files, and directories with all below: to be read and executed."""
    listable: tuple[str, ...] = ()
    """Directories of which, and of those below, the names may be read."""
    writable: tuple[str, ...] = ()
    """The same as readable, and to be written, made and removed."""
    listens_at: tuple[int, ...] = ()
    """TCP ports."""
    connects_to: tuple[int, ...] = ()
    """TCP ports, of whichever machine."""

    def encode(self) -> str:
        """Return it as a text for ``decode``."""
        return json.dumps(self)

    @classmethod
    def decode(cls, text: str) -> Permissions:
        """Return what ``encode`` made a text of."""
        return cls(*(tuple(field) for field in json.loads(text)))


NOTHING = Permissions()


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("network", ctypes.c_uint64), ("scopes", ctypes.c_uint64))


class _PathRule(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("rights", ctypes.c_uint64), ("descriptor", ctypes.c_int32))


class _PortRule(ctypes.Structure):
    _fields_ = (("rights", ctypes.c_uint64), ("port", ctypes.c_uint64))


def landlock_version() -> int:
    """Return the version of the kernel's Landlock; 0 where there is none, or a container forbids it."""
    found = _libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(TELL_VERSION))
    return max(0, int(found))


def enforce(permissions: Permissions) -> None:
    """
    Leave *permissions* to this thread and all that it starts, for good, and no right of root's; needs ``no_new_privs``.

    What is open stays open. Leaves out what the kernel does not know.
    """
    _drop_capabilities()
    known = landlock_version()
    if not known:
        return
    files = FILE_RIGHTS[min(known, max(FILE_RIGHTS))]
    network = BIND | CONNECT if known >= NETWORK_SINCE else 0
    rules = _Ruleset(files, network, SCOPES if known >= SCOPES_SINCE else 0)
    ruleset = _libc.syscall(
        CREATE_RULESET, ctypes.byref(rules), ctypes.c_size_t(ctypes.sizeof(rules)), ctypes.c_uint32(0)
    )
    if ruleset < 0:
        return
    try:
        for path, rights in _paths(permissions):
            _allow_path(ruleset, path, rights & files)
        if network:
            ports = [(port, BIND) for port in permissions.listens_at]
            for port, right in ports + [(port, CONNECT) for port in permissions.connects_to]:
                _add(ruleset, PORT, _PortRule(right, port))
        _libc.syscall(RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)


def _drop_capabilities() -> None:
    none = (ctypes.c_uint32 * 6)()
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    _libc.capset(ctypes.byref(_Header(CAPABILITIES_VERSION, 0)), none)


def _paths(permissions: Permissions) -> Iterator[tuple[str, int]]:
    for path in permissions.readable:
        yield path, READ
    for path in permissions.listable:
        yield path, READ_DIR
    for path in permissions.writable:
        yield path, WRITE


def _allow_path(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= OF_FILES
        if rights:
            _add(ruleset, BELOW_PATH, _PathRule(rights, descriptor))
    finally:
        os.close(descriptor)


def _add(ruleset: int, kind: int, rule: ctypes.Structure) -> None:
    _libc.syscall(ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(kind), ctypes.byref(rule), ctypes.c_uint32(0))
