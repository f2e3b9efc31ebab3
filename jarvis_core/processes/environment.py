"""What children know of this process' environment: an allow-list, for secrets come in variables of any name."""

from __future__ import annotations

import os

KNOWN_NAMES = frozenset({
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TERM", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "NO_COLOR",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
})  # fmt: skip
KNOWN_PREFIXES = ("LC_", "XDG_", "PYTHON", "OPENBLAS_", "OMP_", "MKL_", "ORT_", "GOMP_", "MALLOC_", "COVERAGE_")
"""What the runtimes of languages and libraries read; nothing of ours, where secrets are."""
DOWNLOAD_PREFIXES = ("PIP_", "NPM_", "NODE_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "FTP_PROXY")
"""What pip and npm read besides, in either case."""
WORKER_PREFIXES = (
    *("PG", "KRB5", "OPENSSL_", "RES_OPTIONS", "LOCALDOMAIN", "HOSTALIASES"),
    *("LD_PRELOAD", "NSS_WRAPPER_", "GLIBC_TUNABLES"),
)
"""What libpq (PGPASSWORD is among it), the C library, and what a container puts in front of it, read besides."""

SILENT = {"ORT_DISABLE_TELEMETRY": "1"}
"""ONNX Runtime 1.32 tells its maker of each start, under an id that it keeps in ~/.cache, unless it is told not to."""


def for_children(*, downloads: bool = False, worker: bool = False) -> dict[str, str]:
    """
    Return the variables that a child gets.

    One that *downloads* gets those of pip and npm too, a *worker*, which asks the database, those of libpq.
    """
    prefixes = (
        *KNOWN_PREFIXES,
        *(DOWNLOAD_PREFIXES if downloads else ()),
        *(WORKER_PREFIXES if worker else ()),
    )
    known = {
        name: value
        for name, value in os.environ.items()
        if name in KNOWN_NAMES or (name.upper() if downloads else name).startswith(prefixes)
    }
    return {**known, **SILENT}


def library_directories() -> list[str]:
    """Return where the system's loader looks for libraries besides its own places."""
    return [path for path in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if path]
