"""Opens a folder, binds a port, and serves until a signal."""

import errno
import ipaddress
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from plmjax import Exit, PlmjaxError, counted
from plmjax.onnx.session import FOLDER, MODEL, Session
from plmjax.serve.answers import open_endpoint
from plmjax.serve.app import Server
from plmjax.serve.worker import Limits


def open_server(
    folder: Path, file: str | None, threads: int | None, limits: Limits
) -> Server:
    """Opens a folder that `plmjax compress` wrote.

    Raises:
      PlmjaxError: it is no such folder, or its kind of model has no endpoint.
    """
    session = Session(folder, file or _file_of(folder), threads)
    endpoint = open_endpoint(folder, session)
    return Server(folder.resolve().name, session.kind, endpoint, limits)


def _file_of(folder: Path) -> str:
    """Returns the name of the model, or of the only one, in FOLDER/onnx/."""
    files = sorted(path.name for path in (folder / FOLDER).glob("*.onnx"))
    if len(files) == 1 or MODEL in files:
        return files[0] if len(files) == 1 else MODEL
    if files:
        raise PlmjaxError(
            f"{folder / FOLDER} holds several models.",
            hint=f"Choose by --file: {', '.join(files)}.",
        )
    known = folder if folder.is_dir() else "RUN_OR_FOLDER"
    raise PlmjaxError(
        f"{folder} holds no {FOLDER}/{MODEL}"
        + (": it is not a folder." if not folder.is_dir() else "."),
        hint=f"`plmjax compress --model={known} --format=onnx --to=DIR` makes a folder "
        "that has one.",
        code=Exit.MODEL,
    )


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound, but does not listen yet.

    Raises:
      PlmjaxError: the port is in use, or the address is not of this machine.
    """
    try:
        given = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(given[0], socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(given[4])
        except OSError:
            bound.close()
            raise
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            what, hint = "is in use", "Choose another --port; 0 finds a free one."
        else:
            what, hint = f"cannot be used ({error})", "Check --host and --port."
        raise PlmjaxError(f"port {port} of {host} {what}.", hint=hint) from error
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach a socket."""
    return ipaddress.ip_address(bound.getsockname()[0].split("%")[0]).is_loopback


def serve(server: Server, bound: socket.socket, limits: Limits) -> str:
    """Answers until SIGTERM or SIGINT; returns a line on what came of it.

    What is in flight is finished, for at most `limits.timeout` seconds.
    """
    config = uvicorn.Config(
        server.app,
        http=_protocol(limits.timeout),
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=max(int(limits.timeout), 1),
    )
    runner = uvicorn.Server(config)
    received: list[int] = []
    # uvicorn sends itself the signal again at the end, which would end it with an error.
    old = {
        number: signal.signal(number, lambda number, _: received.append(number))
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        runner.run(sockets=[bound])
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    names = " and ".join(signal.Signals(n).name for n in dict.fromkeys(received))
    answers = counted(server.answered, "request")
    return f"Stopped by {names or 'itself'} after {answers} that were answered."


def _protocol(seconds: float) -> type[H11Protocol]:
    """Returns HTTP whose own errors are JSON, too, and whose heads must come in time.

    uvicorn would wait for the rest of a head without an end.
    """

    class Protocol(H11Protocol):
        timer: Any = None

        def connection_made(self, transport):
            super().connection_made(transport)
            self._begin()

        def data_received(self, data):
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._end()
            elif self.timer is None and self.conn.trailing_data[0]:
                self._begin()

        def connection_lost(self, exc):
            self._end()
            super().connection_lost(exc)

        def send_400_response(self, msg):
            self._refuse("400 Bad Request", "this is not HTTP/1.1.")

        def _begin(self):
            late = f"the request did not arrive within {seconds:g} seconds."
            call: Callable = self._refuse
            self.timer = self.loop.call_later(
                seconds, call, "408 Request Timeout", late
            )

        def _end(self):
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

        def _refuse(self, status: str, sentence: str):
            body = f'{{"error":"{sentence}"}}'
            head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            self.transport.write((head + body).encode())
            self.transport.close()

    return Protocol
