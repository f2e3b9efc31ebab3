"""Containerfile, compose.yaml and the lock files, held against what they speak of: there is no engine where tests run."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from jarvis_core import __version__
from jarvis_core.local import bridges
from jarvis_core.settings import Secret, Settings, environment_names, load

REPOSITORY = Path(__file__).parents[2]
CONTAINERFILE = (REPOSITORY / "Containerfile").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("jarvis-core:")}

NOT_OURS = {"PATH", "LANG", "PGPASSWORD", "PYTHONDONTWRITEBYTECODE"}
"""Variables that others read: the shell, the C library, libpq and Python."""
ENGINE_PATIENCE_S = 10
"""Between the signal and the end by force, where nobody said how long."""
CLOSING_S = 2
"""What a stop takes besides the draining."""
VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")


def settings_fields() -> dict[str, Any]:
    """Return the annotation of each setting by its environment's names."""
    sections = [section.type for section in msgspec.structs.fields(Settings)]
    fields = [field for section in sections for field in msgspec.structs.fields(section)]
    return {name: field.type for field in fields for name in environment_names(field.type)}


def image_environment() -> dict[str, str]:
    [block] = re.findall(r"^ENV ((?:.*\\\n)*.*)$", CONTAINERFILE, re.MULTILINE)
    return dict(pair.split("=", 1) for pair in block.replace("\\\n", " ").split())


def filled_in(value: str) -> str:
    """Return *value* as compose makes it when nothing but what is required is set."""
    return VARIABLE.sub(lambda found: (found[3] or "") if found[2] == "-" else "x" * 32, value)


@pytest.mark.parametrize("name", OURS)
def test_what_is_set_is_a_setting(name: str) -> None:
    """Every variable that the image and compose set is one that the core reads, with a value that it takes."""
    environment = {**image_environment(), **OURS[name]["environment"]}
    assert environment.keys() - settings_fields().keys() <= NOT_OURS
    load({variable: filled_in(value) for variable, value in environment.items()})


def test_the_version_is_the_packages() -> None:
    """Image, label and the commands that users are told are of this version."""
    assert f"ARG VERSION={__version__}\n" in CONTAINERFILE
    assert SERVICES["jarvis-core"]["image"] == f"jarvis-core:{__version__}"
    assert SERVICES["bridges"]["image"] == f"jarvis-core:{__version__}-local"
    named = re.findall(r"jarvis-core:(\d[\w.]*)", (REPOSITORY / "docs" / "operations.md").read_text())
    assert named
    assert set(named) == {__version__}


def test_no_secret_has_a_value() -> None:
    """What is secret comes from outside; what cannot be done without says what to do."""
    secret = {name for name, annotation in settings_fields().items() if Secret in _parts(annotation)}
    seen = 0
    for service in SERVICES.values():
        for name, value in service.get("environment", {}).items():
            if name in secret - {"DATABASE_URL", "REDIS_URL"} or "PASSWORD" in name:
                found = VARIABLE.fullmatch(value)
                assert found, f"{name} has a value of its own"
                assert found[2] == "?"
                assert ".env" in found[3]
                seen += 1
            assert not re.search(r"://[^/@]*:[^$/@][^/@]*@", value), f"{name} has a password in it"
    assert seen >= 3


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name: str) -> None:
    """Each has a read-only root, no capability, limits that every machine can keep, and a health check."""
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["restart"] == "unless-stopped"
    assert {"mem_limit", "pids_limit", "healthcheck"} <= service.keys()
    assert "cpu_shares" in service or service["cpus"] <= 1, "more than the smallest machine has are refused"
    assert name in OURS or service["user"].split(":")[0] not in ("0", "root")
    assert re.search(r"^USER [1-9]\d*:\d+$", CONTAINERFILE, re.MULTILINE)


