"""smoke"""
from __future__ import annotations
import time
from tests.handlers.conftest import ALICE
from tests.handlers.realtime_client import open_socket
from tests.system.server import Server

async def test_smoke(server: Server) -> None:
    """x"""
    async with open_socket(server.url, key=ALICE) as socket:
        r = await socket.ask("salut toi")
        d = await socket.done()
        print(socket.seen)

async def test_smoke2(make_server) -> None:
    """x"""
    t=time.time(); s = make_server(); print("START", time.time()-t)
    async with open_socket(s.url) as socket:
        r = await socket.ask("salut toi")
        d = await socket.done()
