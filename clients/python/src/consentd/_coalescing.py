"""Coalescing: concurrent checks of threads become batches.

A check that comes while nothing is under way is sent at once, by the thread that asks. One that comes while something
is under way is gathered. The first of those gathered leads: its thread waits until an answer arrives, a thousand are
gathered or a millisecond has passed, sends the batch, and wakes the others. There is no thread besides those of the
callers, so that nothing is left over at the end of a process or in the child of a fork.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from consentd._question import BATCH_LIMIT
from consentd._verdict import LATE, Failure, Verdict, failure_of_error, verdict_of_response, verdict_of_result
from consentd.v1.consent_service_pb2 import BatchCanSendRequest, CanSendRequest
from consentd.v1.consent_service_pb2_grpc import ConsentServiceStub

GATHER_SECONDS = 0.001

# A batch ends with the deadline of the check that leads it. The others, whose deadlines are later, are asked again.
_LEADER_LATE = Failure(LATE.code, LATE.cause, lost=True)
_LEADER_LEFT = Failure("CANCELLED", "the thread that asked for this batch was interrupted", lost=True)

UNEQUAL = Failure("INTERNAL", "the batch has not one result for each of its requests")


def is_too_large(failure: Failure, size: int) -> bool:
    """Whether a sidecar refused a batch for its size, which --max-batch bounds."""
    return size > 1 and failure.code == "INVALID_ARGUMENT" and failure.field == "requests"


def ask_alone(stub: ConsentServiceStub, request: CanSendRequest, deadline: float) -> Verdict:
    """Asks one question by itself, until a time of the monotonic clock."""
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        return Verdict(None, LATE)
    try:
        return verdict_of_response(stub.CanSend(request, timeout=remaining))
    except Exception as error:
        return Verdict(None, failure_of_error(error))


class _Waiter:
    __slots__ = ("answered", "request", "verdict")

    def __init__(self, request: CanSendRequest) -> None:
        self.request = request
        self.verdict = Verdict(None, _LEADER_LEFT)
        self.answered = threading.Lock()
        self.answered.acquire()


class _Batch:
    __slots__ = ("go", "waiters")

    def __init__(self) -> None:
        self.waiters: list[_Waiter] = []
        self.go = threading.Lock()
        self.go.acquire()


class Coalescer:
    """Sends checks, gathering those that come while others are under way."""

    def __init__(self, stub: ConsentServiceStub, batched: Callable[[int], None] | None) -> None:
        self._stub = stub
        self._batched = batched
        self._limit = BATCH_LIMIT
        self._mutex = threading.Lock()
        # How many calls are under way, and the batch that is being gathered; there is none while nothing is.
        self._under_way = 0
        self._gathered: _Batch | None = None

    def is_idle(self) -> bool:
        """Whether no call is under way."""
        return self._under_way == 0

    def ask(self, request: CanSendRequest, deadline: float) -> Verdict:
        """Asks one question, until a time of the monotonic clock."""
        with self._mutex:
            alone = not self._under_way
            if alone:
                self._under_way = 1
            else:
                waiter = _Waiter(request)
                leads = self._gathered is None
                if leads:
                    self._gathered = _Batch()
                batch = self._gathered
                batch.waiters.append(waiter)
                if len(batch.waiters) >= self._limit:
                    self._start()
        if alone:
            try:
                return ask_alone(self._stub, request, deadline)
            finally:
                self._landed()
        if leads:
            self._lead(batch, deadline)
            return waiter.verdict
        if waiter.answered.acquire(timeout=max(deadline - time.monotonic(), 0)):
            return waiter.verdict
        return Verdict(None, LATE)

    def _start(self) -> None:
        """Lets the leader of the batch that is being gathered send it. To be called with the mutex held."""
        batch, self._gathered = self._gathered, None
        if batch is not None:
            self._under_way += 1
            batch.go.release()

    def _landed(self) -> None:
        with self._mutex:
            self._under_way -= 1
            self._start()

    def _lead(self, batch: _Batch, deadline: float) -> None:
        try:
            batch.go.acquire(timeout=min(GATHER_SECONDS, max(deadline - time.monotonic(), 0)))
        finally:
            with self._mutex:
                if self._gathered is batch:
                    self._start()
        try:
            self._send(batch.waiters, deadline)
        finally:
            # Also where the thread was interrupted, such as by Control-C: nobody waits for a leader that is gone.
            for waiter in batch.waiters:
                waiter.answered.release()
            self._landed()

    def _send(self, waiters: list[_Waiter], deadline: float) -> None:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            self._fail(waiters, _LEADER_LATE)
            return
        if self._batched is not None:
            self._batched(len(waiters))
        try:
            request = BatchCanSendRequest(requests=[waiter.request for waiter in waiters])
            results = self._stub.BatchCanSend(request, timeout=remaining).results
        except Exception as error:
            failure = failure_of_error(error)
            if is_too_large(failure, len(waiters)):
                self._limit = limit = max(1, min(self._limit, len(waiters)) // 2)
                for start in range(0, len(waiters), limit):
                    self._send(waiters[start : start + limit], deadline)
                return
            self._fail(waiters, _LEADER_LATE if failure.code == LATE.code else failure)
            return
        if len(results) != len(waiters):
            self._fail(waiters, UNEQUAL)
            return
        for waiter, result in zip(waiters, results):
            waiter.verdict = verdict_of_result(result)

    @staticmethod
    def _fail(waiters: list[_Waiter], failure: Failure) -> None:
        verdict = Verdict(None, failure)
        for waiter in waiters:
            waiter.verdict = verdict
