"""Runs the checks of a client's program, in that client's environment: only Python's own library is imported here."""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import traceback
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

URL = os.environ["JARVIS_URL"]
API_KEY = os.environ["JARVIS_API_KEY"]
MODEL = os.environ["FAKE_MODEL_URL"]
BRIDGES = os.environ["FAKE_BRIDGES_URL"]
BRIDGES_MODE = {"shape": "ndjson", "transcript": "what was said"}


def control(url: str, **mode: object) -> None:
    """Set how a fake behaves."""
    body = json.dumps(mode).encode()
    request = urllib.request.Request(f"{url}/_control", body, {"Content-Type": "application/json"})  # noqa: S310
    urllib.request.urlopen(request, timeout=5).close()  # noqa: S310


def act(url: str, action: str) -> None:
    """Have a fake do what is no mode: ``shut`` its gate, ``release`` what waits there."""
    request = urllib.request.Request(f"{url}/_control/{action}", method="POST")  # noqa: S310
    urllib.request.urlopen(request, timeout=5).close()  # noqa: S310


async def wait_until(true: Callable[[], bool]) -> None:
    """Wait until what another process does is *true*; whoever calls has a deadline."""
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def state(url: str) -> Any:
    """Return what a fake has seen."""
    with urllib.request.urlopen(f"{url}/_state", timeout=5) as response:  # noqa: S310
        return json.load(response)


def last_request(url: str, path: str) -> Any:
    """Return the body of the last request that a fake has got on *path*."""
    return json.loads(state(url)["last_bodies"][path])


def ask(method: str, path: str, body: object = None) -> Any:
    """Ask the server itself, without the client."""
    data = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(URL + path, data, headers, method=method)  # noqa: S310
    with urllib.request.urlopen(request, timeout=10) as response:  # noqa: S310
        return json.load(response)


def run_checks(names: Mapping[str, Any]) -> None:
    """Run each function ``check_…`` of *names*, with the fakes as they are at the start, and write what became of it."""
    for name, check in names.items():
        if not name.startswith("check_"):
            continue
        control(MODEL)
        control(BRIDGES, **BRIDGES_MODE)
        failure = ""
        try:
            made = check()
            if inspect.iscoroutine(made):
                asyncio.run(asyncio.wait_for(made, 20))
        except Exception:  # noqa: BLE001 - whatever it is, it is told
            failure = traceback.format_exc()
        sys.stdout.write(json.dumps({"check": name, "failure": failure}, separators=(",", ":")) + "\n")
        sys.stdout.flush()
