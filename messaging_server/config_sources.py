"""Reads the configuration: defaults < config.toml < environment < command line.

An unknown key or an impossible value stops the start with a line that names it.
"""

import difflib
import importlib.util
import ipaddress
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
from msgspec import structs

from messaging_server.config import AiConfig, Config, ServerConfig, StorageConfig
from messaging_server.errors import StartupError
from messaging_server.origin import canonical_origin

ENVIRONMENT_PREFIX = "MESSAGING_"
PASSWORD_VARIABLE = "MESSAGING_PASSWORD"  # noqa: S105  # a variable's name
"""No key: `create-user` takes its password from it."""

MASK = "********"

SECRETS = frozenset({"auth.secret", "ai.api_key", "storage.secret_access_key"})
"""Keys whose values are never shown; passwords inside `database.url` are masked on their own."""

CONVENTIONAL_VARIABLES = {
    "DATABASE_URL": ("database", "url"),
    "OPENAI_API_KEY": ("ai", "api_key"),
    "ANTHROPIC_API_KEY": ("ai", "api_key"),
    "AWS_ENDPOINT_URL": ("storage", "endpoint"),
    "AWS_REGION": ("storage", "region"),
    "AWS_ACCESS_KEY_ID": ("storage", "access_key_id"),
    "AWS_SECRET_ACCESS_KEY": ("storage", "secret_access_key"),
}
OTHER_VENDORS = {"openai": "ANTHROPIC_API_KEY", "anthropic": "OPENAI_API_KEY"}
"""Whose key is not meant for this provider; both may be set on a developer's machine."""


def load_config(
    path: Path | None, environ: Mapping[str, str], overrides: Mapping[str, Mapping[str, Any]]
) -> Config:
    """Read `path` (None: no file), then the environment, then `overrides` (the command line).

    Raises `StartupError` with one line that names the file or variable, the key and the rule.
    """
    values = _read_file(path) if path else {}
    origins: dict[str, str] = {}
    provider = _provider(values, environ, overrides)
    for variable, section, key, text in _environment(environ, provider):
        _refuse_other_bytes(text, origin=variable)
        values.setdefault(section, {})[key] = _parse(text, section, key)
        origins[f"{section}.{key}"] = variable
    for section, keys in overrides.items():
        values.setdefault(section, {}).update(keys)
        for key, value in keys.items():
            _refuse_other_bytes(str(value), origin=f"the command line: {section}.{key}")
            origins[f"{section}.{key}"] = "the command line"
    config = _convert(values, source=str(path) if path else "the environment", origins=origins)
    config = structs.replace(
        config, ai=_with_key(config.ai), server=_with_canonical_origins(config.server)
    )
    _check(config)
    return config


def _with_key(ai: AiConfig) -> AiConfig:
    """With the key out of `ai.api_key_file`, unless one is given elsewhere."""
    if ai.api_key or not ai.api_key_file:
        return structs.replace(ai, api_key=ai.api_key.strip())
    try:
        key = Path(ai.api_key_file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not text"
        raise StartupError(f"ai.api_key_file: {ai.api_key_file}: {reason}") from None
    if not _is_key(key):
        raise StartupError(f"ai.api_key_file: {ai.api_key_file}: holds no key")
    return structs.replace(ai, api_key=key)


def _is_key(text: str) -> bool:
    """Whether it can stand in a header."""
    return text.isascii() and text.isprintable() and text.split() == [text]


def _read_file(path: Path) -> dict[str, dict[str, Any]]:
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"{path}: can't be read ({error})") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise StartupError(f"{path}: not valid TOML: {error}") from None
    for section, keys in values.items():
        if not isinstance(keys, dict):
            raise StartupError(f"{path}: {section} must be a section, written [{section}]")
    return values


def _provider(
    values: Mapping[str, Any], environ: Mapping[str, str], overrides: Mapping[str, Any]
) -> str:
    """`ai.provider`, which decides whose key is read; whatever is there, not checked yet."""
    variable = environ.get(f"{ENVIRONMENT_PREFIX}AI__PROVIDER")
    in_file = values.get("ai", {}).get("provider")
    return str(overrides.get("ai", {}).get("provider") or variable or in_file or "openai")


