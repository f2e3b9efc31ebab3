"""The address that the core listens on: found for its name, tried before anything is started for it, kept for workers."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

from jarvis_core.errors import StartError


def find_address(host: str, port: int, names: tuple[str, str] = ("HOST", "PORT")) -> str:
    """
    Return the first address of *host* that can be listened on, IPv4 before IPv6.

    *host* is an address, also in brackets, or a name, for which this waits as long as the system's resolver does. Raises
    ``StartError`` with what is wrong with it, and the *names* of the settings.
    """
    failure: OSError | None = None
    for family, kind, protocol, _, address in sorted(
        _resolve(host, port, names[0]), key=lambda one: one[0] != socket.AF_INET
    ):
        if family == socket.AF_INET6 and address[3]:
            raise StartError(
                f"{names[0]}: {host} is an address of one link alone, which cannot be listened on; `::` is all"
            )
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as exc:
            failure = failure or exc
        else:
            return str(address[0])
    reason = failure.strerror if failure else "it has no address"
    raise StartError(
        f"cannot listen on {authority(host, port)}: {reason}; free it, or set {' and '.join(names)}"
    ) from failure


@contextlib.contextmanager
def reserve_address(address: str, port: int) -> Iterator[socket.socket]:
    """
    Keep the address for the workers, whose sockets the kernel then spreads connections over.

    One socket that all workers accept from would be simpler, but leaves idle workers idle: of 8 quiet connections one
    worker got 7 or all, where a socket for each worker gave 3 and 5 (two workers of Granian 2.8.7).
    """
    family, kind, protocol, _, found = _resolve(address, port)[0]
    with socket.socket(family, kind, protocol) as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reservation.bind(found)
        yield reservation


def authority(host: str, port: int) -> str:
    """Return *host* and *port* as they stand in a URL."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


def is_loopback(address: str) -> bool:
    """Return whether a server on *address* is reached from this machine only."""
    return ipaddress.ip_address(address).is_loopback


def _resolve(host: str, port: int, name: str = "HOST") -> list[Any]:
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    try:
        # As text Python sends every name through its codec for international ones, which is 0.3 MB of tables.
        return socket.getaddrinfo(host.encode() if host.isascii() else host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise StartError(f"{name}: {host} is no address, and no name that is known here: {exc.strerror}") from exc
    except ValueError as exc:  # of the codec, or NUL
        raise StartError(f"{name}: {host!r} is neither an address nor a name") from exc
