"""``/api/memory`` with a neighbour that is well: what is kept, merged, found, listed, changed and forgotten, and for whom."""

from __future__ import annotations

import asyncio
import base64
import uuid

import pytest

from tests.fakes.python_bridges import FakeBridges
from tests.handlers.rest.api import Api
from tests.handlers.rest.memories import ADD, GENERATE, LIST, add, embedded_texts, entry, found, listed, search

UNKNOWN = str(uuid.UUID(int=7 << 76 | 2 << 62))
LONG = " ".join(f"mot{n}" for n in range(60))
"""So long that a word more or less hardly turns its vector."""


# Adding


async def test_add(ann: Api, embeddings: FakeBridges) -> None:
    """What was added has all that the contract promises, and was embedded as a passage in the caller's name."""
    added = await add(ann, "Le code de l'alarme est 4711.", importance=0.9, source="cuisine")
    assert (added["content"], added["importance"], added["source"]) == ("Le code de l'alarme est 4711.", 0.9, "cuisine")
    assert (added["embedded"], added["merged"]) == (True, False)
    assert uuid.UUID(added["id"]).version == 7
    assert added["created_at"] == added["updated_at"]
    assert (added["content"], "passage") in embedded_texts(embeddings)
    del added["merged"]
    assert (await ann.get(entry(added))).json == added
    assert (await ann.get(LIST)).json == {"memories": [added], "total": 1, "next_cursor": None}


async def test_defaults(ann: Api) -> None:
    """Importance is 0.5 and there is no source where the request has none, or null."""
    for fields in ({}, {"importance": None, "source": None, "supersedes": None, "unknown": [1]}):
        added = await add(ann, f"avec {len(fields)} champs", **fields)
        assert (added["importance"], added["source"]) == (0.5, None)


async def test_same_fact_a_hundred_times(ann: Api) -> None:
    """However often and however it is written, the same fact is one entry, which keeps its words."""
    first = await add(ann, "Ma sœur s'appelle Zoé")
    for n in range(99):
        again = await add(ann, ["ma sœur s’appelle zoé !", "MA SOEUR S'APPELLE ZOE", "Ma  sœur\ns'appelle Zoé."][n % 3])
        assert (again["id"], again["content"], again["merged"]) == (first["id"], first["content"], True)
    assert await listed(ann) == ["Ma sœur s'appelle Zoé"]
    assert again["updated_at"] > first["updated_at"]
    assert again["created_at"] == first["created_at"]


async def test_same_fact_a_hundred_times_at_once(ann: Api) -> None:
    """The same holds for a hundred requests at the same time: one of them made the entry."""
    all_added = await asyncio.gather(*(add(ann, "Le wifi est Livebox-7A3F") for _ in range(100)))
    assert len({one["id"] for one in all_added}) == 1
    assert [one["merged"] for one in all_added].count(False) == 1
    assert await listed(ann) == ["Le wifi est Livebox-7A3F"]


async def test_near_duplicate(ann: Api) -> None:
    """What differs in an article is the same; what differs in a number is not."""
    first = await add(ann, f"{LONG} the car 12")
    assert (await add(ann, f"{LONG} car 12"))["id"] == first["id"]
    assert not (await add(ann, f"{LONG} the car 13"))["merged"]
    assert len(await listed(ann)) == 2


async def test_merging_keeps_the_greater_importance(ann: Api) -> None:
    """Who says it again may make it more important, never less."""
    assert (await add(ann, "Allergique aux noix", importance=0.4))["importance"] == 0.4
    assert (await add(ann, "allergique aux noix", importance=0.8))["importance"] == 0.8
    for fields in ({"importance": 0.1}, {}):
        assert (await add(ann, "Allergique aux noix !", **fields))["importance"] == 0.8


async def test_text_is_kept_as_it_is(ann: Api) -> None:
    """Every character comes back as it was sent, up to 50,000 of them; limits count code points."""
    for content in (
        "  Ça\r\n\t«\u202fœuvre\u202f» \u202eabc\u202c 👩\u200d🔬 \u0301e\x7f\x01\\n'; drop table memories; -- ",
        "😀" * 50_000,
        "é" * 50_000,
        "\u200b\ufeff",
        "?",
    ):
        added = await add(ann, content, source="😀" * 200)
        assert (await ann.get(entry(added))).json["content"] == content
        assert added["embedded"]


# Superseding


async def test_supersedes(ann: Api) -> None:
    """What was replaced is had by its id, for the record, and not listed, found, changed or used; it can be deleted."""
    old = await add(ann, "Mon numéro est le 0612345678")
    new = await add(ann, "Mon numéro est maintenant le 0787654321", supersedes=old["id"].upper())
    assert (new["merged"], new["embedded"]) == (False, True)
    assert await listed(ann) == [new["content"]]
    for query in ("0612345678", "mon numéro", old["content"]):
        assert old["content"] not in await found(ann, query, limit=100)
    assert (await ann.get(entry(old))).json["content"] == old["content"]
    assert (await ann.ask("PATCH", entry(old), {"importance": 1})).error == (404, "not_found")
    answer = await ann.say("Quel est mon numéro ?")
    assert answer["memories"] == [new["id"]]
    assert (await ann.ask("DELETE", entry(old))).status == 200
    assert (await ann.get(entry(old))).error == (404, "not_found")
    assert await listed(ann) == [new["content"]]


