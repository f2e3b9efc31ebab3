"""
Under which names this server may be asked where anybody may come in.

A page of the web can have its own name point to this machine (DNS rebinding): the browser then takes page and server for
one origin, and lets the page read everything. What it cannot change is the ``Host`` that the browser sends, the name itself.
So an open server answers only under names that no page of the web can have.
"""

from __future__ import annotations

import ipaddress

from jarvis_core.errors import MisdirectedRequest

PRIVATE_SUFFIXES = (".localhost", ".local", ".internal", ".home.arpa")
"""
Reserved for one machine or one network: RFC 6761, RFC 6762 (``jarvis.local``), ICANN's of 2024 (``host.docker.internal``),
RFC 8375.
"""
PASSED_LIMIT = 256
"""Headers that are remembered as good; a port and a spelling make another one."""


class Hosts:
    """
    The names under which an open server answers.

    IP addresses, names of one label (``localhost``, a container's), those below ``PRIVATE_SUFFIXES``, this machine's own, and
    *allowed*: ``jarvis.example.com``, ``.example.com`` for all below it, or ``*`` for any.
    """

    def __init__(self, allowed: tuple[str, ...], own: tuple[str, ...]) -> None:
        self._any = "*" in allowed
        names = {name.lower().rstrip(".") for name in (*allowed, *own)}
        self._names = frozenset(name for name in names if not name.startswith("."))
        self._suffixes = (*PRIVATE_SUFFIXES, *(name for name in names if name.startswith(".")))
        self.passed: set[bytes] = {b""}
        """Headers that were found good. Who sends none is no browser."""

    def check(self, host: bytes) -> None:
        """Raise ``MisdirectedRequest`` for a Host header that names somebody else."""
        name = name_of(host.decode("latin-1"))
        if not (
            self._any or "." not in name or name in self._names or name.endswith(self._suffixes) or is_address(name)
        ):
            raise MisdirectedRequest(
                "This server, which is open to everybody, does not answer under this name; ALLOWED_HOSTS names more."
            )
        if len(self.passed) >= PASSED_LIMIT:
            self.passed = {b""}
        self.passed.add(host)


def name_of(host: str) -> str:
    """Return the name or the address in a Host header, without its port, in small letters."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def is_address(name: str) -> bool:
    """Whether *name* is an IP address as it is written, or in short as browsers read it: no name ends in a number (URL standard)."""
    if name.rpartition(".")[2].isdigit():
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
