"""The same application in a browser: textual-serve, behind a token in the address."""

from __future__ import annotations

import secrets
import shlex
import socket
from collections.abc import Awaitable, Callable

from lorahub.errors import UsageError
from tui.jobs import command

COOKIE = "lorahub-token"


def serve(host: str, port: int, say: Callable[[str], None]) -> None:
    """Serve until interrupted; every visitor gets an application of their own.

    Args:
        host: Interface to listen on.
        port: Port; 0 takes a free one.
        say: Called with the address to open.

    Raises:
        UsageError: textual-serve is not installed, or the port is taken.
    """
    try:
        from aiohttp import web
        from textual_serve.server import Server
    except ImportError as error:
        raise UsageError(
            "--web needs textual-serve", hint="pip install 'lorahub-kit[web]'"
        ) from error
    port = _free(host, port)
    token = secrets.token_urlsafe(24)

    @web.middleware
    async def guarded(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        # A page of another site may open a socket here, but has neither the cookie nor the token.
        given = request.query.get("token") or request.cookies.get(COOKIE, "")
        if not secrets.compare_digest(given.encode(), token.encode()):
            raise web.HTTPForbidden(text="Open the whole address that lorahub printed.")
        response = await handler(request)
        if not response.prepared:
            response.set_cookie(COOKIE, token, httponly=True, samesite="Strict")
        return response

    class Guarded(Server):
        async def _make_app(self) -> web.Application:
            application = await super()._make_app()
            application.middlewares.append(guarded)
            return application

        async def on_startup(self, app: web.Application) -> None:
            say(f"open http://{host}:{port}/?token={token} (Ctrl-C ends it)")

    Guarded(shlex.join(command(["tui"])), host=host, port=port, title="lorahub").serve()


def _free(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        UsageError: It cannot be listened on.
    """
    try:
        with socket.create_server((host, port)) as listener:
            taken: int = listener.getsockname()[1]
            return taken
    except OSError as error:
        raise UsageError(
            f"{host}:{port} cannot be listened on ({error.strerror})", hint="choose another --port"
        ) from error
