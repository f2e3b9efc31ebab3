"""
Whatever builds and runs containers here: Docker, Podman, or Buildah without an engine.

Containers run as they should in production: a read-only root, no capability, no way to new privileges. They share
the machine's network, so that neighbours on its loopback are reached. ``BUILD_FLAGS`` and ``RUN_FLAGS`` are further
arguments for building and running, as the machine may need them.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

BUILD_LIMIT_S = 1_800
COMMAND_LIMIT_S = 120
STOP_LIMIT_S = 30
REPOSITORY = Path(__file__).parents[2]


class Health(msgspec.Struct, frozen=True):
    """How the engine finds out whether a container is well."""

    test: list[str] = msgspec.field(name="Test")


class Config(msgspec.Struct, frozen=True, rename="pascal"):
    """What an image says of how it wants to be run."""

    env: list[str]
    user: str
    entrypoint: list[str]
    cmd: list[str]
    exposed_ports: dict[str, Any]
    volumes: dict[str, Any]
    labels: dict[str, str]
    stop_signal: str = "SIGTERM"
    healthcheck: Health | None = None

    @property
    def environment(self) -> dict[str, str]:
        """The variables by name."""
        return dict(pair.split("=", 1) for pair in self.env)


class Container(Protocol):
    """One container, which runs or has ended."""

    @property
    def pid(self) -> int:
        """Its first process, as the machine numbers it."""

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run *command* beside its processes, to the end."""

    def stop(self) -> int:
        """Ask it to stop and wait for the end; return the exit code."""

    def wait(self) -> int:
        """Wait for the end and return the exit code."""

    def output(self) -> str:
        """Return all that it has said."""

    def remove(self) -> None:
        """End it, if it runs, and forget it."""


class Engine(Protocol):
    """What builds and runs."""

    def build(self, tag: str) -> None:
        """Build the image of this repository."""

    def config(self, tag: str) -> Config:
        """Return what the image says of itself."""

    def size_bytes(self, tag: str) -> int:
        """Return how much room the image takes, unpacked."""

    def make_volume(self) -> str:
        """Return a new volume for /data, which gets what the image has there when it is first used."""

    def remove_volume(self, volume: str) -> None:
        """Delete it."""

    def run(
        self,
        tag: str,
        environment: Mapping[str, str],
        *,
        volume: str | None = None,
        user: str | None = None,
        command: Sequence[str] = (),
    ) -> Container:
        """Start a container; *user* and *command* default to the image's, and without *volume* /data is empty."""


def find_engine() -> Engine | None:
    """Return the first engine that answers, None when there is none. ``ENGINE`` names the only one to try."""
    wanted = os.environ.get("ENGINE")
    for name in [wanted] if wanted else ["docker", "podman", "buildah"]:
        if shutil.which(name) is None:
            continue
        if name == "buildah":
            return Buildah()
        if subprocess.run([name, "info"], capture_output=True, timeout=COMMAND_LIMIT_S).returncode == 0:
            return DockerLike(name)
    return None


