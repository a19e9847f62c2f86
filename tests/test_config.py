"""Configuration: what stands in config.toml is what the program does, and nothing is misread."""

import re
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from messaging_server.config import Config
from messaging_server.config_sources import (
    MASK,
    SECRETS,
    load_config,
    mask_password,
    masked,
)
from messaging_server.errors import StartupError

CONFIG_FILE = Path(__file__).parent.parent / "config.toml"
COMMENTED_KEY = re.compile(r"^# ?(?=[a-z_]+ = )", re.MULTILINE)
EXAMPLE = re.compile(r"^# \[\[(?P<section>\w+)\.(?P<key>\w+)\]\]\n(?:# .*\n)+", re.MULTILINE)
"""Lists of tables have no default to state: an example stands for them."""


def test_config_toml_holds_every_key_at_its_default() -> None:
    text = CONFIG_FILE.read_text(encoding="utf-8")
    stated = tomllib.loads(COMMENTED_KEY.sub("", EXAMPLE.sub("", text)))
    defaults = msgspec.to_builtins(Config())
    for example in EXAMPLE.finditer(text):
        assert defaults[example["section"]].pop(example["key"]) == ()
    assert stated == plain(defaults)


def plain(value: Any) -> Any:
    """As TOML has it: lists for tuples."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def test_config_toml_as_it_is_changes_nothing() -> None:
    assert load_config(CONFIG_FILE, {}, {}) == Config()


def test_the_examples_are_valid(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    examples = list(EXAMPLE.finditer(CONFIG_FILE.read_text(encoding="utf-8")))
    path.write_text("\n".join(re.sub(r"(?m)^# ", "", example[0]) for example in examples))
    config = load_config(path, {}, {})
    assert examples
    for example in examples:
        assert len(getattr(getattr(config, example["section"]), example["key"])) == 1


def test_the_example_of_a_price_is_valid(tmp_path: Path) -> None:
    text = CONFIG_FILE.read_text(encoding="utf-8")
    (example,) = (each for each in EXAMPLE.finditer(text) if each["key"] == "prices")
    path = tmp_path / "config.toml"
    path.write_text(re.sub(r"(?m)^# ", "", example[0]))
    config = load_config(path, {}, {"ai": {"model": "gpt-5-mini"}})
    assert config.ai.price is config.ai.prices[0]
    assert load_config(path, {}, {}).ai.price is None


def test_what_goes_over_what(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[server]\nhost = "file"\nport = 1\ndata_dir = "file"\n')
    environment = {"MESSAGING_SERVER__PORT": "2", "MESSAGING_SERVER__DATA_DIR": "environment"}
    server = load_config(path, environment, {"server": {"data_dir": "option"}}).server
    assert (server.host, server.port, server.data_dir) == ("file", 2, "option")


def test_conventional_variables_are_over_by_our_own() -> None:
    usual = {"DATABASE_URL": "postgresql://usual/x", "OPENAI_API_KEY": "usual"}
    config = load_config(None, usual, {})
    assert (config.database.url, config.ai.api_key) == ("postgresql://usual/x", "usual")
    ours = {"MESSAGING_DATABASE__URL": "postgresql://ours/x", "MESSAGING_AI__API_KEY": "ours"}
    config = load_config(None, {**usual, **ours}, {})
    assert (config.database.url, config.ai.api_key) == ("postgresql://ours/x", "ours")
    assert load_config(None, {"DATABASE_URL": ""}, {}).database.url == ""


@pytest.mark.parametrize(
    ("provider", "key"), [("", "o"), ("local", "o"), ("openai", "o"), ("anthropic", "a")]
)
def test_each_vendor_has_its_own_variable(tmp_path: Path, provider: str, key: str) -> None:
    both = {"OPENAI_API_KEY": "o", "ANTHROPIC_API_KEY": "a"}
    path = tmp_path / "config.toml"
    path.write_text(f'[ai]\nmodel = "m"\nprovider = "{provider}"\n' if provider else "")
    assert load_config(path, both, {}).ai.api_key == key
    if provider:
        variable = {"MESSAGING_AI__PROVIDER": provider, "MESSAGING_AI__MODEL": "m"}
        assert load_config(None, both | variable, {}).ai.api_key == key
        assert load_config(None, both, {"ai": {"provider": provider, "model": "m"}}).ai.model == "m"


def test_a_key_out_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sk-file\n")
    named = {"MESSAGING_AI__API_KEY_FILE": str(path)}
    assert load_config(None, named, {}).ai.api_key == "sk-file"
    assert load_config(None, named | {"OPENAI_API_KEY": "sk-variable"}, {}).ai.api_key == (
        "sk-variable"
    )
    assert masked(load_config(None, named, {}))["ai"]["api_key"] == MASK


@pytest.mark.parametrize("content", [None, b"", b" \n", b"two\nlines", b"\xff\xfe", b"\xc3\xb1"])
def test_a_file_without_a_key(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StartupError, match=r"^ai\.api_key_file: .*key: [^\n]*$"):
        load_config(None, {"MESSAGING_AI__API_KEY_FILE": str(path)}, {})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"provider": "anthropic", "api_key": "x"}, "ai.model must name"),
        ({"provider": "anthropic", "model": "m"}, "ANTHROPIC_API_KEY"),
        ({"provider": "openai", "model": "m"}, "OPENAI_API_KEY"),
        ({"provider": "openai", "model": "m", "api_key": "k k"}, "ai.api_key must be ASCII"),
        ({"provider": "openai", "model": "m", "base_url": "https://h /v1"}, "ai.base_url must be"),
        ({"provider": "openai", "model": "m", "api_key": "ké"}, "ai.api_key must be ASCII"),
        ({"provider": "openai", "model": "m", "base_url": "localhost:1"}, "ai.base_url must be"),
        (
            {"provider": "openai", "model": "m", "api_key": "x", "daily_budget_dollars": 1},
            "ai.prices must have an entry for m",
        ),
        (
            {"provider": "openai", "model": "m", "api_key": "x", "monthly_budget_dollars": 1},
            "ai.prices must have an entry for m",
        ),
    ],
)
def test_what_a_provider_needs(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(StartupError, match=words):
        load_config(None, {}, {"ai": keys})


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"endpoint": "minio:9000"}, "storage.endpoint must be like"),
        ({"access_key_id": "a"}, "set both or neither"),
        ({"secret_access_key": "a"}, "set both or neither"),
    ],
)
def test_what_a_bucket_needs(keys: dict[str, Any], words: str) -> None:
    """The same without a bucket is for other programs."""
    with pytest.raises(StartupError, match=words):
        load_config(None, {}, {"storage": {"url": "s3://bucket", **keys}})
    assert load_config(None, {}, {"storage": keys}).storage.url == ""


def test_the_usual_variables_of_buckets() -> None:
    usual = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9000",
        "AWS_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
    }
    storage = load_config(None, usual, {"storage": {"url": "s3://bucket/prefix"}}).storage
    keys = (storage.endpoint, storage.region, storage.access_key_id, storage.secret_access_key)
    assert keys == tuple(usual.values())


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("SERVER__PORT", "8080", 8080),
        ("SERVER__ALLOWED_ORIGINS", "https://a.example, https://b.example,",
         ("https://a.example", "https://b.example")),
        ("SERVER__ALLOWED_ORIGINS", '["https://a.example"]', ("https://a.example",)),
        ("SERVER__ALLOWED_ORIGINS", "https://App.Example:443,http://b.example:80,*",
         ("https://app.example", "http://b.example", "*")),
        ("SERVER__ALLOWED_ORIGINS", "", ()),
        ("SERVER__BEHIND_PROXY", "10.0.0.0/8,::1", ("10.0.0.0/8", "::1")),
        ("ANALYSIS__QUIET_SECONDS", "0.5", 0.5),
        ("LIMITS__ENABLED", "false", False),
        ("LIMITS__ENABLED", "0", False),
        ("AUTH__SECRET", "x" * 32, "x" * 32),
        ("AI__MODEL", "1", "1"),
    ],
)  # fmt: skip
def test_variables(variable: str, text: str, value: Any) -> None:
    config = load_config(None, {f"MESSAGING_{variable}": text}, {})
    section, key = variable.lower().split("__")
    assert getattr(getattr(config, section), key) == value


def test_other_variables_are_not_ours() -> None:
    """Among them those that Kubernetes sets for a service called `messaging-server`."""
    others = {
        "MESSAGING_PASSWORD": "x",
        "SERVER__PORT": "1",
        "PORT": "1",
        "MESSAGING_SERVER_SERVICE_HOST": "10.0.0.1",
        "MESSAGING_SERVER_SERVICE_PORT": "80",
        "MESSAGING_SERVER_SERVICE_PORT_HTTP": "80",
        "MESSAGING_SERVER_PORT": "tcp://10.0.0.1:80",
        "MESSAGING_SERVER_PORT_80_TCP": "tcp://10.0.0.1:80",
        "MESSAGING_SERVER_PORT_80_TCP_ADDR": "10.0.0.1",
    }
    assert load_config(None, others, {}) == Config()


@pytest.mark.parametrize(
    ("variable", "hint"),
    [
        ("SERVER_PORT", " (did you mean MESSAGING_SERVER__PORT?)"),
        ("DATABASE_URL", " (did you mean MESSAGING_DATABASE__URL?)"),
        ("server_data_dir", ""),
        ("AI_TAGS", " (did you mean MESSAGING_AI__TAGS?)"),
        ("HOME", ""),
        ("", ""),
    ],
)
def test_a_variable_that_names_no_key(variable: str, hint: str) -> None:
    with pytest.raises(StartupError) as raised:
        load_config(None, {f"MESSAGING_{variable}": "8080"}, {})
    assert str(raised.value) == f"MESSAGING_{variable}: names no key{hint}"


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("server", "port", -1),
        ("server", "max_body_bytes", 0),
        ("server", "shutdown_seconds", 0),
        ("server", "shutdown_seconds", float("nan")),
        ("server", "host", 1),
        ("server", "allowed_origins", "https://a.example"),
        ("server", "allowed_origins", ["https://a.example/"]),
        ("server", "allowed_origins", ["ftp://a.example"]),
        ("server", "allowed_origins", ["https://a.example?x"]),
        ("server", "behind_proxy", ["300.0.0.1"]),
        ("server", "public_url", "inbox.example.com"),
        ("server", "public_url", "ftp://inbox.example.com"),
        ("server", "public_url", "https://inbox.example.com?x"),
        ("server", "public_url", "https://a b"),
        ("storage", "url", "folder"),
        ("storage", "url", "file://folder"),
        ("storage", "url", "s3://"),
        ("storage", "url", "https://example.com"),
        ("storage", "max_bytes", 0),
        ("database", "pool_size", 1),
        ("database", "url", "mysql://u@h/d"),
        ("database", "url", "postgresql://u:pa#ss@h/d"),
        ("database", "url", "postgresql://u:p@h:port/d"),
        ("database", "url", "localhost/d"),
        ("auth", "bcrypt_rounds", 3),
        ("auth", "token_hours", 0),
        ("auth", "secret", "x" * 31),
        ("limits", "enabled", "perhaps"),
        ("analysis", "concurrency", 0),
        ("ai", "provider", "oracle"),
        ("ai", "temperature", 3),
        ("ai", "tags", [{"description": "no name"}]),
        ("ai", "tags", [{"name": ""}]),
        ("ai", "fallback", "openai"),
        ("ai", "language", "Spanish"),
        ("ai", "max_output_tokens", 1),
        ("ai", "daily_budget_dollars", -1),
        ("ai", "prices", [{"model": "m", "input": -1, "output": 1}]),
        ("ai", "prices", [{"model": "m", "input": 1}]),
        ("log", "format", "xml"),
        ("log", "level", "info"),
    ],
)
def test_impossible_values(section: str, key: str, value: Any) -> None:
    with pytest.raises(StartupError) as raised:
        load_config(None, {}, {section: {key: value}})
    message = str(raised.value)
    assert f"{section}.{key}" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "url",
    [
        "postgres://u@h/d",
        "postgresql:///d?host=/run/x",
        "postgresql://u:p%23w@h:5432/d",
        "postgresql://u:p@h1:1,h2:2/d?target_session_attrs=primary",
        "postgresql://u@[::1]:1,[::2]/d",
        "postgresql://",
    ],
)
def test_urls_of_databases(url: str) -> None:
    assert load_config(None, {"DATABASE_URL": url}, {}).database.url == url


def test_a_password_that_can_not_be_read_is_not_quoted() -> None:
    with pytest.raises(StartupError) as raised:
        load_config(None, {"DATABASE_URL": "postgresql://u:secret#word@h/d"}, {})
    assert "secret" not in str(raised.value)
    assert "%23" in str(raised.value)


def test_what_is_no_utf_8_is_named() -> None:
    with pytest.raises(StartupError, match=r"MESSAGING_AUTH__SECRET: is not valid"):
        load_config(None, {"MESSAGING_AUTH__SECRET": "x" * 32 + "\udcff"}, {})
    with pytest.raises(StartupError, match=r"MESSAGING_AI__TAGS: is not valid"):
        load_config(None, {"MESSAGING_AI__TAGS": "a,\udcff"}, {})
    with pytest.raises(StartupError, match=r"DATABASE_URL: is not valid"):
        load_config(None, {"DATABASE_URL": "postgresql://u:\udcff@h/d"}, {})
    with pytest.raises(StartupError, match=r"the command line: server.host: is not valid"):
        load_config(None, {}, {"server": {"host": "\udcff"}})


def test_no_attribute_is_a_section() -> None:
    with pytest.raises(StartupError, match="unknown section __doc__"):
        load_config(None, {}, {"__doc__": {"x": 1}})


def test_masking() -> None:
    secrets = {
        "auth": {"secret": "s" * 40},
        "ai": {"api_key": "sk-123"},
        "storage": {"secret_access_key": "aws-123"},
        "database": {
            "url": "postgresql://user:p@ss:w%2Frd@host:5432/db?password=x&sslmode=require"
        },
    }
    shown = masked(load_config(None, {}, secrets))
    assert shown["database"]["url"] == (
        f"postgresql://user:{MASK}@host:5432/db?password={MASK}&sslmode=require"
    )
    for name in SECRETS:
        section, key = name.split(".")
        assert shown[section][key] == MASK
    assert masked(Config())["auth"]["secret"] == ""
    assert (
        mask_password("postgresql://user:p@ss:w/rd@host/db") == f"postgresql://user:{MASK}@host/db"
    )


@pytest.mark.parametrize(
    "url",
    ["", "postgresql://host/db", "postgresql://user@host/db", "postgresql:///db?host=/run/x"],
)
def test_a_url_without_password_is_shown_as_it_is(url: str) -> None:
    assert mask_password(url) == url


def test_every_secret_key_is_masked() -> None:
    """A new key with a telling name must not be forgotten."""
    for section, keys in msgspec.to_builtins(Config()).items():
        for key in keys:
            if re.search("(secret|password|api_key|token)$", key):
                assert f"{section}.{key}" in SECRETS
