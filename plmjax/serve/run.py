"""Opens a folder, binds a port, and serves until a signal."""

import errno
import signal
import socket
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from plmjax import PlmjaxError, counted
from plmjax.onnx.session import FOLDER, MODEL, Session
from plmjax.serve.answers import open_endpoint
from plmjax.serve.app import Server
from plmjax.serve.worker import Limits


def open_server(
    folder: Path, limits: Limits, file: str | None = None, threads: int | None = None
) -> Server:
    """Opens a folder that `plmjax compress` wrote: model.onnx, or its only file.

    Raises:
      PlmjaxError: it is no such folder, or its kind of model has no endpoint.
    """
    files = [path.name for path in (folder / FOLDER).glob("*.onnx")]
    only = files[0] if len(files) == 1 else MODEL
    session = Session(folder, file or only, threads)
    endpoint = open_endpoint(folder, session)
    return Server(folder.resolve().name, session.kind, endpoint, limits)


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that listens.

    Raises:
      PlmjaxError: the port is in use, or the address is not of this machine.
    """
    if not 0 <= port < 1 << 16:
        raise PlmjaxError(f"--port={port} is not from 0 to 65535.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            what = f"port {port} of {host} is in use."
            hint = "Choose another --port, or 0 for a free one."
        else:
            what = f"cannot listen at {host}, port {port}: {error.strerror}."
            hint = "--host=127.0.0.1 is this machine alone, 0.0.0.0 is for others, too."
        raise PlmjaxError(what, hint=hint) from error


def serve(server: Server, bound: socket.socket, limits: Limits) -> str:
    """Answers until SIGTERM or SIGINT; returns a line on what came of it.

    What is in flight is finished, for at most `limits.timeout` seconds.
    """
    config = uvicorn.Config(
        server.app,
        http=_protocol(limits.timeout),
        ws="none",
        lifespan="on",
        log_config=None,  # the root's: warnings to stderr
        log_level="error",
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(int(limits.timeout), 1),
    )
    running, received = uvicorn.Server(config), []

    def end(number: int, frame: Any) -> None:
        received.append(number)
        running.handle_exit(number, frame)

    # Before uvicorn has its own handlers, and after: it sends itself the signal again.
    signals = signal.SIGTERM, signal.SIGINT
    old = {number: signal.signal(number, end) for number in signals}
    try:
        running.run(sockets=[bound])
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    names = " and ".join(signal.Signals(number).name for number in set(received))
    return f"{names} ended it, after {counted(server.answered, 'answer')}."


def _protocol(seconds: float) -> type[H11Protocol]:
    """Returns HTTP whose own errors are JSON, and whose heads must arrive in time.

    uvicorn would wait for the rest of a head without an end.
    """
    late = f"the request did not arrive within {seconds:g} seconds."

    class Protocol(H11Protocol):
        def connection_made(self, transport):
            super().connection_made(transport)
            self.loop.call_later(seconds, self.check, None)

        def data_received(self, data):
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:  # a part of a head
                self.loop.call_later(seconds, self.check, self.cycle)

        def check(self, cycle):
            """Ends a connection that has not begun a request since `cycle`."""
            idle = self.conn.their_state is h11.IDLE and self.cycle is cycle
            if idle and not self.transport.is_closing():
                self.refuse("408 Request Timeout", late)

        def send_400_response(self, msg):
            self.refuse("400 Bad Request", "this is no request of HTTP/1.1.")

        def refuse(self, status: str, sentence: str):
            body = f'{{"error":"{sentence}"}}'
            head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            self.transport.write((head + body).encode())
            self.transport.close()

    return Protocol
