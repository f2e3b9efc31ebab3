"""A real browser, pages of its own for it, and a name that leads to one server first and to another one later."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
REPORT_LIMIT_S = 60.0
"""For a browser's start and a page's seconds of work, on a machine with other work."""

SWITCHES = (
    "--headless=new",
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
    "--no-proxy-server",
    "--password-store=basic",
)


def find_chromium() -> str:
    """Return the program; without one the test is skipped, or fails where everything has to be tested (``CI=true``)."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        missing = "there is no Chromium here (apt-get install chromium)"
        if os.environ.get("CI") == "true":
            pytest.fail(missing)
        pytest.skip(missing)
    return program


class Pages:
    """Serves one page under every path, and takes what its script reports to ``/report`` of this server."""

    def __init__(self) -> None:
        self.port = 0
        self.script = ""
        self.asked_again = asyncio.Event()
        """Set when a page has asked its own server for something."""
        self.reported: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def page(self, request: web.Request) -> web.Response:
        """Give the page; each connection has one request, so that the next one goes where the name leads by then."""
        if request.path == "/again":
            self.asked_again.set()
        text = f'<!doctype html><meta charset="utf-8"><title>page</title><script type="module">{self.script}</script>'
        return web.Response(text=text, content_type="text/html", headers={"Connection": "close"})

    async def report(self, request: web.Request) -> web.Response:
        """Take the report."""
        self.reported.set_result(msgspec.json.decode(await request.read()))
        return web.Response(headers={"Connection": "close"})


@asynccontextmanager
async def pages() -> AsyncIterator[Pages]:
    """Serve pages on a free port of 127.0.0.1."""
    pages = Pages()
    app = web.Application()
    app.router.add_post("/report", pages.report)
    app.router.add_get("/{path:.*}", pages.page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    pages.port = runner.addresses[0][1]
    try:
        yield pages
    finally:
        await runner.cleanup()


class Name:
    """A port that leads to another one of this machine, which may be changed: what a name server does for a name."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.led: list[int] = []
        """Where each connection was led to."""

    async def lead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on a connection, both ways."""
        self.led.append(self.target)
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65_536):
                    target.write(data)
                    await target.drain()
            target.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))


@asynccontextmanager
async def name(target: int) -> AsyncIterator[Name]:
    """Have a port that leads to *target*, until that is changed."""
    name = Name(target)
    server = await asyncio.start_server(name.lead, "127.0.0.1", 0)
    name.port = server.sockets[0].getsockname()[1]
    try:
        yield name
    finally:
        server.close()


async def visit(url: str, pages: Pages, *, names: str) -> Any:
    """
    Open *url* in a browser for which *names* lead to 127.0.0.1; return what the page's script reports.

    The browser has a profile of its own, and ends with the report; raises ``TimeoutError``.
    """
    profile = Path(tempfile.mkdtemp(prefix="jarvis-browser-", dir="/tmp"))
    rules = ", ".join(f"MAP {one} 127.0.0.1" for one in names.split())
    with (profile / "log").open("wb") as log:
        browser = await asyncio.create_subprocess_exec(
            find_chromium(),
            *SWITCHES,
            f"--user-data-dir={profile / 'profile'}",
            f"--host-resolver-rules={rules}",
            url,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={"PATH": os.environ["PATH"], "HOME": str(profile)},
            start_new_session=True,
        )
    try:
        async with asyncio.timeout(REPORT_LIMIT_S):
            return await pages.reported
    except TimeoutError:
        raise AssertionError(f"the page reports nothing:\n{(profile / 'log').read_text(errors='replace')}") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(browser.pid, 9)
        await browser.wait()
        shutil.rmtree(profile, ignore_errors=True)
