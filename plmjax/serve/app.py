"""The HTTP side: bodies to inputs, answers and errors to JSON, and figures."""

import asyncio
import contextlib
import json
import queue
import time
import traceback
from collections.abc import AsyncIterator
from typing import Any

import prometheus_client as prometheus
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from plmjax import PlmjaxError, __version__, counted
from plmjax.serve.answers import Endpoint
from plmjax.serve.worker import Limits, Worker

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_CLOSE = {"Connection": "close"}


class Server:
    """The HTTP application `app` of one model; `answered` counts good requests."""

    def __init__(self, name: str, kind: str, endpoint: Endpoint, limits: Limits):
        self._about = {"model": name, "kind": kind, "version": __version__}
        self._endpoint, self._limits = endpoint, limits
        self._registry = prometheus.CollectorRegistry()
        own: dict[str, Any] = {"registry": self._registry, "namespace": "plmjax"}
        by, about = ["endpoint"], "Answers, errors too."
        counter, histogram = prometheus.Counter, prometheus.Histogram
        self._requests = counter("requests", about, [*by, "status"], **own)
        about = "Seconds from the head of a request to its answer."
        self._seconds = histogram("seconds", about, by, buckets=_SECONDS, **own)
        about = "Requests of each batch of the model."
        sizes = histogram("batch_requests", about, buckets=_SIZES, **own)
        self.worker = Worker(endpoint, limits, sizes)
        about = "Requests that wait for a batch."
        waiting = prometheus.Gauge("queue_requests", about, **own)
        waiting.set_function(lambda: self.worker.waiting)
        self.path, self.answered = f"/{endpoint.path}", 0
        self.app = Starlette(
            routes=[
                Route("/", self._index),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route(self.path, self._post, methods=["POST"]),
            ],
            exception_handlers={HTTPException: self._no_route},
            lifespan=self._lifespan,
        )

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.worker.start()
        yield
        await asyncio.to_thread(self.worker.close)

    async def _index(self, request: Request) -> Response:
        example, also = dict(self._endpoint.example), ["/health", "/metrics"]
        here = {f"POST {self.path}": example, "or": {"inputs": [example]}, "GET": also}
        return JSONResponse(self._about | here)

    async def _health(self, request: Request) -> Response:
        ready = self.worker.ready
        return JSONResponse({"ready": ready, **self._about}, 200 if ready else 503)

    async def _metrics(self, request: Request) -> Response:
        figures = prometheus.generate_latest(self._registry)
        return Response(figures, media_type=prometheus.CONTENT_TYPE_LATEST)

    async def _no_route(self, request: Request, error: Exception) -> Response:
        """Says what there is, for a path or method that is not."""
        assert isinstance(error, HTTPException)
        self._requests.labels("other", str(error.status_code)).inc()
        what = f"there is no {request.method} {request.url.path[:80]}."
        there = f"This model ({self._about['kind']}) answers POST {self.path}; GET / "
        there += "shows how."
        return _refusal(error.status_code, f"{what} {there}", error.headers)

    async def _post(self, request: Request) -> Response:
        """Answers one request; all of its errors are JSON with a sentence."""
        began = time.monotonic()
        try:
            body = await self._body(request)
            inputs, several = self._inputs(body)
            future = asyncio.wrap_future(self.worker.submit(inputs))
            async with asyncio.timeout(self._limits.timeout):
                answers, report = await future
            content = {"answers": answers} if several else answers[0]
            response = JSONResponse(content | report)
        except HTTPException as error:
            response = _refusal(error.status_code, error.detail, error.headers)
        except queue.Full:
            waits = counted(self.worker.waiting, "request")
            busy = f"the server is busy: {waits} wait. Try again later."
            response = _refusal(503, busy, {"Retry-After": "1"})
        except TimeoutError:
            late = f"there was no answer within {self._limits.timeout:g} seconds."
            response = _refusal(504, f"{late} Send shorter texts, or fewer at once.")
        except PlmjaxError as error:
            response = _refusal(422, str(error))
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody reads it
        except Exception as error:
            traceback.print_exc()
            response = _refusal(500, f"a bug in plmjax: {type(error).__name__}.")
        path = self.path[1:]
        self._requests.labels(path, str(response.status_code)).inc()
        self._seconds.labels(path).observe(time.monotonic() - began)
        self.answered += response.status_code == 200
        return response

    async def _body(self, request: Request) -> bytes:
        """Returns a body; one that is too large is read to its end, but not kept."""
        size, chunks = 0, []
        try:
            async with asyncio.timeout(self._limits.timeout):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size <= self._limits.max_bytes:
                        chunks.append(chunk)
        except TimeoutError:
            late = f"the body did not arrive within {self._limits.timeout:g} seconds."
            raise HTTPException(
                408, f"{late} Only {size:,} bytes did.", _CLOSE
            ) from None
        if size > self._limits.max_bytes:
            large = f"the body has {size:,} bytes; at most {self._limits.max_bytes:,}"
            raise HTTPException(413, f"{large} are read. Send fewer texts at once.")
        return b"".join(chunks)

    def _inputs(self, body: bytes) -> tuple[list[Any], bool]:
        """Returns the inputs of a body, and whether they came as a list.

        Raises:
          PlmjaxError: it is not what the endpoint reads.
        """
        hint = self._endpoint.hint
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            broken = f"the body is not JSON ({str(error)[:80]})." if body else ""
            broken = broken or "the body is empty."
            raise HTTPException(400, f"{broken} {hint}") from None
        several = isinstance(value, dict) and "inputs" in value
        values = value["inputs"] if several else [value]
        good = several and isinstance(values, list) and values and len(value) == 1
        if (several or isinstance(value, list)) and not good:
            example = json.dumps({"inputs": [self._endpoint.example]})
            what = '"inputs" must be a list that is not empty, and the only key.'
            raise HTTPException(422, f"{what} Send for example {example}.")
        counts = {"inputs": len(values), "characters": _characters(values)}
        for what, count in counts.items():
            if count > (most := getattr(self._limits, what)):
                many = f"the request has {count:,} {what}; at most {most:,} are read."
                raise HTTPException(413, f"{many} Send less at once.")
        names = [f"inputs[{n}]" if several else "the input" for n in range(len(values))]
        return list(map(self._endpoint.read, values, names)), several


def _refusal(status: int, sentence: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)


def _characters(value: Any) -> int:
    """Returns the length of all texts in a value; each other thing counts as one."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = [*value.values()]
    return sum(map(_characters, value)) if isinstance(value, list) else 1