def _environment(environ: Mapping[str, str], provider: str) -> Iterator[tuple[str, str, str, str]]:
    foreign = OTHER_VENDORS.get(provider, OTHER_VENDORS["openai"])
    for variable, (section, key) in CONVENTIONAL_VARIABLES.items():
        if environ.get(variable) and variable != foreign:
            yield variable, section, key, environ[variable]
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or _is_not_ours(variable, text):
            continue
        section, separator, key = variable.removeprefix(ENVIRONMENT_PREFIX).lower().partition("__")
        if not separator:
            raise StartupError(f"{variable}: names no key{_suggest_variable(variable)}")
        yield variable, section, key, text


def is_utf_8(text: str) -> bool:
    """Whether it was, outside; Python keeps other bytes as lone surrogates."""
    return not any("\ud800" <= each <= "\udfff" for each in text)


_SERVICE_LINK = re.compile(
    r"\w+_(SERVICE_(HOST|PORT)(_\w+)?|PORT_\d+_\w+)=.*|\w+_PORT=(tcp|udp|sctp)://.*", re.DOTALL
)


def _is_not_ours(variable: str, text: str) -> bool:
    """The password for `create-user`, and what tells of a service called `messaging-server`.

    Kubernetes sets MESSAGING_SERVER_PORT=tcp://10.0.0.1:80, MESSAGING_SERVER_SERVICE_HOST… then:
    https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
    """
    is_link = "__" not in variable and _SERVICE_LINK.fullmatch(f"{variable}={text}")
    return variable == PASSWORD_VARIABLE or bool(is_link)


def _suggest_variable(variable: str) -> str:
    """The variable of a key that looks like it; compared without the prefix they all share."""
    known = tuple(
        f"{section}__{key}".upper()
        for section, keys in structs.asdict(Config()).items()
        for key in keys.__struct_fields__
    )
    return _suggest(variable.removeprefix(ENVIRONMENT_PREFIX), known, prefix=ENVIRONMENT_PREFIX)


def _parse(text: str, section: str, key: str) -> Any:
    """Lists are JSON arrays or separated by commas; everything else is converted by its type."""
    if not isinstance(_default(section, key), tuple):
        return text
    if text.lstrip().startswith("["):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            return text
    return [item.strip() for item in text.split(",") if item.strip()]


def _default(section: str, key: str) -> Any:
    return getattr(getattr(Config(), section, None), key, None)


def _convert(values: Mapping[str, Any], *, source: str, origins: Mapping[str, str]) -> Config:
    _refuse_unknown_keys(values, source, origins)
    try:
        return msgspec.convert(values, Config, strict=False)
    except msgspec.ValidationError as error:
        rule, _, where = str(error).partition(" - at ")
        key = where.strip("`").removeprefix("$.")
        origin = origins.get(re.sub(r"\[.*", "", key), source)  # of the whole list
        raise StartupError(f"{origin}: {key}: {rule}") from None


def _refuse_other_bytes(text: str, *, origin: str) -> None:
    if not is_utf_8(text):
        raise StartupError(f"{origin}: is not valid UTF-8")


def _refuse_unknown_keys(
    values: Mapping[str, Any], source: str, origins: Mapping[str, str]
) -> None:
    for section, keys in values.items():
        default = getattr(Config(), section) if section in Config.__struct_fields__ else None
        if default is None:
            where = next((origins[o] for o in origins if o.startswith(f"{section}.")), source)
            known = Config.__struct_fields__
            raise StartupError(f"{where}: unknown section {section}{_suggest(section, known)}")
        for key in keys:
            if key not in default.__struct_fields__:
                where = origins.get(f"{section}.{key}", source)
                hint = _suggest(key, default.__struct_fields__)
                raise StartupError(f"{where}: unknown key {section}.{key}{hint}")


def _suggest(word: str, known: tuple[str, ...], *, prefix: str = "") -> str:
    matches = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean {prefix}{matches[0]}?)" if matches else ""


_SITE = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+(/[!-;=@-~]*)?")
_HOST = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(:\d{0,5})?")
_ENDPOINT = re.compile(r"(?i)https?://[^/?#\s]+([/?]\S*)?")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]+(/[!-;=@-~]*)?")


