"""`/attachments`: files in, by form; files out, by signed address."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote
from uuid import UUID

from litestar import get, post
from litestar.openapi import ResponseSpec
from litestar.openapi.spec import OpenAPIMediaType, Operation, Reference, RequestBody, Schema
from litestar.openapi.spec.enums import OpenAPIFormat, OpenAPIType
from litestar.params import FromPath, QueryParameter
from litestar.response import Stream
from multipart import parse_options_header

from messaging_server.attachments import service
from messaging_server.attachments.content_types import INLINE
from messaging_server.attachments.form import FIELD, FORM_BYTES
from messaging_server.attachments.queries import Uploader
from messaging_server.attachments.service import Download, Uploads
from messaging_server.errors import (
    RangeNotSatisfiable,
    TooLarge,
    UnsupportedMediaType,
    ValidationFailed,
)
from messaging_server.http import PUBLIC, VISITOR, Failure, Request, Success, header
from messaging_server.models import Attachment

MAX_BOUNDARY_CHARACTERS = 200
CACHE_SECONDS = 3_600
CONTENT_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Cache-Control": f"private, max-age={CACHE_SECONDS}, immutable",
    "Accept-Ranges": "bytes",
}
"""What was uploaded is shown by pages of any site, and never acts as a page itself."""

_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})", re.ASCII)
_ASCII_NAME = re.compile(r"[^\w!#$&+.^`|~ ()-]", re.ASCII)


def _form() -> RequestBody:
    properties: dict[str, Reference | Schema] = {
        FIELD: Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.BINARY)
    }
    schema = Schema(type=OpenAPIType.OBJECT, properties=properties, required=[FIELD])
    return RequestBody(
        required=True,
        content={"multipart/form-data": OpenAPIMediaType(schema=schema)},
        description="One part, a file with a name.",
    )


@dataclass
class UploadOperation(Operation):
    """Litestar does not read this body, so it can't describe it."""

    def __post_init__(self) -> None:
        self.request_body = _form()


def _failure(code: str, description: str) -> ResponseSpec:
    return ResponseSpec(Failure, description=f"`{code}`: {description}", generate_examples=False)


UPLOAD_FAILURES = {
    413: _failure("too_large", "The file is larger than `storage.max_bytes`."),
    415: _failure("unsupported_media_type", "The body is not multipart/form-data."),
    507: _failure("insufficient_storage", "There is no room left."),
}
CONTENT = ResponseSpec(
    bytes, media_type="*/*", description="The file, or a part of it.", generate_examples=False
)
CONTENT_RESPONSES = {
    200: CONTENT,
    206: CONTENT,
    403: _failure("forbidden", "The address is not one of ours, or has expired."),
    404: _failure("not_found", "The attachment was erased."),
    416: _failure("range_not_satisfiable", "The range begins after the end of the file."),
}


@post(
    "/attachments", operation_class=UploadOperation, responses=UPLOAD_FAILURES, tags=["Attachments"]
)
async def upload(request: Request) -> Success[Attachment]:
    """Upload a file, as multipart/form-data with one part `file`; a message then names it."""
    limits = request.app.state.config.limits
    request.app.state.limiter.check(
        limits.uploads_per_minute_per_user, "uploads", str(request.caller.id)
    )
    uploader = Uploader(user_id=request.caller.id)
    return Success(data=await _receive(request, request.chunks(), uploader))


@post(
    "/attachments",
    opt=VISITOR,
    operation_class=UploadOperation,
    responses=UPLOAD_FAILURES,
    tags=["Widget"],
)
async def upload_as_visitor(request: Request) -> Success[Attachment]:
    """Upload a file as a visitor, as multipart/form-data with one part `file`."""
    visitor = request.visitor
    limits = request.app.state.config.limits
    request.app.state.limiter.check(
        limits.uploads_per_minute_per_visitor, "visitor uploads", str(visitor.lead_id)
    )
    uploader = Uploader(lead_id=visitor.lead_id, inbox_id=visitor.inbox_id)
    return Success(data=await _receive(request, _counted(request), uploader))


