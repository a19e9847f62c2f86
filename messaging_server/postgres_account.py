"""Who runs Postgres, and what that account may reach.

Postgres refuses to run as root. Root's server therefore runs it as someone without
privileges, for whom this makes private directories, and checks the way there; it opens
nothing that was closed.
"""

import contextlib
import os
import stat
import sys
from pathlib import Path
from typing import NamedTuple

from messaging_server.errors import StartupError

if sys.platform != "win32":
    import pwd


class Account(NamedTuple):
    """Who runs Postgres: the user, or for root someone without privileges."""

    name: str
    uid: int
    gid: int


def is_root() -> bool:
    return sys.platform != "win32" and os.geteuid() == 0


def postgres_account(cluster: Path) -> Account:
    """We ourselves; for root, who refuses to run Postgres, whoever owns the database."""
    if not is_root():
        return _account(os.geteuid(), os.getegid())
    if cluster.exists() and (found := cluster.stat()).st_uid != 0:
        return _account(found.st_uid, found.st_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return Account(name, pwd.getpwnam(name).pw_uid, pwd.getpwnam(name).pw_gid)
    raise StartupError(
        "Postgres may not run as root, and there is neither an account `postgres` nor `nobody`: "
        "start as an ordinary user, or set DATABASE_URL."
    )


def _account(uid: int, gid: int) -> Account:
    try:
        return Account(pwd.getpwuid(uid).pw_name, uid, gid)
    except KeyError:
        return Account(f"user {uid}", uid, gid)


def make_private(directory: Path, account: Account) -> None:
    """Owned by the account and closed to others; refuses what others have put there."""
    directory.mkdir(mode=0o700, exist_ok=True)
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in (os.geteuid(), account.uid):
        raise StartupError(f"{directory} belongs to another user and can't be used.")
    if found.st_uid != account.uid:
        os.chown(directory, account.uid, account.gid)
    directory.chmod(0o700)


def check_access(home: Path, account: Account) -> None:
    if obstacle := first_obstacle(home, account):
        raise StartupError(
            f"Postgres runs as {account.name}, who may not enter {obstacle}: allow it "
            f"(chmod o+x {obstacle}), choose a data directory elsewhere, or start as an ordinary "
            "user."
        )


def first_obstacle(directory: Path, account: Account) -> Path | None:
    """The first directory on the way there that root's Postgres account may not enter."""
    for step in (*reversed(directory.parents), directory) if is_root() else ():
        found = step.stat()
        if found.st_uid == account.uid:
            needed = stat.S_IXUSR
        else:
            needed = stat.S_IXGRP if found.st_gid == account.gid else stat.S_IXOTH
        if not found.st_mode & needed:
            return step
    return None
