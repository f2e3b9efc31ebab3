"""
Whose the embedded cluster is, and who may connect to it.

PostgreSQL refuses to run as root. Root's cluster belongs to a user that nothing else runs as, who needs no line in
/etc/passwd: a server does without, and initdb, which does not, runs as ``nobody`` in a directory that is handed over
afterwards. A cluster of an older version, which ran as ``nobody`` all the time, is handed over at the start.

Who connects is known by the kernel (``peer``): the user that this process runs as, and root, who may be anybody anyway.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from pathlib import Path

from jarvis_core.errors import StartError
from jarvis_core.processes.child import User

ROLE = "jarvis"
ROOT_UID = 0
OWN_ID = 65_533
"""User and group of root's cluster: nobody's else, and no service's (systemd leaves it free)."""
OWN: User = (OWN_ID, OWN_ID)

HBA = f"""\
# Written at each start of the embedded server. Users of this machine are known by the kernel; no network leads here.
local all all peer map={ROLE}
"""


def check_user() -> None:
    """Raise ``StartError`` where PostgreSQL would refuse the user that this process runs as, whatever they may open."""
    uid = os.geteuid()
    try:
        pwd.getpwuid(uid)
    except KeyError as exc:
        raise StartError(
            f"PostgreSQL cannot run as the user {uid}, who is not in /etc/passwd; "
            "start as a user who is, or set DATABASE_URL"
        ) from exc


def cluster_user(cluster: Path) -> User | None:
    """
    Return who is to run PostgreSQL on *cluster*, None for the user that this process runs as.

    Root becomes the one who made the cluster, and ``OWN`` for a new one and for one that root made as nobody.
    """
    uid = os.geteuid()
    owner = cluster.stat() if cluster.exists() else None
    if uid == ROOT_UID:
        if owner is not None and owner.st_uid != ROOT_UID and not _was_roots(cluster, owner):
            return owner.st_uid, owner.st_gid
        if owner is not None and owner.st_uid == ROOT_UID and cluster.is_dir() and any(cluster.iterdir()):
            raise StartError(
                f"{cluster} belongs to root, and PostgreSQL cannot run as root; run: chown -R {OWN_ID}:{OWN_ID} {cluster}"
            )
        return OWN
    if owner is not None and owner.st_uid != uid:
        raise StartError(
            f"{cluster} belongs to the user {owner.st_uid}, not to {uid}; start as that user or set another DATA_DIR"
        )
    return None


def user_name(user: User) -> str:
    """Return the name of *user*, the number of one who has none."""
    try:
        return pwd.getpwuid(user[0]).pw_name
    except KeyError:
        return str(user[0])


def maker_of(user: User | None) -> User | None:
    """Return who makes the cluster of *user*: somebody with a name, which initdb insists on."""
    if user is None or user != OWN:
        return user
    try:
        nobody = pwd.getpwnam("nobody")
    except KeyError as exc:
        raise StartError(
            "PostgreSQL cannot run as root, and there is no user nobody to make its files; "
            "start as a plain user, or set DATABASE_URL"
        ) from exc
    return nobody.pw_uid, nobody.pw_gid


def hand_over(cluster: Path, user: User) -> None:
    """
    Give *cluster*, on which no server runs, to *user*, with all that belongs to its owner.

    The directory itself comes last: what was broken off is begun again. Links are not followed.
    """
    before = cluster.stat(follow_symlinks=False).st_uid
    if before == user[0]:
        return
    for _, directories, files, descriptor in os.fwalk(cluster, topdown=False):
        for name in (*directories, *files):
            if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_uid == before:
                os.chown(name, *user, dir_fd=descriptor, follow_symlinks=False)
    os.chown(cluster, *user, follow_symlinks=False)


def admit_peers(cluster: Path) -> None:
    """Write into *cluster* that this process' user and root may connect as ``ROLE``, and nobody else as anybody."""
    names = sorted({user_name((os.geteuid(), 0)), user_name((ROOT_UID, 0))})
    quoted = [name.replace('"', '""') for name in names]
    directory = os.open(cluster, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _write(directory, "pg_hba.conf", HBA)
        _write(directory, "pg_ident.conf", "".join(f'{ROLE} "{name}" {ROLE}\n' for name in quoted))
    finally:
        os.close(directory)


def _was_roots(cluster: Path, owner: os.stat_result) -> bool:
    """Whether root made *cluster* as nobody, as older versions did, and not nobody for itself."""
    try:
        nobody = pwd.getpwnam("nobody").pw_uid
    except KeyError:
        return False
    return owner.st_uid == nobody and cluster.parent.stat().st_uid != nobody


def _write(directory: int, name: str, text: str) -> None:
    """Replace a file at once; the directory may be somebody else's, whose links root is not to follow."""
    new = f"{name}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new, dir_fd=directory)
    owner = os.fstat(directory)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(new, flags, stat.S_IRUSR | stat.S_IWUSR, dir_fd=directory), "wb") as file:
        file.write(text.encode())
        file.flush()
        os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
        os.fsync(file.fileno())
    os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
