"""What is installed is complete, and what CI installs is pinned."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "messaging_server"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")


def test_every_data_file_is_packaged() -> None:
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["messaging_server"]
    packaged = {path for pattern in patterns for path in PACKAGE.glob(pattern) if path.is_file()}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".py"}
    assert not {path for path in files if "__pycache__" not in path.parts} - packaged


def test_every_folder_with_code_is_a_package() -> None:
    for module in PACKAGE.rglob("*.py"):
        assert (module.parent / "__init__.py").exists(), module


def test_every_dependency_is_locked_within_its_bounds() -> None:
    lines = [line for line in LOCK.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)
    locked = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    extras = PROJECT["project"]["optional-dependencies"].values()
    for text in [
        *PROJECT["project"]["dependencies"],
        *(line for extra in extras for line in extra),
    ]:
        requirement = Requirement(text)
        version = locked[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, text
