"""Settings: where values come from, and what a person is told of a bad one."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from jarvis_core.errors import SettingsError
from jarvis_core.settings import (
    Assignment,
    Auth,
    Database,
    Local,
    McpServer,
    Secret,
    Settings,
    WorkerGroup,
    data_directory,
    environment_names,
    load,
    parse_api_keys,
)

REPOSITORY = Path(__file__).parents[2]
SECRET = "0123456789abcdef0123456789abcdef"

OLD_ENVIRONMENT = {
    "HOST": "0.0.0.0",
    "PORT": "8100",
    "RUST_LOG": "info,jarvis_core=debug,tower_http=debug",
    "DATABASE_URL": "postgres://jarvis:hunter22@db:5432/jarvis",
    "REDIS_URL": "redis://cache:6379",
    "PYTHON_BRIDGES_URL": "http://localhost:8005",
    "AUDIO_ENGINE_URL": "http://localhost:8004",
    "JWT_SECRET": SECRET,
    "DB_MAX_CONNECTIONS": "20",
    "PATH": "/usr/bin",
    "LANG": "fr_FR.UTF-8",
}


def fields() -> Iterator[tuple[str, msgspec.structs.FieldInfo]]:
    """Give (section, field) of every setting."""
    for section in msgspec.structs.fields(Settings):
        for field in msgspec.structs.fields(section.type):
            yield section.name, field


ALL_FIELDS = [pytest.param(section, field, id=f"{section}.{field.name}") for section, field in fields()]


def default_of(field: msgspec.structs.FieldInfo) -> Any:
    """Return the default of a setting."""
    return {} if field.default is msgspec.NODEFAULT else field.default


def write(directory: Path, text: str) -> Path:
    """Write a settings file."""
    file = directory / "jarvis.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_environment_over_file_over_default(tmp_path: Path) -> None:
    """The environment wins over the file, and the file over the default."""
    file = write(tmp_path, "[server]\nport = 9000\nworkers = 1\n[llm]\nmax_tokens = 64\n")
    settings = load({"PORT": "9001"}, file)
    assert (settings.server.port, settings.llm.max_tokens, settings.server.host) == (9001, 64, "0.0.0.0")
    assert load({}, file).server.port == 9000
    assert load({}).server.port == 8100


def test_empty_variables_are_unset(tmp_path: Path) -> None:
    """An empty environment variable counts as unset, so the file or the default holds."""
    file = write(tmp_path, "[server]\nport = 9000\n")
    settings = load({"PORT": "", "DATABASE_URL": "", "JARVIS_CONFIG": ""}, file)
    assert settings.server.port == 9000
    assert settings.database.url is None
    assert load({"JARVIS_CONFIG": ""}) == Settings()


def test_file_named_by_environment(tmp_path: Path) -> None:
    """JARVIS_CONFIG names the file when the caller does not."""
    file = write(tmp_path, "[server]\nport = 9000\n")
    assert load({"JARVIS_CONFIG": str(file)}).server.port == 9000


def test_old_environment_works() -> None:
    """The environment of the core before this one works unchanged, and what is not ours is left alone."""
    settings = load(OLD_ENVIRONMENT)
    assert settings.server.port == 8100
    assert settings.log.level == "info,jarvis_core=debug,tower_http=debug"
    assert settings.database.url is not None
    assert settings.database.url.reveal() == OLD_ENVIRONMENT["DATABASE_URL"]
    assert settings.neighbours.python_bridges_url == "http://localhost:8005"
    assert settings.neighbours.audio_engine_url == "http://localhost:8004"
    assert settings.auth.jwt_secret is not None
    assert settings.database.max_connections == 20


def test_rust_log_over_log_level() -> None:
    """RUST_LOG is asked before LOG_LEVEL, which is enough alone."""
    assert load({"RUST_LOG": "warn", "LOG_LEVEL": "debug"}).log.level == "warn"
    assert load({"RUST_LOG": "", "LOG_LEVEL": "debug"}).log.level == "debug"


def test_lists_from_environment() -> None:
    """A list is written with commas in the environment; white space and empty parts are left out."""
    assert load({"CORS_ORIGINS": "http://a.test, https://b.test:8443 ,,"}).server.cors_origins == (
        "http://a.test",
        "https://b.test:8443",
    )


@pytest.mark.parametrize(
    ("origin", "told"),
    [
        ("https://*.example.com", "is a pattern"),
        ("http://localhost:*", "is a pattern"),
        ("**", "is a pattern"),
        ("example.com", "is no origin such as https://example.com"),
        ("localhost:3000", "is no origin such as"),
        ("https://", "is no origin such as"),
        ("https://a b", "is no origin such as"),
        ("https://exämple.com", "is no origin such as"),
        ("https://example.com:port", "is no origin such as"),
        ("https://example.com/", "write https://example.com"),
        ("https://Example.com/app?x#y", "write https://example.com"),
        ("HTTPS://example.com", "write https://example.com"),
        ("https://example.com:443", "write https://example.com"),
        ("http://me@[::1]:080", "write http://[::1]"),
        ("http://example.com:8080/", "write http://example.com:8080"),
        ("capacitor://localhost/", "write capacitor://localhost"),
    ],
)
def test_origins_that_nobody_has(origin: str, told: str) -> None:
    """What no browser sends as an origin would let nobody in: the start says so, and what to write in its place."""
    with pytest.raises(SettingsError) as caught:
        load({"CORS_ORIGINS": f"http://a.test,{origin}"})
    assert str(caught.value).startswith(f"CORS_ORIGINS: {origin!r} is ")
    assert str(caught.value).endswith(told) or told.startswith("is ")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "file://", "http://[::1]:3000", "https://example.com", "https://xn--exmple-cua.com:8443",
     "capacitor://localhost", "safari-web-extension://9E2E6D0B-0000-4000-8000-000000000000"],
)  # fmt: skip
def test_origins_of_pages_and_apps(origin: str) -> None:
    """What browsers and apps send is taken as it is."""
    assert load({"CORS_ORIGINS": origin}).server.cors_origins == (origin,)


@pytest.mark.parametrize(
    ("text", "on"),
    [
        ("true", True),
        ("1", True),
        ("on", True),
        ("Yes", True),
        ("FALSE", False),
        ("0", False),
        ("off", False),
        ("no", False),
    ],
)
def test_switches(text: str, on: bool) -> None:
    """A switch is written as people write them; one that is empty is as it was."""
    assert load({"LOCAL_SPEECH": text}).local.speech is on
    assert load({"LOCAL_SPEECH": ""}).local.speech is True


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "eighty"),
        ("LOCAL_SPEECH", "perhaps"),
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "81.5"),
        ("WORKERS", "0"),
        ("WORKERS", "true"),
        ("BODY_LIMIT_BYTES", "10"),
        ("CONNECT_TIMEOUT_S", "0"),
        ("CONNECT_TIMEOUT_S", "nan"),
        ("CONNECT_TIMEOUT_S", "inf"),
        ("CONNECT_TIMEOUT_S", "2s"),
        ("LLM_TEMPERATURE", "2.1"),
        ("LLM_TEMPERATURE", "nan"),
        ("LLM_MAX_TOKENS", "0"),
        ("LLM_SYSTEM_PROMPT", "x" * 5_001),
        ("TIME_ZONE", "Europe/Nowhere"),
        ("TIME_ZONE", "../../etc/passwd"),
        ("TIME_ZONE", "a\0b"),
        ("PROBE_INTERVAL_S", "89"),
        ("DB_MAX_CONNECTIONS", "0"),
        ("LOG_FORMAT", "xml"),
        ("DEFAULT_LANGUAGE", "f"),
        ("SPEECH_LANGUAGES", "fr,auto"),
        ("SPEECH_LANGUAGES", "fr en"),
        ("SPEECH_LANGUAGES", ",".join(["fr"] * 33)),
        ("PYTHON_BRIDGES_URL", "localhost:8005"),
        ("PYTHON_BRIDGES_URL", "http://"),
        ("AUDIO_ENGINE_URL", "ftp://localhost:8004"),
        ("AUDIO_ENGINE_URL", "http://localhost:port"),
        ("LLM_URL", "http://[::1"),
        ("LLM_URL", "http://localhost:99999/v1"),
        ("JWT_SECRET", "short"),
        ("API_KEYS", "nameless"),
        ("API_KEYS", "name:short"),
        ("API_KEYS", ":12345678"),
        ("API_KEYS", " , "),
        ("API_KEYS", "ann:12345678,bob:12345678"),
        ("API_KEYS", "ann:1234567é"),
        ("API_KEYS", "ann\0:12345678"),
        ("TRUSTED_PROXIES", "10.0.0.1,proxy"),
        ("TRUSTED_PROXIES", "10.0.0.0/33"),
        ("RATE_LIMIT_PER_MINUTE", "-1"),
        ("USER_CONNECTION_LIMIT", "many"),
    ],
)
def test_bad_values_are_named(name: str, value: str) -> None:
    """A bad value stops the start with one line that names its variable."""
    with pytest.raises(SettingsError) as caught:
        load({name: value})
    message = str(caught.value)
    assert message.startswith(name)
    assert "\n" not in message


HOME = {"HOME_ASSISTANT_URL": "http://house:8123", "HOME_ASSISTANT_TOKEN": "token"}


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"HOME_ASSISTANT_URL": "http://house:8123"}, "HOME_ASSISTANT_TOKEN"),
        (HOME | {"HOME_ASSISTANT_URL": "house:8123"}, "HOME_ASSISTANT_URL"),
        (HOME | {"HOME_ASSISTANT_URL": "http://zoe:secret@house:8123"}, "HOME_ASSISTANT_URL"),
        (HOME | {"HOME_ASSISTANT_URL": "http://house:8123/api/"}, "HOME_ASSISTANT_URL"),
        (HOME | {"HOME_ASSISTANT_TOKEN": "two words"}, "HOME_ASSISTANT_TOKEN"),
        (HOME | {"HOME_ASSISTANT_TOKEN": "tokén"}, "HOME_ASSISTANT_TOKEN"),
        (HOME | {"HOME_TIMEOUT_S": "0"}, "HOME_TIMEOUT_S"),
    ],
)
def test_bad_house_is_named(environment: dict[str, str], named: str) -> None:
    """A house that is set by half, or by something else, stops the start with one line that names the variable, and no secret."""
    with pytest.raises(SettingsError) as caught:
        load(environment)
    assert str(caught.value).startswith(named + ":")
    assert environment.get("HOME_ASSISTANT_TOKEN", "no token") not in str(caught.value).partition(":")[2]


def test_house_without_credentials_is_this_machines_alone(tmp_path: Path) -> None:
    """Who can talk to the core can move the house: others are let in where somebody is asked for, or somebody wanted it."""
    assert load({}).server.host == "0.0.0.0"
    assert load(HOME).server.host == "127.0.0.1"
    assert load(HOME | {"HOST": ""}).server.host == "127.0.0.1"
    assert load(HOME | {"HOST": "0.0.0.0"}).server.host == "0.0.0.0"
    assert load(HOME | {"JWT_SECRET": SECRET}).server.host == "0.0.0.0"
    assert load(HOME | {"API_KEYS": "ann:12345678"}).server.host == "0.0.0.0"
    assert load(HOME, write(tmp_path, '[server]\nhost = "0.0.0.0"\n')).server.host == "0.0.0.0"
    assert load(HOME, write(tmp_path, "[server]\nport = 1\n")).server.host == "127.0.0.1"


TOOLS = """
[tools.servers.time]
url = "http://time:8000/mcp"
token = "secret-token"
allowed = ["now"]
approval = "always"
[tools.servers.home-2]
url = "https://home/mcp"
"""


def test_tool_servers(tmp_path: Path) -> None:
    """Servers of tools come from the file, with all that is to be said of them, or from the environment in its place."""
    servers = load({}, write(tmp_path, TOOLS)).tools.servers
    assert servers["home-2"] == McpServer("https://home/mcp")
    time = servers["time"]
    assert (time.url, time.allowed, time.approval) == ("http://time:8000/mcp", ("now",), "always")
    assert time.token is not None
    assert time.token.reveal() == "secret-token"
    assert "secret-token" not in repr(servers)
    given = {"MCP_SERVERS": "a=http://a/mcp?x=1, b = http://b:1/mcp"}
    named = load(given, write(tmp_path, TOOLS)).tools.servers
    assert {name: one.url for name, one in named.items()} == {"a": "http://a/mcp?x=1", "b": "http://b:1/mcp"}
    settings = load({}, write(tmp_path, TOOLS))
    assert (
        Assignment.decode(Assignment(settings, WorkerGroup(), 3).encode()).settings.tools.servers.keys()
        == servers.keys()
    )
    assert (settings.server.host, load(given | {"HOST": "0.0.0.0"}).server.host) == ("127.0.0.1", "0.0.0.0")


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("nameless", ""),
        ("=http://a", ""),
        ("a b=http://a", ""),
        ("a=ftp://a", ""),
        ("a=http://a,a=http://b", ""),
        ("", "[tools.servers.a]\n"),
        ("", '[tools.servers.a]\nurl = "http://a"\nname = "x"\n'),
        ("", '[tools.servers.a]\nurl = "http://a"\napproval = "sometimes"\n'),
        ("", '[tools.servers.a]\nurl = "http://a"\ntoken = "two words"\n'),
        ("", '[tools.servers.a]\nurl = "http://u:p@a"\ntoken = "token"\n'),
        ("", 'tools.servers = "http://a"\n'),
    ],
)
def test_bad_tool_servers_are_named(tmp_path: Path, given: str, file: str) -> None:
    """A server of tools that is not set well stops the start with one line that names the setting."""
    with pytest.raises(SettingsError, match=r"^(MCP_SERVERS|.*jarvis\.toml: tools\.servers)") as caught:
        load({"MCP_SERVERS": given}, write(tmp_path, file))
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("PYTHON_BRIDGES_URL", {"JWT_SECRET": "s" * 32}),
        ("LLM_URL", {"LLM_API_KEY": "key"}),
        ("EMBEDDINGS_URL", {"EMBEDDINGS_API_KEY": "key"}),
    ],
)
def test_user_and_token(name: str, token: dict[str, str]) -> None:
    """An address may have a user and a password in it, but not where a token is to be sent in the same header."""
    url = {name: "https://zoe:secret@server/v1"}
    load(url)
    load({name: "https://server/v1@", **token})
    with pytest.raises(SettingsError, match=f"{name}.*{next(iter(token))}") as caught:
        load({**url, **token})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[server]\nport = 'eighty'\n", "server.port"),
        ("[server]\nport = [80]\n", "server.port"),
        ("[server]\ncors_origins = 5\n", "server.cors_origins"),
        ("[auth]\njwt_secret = 5\n", "auth.jwt_secret"),
        ("[server]\nprot = 80\n", "prot"),
        ("[srever]\nport = 80\n", "srever"),
        ("server = 5\n", "server"),
        ("[server\n", "jarvis.toml"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, named: str) -> None:
    """A bad or unknown setting in the file stops the start with one line that names the file and the setting."""
    file = write(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load({}, file)
    message = str(caught.value)
    assert str(file) in message
    assert named in message
    assert "\n" not in message


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that is not there, or is not text, stops the start with one line."""
    with pytest.raises(SettingsError, match=r"nowhere\.toml: cannot be read: No such file"):
        load({}, tmp_path / "nowhere.toml")
    with pytest.raises(SettingsError, match="cannot be read"):
        load({}, tmp_path)
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="is not TOML"):
        load({}, binary)


