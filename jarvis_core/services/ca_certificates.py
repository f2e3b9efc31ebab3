"""
Loads the system's certificate authorities for TLS connections to neighbours, when the first one needs them.

aiohttp (3.14) reads them twice when it is imported, for connections that name no context: 40 ms and 2 MB in every
process, where few homes have a neighbour with ``https``. So aiohttp is imported here with nothing to read, before the
adapters import it, and ``authorities`` reads them for the first such neighbour. aiohttp's own default context trusts no
certificate then.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from functools import cache


@contextlib.contextmanager
def _nothing_to_read() -> Iterator[None]:
    """Have new contexts of this process begin without authorities."""
    load = ssl.SSLContext.load_default_certs
    ssl.SSLContext.load_default_certs = lambda *_: None  # type: ignore[method-assign]
    # That one is inherited.
    ssl.SSLContext.set_default_verify_paths = lambda *_: None  # type: ignore[method-assign]
    try:
        yield
    finally:
        ssl.SSLContext.load_default_certs = load  # type: ignore[method-assign]
        del ssl.SSLContext.set_default_verify_paths


with _nothing_to_read():
    import aiohttp as aiohttp


@cache
def authorities() -> ssl.SSLContext:
    """Return the context for neighbours with ``https``; reads the system's authorities the first time, some 20 ms."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(("http/1.1",))
    return context