def _check(config: Config) -> None:
    """Refuse what types can't: the rules between keys and inside strings."""
    if config.analysis.max_wait_seconds < config.analysis.quiet_seconds:
        raise StartupError("analysis.max_wait_seconds must not be below analysis.quiet_seconds")
    if config.auth.secret and len(config.auth.secret.encode()) < 32:
        raise StartupError("auth.secret must have at least 32 bytes")
    if config.ai.provider != "local":
        _check_ai(config.ai)
    _check_storage(config.storage)
    if config.admin.enabled and importlib.util.find_spec("piccolo_admin") is None:
        raise StartupError(
            "admin.enabled needs the data browser: pip install 'messaging-server[admin]'"
        )
    if config.server.public_url and not _SITE.fullmatch(config.server.public_url):
        raise StartupError("server.public_url must be like https://host[:port][/path]")
    _check_database_url(config.database.url)
    _check_networks("server.behind_proxy", config.server.behind_proxy)
    _check_networks("webhooks.allowed_networks", config.webhooks.allowed_networks)


def _with_canonical_origins(server: ServerConfig) -> ServerConfig:
    origins = []
    for text in server.allowed_origins:
        origin = text if text == "*" else canonical_origin(text)
        if origin is None:
            raise StartupError(f"server.allowed_origins: {text!r} is not like https://host[:port]")
        origins.append(origin)
    return structs.replace(server, allowed_origins=tuple(origins))


def _check_database_url(url: str) -> None:
    """Nothing of it is quoted: what can't be read may hold a part of the password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        parts = urlsplit("")
    hosts = parts.netloc.rpartition("@")[2].split(",")
    valid = parts.scheme in ("postgres", "postgresql") and all(map(_HOST.fullmatch, hosts))
    if url and not valid:
        raise StartupError(
            "database.url must be like postgresql://user:password@host:port/name, in the password "
            "# / ? @ written %23 %2F %3F %40"
        )


def _check_networks(key: str, networks: tuple[str, ...]) -> None:
    for network in networks:
        try:
            ipaddress.ip_network(network)
        except ValueError:
            raise StartupError(f"{key}: {network!r} is not an address or a network") from None


def _check_storage(storage: StorageConfig) -> None:
    """What is only for a bucket may stand in the environment for other programs' sake."""
    scheme, _, place = storage.url.partition("://")
    if storage.url and not (
        (scheme == "s3" and _BUCKET.fullmatch(place)) or (scheme == "file" and place[:1] == "/")
    ):
        raise StartupError("storage.url must be like s3://bucket/prefix or file:///folder")
    if scheme != "s3":
        return
    if storage.endpoint and not _SITE.fullmatch(storage.endpoint):
        raise StartupError("storage.endpoint must be like https://host[:port]")
    if bool(storage.access_key_id) != bool(storage.secret_access_key):
        raise StartupError(
            "storage.access_key_id and storage.secret_access_key go together: set both or neither"
        )


def _check_ai(ai: AiConfig) -> None:
    if not ai.model:
        raise StartupError(f'ai.model must name a model when ai.provider is "{ai.provider}"')
    if ai.api_key and not _is_key(ai.api_key):
        raise StartupError("ai.api_key must be ASCII without spaces and line breaks")
    if ai.base_url and not _ENDPOINT.fullmatch(ai.base_url):
        raise StartupError("ai.base_url must be like https://host[:port][/path]")
    if not (ai.api_key or ai.base_url):
        raise StartupError(
            f"{ai.provider.upper()}_API_KEY (or ai.api_key, or ai.api_key_file), or ai.base_url of "
            f'an endpoint without a key, must be set when ai.provider is "{ai.provider}"'
        )
    if ai.has_budget and not ai.price:
        raise StartupError(
            f"ai.prices must have an entry for {ai.model} where there is a budget in dollars"
        )


def masked(config: Config) -> dict[str, dict[str, Any]]:
    """The configuration for people's eyes: secrets replaced by asterisks when they are set."""
    shown: dict[str, dict[str, Any]] = msgspec.to_builtins(config)
    for name in SECRETS:
        section, key = name.split(".")
        if shown[section][key]:
            shown[section][key] = MASK
    shown["database"]["url"] = mask_password(config.database.url)
    shown["ai"]["base_url"] = mask_credentials(config.ai.base_url)
    shown["storage"]["endpoint"] = mask_credentials(config.storage.endpoint)
    return shown


def mask_credentials(url: str) -> str:
    """`url` without what stands before the host, and without its parameters."""
    url = re.sub(r"://[^?#]*@", f"://{MASK}@", url)
    return re.sub(r"\?.+", f"?{MASK}", url)


def mask_password(url: str) -> str:
    """`url` without its password, in the authority or among the parameters."""
    url = re.sub(r"(?<=[?&])((?:ssl)?password=)[^&]*", rf"\1{MASK}", url)
    return re.sub(r"(://[^:/@]*):.*@", rf"\1:{MASK}@", url)
