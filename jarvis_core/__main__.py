"""
The command line: ``jarvis-core`` serves; ``token`` mints a token; ``check`` asks a running core how it is.

The process starts stand-ins for absent neighbours as children that end with it, serves, and stops all in reverse order.
With several workers it only supervises them.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import FrameType

import msgspec

from jarvis_core import __version__, log
from jarvis_core.access.credentials import USER_LIMIT_CHARS, is_user
from jarvis_core.errors import SettingsError, StartError
from jarvis_core.processes.address import authority, find_address, is_loopback, reserve_address
from jarvis_core.processes.child import spawn
from jarvis_core.processes.environment import for_children
from jarvis_core.processes.permissions import landlock_version
from jarvis_core.processes.service_supervisor import ServiceSupervisor
from jarvis_core.settings import Assignment, Secret, Settings, WorkerGroup, load, parse_api_keys
from jarvis_core.stand_ins import start_stand_ins

EVERY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
SOUND_KEY_CHARS = 16
"""An API key with fewer characters is warned of."""
SOUND_TTL_S = 365 * 86_400
"""A token that holds for longer than a year is warned of."""
CHECK_TIMEOUT_S = 5.0
"""How long the core may take to answer a health check."""
INTERRUPTED = 130
"""The exit code of a start that a signal ended."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command that *arguments* (default: the process') name; return the exit code."""
    parser = argparse.ArgumentParser(prog="jarvis-core", description="The core of a self-hosted voice assistant.")
    parser.add_argument("--version", action="version", version=f"jarvis-core {__version__}")
    parser.add_argument("--config", type=Path, help="settings file in TOML (default: the one that JARVIS_CONFIG names)")
    commands = parser.add_subparsers(dest="command", metavar="command")
    commands.add_parser("serve", help="serve (the default)")
    token = commands.add_parser("token", help="mint a token for a user, signed with JWT_SECRET")
    token.add_argument("--user", required=True, help="the user's id")
    token.add_argument("--ttl", default="24h", help="how long it holds: 30m, 24h, 90d (default: 24h)")
    commands.add_parser("check", help="ask the core on this machine whether it is healthy")
    options = parser.parse_args(arguments)
    try:
        settings = load(os.environ, options.config)
        if options.command == "token":
            return print_token(settings, options.user, options.ttl)
        if options.command == "check":
            return check(settings)
        log.set_up(settings.log)
        return serve(settings)
    except StartError as exc:
        print(f"jarvis-core: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED


def serve(settings: Settings) -> int:
    """Start stand-ins for absent neighbours, then serve until a signal; return the exit code."""
    if settings.server.tls_cert_path is not None:
        from jarvis_core.access.tls import certificate_of

        certificate_of(settings.server)
    host = settings.server.host
    # Granian takes no names; and a name's address may change while other parts use the old one.
    settings = settings.with_values("server", host=find_address(host, settings.server.port))
    if settings.wyoming.port is not None:
        address = find_address(settings.wyoming.host, settings.wyoming.port, ("WYOMING_HOST", "WYOMING_PORT"))
        settings = settings.with_values("wyoming", host=address)
        if not is_loopback(address):
            log.get("jarvis_core").warning(
                "whoever reaches WYOMING_PORT asks, hears and reads as one user, without credentials: the protocol has none; "
                "keep it in a network of your own, or set WYOMING_HOST=127.0.0.1",
                host=address,
                user=settings.wyoming.user,
            )
    if settings.database.url is not None:
        from jarvis_core.store.address import parse

        if unused := parse(settings.database.url.reveal()).unused:
            log.get("jarvis_core").warning("parts of DATABASE_URL have no effect here", unused=", ".join(unused))
    workers = settings.server.workers
    code: int | None = None
    try:
        with _terminable() as arm, ExitStack() as stack:
            given = {
                "python_bridges": settings.neighbours.python_bridges_url,
                "audio_engine": settings.neighbours.audio_engine_url,
            }
            group = WorkerGroup(
                workers=workers,
                embedded_database=settings.database.url is None,
                embedded_neighbours=tuple(name for name, url in given.items() if url is None),
                bridges_secret=Secret(secrets.token_urlsafe(32)) if given["python_bridges"] is None else None,
            )
            if not landlock_version():
                log.get("jarvis_core").info(
                    "the kernel or the container has no Landlock: what runs beside the core is kept apart by its rights alone"
                )
            settings, remarks, children = start_stand_ins(settings, stack, group.bridges_secret)
            supervisor = ServiceSupervisor(children)
            supervisor.start()
            stack.callback(supervisor.stop)
            if workers > 1:
                code = run_workers(settings, group, host, remarks, stack)
            else:
                # Imported here, because with several workers the parent process does not need it.
                from jarvis_core.server import run

                code = run(settings, group, on_ready=lambda more: announce(settings, host, [*remarks, *more]))
            arm()
    except KeyboardInterrupt:
        if code is None:
            raise
        # A signal came while the services were being stopped: the rest of them end with this process.
    return code


def run_workers(settings: Settings, group: WorkerGroup, host: str, remarks: list[str], stack: ExitStack) -> int:
    """Serve in several processes until a signal; return the exit code. Raises ``StartError``."""
    from jarvis_core.processes.worker_supervisor import WorkerSupervisor
    from jarvis_core.shared.worker_stats import pulse_of

    reservation = stack.enter_context(reserve_address(settings.server.host, settings.server.port))
    if settings.server.port == 0:
        settings = settings.with_values("server", port=reservation.getsockname()[1])
    counters = [os.memfd_create(f"jarvis-worker-{number}") for number in range(group.workers)]
    for descriptor in counters:
        stack.callback(os.close, descriptor)

    def spawn_worker(number: int, control: socket.socket) -> subprocess.Popen[bytes]:
        assignment = Assignment(
            settings, msgspec.structs.replace(group, worker=number, stats_descriptors=tuple(counters)), control.fileno()
        )
        source = os.memfd_create("assignment")
        try:
            os.write(source, assignment.encode())
            os.lseek(source, 0, os.SEEK_SET)
            return spawn(
                [sys.executable, "-m", "jarvis_core.server"],
                # With the parent its database is gone: there is nothing to drain into.
                death_signal=signal.SIGKILL,
                # What is ours is in the assignment.
                environment=for_children(worker=True),
                source=source,
                output=None,
                inherited=(control.fileno(), *counters),
                threaded=True,
            )
        finally:
            os.close(source)

    supervisor = WorkerSupervisor(
        spawn_worker,
        group.workers,
        drain_timeout_s=settings.server.drain_timeout_s,
        pulse=lambda number: pulse_of(counters[number]),
        on_ready=lambda: announce(
            settings, host, [*remarks, *supervisor.told, f"serving:  {group.workers} worker processes"]
        ),
    )
    return supervisor.run()


def announce(settings: Settings, host: str, remarks: list[str]) -> None:
    """Print where the core listens, by the name *host* that it was given, what is embedded and missing, and a line to try."""
    shown = "localhost" if host in ("127.0.0.1", "::1", *EVERY_ADDRESS) else host
    tls = settings.server.tls_cert_path is not None
    address = f"{'https' if tls else 'http'}://{authority(shown, settings.server.port)}"
    lines = [f"Jarvis Core {__version__} listens on {address}"]
    lines += [f"  {remark}" for remark in sorted(remarks, key=lambda remark: not remark.startswith("embedded"))]
    if settings.auth.open:
        lines.append("  open:     no credentials are asked for (JWT_SECRET or API_KEYS change that)")
        moves = " and may move what is in the house" if settings.moves_things else ""
        if not is_loopback(settings.server.host):
            log.get("jarvis_core").warning(
                "the server is open to whoever reaches it: everybody is the same user, may read everything"
                f"{moves}; set JWT_SECRET or API_KEYS, or HOST=127.0.0.1",
                host=host,
            )
        elif moves:
            lines.append(
                "  alone:    only this machine reaches it, because whoever does may move the house (HOST changes that)"
            )
    if settings.wyoming.port is not None:
        place = authority(settings.wyoming.host, settings.wyoming.port)
        lines.append(f"  wyoming:  satellites and Home Assistant are answered on {place}")
    short = sorted({user for key, user in parse_api_keys(settings.auth.api_keys).items() if len(key) < SOUND_KEY_CHARS})
    if short:
        log.get("jarvis_core").warning(
            f"API keys of fewer than {SOUND_KEY_CHARS} characters can be guessed (try: openssl rand -hex 20)", of=short
        )
    content = '{"content": "Bonjour Jarvis, qui es-tu ?"}'
    credentials = "" if settings.auth.open else " -H 'authorization: Bearer …'"
    # curl does not trust a self-signed certificate.
    curl = "curl -sk" if tls else "curl -s"
    lines.append(
        f"  try:      {curl} {address}/api/chat -H 'content-type: application/json'{credentials} -d '{content}'"
    )
    print("\n".join(lines), flush=True)


@contextlib.contextmanager
def _terminable() -> Iterator[Callable[[], None]]:
    """
    Let SIGTERM interrupt the start as Ctrl-C does, so that started services are stopped.

    Yields a function that arms this again after an event loop has handled the signal.
    """

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def arm() -> None:
        signal.signal(signal.SIGTERM, interrupt)

    before: Callable[[int, FrameType | None], object] | int | None = signal.getsignal(signal.SIGTERM)
    arm()
    try:
        yield arm
    finally:
        signal.signal(signal.SIGTERM, before)


def print_token(settings: Settings, user: str, ttl: str) -> int:
    """Print a token for *user* that holds for *ttl*; raises ``SettingsError``."""
    if settings.auth.jwt_secret is None:
        raise SettingsError("JWT_SECRET: a token needs it (try: export JWT_SECRET=$(openssl rand -hex 32))")
    if not is_user(user):
        raise SettingsError(f"--user: must be 1 to {USER_LIMIT_CHARS} printable characters")
    import jwt

    lifetime_s = seconds_of(ttl)
    if lifetime_s > SOUND_TTL_S:
        print(
            f"jarvis-core: this token holds for {lifetime_s // 86_400} days, for whoever gets hold of it, and only a new "
            "JWT_SECRET ends it sooner",
            file=sys.stderr,
        )
    now = int(time.time())
    claims = {"sub": user, "user_id": user, "username": user, "iat": now, "exp": now + lifetime_s}
    print(jwt.encode(claims, settings.auth.jwt_secret.reveal(), algorithm="HS256"))
    return 0


def seconds_of(ttl: str) -> int:
    """Return the seconds of ``90s``, ``30m``, ``24h`` or ``90d``; raises ``SettingsError``."""
    units = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
    number, unit = ttl[:-1], ttl[-1:]
    if not (number.isascii() and number.isdigit() and len(number) <= 6 and int(number) and unit in units):
        raise SettingsError(f"--ttl: {ttl!r} is not a time such as 30m, 24h or 90d")
    return int(number) * units[unit]


def check(settings: Settings) -> int:
    """
    Ask the core on this machine for its health; return 0 when it is healthy.

    Made for container health checks. Finds out by itself whether the core speaks TLS, so that it needs none of the
    core's settings.
    """
    import http.client
    import ssl

    from jarvis_core.access.tls import unverified

    host = "127.0.0.1" if settings.server.host in EVERY_ADDRESS else settings.server.host
    place = authority(host, settings.server.port)
    likely = settings.server.tls_cert_path is not None
    told = ""
    for tls in (likely, not likely):
        connection = http.client.HTTPConnection(place, timeout=CHECK_TIMEOUT_S)
        if tls:
            connection = http.client.HTTPSConnection(place, timeout=CHECK_TIMEOUT_S, context=unverified())
        try:
            connection.request("GET", "/health")
            answer = connection.getresponse()
            print(answer.read(65_536).decode(errors="replace"))
            return 0 if answer.status == 200 else 1
        except (http.client.HTTPException, ConnectionResetError, ssl.SSLError) as exc:
            told = told or f"what listens on {place} does not answer as a core does: {exc}"
        except (OSError, ValueError) as exc:
            told = told or f"nothing answers on {place}: {exc}"
            break
        finally:
            connection.close()
    print(f"jarvis-core: {told}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
