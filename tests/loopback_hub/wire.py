"""HTTP as values: a request comes in, a reply goes out, and the sockets stay in this module."""

from __future__ import annotations

import base64
import json
import re
import socketserver
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from socket import SHUT_RDWR
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qs, unquote

if TYPE_CHECKING:
    import socket

    from .state import Access

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A request as it was sent; `target` is the path with its query, still quoted."""

    origin: str  # "hub" or "cdn"
    method: str
    target: str
    headers: Mapping[str, str]  # names in lower case
    body: bytes = b""
    access: Access | None = None  # who sends it, once the token is known to be good

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @cached_property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.target.partition("?")[2], keep_blank_values=True)

    def value(self, name: str) -> str | None:
        """The first value of a query parameter."""
        return self.query.get(name, [None])[0]

    def flag(self, name: str) -> bool:
        return self.value(name) in {"1", "true", "True"}

    @property
    def token(self) -> str | None:
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token if scheme.lower() == "bearer" else None

    def json(self) -> dict[str, Any]:
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubError(400, f"The body is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise HubError(400, "The body is not a JSON object")
        return value

    def form(self) -> dict[str, list[str]]:
        if self.headers.get("content-type", "").startswith("application/json"):
            return {k: v if isinstance(v, list) else [str(v)] for k, v in self.json().items()}
        return parse_qs(self.body.decode(), keep_blank_values=True)


@dataclass(frozen=True)
class Reply:
    """An answer; the last three fields are how a fault spoils what goes over the wire."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    declared: int | None = None  # Content-Length, where it is not the body's length
    sent: int | None = None  # bytes of the body that leave before the connection is closed
    hold: Callable[[], None] | None = None  # waited for between the last byte and the close

    @classmethod
    def json(cls, value: object, status: int = 200, **headers: str) -> Reply:
        """A JSON answer; underscores in the header names stand for dashes."""
        named = {name.replace("_", "-"): text for name, text in headers.items()}
        body = json.dumps(value, default=str).encode()
        return cls(status, body, {"Content-Type": "application/json", **named})


class HubError(Exception):
    """An error answer with the headers by which the client tells errors apart."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers: dict[str, str] = more.pop("headers", {})
        self.more = more

    def reply(self) -> Reply:
        # A header is one line of ASCII; the body carries the message as it is.
        line = " ".join(str(self).split()).encode("ascii", "replace").decode()
        reply = Reply.json({"error": str(self), **self.more}, self.status, X_Error_Message=line)
        code = {} if self.code is None else {"X-Error-Code": self.code}
        return Reply(self.status, reply.body, {**reply.headers, **code, **self.headers})


Endpoint = Callable[..., Reply]


class Router:
    """Endpoints by method and path pattern.

    In a pattern `{repo_id}` is one or two segments, `{name*}` the rest of the path, any other
    `{name}` one segment; the endpoint gets them unquoted, as keyword arguments.
    """

    def __init__(self, *parts: Router) -> None:
        self._routes: list[tuple[frozenset[str], re.Pattern[str], Endpoint]]
        self._routes = [route for part in parts for route in part._routes]

    def on(self, methods: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
        regex = re.escape(pattern)
        regex = regex.replace(r"\{repo_id\}", r"(?P<repo_id>[^/]+(?:/[^/]+)?)")
        regex = re.sub(r"\\{(\w+)\\\*\\}", r"(?P<\1>.*)", regex)
        regex = re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", regex)

        def register(endpoint: Endpoint) -> Endpoint:
            self._routes.append((frozenset(methods.split()), re.compile(regex), endpoint))
            return endpoint

        return register

    def find(self, request: Request) -> tuple[Endpoint, dict[str, str]]:
        """The endpoint of a request and its path parameters; 404 when there is none."""
        for methods, pattern, endpoint in self._routes:
            match = pattern.fullmatch(request.path)
            if match and request.method in methods:
                return endpoint, {k: unquote(v) for k, v in match.groupdict().items()}
        raise HubError(404, f"Sorry, we can't find {request.path}")


def content(request: Request, data: bytes, headers: Mapping[str, str]) -> Reply:
    """The bytes that a request asks for: all of them, or its Range."""
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if match is None or match.group(1) == match.group(2) == "":
        return Reply(200, data, headers)
    first, last = match.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    stop = min(len(data), int(last) + 1) if first and last else len(data)
    if start >= stop:
        return Reply(416, b"", {**headers, "Content-Range": f"bytes */{len(data)}"})
    span = f"bytes {start}-{stop - 1}/{len(data)}"
    return Reply(206, data[start:stop], {**headers, "Content-Range": span})


def page(request: Request, items: list[T], size: int, base: str) -> tuple[list[T], str]:
    """One page of a listing, and the Link header to the next ('' on the last page)."""
    start = int(base64.urlsafe_b64decode(request.value("cursor") or "MA==").decode())
    if start + size >= len(items):
        return items[start:], ""
    cursor = base64.urlsafe_b64encode(str(start + size).encode()).decode()
    query = request.target.partition("?")[2]
    kept = [pair for pair in query.split("&") if pair and not pair.startswith("cursor=")]
    url = f"{base}{request.path}?{'&'.join([*kept, f'cursor={cursor}'])}"
    return items[start : start + size], f'<{url}>; rel="next"'


class Server(ThreadingHTTPServer):
    """One listening port; `answer` turns a request into a reply, or None to hang up."""

    daemon_threads = False  # so that server_close() waits for them
    request_queue_size = 128

    def __init__(
        self,
        origin: str,
        port: int,
        answer: Callable[[Request], Reply | None],
        crashes: list[BaseException],
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.origin = origin
        self.answer = answer
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.ids = count(1)
        self._crashes = crashes
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), name=origin)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, cut what is connected, wait for every thread."""
        self.shutdown()
        self._thread.join()
        with self._lock:
            for connection in self._open:
                with suppress(OSError):
                    connection.shutdown(SHUT_RDWR)
        self.server_close()

    def server_bind(self) -> None:
        # HTTPServer's version looks the host's name up, which can ask a name server.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]  # IPv4

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A client may go away whenever it likes; anything else is a bug in this package.
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError):
            self._crashes.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body leave together, not in two writes that wait for an ACK
    server: Server

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.server.origin, self.command, self.path, headers, self._body())
        reply = self.server.answer(request)
        if reply is None:
            raise ConnectionAbortedError("the reply is to close the connection")
        self._write(reply)

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def log_message(self, *_: Any) -> None:
        """Keep quiet: the request log is a value, not text."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self._line().partition(b";")[0], 16):
                parts.append(self._exactly(size))
                self._line()
            while self._line().strip():
                continue
            return b"".join(parts)
        return self._exactly(int(self.headers.get("Content-Length", 0)))

    def _line(self) -> bytes:
        line = self.rfile.readline()
        if not line:
            raise ConnectionAbortedError("the client went away in the middle of its body")
        return line

    def _exactly(self, size: int) -> bytes:
        data = self.rfile.read(size)
        if len(data) < size:
            raise ConnectionAbortedError("the client went away in the middle of its body")
        return data

    def _write(self, reply: Reply) -> None:
        length = len(reply.body) if reply.declared is None else reply.declared
        self.send_response(reply.status)
        headers = {"X-Request-Id": f"{self.server.origin}-{next(self.server.ids)}"}
        for name, value in {**headers, **reply.headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body[: reply.sent])
            self.wfile.flush()
        if reply.hold is not None:
            reply.hold()
        # Whatever the client still expects, or does not, this connection cannot tell it.
        if reply.sent is not None or length != len(reply.body):
            self.close_connection = True
