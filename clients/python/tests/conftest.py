"""What the tests have in common: sidecars, a server that answers as a test wants, and a runner of coroutines."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

import consentd
from consentd._rpc_status_pb2 import BadRequest, Status
from consentd.testing import Sidecar
from consentd.v1.consent_service_pb2 import (
    BatchCanSendRequest,
    BatchCanSendResponse,
    BatchCanSendResult,
    CanSendRequest,
    CanSendResponse,
    FilterRecipientsRequest,
    FilterRecipientsResponse,
    WatchConsentsRequest,
    WatchConsentsResponse,
)
from consentd.v1.consent_service_pb2_grpc import (
    ConsentServiceServicer,
    add_ConsentServiceServicer_to_server,
)

# The clients' folder of the repository: the conversation of all packages is there.
CLIENTS = Path(os.environ.get("CONSENTD_CLIENTS") or Path(__file__).parents[2])
# What must come some time is waited for this long: other work may keep the machine busy.
PATIENCE_SECONDS = 60.0
# A deadline of a check that only a failure reaches.
AMPLE_SECONDS = 30.0


def pytest_configure() -> None:
    where = Path(consentd.__file__).resolve()
    if "CONSENTD_CLIENTS" in os.environ and not where.is_relative_to(Path(sys.prefix).resolve()):
        raise RuntimeError(f"the tests are about the installed package, and found {where}")


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine as a program does, but for a time that only a failure reaches."""
    return asyncio.run(asyncio.wait_for(coroutine, 10 * PATIENCE_SECONDS))


def eventually(condition: Callable[[], object], what: str) -> None:
    """Waits for a condition."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        time.sleep(0.01)


async def eventually_async(condition: Callable[[], object], what: str) -> None:
    """Waits for a condition, and lets other tasks run meanwhile."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for: {what}"
        await asyncio.sleep(0.01)


@pytest.fixture
def sidecar() -> Iterator[Sidecar]:
    """A sidecar of the test's own, which it may kill."""
    with Sidecar() as started:
        yield started


@pytest.fixture(scope="session")
def shared_sidecar() -> Iterator[Sidecar]:
    """A sidecar that nobody kills."""
    with Sidecar() as started:
        yield started


class FakeServer(ConsentServiceServicer):
    """Answers as a test wants, and tells what it was asked.

    It allows each user whose id begins with `yes`, once `gate` is open.
    """

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        # How long an answer takes.
        self.seconds = 0.0
        self.singles: list[str] = []
        self.batches: list[list[str]] = []
        self.limit = 1_000
        self.results_missing = 0
        # A user whose batch is refused as a whole, without a field.
        self.spoiler = ""
        # How many users a screening may have, and the sizes of those that were asked.
        self.recipients = 1_000
        self.screened: list[int] = []
        # What a watch is told, before it is kept open; or why it is refused.
        self.messages: list[WatchConsentsResponse] = []
        self.refusal: grpc.StatusCode | None = None
        self.failure: tuple[grpc.StatusCode, str] | None = None
        self.failure_details: bytes | None = None
        self._server = grpc.server(
            futures.ThreadPoolExecutor(max_workers=200), options=[("grpc.max_receive_message_length", -1)]
        )
        add_ConsentServiceServicer_to_server(self, self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self.address = f"127.0.0.1:{port}"
        self._server.start()

    def close(self) -> None:
        self.gate.set()
        self._server.stop(0).wait()

    def _wait(self, context: Any) -> None:
        time.sleep(self.seconds)
        while not self.gate.wait(0.05):
            if not context.is_active():
                return
        if self.failure_details is not None:
            context.set_trailing_metadata([("grpc-status-details-bin", self.failure_details)])
        if self.failure:
            context.abort(*self.failure)

    @staticmethod
    def _answer(request: CanSendRequest) -> CanSendResponse:
        allowed = request.user_id.startswith("yes")
        return CanSendResponse(allowed=allowed, reason=1 if allowed else 10, revision=7)

    def CanSend(self, request: CanSendRequest, context: Any) -> CanSendResponse:  # noqa: N802
        self.singles.append(request.user_id)
        self._wait(context)
        return self._answer(request)

    def BatchCanSend(self, request: BatchCanSendRequest, context: Any) -> BatchCanSendResponse:  # noqa: N802
        self.batches.append([one.user_id for one in request.requests])
        self._wait(context)
        if len(request.requests) > self.limit:
            self._refuse(context, "requests", self.limit)
        if self.spoiler in [one.user_id for one in request.requests]:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "refused")
        results = [BatchCanSendResult(response=self._answer(one)) for one in request.requests]
        return BatchCanSendResponse(results=results[: len(results) - self.results_missing])

    def FilterRecipients(  # noqa: N802
        self, requests: Iterator[FilterRecipientsRequest], context: Any
    ) -> Iterator[FilterRecipientsResponse]:
        for request in requests:
            self.screened.append(len(request.user_ids))
            if len(request.user_ids) > self.recipients:
                self._refuse(context, "user_ids", self.recipients)
            reasons = [1 if user.startswith("yes") else 10 for user in request.user_ids]
            yield FilterRecipientsResponse(reasons=reasons)  # type: ignore[arg-type]

    def WatchConsents(  # noqa: N802
        self, _: WatchConsentsRequest, context: Any
    ) -> Iterator[WatchConsentsResponse]:
        if self.refusal is not None:
            context.abort(self.refusal, "refused")
        yield from self.messages
        while context.is_active():
            time.sleep(0.05)

    @staticmethod
    def _refuse(context: Any, field: str, most: int) -> None:
        violation = BadRequest.FieldViolation(field=field, description=f"at most {most}")
        status = Status(code=3)
        status.details.add(
            type_url="type.googleapis.com/google.rpc.BadRequest",
            value=BadRequest(field_violations=[violation]).SerializeToString(),
        )
        context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"{field}: at most {most}")


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that answers as the test wants."""
    fake = FakeServer()
    yield fake
    fake.close()
