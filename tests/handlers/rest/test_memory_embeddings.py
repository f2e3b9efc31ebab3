"""``/api/memory`` with embeddings that are away, late, wrong or of another model: nothing is lost, and the mode tells."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Any

import pytest

from tests.fakes.faults import Fault, FaultKind
from tests.fakes.python_bridges import BridgesMode, FakeBridges
from tests.handlers.rest.api import Api
from tests.handlers.rest.memories import (
    ADD,
    BATCH,
    EMBED,
    LATE_S,
    LIST,
    add,
    entry,
    found,
    listed,
    nearness,
    search,
    until,
)

WELL = BridgesMode(shape="ndjson")
ONE_BY_ONE_REFUSED = {EMBED: Fault(status=500), BATCH: Fault()}


def faulty(kind: FaultKind = "none", **options: Any) -> BridgesMode:
    """Go wrong at the embeddings, and only there."""
    return BridgesMode(shape="ndjson", faults={"/api/embeddings": Fault(kind, **options)})


BROKEN = {
    "refused": faulty(status=500),
    "unavailable": faulty(status=503),
    "too many": faulty(status=429),
    "unauthorized": faulty(status=401),
    "hang": faulty("hang"),
    "trickle": faulty("trickle"),
    "reset": faulty("reset"),
    "truncated": faulty("truncated"),
    "short body": faulty("short_body"),
    "wrong shape": faulty("wrong_shape"),
    "html": faulty("html"),
    "zero": BridgesMode(shape="ndjson", vectors="zero"),
    "nan": BridgesMode(shape="ndjson", vectors="nan"),
    "short": BridgesMode(shape="ndjson", vectors="short"),
    "no dimension": BridgesMode(shape="ndjson", dimension=0),
    "too large": BridgesMode(shape="ndjson", dimension=4_001),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_broken(ann: Api, embeddings: FakeBridges, name: str) -> None:
    """Whatever is wrong, an entry is kept, merged, found by its words and changed, and gets its vector once all is well."""
    embeddings.mode = BROKEN[name]
    started = time.monotonic()
    made = await add(ann, "Le code de la cave est 9182")
    assert (made["embedded"], made["merged"]) == (False, False)
    again = await add(ann, "le code de la cave est 9182 !", importance=0.9)
    assert (again["id"], again["merged"], again["embedded"], again["importance"]) == (made["id"], True, False, 0.9)
    body = await search(ann, "code de la cave")
    assert (body["mode"], [one["id"] for one in body["results"]]) == ("lexical", [made["id"]])
    assert body["results"][0]["why"]["semantic"] == 0
    other = await add(ann, "un brouillon")
    changed = await ann.ask("PATCH", entry(other), {"content": "La chaudière date de 2019"})
    assert changed.status == 200
    assert await _embedded(ann, made) == {"list": False, "search": False, "entry": False}
    assert changed.json["embedded"] is False
    assert await listed(ann) == ["La chaudière date de 2019", made["content"]]
    assert time.monotonic() - started < LATE_S, "each request waits for the deadline at most"
    embeddings.mode = WELL
    for content in (made["content"], "La chaudière date de 2019"):
        await until(partial(_near, ann, content))
    assert (await search(ann, "chaudière"))["mode"] == "hybrid"
    assert (await add(ann, made["content"]))["embedded"]
    assert await _embedded(ann, made) == {"list": True, "search": True, "entry": True}


async def _embedded(api: Api, memory: Any) -> dict[str, bool]:
    """Return what each way to an entry says of its vector."""
    entries = {
        "list": (await api.get(LIST)).json["memories"],
        "search": (await search(api, memory["content"]))["results"],
        "entry": [(await api.get(entry(memory))).json],
    }
    return {way: one["embedded"] for way, found in entries.items() for one in found if one["id"] == memory["id"]}


async def _near(api: Api, content: str) -> bool:
    return await nearness(api, content, content) > 0.5


async def test_away(ann: Api, embeddings: FakeBridges) -> None:
    """With the neighbour gone the same fact told a hundred times at once is one entry, which is embedded later."""
    await embeddings.go_away()
    made = await asyncio.gather(*(add(ann, "Le train part à 7h42") for _ in range(100)))
    assert len({one["id"] for one in made}) == 1
    assert not any(one["embedded"] for one in made)
    assert (await search(ann, "train"))["mode"] == "lexical"
    assert await listed(ann) == ["Le train part à 7h42"]
    await embeddings.come_back()
    await until(lambda: _near(ann, "Le train part à 7h42"))


async def test_hanging_embeddings_hold_up_few(ann: Api, embeddings: FakeBridges) -> None:
    """Who comes after the first that waited in vain does not wait."""
    embeddings.mode = faulty("hang")
    started = time.monotonic()
    for n in range(3):
        await add(ann, f"entrée {n}")
        await search(ann, "entrée")
    assert time.monotonic() - started < 5.5, "six deadlines of a second would be six seconds"


async def test_slow(ann: Api, embeddings: FakeBridges) -> None:
    """Embeddings within their deadline are waited for."""
    embeddings.mode = faulty(delay_s=0.3)
    assert (await add(ann, "lent mais sûr"))["embedded"]
    assert (await search(ann, "lent"))["mode"] == "hybrid"


async def test_near_duplicates_that_were_embedded_late(ann: Api, embeddings: FakeBridges) -> None:
    """What could not be seen to say the same when it came is merged once the vectors are there; the older one stands."""
    words = " ".join(f"mot{n}" for n in range(60))
    embeddings.mode = BridgesMode(shape="ndjson", vectors="zero")
    first = await add(ann, f"{words} the car", importance=0.2)
    second = await add(ann, f"{words} car", importance=0.8)
    assert not second["merged"]
    embeddings.mode = WELL
    await until(lambda: _only(ann, first["content"]))
    stands = (await ann.get(entry(first))).json
    assert (stands["importance"], stands["created_at"]) == (0.8, first["created_at"])
    assert (await ann.get(entry(second))).error == (404, "not_found")


async def _only(api: Api, content: str) -> bool:
    return await listed(api) == [content]


async def test_deleted_while_it_waits(ann: Api, embeddings: FakeBridges) -> None:
    """An entry that is forgotten before it has its vector stays forgotten, and holds up no other."""
    embeddings.mode = BridgesMode(shape="ndjson", vectors="zero")
    gone = await add(ann, "à oublier")
    await add(ann, "à garder")
    assert (await ann.ask("DELETE", entry(gone))).status == 200
    embeddings.mode = WELL
    await until(lambda: _near(ann, "à garder"))
    assert await listed(ann) == ["à garder"]


async def test_batches(ann: Api, embeddings: FakeBridges) -> None:
    """Several that are due are embedded in one call; one vector too few is none, and the next attempt is whole."""
    contents = [f"souvenir numéro {n}" for n in range(5)]
    embeddings.mode = BridgesMode(shape="ndjson", vectors="missing", faults=ONE_BY_ONE_REFUSED)
    for content in contents:
        await add(ann, content)
    embeddings.forget()
    await embeddings.seen(BATCH)
    assert not (await add(ann, contents[0]))["embedded"]
    embeddings.mode = BridgesMode(shape="ndjson", faults=ONE_BY_ONE_REFUSED)
    await until(lambda: _all_embedded(ann, contents))


async def _all_embedded(api: Api, contents: list[str]) -> bool:
    return all([(await add(api, content))["embedded"] for content in contents])


@pytest.mark.parametrize("dimension", [256, 512])
async def test_another_model(ann: Api, embeddings: FakeBridges, dimension: int) -> None:
    """With another model everything is still found by its words, and by its meaning again once it was embedded anew."""
    contents = ["Le chat de Zoé s'appelle Félix", "La chaudière date de 2019", "Paul n'aime pas le poisson"]
    for content in contents:
        assert (await add(ann, content))["embedded"]
    assert await _near(ann, contents[0])
    embeddings.mode = BridgesMode(shape="ndjson", dimension=dimension)
    assert await found(ann, "chaudière") == [contents[1]]
    assert (await add(ann, "Le vélo est au garage"))["embedded"]
    for content in (*contents, "Le vélo est au garage"):
        await until(partial(_near, ann, content))
        assert (await found(ann, content))[0] == content
    assert len(await listed(ann)) == 4


async def test_nothing_is_a_server_error(ann: Api, embeddings: FakeBridges) -> None:
    """While the embeddings come and go under load every request is answered, and every entry kept."""
    stop = asyncio.Event()

    async def disturb() -> None:
        modes = [
            BROKEN["zero"],
            WELL,
            BROKEN["unavailable"],
            BridgesMode(shape="ndjson", dimension=128),
            BROKEN["reset"],
        ]
        while not stop.is_set():
            for mode in modes:
                embeddings.mode = mode
                await asyncio.sleep(0.02)

    disturbing = asyncio.create_task(disturb())
    try:
        answers = await asyncio.gather(*(_use(ann, n) for n in range(40)))
    finally:
        stop.set()
        await disturbing
    assert {status for each in answers for status in each} == {200}
    assert (await ann.get(f"{LIST}?limit=1")).json["total"] == 40


async def _use(api: Api, n: int) -> list[int]:
    added = await api.post(ADD, {"content": f"fait numéro {n}"})
    changed = await api.ask("PATCH", entry(added.json), {"content": f"fait changé {n}"})
    searched = await api.post("/api/memory/search", {"query": f"fait {n}"})
    return [added.status, changed.status, searched.status]
