"""The examples of `docs/widget.md` do what the page says."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.public.site import Site

PAGE = Path(__file__).parents[2] / "docs" / "widget.md"


def examples(language: str) -> list[str]:
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def test_the_identity_token_in_python(site: Site) -> None:
    (source,) = examples("python")
    names: dict[str, Any] = {}
    exec(source, names)  # noqa: S102  # our own page
    token = names["identity_token"]("u1", "Ana", "ana@example.com", secret=site.secret)
    assert_identified(site, token)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_the_identity_token_in_node(site: Site) -> None:
    source = next(example for example in examples("js") if "createHmac" in example)
    arguments = ", ".join(map(json.dumps, ("u1", "Ana", "ana@example.com", site.secret)))
    done = subprocess.run(
        ["node", "--input-type=module", "-e", f"{source}\nconsole.log(identityToken({arguments}))"],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert_identified(site, done.stdout.strip())


BROWSER = """
const kept = new Map();
globalThis.localStorage = {
  getItem: (key) => kept.get(key) ?? null,
  setItem: (key, value) => kept.set(key, value),
  removeItem: (key) => kept.delete(key),
};
const sessions = [await openSession(INBOX), await openSession(INBOX)];
sessions.push(await openSession(INBOX, TOKEN));
console.log(JSON.stringify({ sessions, kept: kept.size }));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node")
def test_a_session_in_the_browser(site: Site) -> None:
    """Anonymous, the same one again, then logged in."""
    source = next(example for example in examples("js") if "localStorage" in example)
    script = source.replace("https://inbox.example", site.admin.url) + BROWSER
    script = script.replace("INBOX", json.dumps(site.id))
    script = script.replace("TOKEN", json.dumps(site.identity("u1", name="Ana")))
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    result = json.loads(done.stdout)
    first, again, known = result["sessions"]
    assert again["lead"] == first["lead"]
    assert known["lead"] == {"id": first["lead"]["id"], "name": "Ana", "verified": True}
    assert result["kept"] == 0


def assert_identified(site: Site, token: str) -> None:
    lead = site.open(identityToken=token)["lead"]
    assert (lead["name"], lead["verified"]) == ("Ana", True)
    assert site.admin.get(f"/leads/{lead['id']}")["email"] == "ana@example.com"
