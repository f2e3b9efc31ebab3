"""
How many of forty household questions the embedded models answer acceptably: today's code, and where ``PERF_BASE`` names a commit or
a work tree, that one's.
"""

from __future__ import annotations

import http.client
import json
import os
import time
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from jarvis_core.local.catalogue import LANGUAGE_MODEL
from jarvis_core.local.choice import LARGE, SMALL
from jarvis_core.local.weights import resolve
from jarvis_core.settings import Llm
from perf.household_questions import QUESTIONS, Question
from perf.household_score import faults
from perf.processes import ROOT, Process, base_tree, free_port, server
from perf.report import NO_AIM, Row

MODELS = ROOT / ".cache" / "models"
ZONE, CITY = "Europe/Paris", "Paris"
ANSWER_LIMIT_S = 120.0
CHAT = "/api/chat"


def household(data: Path, _rounds: int) -> list[Row]:
    """Return how many answers of each model are acceptable, and print what is wrong with the others."""
    rows: list[Row] = []
    trees = {"now": ROOT, **({"before": base_tree(base)} if (base := os.environ.get("PERF_BASE")) else {})}
    for name in os.environ.get("PERF_MODELS", f"{SMALL},{LARGE}").split(","):
        model = str(resolve(name, MODELS, LANGUAGE_MODEL))
        for when, tree in trees.items():
            good, seconds = _ask_all(data / when, tree, model)
            print(f"{name}, {when}: {good} of {len(QUESTIONS)}, {seconds:.1f} s an answer", flush=True)
            rows.append((f"acceptable answers of {name}, {when}", f"{good} of {len(QUESTIONS)}", NO_AIM))
            rows.append((f"a whole answer of {name}, {when}", f"{seconds:.1f} s", NO_AIM))
    return rows


def _ask_all(data: Path, tree: Path, model: str) -> tuple[int, float]:
    """Ask the core of *tree* all questions; return how many it answers acceptably, and in how many seconds on average."""
    port = free_port()
    environment = {
        "HOST": "127.0.0.1", "PORT": str(port), "DATA_DIR": str(data), "LOG_LEVEL": "error", "LOCAL_SPEECH": "false",
        "LOCAL_LLM_MODEL": model, "TZ": ZONE,
        # An older version knows no place.
        **({"TIME_ZONE": ZONE} if tree == ROOT else {}),
    }  # fmt: skip
    good, seconds = 0, 0.0
    with server(["-m", "jarvis_core"], port=port, ready="/ready", environment=environment, tree=tree) as core:
        for question in QUESTIONS:
            asked_at, began_s = datetime.now(ZoneInfo(ZONE)), time.perf_counter()
            told = _ask(core, question)
            seconds += time.perf_counter() - began_s
            wrong = faults(
                question,
                str(told.get("content", "")),
                status=str(told.get("status", told)),
                asked_at=asked_at,
                city=CITY,
                instructions=Llm().system_prompt,
            )
            good += not wrong
            print(
                "  ok " if not wrong else "  BAD", question.words, "->", repr(told.get("content")), *wrong, flush=True
            )
    return good, seconds / len(QUESTIONS)


def _ask(core: Process, question: Question) -> dict[str, object]:
    told: dict[str, object] = {}
    conversation = None
    for words in filter(None, (question.before, question.words)):
        connection = http.client.HTTPConnection("127.0.0.1", core.port, timeout=ANSWER_LIMIT_S)
        body = {"content": words, **({"conversation_id": conversation} if conversation else {})}
        connection.request("POST", CHAT, json.dumps(body), {"Content-Type": "application/json"})
        told = json.loads(connection.getresponse().read())
        connection.close()
        conversation = told.get("conversation_id")
    return told


SCENARIOS = (household,)
