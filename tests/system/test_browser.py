"""A real browser against the open server: a page under a foreign name that leads to this machine, and pages that may."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.fakes.python_bridges import FakeBridges
from tests.system.browser import REPORT_LIMIT_S, Pages, name, pages, visit
from tests.system.conftest import MakeServer
from tests.system.server import Server

ATTEMPTS = """
const tell = async (work) => {
  try { return await work(); } catch (error) { return `${error.name}`; }
};
const json = { "content-type": "application/json" };
const body = JSON.stringify({ content: "from a page" });
const untyped = new Blob([body]);  // such a body has no Content-Type, and no preflight asks whether it may
const read = async (path, options) => {
  const answer = await fetch(core + path, options);
  return [answer.type, answer.status, await answer.text()];
};
const listen = (path) => new Promise((resolve) => {
  const source = new EventSource(core + path);
  const seen = [];
  source.onopen = () => seen.push("open");
  source.onmessage = (event) => seen.push(JSON.parse(event.data).type);
  source.onerror = () => { source.close(); seen.push("error"); resolve(seen); };
  source.addEventListener("response.done", () => { source.close(); seen.push("response.done"); resolve(seen); });
});
const socket = (path) => new Promise((resolve) => {
  const socket = new WebSocket(core.replace("http", "ws") + path);
  const seen = [];
  socket.onopen = () => seen.push("open");
  socket.onmessage = (event) => {
    seen.push(JSON.parse(event.data).type);
    if (seen.length == 2) {
      const content = [{ type: "input_text", text: "over a socket" }];
      socket.send(JSON.stringify({ type: "conversation.item.create", item: { type: "message", role: "user", content } }));
      socket.send(JSON.stringify({ type: "response.create" }));
    }
    if (seen.at(-1) == "response.done") socket.close(1000);
  };
  socket.onclose = (event) => { seen.push(event.code); resolve(seen); };
});
const response = async () => (await (await fetch(core + "/api/chat", { method: "POST", headers: json, body })).json()).id;
const attempts = async () => ({
  get: await tell(() => read("/api/chat/conversations")),
  health: await tell(() => read("/health")),
  unseen: await tell(() => read("/api/chat/conversations", { mode: "no-cors" })),
  post: await tell(() => read("/api/chat", { method: "POST", headers: json, body })),
  blind: await tell(() => read("/api/chat", { method: "POST", mode: "no-cors", body: untyped })),
  stream: await tell(() => read("/api/chat", { method: "POST", headers: { ...json, accept: "text/event-stream" }, body })),
  remove: await tell(() => read("/api/chat/conversation/" + known, { method: "DELETE" })),
  events: await tell(async () => listen(`/api/chat/response/${await tell(response)}/events`)),
  socket: await tell(() => socket("/ws")),
  realtime: await tell(() => socket("/v1/realtime?model=any")),
});
"""
REPORT = """
const report = (value) => fetch(home + "/report", { method: "POST", mode: "no-cors", body: JSON.stringify(value) });
"""
SECRET = "nobody's but mine"


@pytest.fixture
async def core(make_server: MakeServer, app_port: int, database: str) -> Server:
    """Run an open server that has something to read, and a page that may read it."""
    server = make_server(
        DATABASE_URL=database, LOCAL_SPEECH="off", CORS_ORIGINS=f"http://app.example:{app_port}", HOST="0.0.0.0"
    )
    await asyncio.to_thread(server.start)
    return server


@pytest.fixture
async def site() -> Any:
    """Serve pages."""
    async with pages() as site:
        yield site


@pytest.fixture
def app_port(site: Pages) -> int:
    """Name the port of the page that may."""
    return site.port


def conversations(server: Server) -> list[str]:
    """Return the titles of what is stored, asked by somebody who is no browser."""
    return [one["title"] for one in server.ask("GET", "/api/chat/conversations").body["conversations"]]


def script(core: str, known: str, home: int, work: str = "report(await attempts());") -> str:
    """Make a page's script that does *work*."""
    constants = f'const core = "{core}", known = "{known}", home = "http://127.0.0.1:{home}";'
    return f"{constants}{REPORT}{ATTEMPTS}{work}"