def test_example_of_the_environment() -> None:
    """Every variable of compose.yaml stands in .env.example under a comment: without a value where one is needed, else as it is."""
    lines = (REPOSITORY / ".env.example").read_text().splitlines()
    written = {}
    for number, line in enumerate(lines):
        if found := re.fullmatch(r"(#?)([A-Z_]+)=(.*)", line):
            written[found[2]] = (found[1], found[3])
            assert lines[number - 1].startswith("#"), f"{found[2]} has no comment"
    read = VARIABLE.findall((REPOSITORY / "compose.yaml").read_text())
    assert read
    assert written == {name: ("", "") if kind == "?" else ("#", default) for name, kind, default in read}
    assert ".env" in (REPOSITORY / ".gitignore").read_text().splitlines()


def test_the_core_alone_is_the_whole() -> None:
    """Starting the service of the core brings along all that it is reached through and needs, which stops after it."""
    core = SERVICES["jarvis-core"]
    assert core["depends_on"].keys() == SERVICES.keys() - {"jarvis-core"}
    assert not any("depends_on" in service for name, service in SERVICES.items() if name != "jarvis-core")
    optional = {name for name, how in core["depends_on"].items() if not how.get("required", True)}
    assert optional == {name for name, service in SERVICES.items() if "profiles" in service}
    for network, how in core["networks"].items():
        assert network in COMPOSE["networks"]
        assert how == {"aliases": ["core"]}, "its old name"
    assert re.findall(r"^\s*name (\S+)$", (REPOSITORY / "config/Caddyfile").read_text(), re.MULTILINE) == [
        "jarvis-core"
    ]


def test_turns_may_drain() -> None:
    """A stop leaves running turns the time that the core gives them, with compose and with an engine alone."""
    core = SERVICES["jarvis-core"]
    patience_s = int(core["stop_grace_period"].removesuffix("s"))
    assert float(core["environment"]["DRAIN_TIMEOUT_S"]) + CLOSING_S <= patience_s
    assert float(image_environment()["DRAIN_TIMEOUT_S"]) + CLOSING_S <= ENGINE_PATIENCE_S


def test_the_stand_in_takes_its_command() -> None:
    """The profile's command is one that the stand-in understands, where the core and its health check look for it."""
    service = SERVICES["bridges"]
    program, module, *arguments = service["command"][1:]
    assert (program, module) == ("-m", bridges.__name__)
    options = bridges.parse([filled_in(argument) for argument in arguments])
    assert (options.host, str(options.port)) == ("0.0.0.0", service["environment"]["PORT"])
    assert options.audio
    core = {name: filled_in(value) for name, value in SERVICES["jarvis-core"]["environment"].items()}
    assert core["PYTHON_BRIDGES_URL"] == f"http://bridges:{options.port}"
    assert core["AUDIO_ENGINE_URL"] == f"http://bridges:{options.port}/audio"


@pytest.mark.parametrize(("lock", "extra"), [("image", "embedded"), ("image-local", "local")])
def test_images_have_the_versions_that_are_tested(lock: str, extra: str) -> None:
    """An image's lock file has all that the package and its extra need, each as in the lock file of the tests."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *extras[extra], *extras["embedded"]]
    needed = {re.split(r"[^\w-]", one)[0] for one in asked} - {"jarvis-core"}
    packages, tested = pinned(lock), pinned("requirements")
    assert needed <= packages.keys()
    [(_, own)] = [(name, versions) for name, versions in packages.items() if name not in tested]
    assert own, "dumb-init is needed by the image alone"
    assert {name: versions for name, versions in packages.items() if name in tested and tested[name] != versions} == {}


def pinned(lock: str) -> dict[str, set[str]]:
    """Return the versions of each package in a lock file."""
    found: dict[str, set[str]] = {}
    for name, version in re.findall(
        r"^([\w-]+)==(\S+)", (REPOSITORY / f"config/{lock}.lock").read_text(), re.MULTILINE
    ):
        found.setdefault(name, set()).add(version)
    return found


def _parts(annotation: Any) -> tuple[Any, ...]:
    inner = annotation.__origin__
    return (inner, *getattr(inner, "__args__", ()))