async def _counted(request: Request) -> AsyncIterator[bytes]:
    """The body, as long as its sender's network does not send too much."""
    megabytes = request.app.state.config.limits.upload_megabytes_per_hour_per_address
    async for chunk in request.chunks():
        request.app.state.limiter.check_bytes(
            megabytes * 1_000_000, len(chunk), "uploaded bytes", request.network
        )
        yield chunk


async def _receive(request: Request, body: AsyncIterator[bytes], uploader: Uploader) -> Attachment:
    uploads: Uploads = request.app.state.uploads
    boundary = _boundary(request)
    announced = header(request.scope, b"content-length")
    if announced.isdigit() and int(announced) > uploads.max_bytes + FORM_BYTES:
        raise TooLarge(f"The file is larger than {uploads.max_bytes} bytes")
    return await uploads.receive(uploader, body, boundary=boundary, network=request.network)


def _boundary(request: Request) -> str:
    content_type = str(header(request.scope, b"content-type"), "latin-1")
    media_type, options = parse_options_header(content_type)
    if media_type != "multipart/form-data":
        raise UnsupportedMediaType("Content-Type must be multipart/form-data")
    boundary = options.get("boundary", "")
    if not 0 < len(boundary) <= MAX_BOUNDARY_CHARACTERS or not boundary.isascii():
        raise ValidationFailed.of("body", "needs a boundary in its Content-Type")
    return str(boundary)


@get("/attachments/{attachment_id:uuid}", tags=["Attachments"])
async def fetch_attachment(request: Request, attachment_id: FromPath[UUID]) -> Success[Attachment]:
    """An attachment with fresh addresses, for who uploaded it or sees its conversation."""
    return Success(
        data=await service.fetch_attachment(request.database, request.caller, attachment_id)
    )


@get(
    "/attachments/{attachment_id:uuid}/content",
    opt=PUBLIC,
    responses=CONTENT_RESPONSES,
    tags=["Attachments"],
)
async def fetch_content(
    request: Request,
    attachment_id: FromPath[UUID],
    expires: Annotated[int, QueryParameter(ge=0, le=99_999_999_999)],
    signature: Annotated[str, QueryParameter(min_length=1, max_length=100)],
    thumbnail: Annotated[bool, QueryParameter()] = False,
) -> Stream:
    """The file itself, at the signed address that an attachment names; a `Range` is kept."""
    download = await service.find_content(
        request.database,
        attachment_id,
        expires=expires,
        signature=signature,
        thumbnail=thumbnail,
    )
    uploads: Uploads = request.app.state.uploads
    asked = str(header(request.scope, b"range"), "latin-1")
    span = find_span(asked, download.size_bytes) if download.size_bytes is not None else None
    stored = await uploads.storage.read(download.storage_key, span)
    headers = {**CONTENT_HEADERS, "Content-Disposition": content_disposition(download)}
    length = stored.size_bytes
    if span is not None:
        headers["Content-Range"] = f"bytes {span[0]}-{span[1] - 1}/{stored.size_bytes}"
        length = span[1] - span[0]
    return Stream(
        stored.parts,
        status_code=200 if span is None else 206,
        media_type=download.content_type,
        headers={**headers, "Content-Length": str(length)},
    )


def find_span(asked: str, size_bytes: int) -> tuple[int, int] | None:
    """The bytes of one range (RFC 9110, 14), from and before; None, all, for anything else.

    Raises `RangeNotSatisfiable` for a range that has nothing of the file.
    """
    found = _RANGE.fullmatch(asked)
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        start, end = max(0, size_bytes - int(last)), size_bytes
    else:
        start, end = int(first), min(size_bytes, int(last) + 1) if last else size_bytes
        if last and int(last) < start:
            return None
    if start >= end:
        raise RangeNotSatisfiable(size_bytes)
    return start, end


def content_disposition(download: Download) -> str:
    """RFC 6266: the name in ASCII for old clients, and as it is."""
    kind = "inline" if download.content_type in INLINE else "attachment"
    plain = _ASCII_NAME.sub("_", download.file_name)
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(download.file_name, safe='')}"


route_handlers: list[Any] = [upload, fetch_attachment, fetch_content]
public_route_handlers: list[Any] = [upload_as_visitor]