async def test_superseded_fact_may_become_true_again(ann: Api) -> None:
    """What was replaced can be told again, and is an entry of its own."""
    old = await add(ann, "J'habite à Lyon")
    new = await add(ann, "J'habite à Nantes", supersedes=old["id"])
    again = await add(ann, "J'habite à Lyon", supersedes=new["id"])
    assert again["id"] not in (old["id"], new["id"])
    assert await listed(ann) == ["J'habite à Lyon"]


async def test_supersedes_what_it_says_itself(ann: Api) -> None:
    """A fact that supersedes itself stands."""
    first = await add(ann, "J'habite à Lyon")
    again = await add(ann, "j'habite à Lyon !", supersedes=first["id"])
    assert (again["id"], again["merged"]) == (first["id"], True)
    assert await listed(ann) == ["J'habite à Lyon"]


async def test_supersedes_unknown(ann: Api, bob: Api) -> None:
    """What supersedes an unknown entry, another user's, or no id at all, is 404 and not kept."""
    others = await add(bob, "Le vélo de Bob est bleu")
    for unknown in (UNKNOWN, others["id"], "", "x", "\0", UNKNOWN + "0"):
        answer = await ann.post(ADD, {"content": "Le vélo est rouge", "supersedes": unknown})
        assert answer.error == (404, "not_found"), unknown
    assert await listed(ann) == []
    assert await listed(bob) == ["Le vélo de Bob est bleu"]


# Searching


async def test_search(ann: Api, embeddings: FakeBridges) -> None:
    """What is meant comes before what is not, with what speaks for it; the question is embedded as one."""
    for content in ("Le chat de Zoé s'appelle Félix", "La chaudière date de 2019", "Paul n'aime pas le poisson"):
        await add(ann, content)
    embeddings.forget()
    body = await search(ann, "Comment s'appelle le chat de Zoé ?")
    assert body["mode"] == "hybrid"
    best = body["results"][0]
    assert best["content"] == "Le chat de Zoé s'appelle Félix"
    assert min(best["why"].values()) > 0
    assert ("Comment s'appelle le chat de Zoé ?", "query") in embedded_texts(embeddings)


@pytest.mark.parametrize("query", ["7A3F", "livebox-7a3f", "Le 7A3F, c'est quoi ?"])
async def test_rare_word(ann: Api, query: str) -> None:
    """A code is found whatever the vectors say."""
    await asyncio.gather(*(add(ann, f"note {n} à propos de la maison") for n in range(20)))
    await add(ann, "Le wifi du salon : Livebox-7A3F")
    assert (await found(ann, query))[0] == "Le wifi du salon : Livebox-7A3F"


async def test_importance_and_recency(ann: Api) -> None:
    """Of two that answer equally the more important one is first, and of those the newer."""
    await add(ann, "clé du garage", importance=0.1)
    await add(ann, "clé du grenier", importance=1)
    await add(ann, "clé du jardin", importance=1)
    body = await search(ann, "clé")
    assert body["results"][-1]["content"] == "clé du garage"
    assert [one["why"]["importance"] for one in body["results"]] == [1, 1, 0.1]
    assert all(one["why"]["recency"] > 0.99 for one in body["results"])


async def test_limit(ann: Api) -> None:
    """So many are shown as were asked for, 10 where nothing is said; the total tells how many there were."""
    await asyncio.gather(*(add(ann, f"clé numéro {n}") for n in range(12)))
    for limit in (1, 12, 100):
        body = await search(ann, "clé", limit=limit)
        assert (len(body["results"]), body["total"]) == (min(12, limit), 12)
    assert len(await found(ann, "clé")) == 10


@pytest.mark.parametrize("query", ["?", "le la les", "😀", "x" * 1_000, "\u200b", "%_\\' & | ! <-> :*", "rien de tel"])
async def test_odd_question(ann: Api, query: str) -> None:
    """Whatever is asked, of somebody with no memories or with some, is an answer."""
    assert await search(ann, query) == {"results": [], "total": 0, "mode": "hybrid"}
    await add(ann, "clé du garage")
    await search(ann, query)


# One entry


async def test_change(ann: Api) -> None:
    """New words are found and the old ones no more; what is absent stays as it was."""
    made = await add(ann, "Le chat s'appelle Félix", importance=0.3, source="chat")
    changed = (await ann.ask("PATCH", entry(made), {"content": "Le chien s'appelle Rex"})).json
    assert (changed["id"], changed["content"], changed["importance"]) == (made["id"], "Le chien s'appelle Rex", 0.3)
    assert (changed["source"], changed["created_at"]) == ("chat", made["created_at"])
    assert changed["updated_at"] > made["updated_at"]
    assert await found(ann, "Rex") == ["Le chien s'appelle Rex"]
    assert (await search(ann, "Félix"))["results"] == [] or (await found(ann, "Félix")) == ["Le chien s'appelle Rex"]
    changed = (await ann.ask("PATCH", entry(made), {"importance": 1})).json
    assert (changed["content"], changed["importance"]) == ("Le chien s'appelle Rex", 1)
    assert (await ann.get(entry(made))).json == changed
    assert (await search(ann, "le chien"))["results"][0]["why"]["semantic"] > 0