def test_secrets_do_not_show() -> None:
    """No secret shows when the settings are shown, or when one is malformed."""
    settings = load(
        {
            "DATABASE_URL": "postgres://u:hunter22@db/x",
            "REDIS_URL": "redis://:hunter22@cache",
            "LLM_API_KEY": "hunter22",
            "JWT_SECRET": "hunter22" * 4,
            "API_KEYS": "me:hunter22",
        }
    )
    for text in (repr(settings), str(settings), f"{settings.auth.jwt_secret}", repr([settings.database.url])):
        assert "hunter22" not in text
    for name, value in (("JWT_SECRET", "hunter22"), ("API_KEYS", "hunter22")):
        with pytest.raises(SettingsError) as caught:
            load({name: value})
        assert "hunter22" not in str(caught.value)


def test_api_keys() -> None:
    """Each key of name:key,name:key is its user's; a user may have several, and a key may hold colons."""
    assert parse_api_keys(None) == {}
    assert parse_api_keys(Secret(" ann:12345678, bob:abc:defgh ,ann:87654321,")) == {
        "12345678": "ann",
        "abc:defgh": "bob",
        "87654321": "ann",
    }


def test_worked_out_values() -> None:
    """What a start works out replaces a value, secrets included, if it is what a worker would take from its parent."""
    given = load({"DATABASE_URL": "postgres://db/x", "WORKERS": "2"})
    settings = given.with_values("database", url=Secret("postgres://here/y")).with_values("server", port=9_000)
    told = Assignment.decode(Assignment(settings, WorkerGroup(), control=3).encode()).settings
    for one in (settings, told):
        assert one.database.url is not None
        assert (one.database.url.reveal(), one.server.port, one.server.workers) == ("postgres://here/y", 9_000, 2)
    with pytest.raises(msgspec.ValidationError):
        given.with_values("neighbours", probe_interval_s=1.0)
    with pytest.raises(TypeError):
        given.with_values("neighbours", bridges="http://localhost")


