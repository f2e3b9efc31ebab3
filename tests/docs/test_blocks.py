"""Runs every command and every example of README.md and docs/, in order, against the real server."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import quote

import psycopg.conninfo
import pytest

from jarvis_core.local.valkey import PrivateValkey
from jarvis_core.settings import load
from tests.docs.pages import Block, blocks_of, name_of, paths
from tests.docs.session import STARTS_SERVER, Session
from tests.fakes.audio_engine import FakeAudioEngine
from tests.fakes.openai_compatible import FakeModelServer
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.system.server import free_port

PAGES = [pytest.param(path, id=name_of(path)) for path in paths()]

HEARD = "What is the capital of France?"
"""By the fake, whatever is said to it."""
VOICES = {"ff_siwis": "Siwis (femme)", "af_heart": "Heart (femme)"}


@pytest.fixture
def directory() -> Iterator[Path]:
    """Make a directory with a short name, as sockets need."""
    directory = Path(tempfile.mkdtemp(prefix="jarvis-docs-", dir="/tmp"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def runs(block: Block) -> bool:
    """Whether a test runs the block."""
    return block.not_run is None and block.language in ("sh", "python", "js")


def with_output(blocks: list[Block]) -> Iterator[tuple[Block, Block | None]]:
    """Give each block that is run with the one behind it, where that shows what it prints."""
    for block, following in itertools.zip_longest(blocks, blocks[1:]):
        if runs(block):
            shown = following is not None and following.language in ("json", "text")
            yield block, following if shown else None


@pytest.mark.parametrize("path", PAGES)
async def test_page_does_what_it_says(path: Path, directory: Path, database: str) -> None:
    """Every block of a page works as it stands, one after another, and prints what the page shows."""
    steps = list(with_output(blocks_of(path)))
    if not steps:
        pytest.skip("there is nothing to run on it")
    if any(block.language == "js" for block, _ in steps) and shutil.which("node") is None:
        pytest.skip("there is no node")
    mode = BridgesMode(shape="ndjson", transcript=HEARD, voices=VOICES, delta_delay_s=0.01)
    valkey = PrivateValkey()
    async with AsyncExitStack() as stack:
        bridges = await stack.enter_async_context(FakeBridges(mode=mode))
        model = await stack.enter_async_context(FakeModelServer())
        audio = await stack.enter_async_context(FakeAudioEngine())
        port = free_port()
        addresses = {
            "localhost:8100": f"localhost:{port}",
            "http://localhost:8005": bridges.url,
            "http://localhost:11434/v1": model.llm_url,
            "postgresql://jarvis:secret@db/jarvis": url_of(database),
        }
        if any("redis://cache" in block.text for block, _ in steps):
            stack.callback(valkey.stop)
            addresses["redis://cache:6379/0"] = valkey.start()
        environment = {
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "DATA_DIR": str(directory / "data"),
            "TEST_DATABASE_URL": database,
            "TEST_BRIDGES_URL": bridges.url,
            "TEST_AUDIO_URL": audio.url,
        }
        session = Session(directory, environment, addresses)
        stack.callback(session.stop)
        blocks = [block for block, _ in steps]
        if not any(STARTS_SERVER in block.text for block in blocks[:1]):
            blocks.insert(0, Block(name_of(path), 0, "sh", "make run\n", None))
        outcomes = await session.run(blocks)
    shown = {block: output and output._replace(text=session.as_run(output.text)) for block, output in steps}
    complaints = [text for outcome in outcomes for text in outcome.complaints(shown.get(outcome.block))]
    assert not complaints, "\n\n".join(complaints) + "\n" + session.server_log()
    assert [outcome.block for outcome in outcomes] == blocks


@pytest.mark.parametrize("path", PAGES)
def test_settings_files_are_good(path: Path, tmp_path: Path) -> None:
    """What a page shows as a settings file is one."""
    for block in blocks_of(path):
        if block.language == "toml":
            file = tmp_path / "jarvis.toml"
            file.write_text(block.text, encoding="utf-8")
            load({}, file)


def url_of(conninfo: str) -> str:
    """Return a libpq conninfo string as an address."""
    parts = psycopg.conninfo.conninfo_to_dict(conninfo)
    host = quote(str(parts["host"]), safe="")
    return f"postgresql://{parts['user']}@{host}:{parts.get('port', 5432)}/{parts['dbname']}"
