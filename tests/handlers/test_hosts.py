"""Under which names an open server answers: those that no page of the web can have."""

from __future__ import annotations

import pytest

from jarvis_core.errors import MisdirectedRequest
from jarvis_core.handlers.hosts import PASSED_LIMIT, Hosts


@pytest.fixture
def hosts() -> Hosts:
    """Give the names of a server at ``assistant.home`` that has two more."""
    return Hosts(("jarvis.example.com", ".example.org"), ("0.0.0.0", "assistant.home"))


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8100", "LOCALHOST:8100", "app.localhost:8100", "127.0.0.1:8100", "127.1:8100", "192.168.1.20", "[::1]:8100",
        "[fe80::1]", "203.0.113.9:80", "jarvis.local:8100", "Jarvis.Local.", "jarvis-core:8100", "core", "host.docker.internal",
        "box.home.arpa", "assistant.home:8100", "jarvis.example.com", "jarvis.example.com.:443", "a.example.org", "",
    ],
)  # fmt: skip
def test_own_names(hosts: Hosts, host: str) -> None:
    """Addresses, names of one label or of one network, this machine's and the allowed ones pass, with any port."""
    hosts.check(host.encode())
    assert host.encode() in hosts.passed


@pytest.mark.parametrize(
    "host",
    [
        "page.example", "page.example:8100", "example.com", "x.jarvis.example.com", "example.org", "notexample.org", "local.page.example",
        "127.0.0.1.page.example", "localhost.page.example:8100", ".example.com", "a.b.c:1", "[page.example]:80", "\xe9.fr",
    ],
)  # fmt: skip
def test_other_names(hosts: Hosts, host: str) -> None:
    """A name that a page of the web may have is refused, however near it looks."""
    with pytest.raises(MisdirectedRequest):
        hosts.check(host.encode("latin-1"))
    assert host.encode("latin-1") not in hosts.passed


def test_any() -> None:
    """With ``*`` every name passes."""
    Hosts(("*",), ()).check(b"page.example")


def test_remembers_not_more_than_it_must(hosts: Hosts) -> None:
    """However many good headers come, few are remembered."""
    for port in range(2 * PASSED_LIMIT):
        hosts.check(b"localhost:%d" % port)
    assert len(hosts.passed) <= PASSED_LIMIT + 1
