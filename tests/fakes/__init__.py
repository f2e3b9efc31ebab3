"""
The neighbours as real HTTP servers, with the traps of the real ones.

Each fake listens on 127.0.0.1, records what it was asked, and behaves as its ``mode`` says at that moment::

    async with FakeBridges(jwt_secret=SECRET) as bridges:
        bridges.mode = BridgesMode(shape="ndjson", hold_after=2)
        ...
        bridges.gate.release()

``python -m tests.fakes.python_bridges --port 8005`` runs one as a process of its own; ``POST /_control`` sets its mode
from outside and ``GET /_state`` tells what it has seen.
"""