async def test_change_to_what_another_says(ann: Api) -> None:
    """An entry cannot be made to say what another says: 409, and both stand as they were."""
    await add(ann, "un")
    other = await add(ann, "deux")
    assert (await ann.ask("PATCH", entry(other), {"content": "Un !"})).error == (409, "conflict")
    assert await listed(ann) == ["deux", "un"]
    assert await found(ann, "deux") == ["deux"]


async def test_delete(ann: Api) -> None:
    """A deleted entry is gone for good, with what it had superseded, and may be told anew."""
    old = await add(ann, "le code est 1111")
    new = await add(ann, "le code est 2222", supersedes=old["id"])
    assert (await ann.ask("DELETE", entry(new))).json == {"id": new["id"], "deleted": True}
    for gone in (new, old):
        assert (await ann.get(entry(gone))).error == (404, "not_found")
    assert (await ann.ask("DELETE", entry(new))).error == (404, "not_found")
    assert (await search(ann, "2222"))["total"] == 0
    assert await listed(ann) == []
    assert not (await add(ann, "le code est 2222"))["merged"]


async def test_somebody_elses(ann: Api, bob: Api, embeddings: FakeBridges) -> None:
    """Another user's memories are never found, listed, shown, changed, deleted, merged into or used."""
    secret = await add(bob, "Le coffre de Bob s'ouvre avec 8154")
    assert await search(ann, "Le coffre de Bob s'ouvre avec 8154") == {"results": [], "total": 0, "mode": "hybrid"}
    assert await listed(ann) == []
    for method, body in (("GET", None), ("PATCH", {"importance": 0}), ("PATCH", {"content": "x"}), ("DELETE", None)):
        assert (await ann.ask(method, entry(secret), body)).error == (404, "not_found")
    assert (await ann.say("Comment s'ouvre le coffre de Bob ?"))["memories"] == []
    assert not [request for request in embeddings.requests if request.path == GENERATE and b"8154" in request.body]
    mine = await add(ann, "Le coffre de Bob s'ouvre avec 8154")
    assert (mine["merged"], mine["id"] != secret["id"]) == (False, True)
    assert (await bob.get(entry(secret))).json["content"] == secret["content"]
    assert await found(bob, "coffre") == [secret["content"]]


# Pages


async def test_pages(ann: Api) -> None:
    """The newest is first, and pages miss and repeat nothing, while entries are added and the last one seen is deleted."""
    made = [await add(ann, f"entrée {n}") for n in range(7)]
    expected = [one["id"] for one in reversed(made)]
    seen: list[str] = []
    cursor = ""
    while True:
        page = (await ann.get(f"{LIST}?limit=3&cursor={cursor}")).json
        assert page["total"] == 7
        seen += [one["id"] for one in page["memories"]]
        await add(ann, f"pendant ce temps {len(seen)}")
        if page["next_cursor"] is None:
            break
        cursor = page["next_cursor"]
        await ann.ask("DELETE", entry(seen[-1]))
    assert seen == expected


async def test_page_that_just_fits(ann: Api) -> None:
    """There is no next page where this one has the rest."""
    for n in range(3):
        await add(ann, f"entrée {n}")
    page = (await ann.get(f"{LIST}?limit=3")).json
    assert (len(page["memories"]), page["next_cursor"]) == (3, None)


def cursor_of(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=201", "limit"),
        ("limit=x", "limit"),
        ("cursor=nonsense", "cursor"),
        ("cursor=%F0%9F%98%80", "cursor"),
        ("cursor=%00", "cursor"),
        ("cursor=MQ", "cursor"),
        (f"cursor={cursor_of('2026-01-01T00:00:00 ' + UNKNOWN)}", "cursor"),
        (f"cursor={cursor_of('2026-01-01T00:00:00+00:00 x')}", "cursor"),
        (f"cursor={cursor_of('now() ' + UNKNOWN)}", "cursor"),
    ],
    ids=lambda value: value[:30],
)
async def test_wrong_query(ann: Api, query: str, field: str) -> None:
    """A limit or a cursor that is none is 400 and named."""
    answer = await ann.get(f"{LIST}?{query}")
    assert (answer.error, answer.path) == ((400, "invalid_request"), f"query.{field}")


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"])
async def test_cursor_at_the_ends_of_time(ann: Api, time: str) -> None:
    """A cursor far away is a cursor."""
    await add(ann, "x")
    page = (await ann.get(f"{LIST}?cursor={cursor_of(f'{time} {UNKNOWN}')}")).json
    assert len(page["memories"]) == (0 if time.startswith("0") else 1)
