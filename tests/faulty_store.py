"""A proxy before an S3 server that can be told to misbehave, so that the same faults befall every server."""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ACCESS_KEY, SECRET_KEY = "test", "testtest"
"""Of the servers' only user."""


@dataclass
class Request:
    """What a client asked: method, path with query, and headers with lower-case names."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Fault:
    """What is done to a request.

    Args:
        delay_s: Wait as long first.
        status: Answer with this status instead of asking the server.
        code: The error's name in such an answer.
        silent: Never answer.
        cut: Break off amid the answer.
    """

    delay_s: float = 0.0
    status: int | None = None
    code: str = ""
    silent: bool = False
    cut: bool = False


FaultOf = Callable[[Request], Fault | None]


def no_fault(request: Request) -> Fault | None:
    return None


def first(count: int, fault: Fault, *, of: str = "") -> FaultOf:
    """Return what does something to the first requests whose method and path begin with `of`, e.g. `GET /bucket/`."""
    left = itertools.count(count, -1)

    def fault_of(request: Request) -> Fault | None:
        return fault if f"{request.method} {request.path}".startswith(of) and next(left) > 0 else None

    return fault_of


class FaultyStore:
    """Passes every request on to `target` and records it; :meth:`misbehaving` decides what is done to it."""

    def __init__(self) -> None:
        self.target = ""
        self.requests: list[Request] = []
        self.fault_of: FaultOf = no_fault
        self.over = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler_of(self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    @contextmanager
    def misbehaving(self, fault_of: FaultOf) -> Iterator[None]:
        """Ask `fault_of` about each request while the block runs; None passes it on."""
        self.over.clear()
        self.fault_of = fault_of
        try:
            yield
        finally:
            self.fault_of = no_fault
            self.over.set()

    def close(self) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that go away amid an answer are no news."""


def _handler_of(store: FaultyStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def handle_any(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            request = Request(self.command, self.path, headers)
            store.requests.append(request)
            fault = store.fault_of(request) or Fault()
            time.sleep(fault.delay_s)
            if fault.silent:
                store.over.wait()
                self.close_connection = True
            elif fault.status is not None:
                self.refuse(fault.status, fault.code)
            else:
                self.pass_on(body, cut=fault.cut)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any

        def refuse(self, status: int, code: str) -> None:
            text = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>{code} by the test</Message></Error>'
            content = b"" if self.command == "HEAD" else text.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def pass_on(self, body: bytes, *, cut: bool) -> None:
            server = http.client.HTTPConnection(store.target.removeprefix("http://"))
            try:
                server.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():  # `Host` too: it is signed
                    if name.lower() not in ("connection", "expect"):
                        server.putheader(name, value)
                server.endheaders(body or None)
                answer = server.getresponse()
                content = answer.read()
                self.send_response_only(answer.status, answer.reason)
                for name, value in answer.getheaders():
                    if name.lower() not in ("connection", "transfer-encoding", "content-length", "keep-alive"):
                        self.send_header(name, value)
                length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
                if answer.status not in (204, 304):
                    self.send_header("Content-Length", length or "0")
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if cut else content)
                self.close_connection = self.close_connection or cut
            finally:
                with suppress(OSError):
                    server.close()

        def log_message(self, *args: object) -> None:
            """Tests speak for themselves."""

    return Handler