def test_data_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The data directory is the one that was set, else one that PostgreSQL's user can reach."""
    assert data_directory(Local(data_dir="/srv/jarvis")) == Path("/srv/jarvis")
    monkeypatch.setenv("HOME", "/home/ann")
    assert data_directory(Local(data_dir="~/jarvis")) == Path("/home/ann/jarvis")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert data_directory(Local()) == Path("/var/lib/jarvis-core")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert data_directory(Local()).name == "jarvis-core"


def test_every_setting_has_a_variable_of_its_own() -> None:
    """Every setting can be set from the environment, and no variable sets two."""
    names = [name for _, field in fields() for name in environment_names(field.type)]
    assert all(environment_names(field.type) for _, field in fields())
    assert len(names) == len(set(names))


def test_defaults_are_valid(tmp_path: Path) -> None:
    """Every default would be accepted if it were written down."""
    lines = []
    for section, field in fields():
        if default_of(field) is not None:
            lines.append(f"[{section}]\n{field.name} = {as_toml(default_of(field))}\n")
    for line in lines:
        assert load({}, write(tmp_path, line)) == Settings()


def test_sections_refuse_what_they_do_not_know() -> None:
    """A part that is built with a misspelt setting fails at once."""
    with pytest.raises(TypeError):
        Database(max_connection=3)  # type: ignore[call-arg]
    assert Auth().jwt_secret is None