def run(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """Run a command that has to succeed; return what it wrote to stdout."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S, env=environment)
    if done.returncode:
        raise RuntimeError(f"{shlex.join(command)} failed: {done.stderr.strip()}")
    return done.stdout.strip()


def flags(name: str) -> list[str]:
    """Return the further arguments in an environment variable."""
    return shlex.split(os.environ.get(name, ""))


class DockerLike:
    """Docker, or Podman, which takes the same arguments."""

    def __init__(self, program: str) -> None:
        self.program = program

    def build(self, tag: str) -> None:
        # The older format of images has health checks, OCI's has none; Docker makes what it needs.
        docker_format = ["--format", "docker"] if self.program == "podman" else []
        command = [self.program, "build", *docker_format, *flags("BUILD_FLAGS"), "-f", "Containerfile", "-t", tag, "."]
        subprocess.run(command, check=True, cwd=REPOSITORY, timeout=BUILD_LIMIT_S)

    def config(self, tag: str) -> Config:
        [image] = json.loads(run(self.program, "image", "inspect", tag))
        config = image["Config"]
        config.setdefault("Healthcheck", image.get("HealthCheck") or image.get("Healthcheck"))
        return msgspec.convert(config, Config)

    def size_bytes(self, tag: str) -> int:
        return int(run(self.program, "image", "inspect", "--format", "{{.Size}}", tag))

    def make_volume(self) -> str:
        return run(self.program, "volume", "create").splitlines()[-1]

    def remove_volume(self, volume: str) -> None:
        run(self.program, "volume", "rm", "--force", volume)

    def run(
        self,
        tag: str,
        environment: Mapping[str, str],
        *,
        volume: str | None = None,
        user: str | None = None,
        command: Sequence[str] = (),
    ) -> Container:
        arguments = ["--detach", "--network", "host", "--read-only", "--cap-drop", "ALL"]
        arguments += ["--security-opt", "no-new-privileges", *flags("RUN_FLAGS")]
        if self.program == "podman":
            # What Docker would not do: writable places in a read-only root, and an entry for whom nobody knows.
            arguments += ["--read-only-tmpfs=false", "--passwd=false"]
        arguments += [f"--volume={volume}:/data"] if volume else []
        arguments += [f"--user={user}"] if user else []
        arguments += [f"--env={name}={value}" for name, value in environment.items()]
        return DockerContainer(self.program, run(self.program, "run", *arguments, tag, *command).splitlines()[-1])


class DockerContainer:
    """A container of `DockerLike`."""

    def __init__(self, program: str, name: str) -> None:
        self._program = program
        self._name = name

    @property
    def pid(self) -> int:
        return int(run(self._program, "inspect", "--format", "{{.State.Pid}}", self._name))

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        command = (self._program, "exec", self._name, *command)
        return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S)

    def stop(self) -> int:
        run(self._program, "stop", "--time", str(STOP_LIMIT_S), self._name)
        return self.wait()

    def wait(self) -> int:
        return int(run(self._program, "wait", self._name))

    def output(self) -> str:
        done = subprocess.run([self._program, "logs", self._name], capture_output=True, text=True)
        return done.stdout + done.stderr

    def remove(self) -> None:
        run(self._program, "rm", "--force", "--volumes", self._name)


class Buildah:
    """
    Buildah where no engine is: the image's files as a read-only root in namespaces of its own. Needs root.

    Without settings of the machine's own it takes what works everywhere: storage ``vfs``, isolation ``chroot``.
    """

    def __init__(self) -> None:
        defaults = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot"}
        self._environment = {**defaults, **os.environ}
        self._working: dict[str, tuple[str, Path]] = {}

    def build(self, tag: str) -> None:
        command = ["buildah", "bud", "--format", "docker", *flags("BUILD_FLAGS")]
        command += ["-f", "Containerfile", "-t", tag, "."]
        subprocess.run(command, check=True, cwd=REPOSITORY, timeout=BUILD_LIMIT_S, env=self._environment)

    def config(self, tag: str) -> Config:
        return msgspec.convert(self._inspect(tag)["Docker"]["config"], Config)

    def size_bytes(self, tag: str) -> int:
        return sum(layer["size"] for layer in json.loads(self._inspect(tag)["Manifest"])["layers"])

    def make_volume(self) -> str:
        return tempfile.mkdtemp(prefix="jarvis-volume-")

    def remove_volume(self, volume: str) -> None:
        shutil.rmtree(volume)

    def run(
        self,
        tag: str,
        environment: Mapping[str, str],
        *,
        volume: str | None = None,
        user: str | None = None,
        command: Sequence[str] = (),
    ) -> Container:
        config, root = self.config(tag), self._root(tag)
        directory = Path(tempfile.mkdtemp(prefix="jarvis-container-"))
        data = Path(volume) if volume else directory / "data"
        if volume is None or not any(data.iterdir()):
            shutil.copytree(root / "data", data, dirs_exist_ok=True)
            state = (root / "data").stat()
            os.chown(data, state.st_uid, state.st_gid)
        uid, _, gid = (user or config.user).partition(":")
        return BareContainer(
            directory,
            root,
            data,
            (int(uid), int(gid or 0)),
            {**config.environment, **environment},
            [*config.entrypoint, *(command or config.cmd)],
            config.stop_signal,
        )

    def close(self) -> None:
        """Delete the working containers whose files were mounted."""
        for name, _ in self._working.values():
            run("buildah", "rm", name, environment=self._environment)
        self._working.clear()

    def _inspect(self, tag: str) -> Any:
        return json.loads(run("buildah", "inspect", "--type", "image", tag, environment=self._environment))

    def _root(self, tag: str) -> Path:
        if tag not in self._working:
            name = run("buildah", "from", "--pull-never", tag, environment=self._environment)
            self._working[tag] = name, Path(run("buildah", "mount", name, environment=self._environment))
        return self._working[tag][1]


SET_UP = """
set -e
root=$1 work=$2 data=$3; shift 3
mount --bind "$root" "$work"
mount -t proc proc "$work/proc"
mount -t tmpfs -o mode=755,size=64k dev "$work/dev"
for node in null zero full random urandom; do
  touch "$work/dev/$node"; mount --bind "/dev/$node" "$work/dev/$node"
done
mkdir "$work/dev/shm"; mount -t tmpfs -o mode=1777,size=64m shm "$work/dev/shm"
mount --bind "$data" "$work/data"
mount -o remount,bind,ro "$work"
exec chroot "$work" "$@"
"""
"""Run by the first process of a new namespace of mounts and processes, which becomes the container's first."""


class BareContainer:
    """A container of `Buildah`."""

    def __init__(
        self,
        directory: Path,
        root: Path,
        data: Path,
        user: tuple[int, int],
        environment: Mapping[str, str],
        command: Sequence[str],
        stop_signal: str,
    ) -> None:
        work = directory / "root"
        work.mkdir()
        self._directory = directory
        self._log = directory / "log"
        self._stop_signal = signal.Signals[stop_signal]
        confined = ["--clear-groups", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
        self._prefix = ["/usr/bin/setpriv", f"--reuid={user[0]}", f"--regid={user[1]}", *confined]
        self._prefix += ["/usr/bin/env", "-i", *(f"{name}={value}" for name, value in environment.items())]
        with self._log.open("wb") as log:
            self._process = self._start(log, ["sh", "-c", SET_UP, "sh", root, work, data, *self._prefix, *command])
        self._first = self._await_first(command[0])

    @property
    def pid(self) -> int:
        return self._first

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--ipc", "--root", "--wd"]
        command = (*enter, *self._prefix, *command)
        return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_LIMIT_S)

    def stop(self) -> int:
        os.kill(self.pid, self._stop_signal)
        return self.wait()

    def wait(self) -> int:
        return self._process.wait(STOP_LIMIT_S)

    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def remove(self) -> None:
        if self._process.poll() is None:
            os.kill(self._first, signal.SIGKILL)
            self._process.wait()
        shutil.rmtree(self._directory)

    def _await_first(self, program: str) -> int:
        """Return the first process once it has become *program*: what set it up obeys no signal."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        while self._process.poll() is None:
            first = children.read_text().split()
            if first and Path(f"/proc/{first[0]}/cmdline").read_bytes().split(b"\0")[0] == program.encode():
                return int(first[0])
            time.sleep(0.001)
        raise RuntimeError(f"the container ended with {self._process.returncode}: {self.output()}")

    def _start(self, log: IO[bytes], command: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        namespaces = ["--mount", "--pid", "--ipc", "--fork", "--kill-child", "--propagation", "private"]
        return subprocess.Popen(
            ["unshare", *namespaces, *command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
