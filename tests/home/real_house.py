"""A real Home Assistant 2024.3.3 on loopback, furnished anew for each run, with lamps that have names in two languages."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.home.furnish import LAMPS
from tests.system.server import free_port

START_LIMIT_S = 60.0
STOP_LIMIT_S = 20.0
CALL_LIMIT_S = 10.0
FURNISH = Path(__file__).with_name("furnish.py")
CONFIGURATION = """
homeassistant:
  name: Maison
  latitude: 48.85
  longitude: 2.35
  elevation: 35
  unit_system: metric
  time_zone: Europe/Paris
  language: fr
  country: FR
http:
  server_host: 127.0.0.1
  server_port: {port}
api:
conversation:
intent:
light:
  - platform: template
    lights:
{lamps}
"""
LAMP = """
      {unique_id}:
        unique_id: {unique_id}
        friendly_name: {name}
        turn_on: [{{event: lamp}}]
        turn_off: [{{event: lamp}}]
        set_level: [{{event: lamp}}]
"""
"""It keeps the state that it was given: there is nothing behind it."""


class RealHouse:
    """Home Assistant as a child process, its configuration in *directory*; all methods block."""

    def __init__(self, python: Path, directory: Path) -> None:
        self._python = str(python)
        self._directory = directory
        self._log = directory / "output"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        self.token = ""

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Furnish it, start it, and wait until it runs; raises ``AssertionError`` with its output."""
        lamps = "".join(LAMP.format(unique_id=unique_id, name=name) for unique_id, (name, *_) in LAMPS.items())
        (self._directory / "configuration.yaml").write_text(
            CONFIGURATION.format(port=self.port, lamps=lamps), encoding="utf-8"
        )
        environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self._directory)}
        furnishing = [self._python, str(FURNISH), str(self._directory)]
        self.token = subprocess.run(
            furnishing, env=environment, stdout=subprocess.PIPE, text=True, check=True, timeout=START_LIMIT_S
        ).stdout
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [self._python, "-m", "homeassistant", "-c", str(self._directory), "--skip-pip"],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_LIMIT_S
        # Where a package is missing or the port is taken it stays alive, and never listens.
        while not self._runs():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise AssertionError(f"Home Assistant does not run:\n{self._log.read_text(errors='replace')}")
            time.sleep(0.1)

    def stop(self) -> None:
        """End it."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def ask(self, path: str, body: object = None) -> Any:
        """Send a request to its API, a POST where there is a *body*, and return the decoded answer."""
        request = urllib.request.Request(  # noqa: S310 - loopback
            self.url + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=CALL_LIMIT_S) as answer:  # noqa: S310 - loopback
            return json.loads(answer.read())

    def set_lamps(self, level: int) -> None:
        """Have all lamps at *level* percent; 0 is off."""
        service, more = ("turn_on", {"brightness_pct": level}) if level else ("turn_off", {})
        self.ask(f"/api/services/light/{service}", {"entity_id": "all", **more})

    def level(self, lamp: str) -> int:
        """Return the brightness of a lamp in percent; 0 is off."""
        state = self.ask(f"/api/states/light.{lamp}")
        if state["state"] != "on":
            return 0
        # A lamp that was switched on without a level tells none.
        brightness = state["attributes"].get("brightness")
        return 100 if brightness is None else round(brightness / 2.55)

    def process(self, text: str, language: str) -> Any:
        """Say *text* to it, without the core."""
        return self.ask("/api/conversation/process", {"text": text, "language": language})

    def _runs(self) -> bool:
        try:
            return bool(self.ask("/api/config")["state"] == "RUNNING")
        except (urllib.error.URLError, OSError):
            return False