# config/jarvis.toml


@pytest.fixture(scope="module")
def shipped() -> str:
    """Give the text of the settings file that is shipped."""
    return (REPOSITORY / "config" / "jarvis.toml").read_text(encoding="utf-8")


def test_shipped_file_changes_nothing() -> None:
    """The shipped file loads, and says what the defaults say."""
    assert load({}, REPOSITORY / "config" / "jarvis.toml") == Settings()


@pytest.mark.parametrize(("section", "field"), ALL_FIELDS)
def test_shipped_file_has_every_setting(shipped: str, section: str, field: msgspec.structs.FieldInfo) -> None:
    """The shipped file has each setting in its section with its default and its variable's name."""
    block = next((part for part in shipped.split("\n[")[1:] if part.startswith(f"{section}]")), "")
    assert block, f"there is no [{section}]"
    lines = block.splitlines()
    found = [number for number, line in enumerate(lines) if line.lstrip("# ").startswith(f"{field.name} =")]
    assert len(found) == 1, f"{field.name} is there {len(found)} times"
    line = lines[found[0]]
    if default_of(field) is None:
        assert line.lstrip().startswith("#"), "a setting without a default is commented out"
    else:
        written: Any = tomllib.loads(line.lstrip("# ") if line.lstrip().startswith("#") else line)[field.name]
        written = tuple(written) if isinstance(written, list) else written
        assert written == default_of(field)
    around = "\n".join(lines[max(0, found[0] - 6) : found[0] + 1])
    for name in environment_names(field.type):
        assert name in around


def as_toml(value: object) -> str:
    """Write a default as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    # JSON's strings are TOML's too.
    return msgspec.json.encode(value).decode() if isinstance(value, str) else str(value)
