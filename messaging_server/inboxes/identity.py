"""Identity tokens: with them a website's own server says who a visitor is.

They are JSON Web Tokens (RFC 7519, HS256), signed with the secret of the inbox.
"""

import time
from collections.abc import Iterable
from typing import Annotated

import jwt
import msgspec
from msgspec import Meta, Struct

from messaging_server.errors import Unauthenticated, ValidationFailed
from messaging_server.leads.service import LeadEmail, LeadName, LeadPhone
from messaging_server.security import ALGORITHM

LIFETIME_SECONDS = 24 * 3_600
CLOCK_SKEW_SECONDS = 60

NumericDate = Annotated[float, Meta(ge=0, le=10**11)]


class Identity(Struct, frozen=True):
    """The claims; those that are not named here are ignored."""

    sub: Annotated[str, Meta(min_length=1, max_length=200)]
    exp: NumericDate
    iat: NumericDate | None = None
    nbf: NumericDate | None = None
    name: LeadName | None = None
    email: LeadEmail | None = None
    phone: LeadPhone | None = None


_signatures = jwt.PyJWS(algorithms=[ALGORITHM])
_decoder = msgspec.json.Decoder(Identity)


def read_identity(token: str, secrets: Iterable[str]) -> Identity:
    """Raises `Unauthenticated` unless one of the secrets signed it and it is valid now.

    Claims of the wrong form in a token that is genuine are `ValidationFailed`: they are the
    website's mistake, which its developer must see.
    """
    payload = _verified_payload(token, secrets)
    try:
        identity = _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ValidationFailed.of(
            "identityToken", f"has claims that are not valid: {error}"
        ) from None
    if any("\0" in text for text in (identity.sub, identity.name, identity.phone) if text):
        raise ValidationFailed.of("identityToken", "has a claim with a NUL character")
    now = time.time()
    if identity.exp <= now:
        raise Unauthenticated("The identity token has expired")
    if identity.exp > now + LIFETIME_SECONDS + CLOCK_SKEW_SECONDS:
        raise Unauthenticated("The identity token must expire within 24 hours")
    if max(identity.iat or 0, identity.nbf or 0) > now + CLOCK_SKEW_SECONDS:
        raise Unauthenticated("The identity token is not valid yet")
    return identity


def _verified_payload(token: str, secrets: Iterable[str]) -> bytes:
    for secret in secrets:
        try:
            payload: bytes = _signatures.decode(token, secret, algorithms=[ALGORITHM])
        except (jwt.InvalidTokenError, ValueError):
            continue
        return payload
    raise Unauthenticated("The identity token is not valid")
