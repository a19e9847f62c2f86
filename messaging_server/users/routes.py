"""`/auth` and `/users`."""

from typing import Any
from uuid import UUID

from litestar import get, patch, post
from litestar.params import FromPath, JSONBody

from messaging_server.http import (
    ADMIN_ONLY,
    PUBLIC,
    PageCursor,
    PageLimit,
    Request,
    Success,
    bearer,
    decode_cursor,
    page,
)
from messaging_server.models import Page, User
from messaging_server.users import queries, service
from messaging_server.users.service import (
    Credentials,
    Login,
    PasswordChange,
    Registration,
    UserChanges,
)


@post("/auth/register", opt=PUBLIC, tags=["Users"])
async def register(request: Request, data: JSONBody[Registration]) -> Success[User]:
    """Register a user. The first one becomes ADMIN; later it needs an ADMIN's token."""
    state = request.app.state
    state.limiter.check(
        state.config.limits.logins_per_minute_per_address, "register", request.network
    )
    caller = None
    if "authorization" in request.headers:
        caller = await state.authenticator.user(bearer(request))
    user = await service.register(
        request.database,
        state.passwords,
        data,
        caller=caller,
        open_to_anyone=state.config.auth.registration == "open",
    )
    return Success(data=user)


@post("/auth/login", opt=PUBLIC, status_code=200, tags=["Users"])
async def log_in(request: Request, data: JSONBody[Credentials]) -> Success[Login]:
    """Exchange e-mail and password for a token."""
    state = request.app.state
    limits = state.config.limits
    state.limiter.check(limits.logins_per_minute_per_address, "login", request.network)
    account = data.email.strip().lower()
    state.limiter.check(limits.logins_per_minute_per_account, "account", account, request.network)
    state.limiter.check(limits.logins_per_minute_per_account * 10, "account", account)
    return Success(data=await service.log_in(request.database, state.passwords, state.tokens, data))


@get("/auth/me", tags=["Users"])
async def fetch_self(request: Request) -> Success[User]:
    """The caller."""
    return Success(data=await service.fetch_self(request.database, request.caller))


@post("/auth/logout", status_code=200, tags=["Users"])
async def log_out(request: Request) -> Success[None]:
    """Void all tokens of the caller and close the caller's sockets."""
    await service.log_out(request.database, request.caller)
    return Success(data=None)


@post("/auth/password", status_code=200, tags=["Users"])
async def change_password(request: Request, data: JSONBody[PasswordChange]) -> Success[Login]:
    """Change the caller's password; all tokens are void, the answer has a new one."""
    state = request.app.state
    limits = state.config.limits
    state.limiter.check(limits.logins_per_minute_per_account, "password", str(request.caller.id))
    login = await service.change_password(
        request.database, state.passwords, state.tokens, caller=request.caller, change=data
    )
    return Success(data=login)


@get("/users", opt=ADMIN_ONLY, tags=["Users"])
async def list_users(
    request: Request, limit: PageLimit = 20, cursor: PageCursor = None
) -> Success[Page[User]]:
    """All users, oldest first."""
    position = decode_cursor(cursor, queries.UserCursor) if cursor is not None else None
    users, following = await queries.list_users(request.database, limit=limit, cursor=position)
    return page(users, following)


@patch("/users/{user_id:uuid}", opt=ADMIN_ONLY, tags=["Users"])
async def update_user(
    request: Request, user_id: FromPath[UUID], data: JSONBody[UserChanges]
) -> Success[User]:
    """Change name, role or active; the last active ADMIN stays one."""
    return Success(data=await service.update_user(request.database, user_id, data))


route_handlers: list[Any] = [
    register,
    log_in,
    fetch_self,
    log_out,
    change_password,
    list_users,
    update_user,
]
