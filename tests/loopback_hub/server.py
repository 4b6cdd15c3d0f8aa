"""The hub itself: two listening ports over one state, with faults, gates and a log."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Self

from . import api, download, publish
from .faults import Faults, Gates, Log
from .state import Access, State
from .wire import HubError, Reply, Request, Router, Server

ROUTERS = {
    "hub": Router(api.router, publish.router, download.router),
    "cdn": Router(publish.cdn, download.cdn),
}


class LoopbackHub(State):
    """A Hub on 127.0.0.1 that the real client talks to, with its CDN on a second port.

        with LoopbackHub() as hub:
            hub.add_user("ann", token="hf_ann")
            hub.add_repo("ann/x", {"README.md": "hello"})
            HfApi(endpoint=hub.endpoint, token="hf_ann").model_info("ann/x")

    `crashes` holds what went wrong in this package itself while it served: it stays empty.
    """

    def __init__(self, port: int = 0) -> None:
        super().__init__()
        self.faults = Faults()
        self.gates = Gates()
        self.log = Log()
        self.crashes: list[BaseException] = []
        self._servers = [
            Server("hub", port, self._answer, self.crashes),
            Server("cdn", 0, self._answer, self.crashes),
        ]
        self.endpoint, self.cdn_endpoint = (server.url for server in self._servers)

    def start(self) -> None:
        for server in self._servers:
            server.start()

    def close(self) -> None:
        """Let go whatever waits, and close both ports and every connection."""
        self.gates.clear()
        self.faults.clear()
        servers, self._servers = self._servers, []
        for server in servers:
            server.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self, request: Request) -> Reply | None:
        self.gates.enter(request, landed=False)
        fault = self.faults.pick(request)
        reply: Reply | None = Reply()
        if fault is None or fault.lands:
            reply = self._handle(request)
        if fault is not None and reply is not None:
            reply = fault.spoil(reply)
        self.gates.enter(request, landed=True)
        access = self.tokens.get(request.token or "")
        user = None if access is None else access.user
        self.log.add(request, 0 if reply is None else reply.status, user)
        return reply

    def _handle(self, request: Request) -> Reply:
        with self.lock:
            try:
                access = self._authenticate(request)
                endpoint, named = ROUTERS[request.origin].find(request)
                old = named.get("repo_id", "")
                if old in self.moved and old not in self.repos:
                    target = request.target.replace(old, self.moved[old], 1)
                    return Reply(307, headers={"Location": target})
                return endpoint(self, replace(request, access=access), **named)
            except HubError as error:
                return error.reply()

    def _authenticate(self, request: Request) -> Access | None:
        if request.origin == "cdn" and "authorization" in request.headers:
            raise HubError(400, "The client sent its token to the CDN")
        if request.token is None:
            return None
        if request.token not in self.tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.tokens[request.token]
