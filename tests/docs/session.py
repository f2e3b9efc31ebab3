"""
Runs the blocks of a page as a reader would: one after another, in one shell, in a clone of the repository.

A block with ``make run`` is a terminal of its own: what it exports is not known to the blocks after it, and the server
that it starts serves them. A command that fails fails its block; so does an answer with a status from 400 on, unless
the page shows an error in its place.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from tests.docs.pages import REPOSITORY, Block
from tests.docs.shapes import differences, reads_like

LIMIT_S = 240.0
"""For a page; it takes a few seconds, each start of a server one or two."""

STARTS_SERVER = "make run"

PRELUDE = r"""
# `make run` without the installing, beside the fakes: what the page sets goes before what the test sets.
make() {
  if [ "$1" != run ]; then command make "$@"; return; fi
  stop_server
  : "${DATABASE_URL=$TEST_DATABASE_URL}" "${PYTHON_BRIDGES_URL=$TEST_BRIDGES_URL}" "${AUDIO_ENGINE_URL=$TEST_AUDIO_URL}"
  export DATABASE_URL PYTHON_BRIDGES_URL AUDIO_ENGINE_URL
  "$TEST_PYTHON" -m jarvis_core >"$OUT/server" 2>"$OUT/server-log" &
  echo $! >"$OUT/server-pid"
  local address="http://127.0.0.1:$PORT/ready"
  [ -z "$TLS_CERT_PATH" ] || address="https://127.0.0.1:$PORT/ready"
  local tries=0
  until command curl -q -skf -o /dev/null "$address"; do
    kill -0 "$(cat "$OUT/server-pid")" 2>/dev/null && [ $((tries += 1)) -lt 600 ] || { cat "$OUT/server-log" >&2; return 1; }
    sleep 0.05
  done
  cat "$OUT/server"
}
stop_server() {
  [ -e "$OUT/server-pid" ] || return 0
  local pid; pid=$(cat "$OUT/server-pid")
  kill "$pid" 2>/dev/null || true
  # It is no child of this shell; one that has ended may wait for its parent, and has no program any more.
  while readlink -q "/proc/$pid/exe" >/dev/null; do sleep 0.05; done
  rm "$OUT/server-pid"
}
# For functions and in subshells too.
set -E
"""

CURLRC = "fail-with-body\nmax-time = 30\n"
"""Has curl fail where the answer is an error, and print it all the same."""


class Outcome(NamedTuple):
    """What a block did."""

    block: Block
    stdout: str
    stderr: str
    failed: list[str]
    """The commands of it that failed; without an end of the block: the last one that was begun."""

    def complaints(self, shown: Block | None) -> list[str]:
        """Say what is otherwise than the page has it, which shows the output *shown*, if any."""
        told = f"{self.block.place}:\n{self.stdout[-3000:]}{self.stderr[-3000:]}"
        is_error = False
        found: list[str] = []
        if shown is not None and shown.language == "json":
            body = msgspec.json.decode(shown.text)
            # Ours, or OpenAI's.
            error = body.get("error") if isinstance(body, dict) else None
            is_error = error is not None and "code" in (error if isinstance(error, dict) else body)
            try:
                actual = msgspec.json.decode(self.stdout)
            except msgspec.DecodeError as exc:
                found.append(f"the output is not JSON ({exc})")
            else:
                found += differences(body, actual)
        elif shown is not None and not reads_like(shown.text, self.stdout):
            found.append(f"the page shows at {shown.place}:\n{shown.text}")
        if self.failed and not is_error:
            found.append(f"failed: {'; '.join(self.failed)}")
        return [f"{what}\n{told}" for what in found]


class Session:
    """A clone and a shell in it, for one page after another."""

    def __init__(self, directory: Path, environment: Mapping[str, str], addresses: Mapping[str, str]) -> None:
        """
        Make the clone in *directory*: of links to directories, which no page writes to, and copies of files.

        *environment* is what the shell gets besides a path and a home; *addresses* has what the pages name, and what is
        there instead.
        """
        self._addresses = addresses
        self._out = directory / "out"
        self._clone = directory / "jarvis-core"
        home = directory / "home"
        for made in (self._out, self._clone, home):
            made.mkdir()
        (home / ".curlrc").write_text(CURLRC)
        for entry in REPOSITORY.iterdir():
            if entry.is_file() and entry.name != ".env":
                shutil.copy(entry, self._clone)
            elif entry.is_dir() and entry.name != ".git":
                (self._clone / entry.name).symlink_to(entry)
        if not (self._clone / ".venv").exists():
            # The tests were started with another environment than the one that `make install` makes.
            (self._clone / ".venv").symlink_to(sys.prefix)
        self._environment = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "OUT": str(self._out),
            "TEST_PYTHON": sys.executable,
            **environment,
        }

    async def run(self, blocks: Sequence[Block]) -> list[Outcome]:
        """Run *blocks* in order, and return what each of them did; the last is the one that ended the shell."""
        script = self._out / "page.sh"
        script.write_text(PRELUDE + "".join(self._step(number, block) for number, block in enumerate(blocks)))
        with (self._out / "shell").open("wb") as complaints:
            process = await asyncio.create_subprocess_exec(
                "bash",
                str(script),
                cwd=self._clone,
                env=self._environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=complaints,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(LIMIT_S):
                await process.wait()
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        return [self._outcome(number, block) for number, block in enumerate(blocks) if self._begun(number)]

    def stop(self) -> None:
        """End the server that the page left running, if any."""
        pid_file = self._out / "server-pid"
        if pid_file.exists():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid_file.read_text()), signal.SIGKILL)

    def server_log(self) -> str:
        """Return the log of the server that was started last."""
        log = self._out / "server-log"
        return log.read_text(errors="replace")[-5000:] if log.exists() else ""

    def as_run(self, text: str) -> str:
        """Return *text* with the addresses that there are in place of those that the pages name."""
        for named, there in self._addresses.items():
            text = text.replace(named, there)
        return text

    def _step(self, number: int, block: Block) -> str:
        text = self.as_run(block.text)
        trap = f"trap 'echo \"$BASH_COMMAND\" >>$OUT/{number}.failed' ERR\n"
        if block.language == "python":
            (self._out / f"{number}.py").write_text(text)
            text = f'"$TEST_PYTHON" $OUT/{number}.py\n'
        elif block.language == "js":
            (self._out / f"{number}.mjs").write_text(text)
            text = f"node --experimental-websocket --no-warnings $OUT/{number}.mjs\n"
        opened, closed = ("(", ")") if STARTS_SERVER in text else ("{", "}")
        return f"{opened}\n{trap}{text}trap - ERR\n{closed} >$OUT/{number}.out 2>$OUT/{number}.err\necho ended >$OUT/{number}.ended\n"

    def _begun(self, number: int) -> bool:
        return (self._out / f"{number}.out").exists()

    def _outcome(self, number: int, block: Block) -> Outcome:
        def text(suffix: str) -> str:
            path = self._out / f"{number}.{suffix}"
            return path.read_text(errors="replace") if path.exists() else ""

        failed = text("failed").splitlines()
        if not text("ended"):
            failed.append(f"it did not come to its end, within {LIMIT_S} s for the page")
        return Outcome(block, text("out"), text("err") + ("" if text("ended") else self.server_log()), failed)
