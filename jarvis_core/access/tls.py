"""The certificate and key with which the core speaks TLS, checked before anything else is started."""

from __future__ import annotations

import base64
import binascii
import contextlib
import ssl
from pathlib import Path
from typing import NamedTuple

from jarvis_core.errors import SettingsError
from jarvis_core.settings import Server

CERTIFICATE = "TLS_CERT_PATH"
KEY = "TLS_KEY_PATH"
ON_A_CURVE = bytes.fromhex("06052b810400")
"""How the names of most curves begin (RFC 5480, 2.1.1.1), as they stand in a key."""
CURVES = (bytes.fromhex("06082a8648ce3d030107"), bytes.fromhex("06052b81040022"))
"""P-256 and P-384."""


class Certificate(NamedTuple):
    """Files in PEM that belong together."""

    certificate: Path
    """With its chain after it."""
    key: Path


def certificate_of(settings: Server) -> Certificate | None:
    """Return the files that *settings* name, None where they name none; raises ``SettingsError`` for unfit ones."""
    if settings.tls_cert_path is None or settings.tls_key_path is None:
        return None
    paths = Certificate(Path(settings.tls_cert_path).expanduser(), Path(settings.tls_key_path).expanduser())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for setting, path in ((CERTIFICATE, paths.certificate), (KEY, paths.key)):
        try:
            path.read_bytes()
        except OSError as exc:
            raise SettingsError(f"{setting}: {path}: cannot be read: {exc.strerror}") from exc
    try:
        context.load_verify_locations(paths.certificate)
    except ssl.SSLError as exc:
        raise SettingsError(f"{CERTIFICATE}: {paths.certificate} has no certificate in PEM") from exc
    try:
        # Without a password callback OpenSSL would ask for a password on the terminal.
        context.load_cert_chain(paths.certificate, paths.key, password=lambda: "")
    except (ssl.SSLError, ValueError) as exc:
        reason = getattr(exc, "reason", None)
        if reason in ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
            raise SettingsError(f"{KEY}: {paths.key} is not the key of {paths.certificate}") from exc
        if reason == "EE_KEY_TOO_SMALL":
            raise SettingsError(f"{CERTIFICATE}: the key of {paths.certificate} is too short") from exc
        raise SettingsError(f"{KEY}: {paths.key} has no private key in PEM without a passphrase") from exc
    if not _curve_is_known(paths.key.read_text(encoding="ascii", errors="replace")):
        raise SettingsError(f"{KEY}: {paths.key} has a curve that is not served; P-256, P-384 and Ed25519 are, and RSA")
    return paths


def unverified() -> ssl.SSLContext:
    """Return the context for asking this machine's own core, whose certificate need not name the loopback address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _curve_is_known(pem: str) -> bool:
    """Whether the key in *pem* has none of the curves that Granian (2.8.7) ends the process for."""
    der = b""
    for block in pem.split("-----BEGIN ")[1:]:
        body = block.partition("-----")[2].partition("-----END")[0]
        with contextlib.suppress(binascii.Error):
            der += base64.b64decode(body)
    return ON_A_CURVE not in der or any(curve in der for curve in CURVES)
