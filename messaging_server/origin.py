"""Origins of websites, as browsers write them (RFC 6454)."""

import re
from urllib.parse import urlsplit

_HOST = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\]")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def canonical_origin(text: str) -> str | None:
    """`text` in lower case and without a default port; None if it is no origin."""
    try:
        parts = urlsplit(text.lower())
        port = parts.port
    except ValueError:
        return None
    host = parts.netloc.removesuffix(f":{port}")
    valid = parts.scheme in _DEFAULT_PORTS and _HOST.fullmatch(host) and port != 0
    if not valid or text.lower() != f"{parts.scheme}://{parts.netloc}":
        return None
    shown_port = "" if port in (None, _DEFAULT_PORTS.get(parts.scheme)) else f":{port}"
    return f"{parts.scheme}://{host}{shown_port}"