def known_conversation(server: Server) -> str:
    """Store something; return its conversation."""
    made = server.ask("POST", "/api/chat/conversation", {"title": SECRET})
    assert made.status == 200, made
    return str(made.body["id"])


async def test_foreign_name(core: Server, bridges: FakeBridges, site: Pages) -> None:
    """
    A page whose own name is made to lead to the open server reads nothing, starts nothing and opens no socket.

    To the browser all of it is the page's own server: nothing but the name tells the two apart.
    """
    known = await asyncio.to_thread(known_conversation, core)
    async with name(site.port) as evil:
        # The page waits until its name leads elsewhere: its own server would answer this with the page.
        work = """
        while ((await fetch("/again", { cache: "no-store" })).status == 200) await new Promise((go) => setTimeout(go, 50));
        report(await attempts());
        """
        site.script = script(f"http://evil.example:{evil.port}", known, site.port, work)
        visiting = asyncio.create_task(visit(f"http://evil.example:{evil.port}/", site, names="evil.example"))
        async with asyncio.timeout(REPORT_LIMIT_S):
            await site.asked_again.wait()
        evil.target = core.port
        told = await visiting
    assert core.port in evil.led
    refused = "misdirected_request"
    for attempt in ("get", "health", "unseen", "post", "blind", "stream", "remove"):
        kind, status, text = told[attempt]
        assert (kind, status) == ("basic", 421), (attempt, told)
        assert refused in text
        assert SECRET not in text
    assert told["events"] == ["error"]
    assert told["socket"] == told["realtime"] == [1006]
    assert await asyncio.to_thread(conversations, core) == [SECRET]
    assert not [request for request in bridges.requests if request.path.startswith("/api/llm")]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_foreign_page(core: Server, bridges: FakeBridges, site: Pages, host: str) -> None:
    """A page of the web that asks this machine by an address or a name of its own reads and starts nothing either."""
    known = await asyncio.to_thread(known_conversation, core)
    site.script = script(f"http://{host}:{core.port}", known, site.port)
    told = await visit(f"http://evil.example:{site.port}/", site, names="evil.example")
    for attempt in ("get", "health", "post", "stream", "remove"):
        assert told[attempt] == "TypeError", told
    for attempt in ("unseen", "blind"):
        assert told[attempt] == ["opaque", 0, ""], told
    assert told["events"] == ["error"]
    assert told["socket"] == told["realtime"] == [1006]
    assert await asyncio.to_thread(conversations, core) == [SECRET]
    assert not [request for request in bridges.requests if request.path.startswith("/api/llm")]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_page_that_may(core: Server, site: Pages, host: str) -> None:
    """A page of CORS_ORIGINS does all that a client does: reads, asks, follows, deletes, and talks over a socket."""
    known = await asyncio.to_thread(known_conversation, core)
    site.script = script(f"http://{host}:{core.port}", known, site.port)
    told = await visit(f"http://app.example:{site.port}/", site, names="app.example")
    for attempt in ("get", "health", "post", "stream", "remove"):
        kind, status, _ = told[attempt]
        assert (kind, status) == ("cors", 200), (attempt, told)
    assert SECRET in told["get"][2]
    assert "You said: from a page" in told["post"][2]
    assert "response.done" in told["stream"][2]
    assert told["events"][0] == "open"
    assert told["events"][-1] == "response.done"
    for attempt in ("socket", "realtime"):
        assert told[attempt][:2] == ["open", "session.created"]
        assert told[attempt][-2:] == ["response.done", 1000], told[attempt]
    # What it deleted is gone, what it said is there: whole, blind, as a stream, to be followed, and over two sockets.
    stored = await asyncio.to_thread(conversations, core)
    assert sorted(stored) == ["from a page"] * 4 + ["over a socket"] * 2
