"""Which address a name is listened on."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from jarvis_core.errors import StartError
from jarvis_core.processes.address import authority, find_address, is_loopback

Know = Callable[..., None]


@pytest.fixture
def know(monkeypatch: pytest.MonkeyPatch) -> Know:
    """Have the machine know one name, for the given addresses."""

    def know(name: str, *addresses: str) -> None:
        lookup = socket.getaddrinfo

        def answer(host: bytes, port: int, **options: Any) -> list[Any]:
            assert host == name.encode()
            return [one for address in addresses for one in lookup(address, port, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", answer)

    return know


@pytest.mark.parametrize(
    ("addresses", "found"),
    [
        (("::1",), "::1"),
        (("::1", "127.0.0.1"), "127.0.0.1"),
        (("198.51.100.1", "127.0.0.2", "::1"), "127.0.0.2"),
        (("198.51.100.1", "::1"), "::1"),
    ],
)
def test_address_of_a_name(know: Know, addresses: tuple[str, ...], found: str) -> None:
    """Of a name's addresses the first is listened on that this machine has, IPv4 before IPv6."""
    if found == "::1":
        try:
            with socket.create_server(("::1", 0), family=socket.AF_INET6):
                pass
        except OSError:
            pytest.skip("this machine has no IPv6")
    know("jarvis.home", *addresses)
    assert find_address("jarvis.home", 0) == found


def test_name_of_another_machine(know: Know) -> None:
    """A name that stands for other machines is told with the reason that the first address gave."""
    know("jarvis.home", "198.51.100.1", "2001:db8::1")
    with pytest.raises(StartError, match=r"cannot listen on jarvis\.home:8100: .*HOST"):
        find_address("jarvis.home", 8100)


def test_address_of_one_link() -> None:
    """An address that needs its link named, which the server below does not understand, is told as such."""
    try:
        socket.getaddrinfo("fe80::1%lo", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with pytest.raises(StartError, match="HOST: fe80::1%lo is an address of one link"):
        find_address("fe80::1%lo", 0)


def test_what_is_shown_and_warned_of() -> None:
    """An IPv6 address stands in brackets in a URL; only what this machine alone reaches is loopback."""
    assert [authority(host, 80) for host in ("::1", "[::1]", "a", "127.0.0.1")] == [
        "[::1]:80",
        "[::1]:80",
        "a:80",
        "127.0.0.1:80",
    ]
    assert [is_loopback(one) for one in ("127.0.1.1", "::1", "0.0.0.0", "::", "192.0.2.2")] == [True] * 2 + [False] * 3
