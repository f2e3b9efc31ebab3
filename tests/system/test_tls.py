"""TLS: what is answered over it, and the certificates with which nothing starts."""

from __future__ import annotations

import contextlib
import http.client
import shutil
import ssl
from pathlib import Path

import pytest
from websockets.asyncio.client import connect

from tests.system.conftest import MakeServer
from tests.system.server import TLS, TLS_FILES, Server
from tests.system.test_start import REFUSAL_LIMIT_S, Run, run

__all__ = ["run"]  # a fixture


@pytest.fixture
def server(make_server: MakeServer, database: str) -> Server:
    """Run a server that speaks TLS."""
    server = make_server(DATABASE_URL=database, **TLS)
    server.start()
    return server


async def test_answers_over_tls(server: Server, run: Run) -> None:
    """Requests and WebSockets are answered over TLS 1.2 and 1.3, health checks work, and the start names the address."""
    for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
        context = ssl.create_default_context(cafile=TLS["TLS_CERT_PATH"])
        context.minimum_version = context.maximum_version = version
        secure = http.client.HTTPSConnection("127.0.0.1", server.port, context=context, timeout=10)
        with contextlib.closing(secure) as connection:
            connection.request("GET", "/ready")
            with connection.getresponse() as answer:
                assert answer.status == 200
        address = f"wss://127.0.0.1:{server.port}/ws"
        # A page of the server's own host, over TLS as it is.
        origin = f"https://127.0.0.1:{server.port}"
        async with connect(address, ssl=context, origin=origin, proxy=None) as socket:  # type: ignore[arg-type]
            assert "session.created" in str(await socket.recv())
    assert server.stdout.splitlines()[0].endswith(f"listens on https://localhost:{server.port}")
    # Who asks need not know that it speaks TLS.
    for known in (TLS, {}):
        checked = run("check", PORT=str(server.port), **known)
        assert (checked.returncode, checked.stderr, '"status":"healthy"' in checked.stdout) == (0, "", True)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)) as plain:
        plain.request("GET", "/ready")
        with pytest.raises((http.client.HTTPException, OSError)):
            plain.getresponse()
    assert server.stop() == 0
    silent = run("check", PORT=str(server.port), **TLS)
    assert (silent.returncode, silent.stdout, len(silent.stderr.splitlines())) == (1, "", 1)


@pytest.mark.parametrize(
    ("certificate", "key", "named"),
    [
        ("own.pem", None, "TLS_KEY_PATH: is needed"),
        (None, "own.key", "TLS_CERT_PATH: is needed"),
        ("nowhere.pem", "own.key", "TLS_CERT_PATH: {}/nowhere.pem: cannot be read"),
        ("own.pem", "nowhere.key", "TLS_KEY_PATH: {}/nowhere.key: cannot be read"),
        (".", "own.key", "TLS_CERT_PATH: {}: cannot be read"),
        ("own.key", "own.key", "TLS_CERT_PATH: {}/own.key has no certificate"),
        ("own.pem", "own.pem", "TLS_KEY_PATH: {}/own.pem has no private key"),
        ("own.pem", "encrypted.key", "TLS_KEY_PATH: {}/encrypted.key has no private key in PEM without a passphrase"),
        ("own.pem", "other.key", "TLS_KEY_PATH: {}/other.key is not the key of"),
        ("p521.pem", "p521.key", "TLS_KEY_PATH: {}/p521.key has a curve that is not served"),
    ],
)
def test_unfit_files(
    make_server: MakeServer, directory: Path, certificate: str | None, key: str | None, named: str
) -> None:
    """Files that are missing, of another kind, or do not belong together stop the start with a line that names the setting."""
    files = directory / "tls"
    if not files.exists():
        shutil.copytree(TLS_FILES, files)
    server = make_server(
        TLS_CERT_PATH=None if certificate is None else str(files / certificate),
        TLS_KEY_PATH=None if key is None else str(files / key),
    )
    server.launch()
    assert server.wait(REFUSAL_LIMIT_S) == 1
    assert server.stderr.startswith("jarvis-core: " + named.format(files)), server.stderr
    assert len(server.stderr.splitlines()) == 1
