"""The HTTP side: bodies to inputs, answers and errors to JSON, and figures."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from plmjax import PlmjaxError, __version__, counted
from plmjax.serve.answers import Endpoint
from plmjax.serve.worker import Busy, Limits, TooMuch, Worker

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Server:
    """The HTTP application `app` of one model; `answered` counts good requests."""

    def __init__(self, name: str, kind: str, endpoint: Endpoint, limits: Limits):
        self._about = {"model": name, "kind": kind, "version": __version__}
        self._endpoint, self._limits = endpoint, limits
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "plmjax_requests",
            "Requests by endpoint and status.",
            ["endpoint", "status"],
            registry=registry,
        )
        self._seconds = Histogram(
            "plmjax_request_seconds",
            "Seconds from the head of a request to its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=registry,
        )
        rows = Histogram(
            "plmjax_batch_rows",
            "Rows of each batch of the model.",
            buckets=_ROWS,
            registry=registry,
        )
        queue = Gauge(
            "plmjax_queue_requests",
            "Requests that wait for a batch.",
            registry=registry,
        )
        self.worker = Worker(endpoint, limits, rows.observe)
        queue.set_function(lambda: self.worker.waiting)
        self.path, self.answered = endpoint.path, 0
        self.app = Starlette(
            routes=[
                Route("/", self._index),
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route(f"/{endpoint.path}", self._post, methods=["POST"]),
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
        example = dict(self._endpoint.example)
        return JSONResponse(
            {
                **self._about,
                "endpoints": {
                    f"POST /{self._endpoint.path}": example,
                    "several at once": {"inputs": [example, example]},
                    "GET /health": "whether it answers",
                    "GET /metrics": "figures for Prometheus",
                },
            }
        )

    async def _health(self, request: Request) -> Response:
        ready = self.worker.ready
        return JSONResponse({"ready": ready, **self._about}, 200 if ready else 503)

    async def _metrics(self, request: Request) -> Response:
        figures = generate_latest(self._registry)
        return Response(figures, media_type=CONTENT_TYPE_LATEST)

    async def _no_route(self, request: Request, error: Exception) -> Response:
        """Says what there is, for a path or method that is not."""
        assert isinstance(error, HTTPException)
        self._requests.labels("other", str(error.status_code)).inc()
        path = f"/{self._endpoint.path}"
        there = f"{self._about['model']} ({self._about['kind']}) answers POST {path}; "
        there += "GET /, /health and /metrics tell more."
        what = f"there is no {request.method} {request.url.path[:80]!r}."
        headers = error.headers or {}
        return _refusal(error.status_code, f"{what} {there}", headers)

    async def _post(self, request: Request) -> Response:
        """Answers one request; all of its errors are JSON with a sentence."""
        began = time.monotonic()
        headers: dict[str, str] = {}
        try:
            body = await self._body(request)
            inputs, several = self._inputs(body)
            future = asyncio.wrap_future(self.worker.submit(inputs))
            async with asyncio.timeout(self._limits.timeout):
                answers, report = await future
            content = {"answers": answers} if several else answers[0]
            response = JSONResponse(content | report)
        except _Refused as refused:
            response = _refusal(refused.status, str(refused), {"Connection": "close"})
        except Busy:
            waits = counted(self.worker.waiting, "request")
            busy = f"the server is busy: {waits} wait. Try again later."
            response = _refusal(503, busy, {"Retry-After": "1"})
        except TimeoutError:
            late = f"there was no answer within {self._limits.timeout:g} seconds."
            response = _refusal(504, f"{late} Send shorter texts, or fewer at once.")
        except PlmjaxError as error:
            response = _refusal(413 if isinstance(error, TooMuch) else 422, str(error))
        except ClientDisconnect:
            response = Response(status_code=499)  # nobody reads it
        except Exception as error:  # the worker has printed where
            response = _refusal(500, f"a bug in plmjax: {type(error).__name__}.")
        path = self._endpoint.path
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
            raise _Refused(408, f"{late} Only {size:,} bytes did.") from None
        if size > self._limits.max_bytes:
            large = f"the body has {size:,} bytes; at most {self._limits.max_bytes:,}"
            raise _Refused(413, f"{large} are read. Send fewer texts at once.")
        return b"".join(chunks)

    def _inputs(self, body: bytes) -> tuple[list[Any], bool]:
        """Returns the inputs of a body, and whether they came as a list.

        Raises:
          PlmjaxError: it is not what the endpoint reads.
        """
        example = json.dumps(self._endpoint.example)
        try:
            value = json.loads(body)
        except (ValueError, RecursionError) as error:
            broken = f"the body is not JSON ({str(error)[:80]})." if body else ""
            broken = broken or "the body is empty."
            raise _Refused(400, f"{broken} Send for example {example}.") from None
        several = isinstance(value, dict) and "inputs" in value
        values = value["inputs"] if several else [value]
        if several and (not isinstance(values, list) or not values or len(value) > 1):
            raise PlmjaxError(
                '"inputs" must be a list of one or more, and the only key.',
                hint=f'Send for example {{"inputs": [{example}]}}.',
            )
        if len(values) > self._limits.inputs:
            raise TooMuch(
                f"the request has {len(values):,} inputs; at most "
                f"{self._limits.inputs} are read at once."
            )
        names = [f"input {n}" if several else "the input" for n in range(len(values))]
        for name, one in zip(names, values, strict=True):
            if (size := _characters(one)) > self._limits.characters:
                raise TooMuch(
                    f"{name} has {size:,} characters; at most "
                    f"{self._limits.characters:,} are read."
                )
        pairs = zip(values, names, strict=True)
        return [self._endpoint.read(one, name) for one, name in pairs], several


class _Refused(Exception):
    """An error of HTTP itself: its status and a sentence."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


def _refusal(status: int, sentence: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"error": sentence}, status, headers)


def _characters(value: Any) -> int:
    """Returns the length of all texts in a value; each other thing counts as one."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        value = [*value.values()]
    return sum(map(_characters, value)) if isinstance(value, list) else 1
