"""What tests of neighbours with ``https`` share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jarvis_core.services.ca_certificates import authorities

FILES = Path(__file__).parents[1] / "fixtures" / "tls"


@pytest.fixture
def authority(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have the system trust the one authority in the file that the test names."""
    monkeypatch.setenv("SSL_CERT_FILE", str(FILES / request.param))
    monkeypatch.setenv("SSL_CERT_DIR", "/nonexistent")
    authorities.cache_clear()
    yield
    authorities.cache_clear()
