"""Coalescing: concurrent checks of threads become batches.

A check that comes while nothing is under way is sent at once, by the thread that asks. One that comes while something
is under way is gathered. The first of those gathered leads: its thread waits until an answer arrives, a thousand are
gathered or a millisecond has passed, and sends the batch. There is no thread besides those of the callers, so that
nothing is left over at the end of a process or in the child of a fork.

The callers of a batch wait for one lock, their turn. Once the batch is answered, its leader releases that, and each of
them that gets it releases it at once for the next: to wake them all together would have them all wait for the
interpreter's lock, and a lock for each costs more switches between threads. The batch counts as under way until the
last is awake. What they ask next is gathered until then, and makes one batch again.

A batch has its leader's deadline. So a check whose deadline is nearer than the client's leads none: it joins one that
is gathered, or goes by itself. Where a leader is late all the same, the others become another batch, which the one with
the latest deadline leads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from consentd._question import BATCH_LIMIT
from consentd._verdict import LATE, Failure, Verdict, failure_of_error, verdict_of_response, verdicts_of_results
from consentd.v1.consent_service_pb2 import BatchCanSendResponse, CanSendRequest
from consentd.v1.consent_service_pb2_grpc import ConsentServiceStub

GATHER_SECONDS = 0.001
# How much longer a batch is gathered while answers are handed over. It takes longer than that only where the machine is
# very busy, or a thread was interrupted before it could wake the next.
HAND_OVER_SECONDS = 0.01
# gRPC may end a call so long before its deadline, as that is of another clock.
EARLY_SECONDS = 0.002
# A call that is under way so long after its deadline has ended without saying so: a signal's handler has raised an
# exception in its thread, as Control-C and the time limits of Celery do.
FORGOTTEN_SECONDS = 1.0

_LEADER_LATE = Failure(LATE.code, LATE.cause, lost=True)
_LEADER_LEFT = Failure("CANCELLED", "the thread that asked for this batch was interrupted", lost=True)

UNEQUAL = Failure("INTERNAL", "the batch has not one result for each of its requests")


def is_halved(failure: Failure, size: int) -> bool:
    """Whether a batch that was refused as a whole is asked again in halves, so that it spoils few checks."""
    return size > 1 and failure.code == "INVALID_ARGUMENT"


def keeps_size(failure: Failure) -> bool:
    """Whether a batch was refused for its size, which --max-batch bounds, so that the next ones are to be smaller."""
    return failure.field == "requests"


class _Waiter:
    __slots__ = ("batch", "deadline", "is_gone", "question", "verdict")

    def __init__(self, question: bytes, deadline: float, batch: _Batch) -> None:
        self.question = question
        self.deadline = deadline
        # Another one, where the leader of the first was late.
        self.batch = batch
        self.verdict: Verdict | None = None
        self.is_gone = False


class _Batch:
    __slots__ = ("asleep", "deadline", "go", "is_answered", "is_started", "turn", "waiters")

    def __init__(self, deadline: float) -> None:
        # The leader's.
        self.deadline = deadline
        # The first one leads.
        self.waiters: list[_Waiter] = []
        # Released to let the leader send it, and whether it was.
        self.is_started = False
        self.go = threading.Lock()
        self.go.acquire()
        # Released to wake the others, one after another.
        self.turn = threading.Lock()
        self.turn.acquire()
        # Whether they are being woken, and how many of them are not awake yet.
        self.is_answered = False
        self.asleep = 0


class Coalescer:
    """Sends checks, gathering those that come while others are under way.

    Deadlines are times of the monotonic clock.
    """

    def __init__(
        self,
        stub: ConsentServiceStub,
        batches: Callable[..., BatchCanSendResponse],
        batched: Callable[[int], None] | None,
        errors: tuple[type[Exception], ...],
    ) -> None:
        self._stub = stub
        self._batches = batches
        # What a call may raise. Anything else was raised by a signal's handler, and is the caller's.
        self._errors = errors
        self._batched = batched
        self._limit = BATCH_LIMIT
        self._mutex = threading.Lock()
        # The deadlines of the calls that are under way, of how many of these the answer is being handed over, and the
        # batch that is being gathered; there is none while nothing is under way.
        self._under_way: list[float] = []
        self._handed_over = 0
        self._gathered: _Batch | None = None

    def is_idle(self) -> bool:
        """Whether no call is under way."""
        return not self._under_way

    def join(self, question: bytes | None, deadline: float, *, may_lead: bool = True) -> Verdict | None:
        """Gathers a question, and waits for its verdict. None: it is to be asked alone, as is one that is too large."""
        if not self._under_way or question is None:
            return None
        with self._mutex:
            if not self._under_way:
                return None
            batch = self._gathered
            leads = batch is None
            if batch is None:
                if not may_lead:
                    return None
                batch = self._gathered = _Batch(deadline)
            waiter = _Waiter(question, deadline, batch)
            batch.waiters.append(waiter)
            if not leads:
                batch.asleep += 1
            if len(batch.waiters) >= self._limit:
                self._start()
                self._gathered = None
        if leads:
            self._lead(batch, deadline)
        else:
            self._wait(waiter, batch)
            while waiter.batch is not batch:
                batch = waiter.batch
                if batch.waiters[0] is waiter:
                    self._send_batch(batch)
                else:
                    self._wait(waiter, batch)
        # A verdict that denies is false.
        return Verdict(None, LATE) if waiter.verdict is None else waiter.verdict

    def ask_first(self, request: CanSendRequest, deadline: float) -> Verdict:
        """Asks one question by itself, while others are gathered."""
        with self._mutex:
            self._under_way.append(deadline)
        try:
            return self.ask_alone(request, deadline)
        finally:
            with self._mutex:
                self._landed(deadline)

    def ask_alone(self, request: CanSendRequest, deadline: float) -> Verdict:
        """Asks one question by itself, without regard to others."""
        remaining = deadline - monotonic()
        if remaining <= 0:
            return Verdict(None, LATE)
        try:
            return verdict_of_response(self._stub.CanSend(request, timeout=remaining))
        except self._errors as error:
            return Verdict(None, failure_of_error(error))

    # To be called with the mutex held.
    def _start(self) -> None:
        """Lets the leader of the batch that is being gathered send it.

        Checks join it until the leader does: the thread that was woken as the last one is still to ask again, and its
        check would otherwise be a batch of its own.
        """
        batch = self._gathered
        if batch is not None and not batch.is_started:
            batch.is_started = True
            self._under_way.append(batch.deadline)
            batch.go.release()

    # To be called with the mutex held.
    def _landed(self, deadline: float) -> None:
        if deadline in self._under_way:
            self._under_way.remove(deadline)
        if not self._under_way:
            self._start()

    # To be called with the mutex held.
    def _forget(self) -> None:
        """Forgets calls that ended without saying so."""
        now = monotonic()
        self._under_way = [deadline for deadline in self._under_way if now < deadline + FORGOTTEN_SECONDS]
        if not self._under_way:
            self._handed_over = 0

    def _wait(self, waiter: _Waiter, batch: _Batch) -> None:
        """Waits until the batch is answered, or the deadline comes."""
        turn = batch.turn
        remaining = waiter.deadline - monotonic()
        is_awake = False
        try:
            is_awake = turn.acquire(True, remaining if remaining > 0 else 0)
        finally:
            if is_awake:
                turn.release()
            with self._mutex:
                waiter.is_gone = not is_awake
                batch.asleep -= 1
                if batch.is_answered and not batch.asleep:
                    self._handed_over_to_all(batch)

    # To be called with the mutex held.
    def _handed_over_to_all(self, batch: _Batch) -> None:
        self._handed_over = max(self._handed_over - 1, 0)
        self._landed(batch.deadline)

    def _lead(self, batch: _Batch, deadline: float) -> None:
        try:
            if not batch.go.acquire(timeout=_at_most(GATHER_SECONDS, deadline)) and self._handed_over:
                batch.go.acquire(timeout=_at_most(HAND_OVER_SECONDS, deadline))
        finally:
            with self._mutex:
                if not batch.is_started:
                    self._forget()
                    self._start()
                if self._gathered is batch:
                    self._gathered = None
            self._send_batch(batch)

    def _send_batch(self, batch: _Batch) -> None:
        late: list[_Waiter] = []
        try:
            late = self._send(batch.waiters, batch.deadline)
        except BaseException:
            # Such as Control-C in the main thread: nobody is to wait for a leader that is gone.
            _fail(batch.waiters, _LEADER_LEFT)
            raise
        finally:
            with self._mutex:
                if late:
                    self._pass_on(batch, late)
                self._handed_over += 1
                batch.is_answered = True
                if batch.asleep:
                    batch.turn.release()
                else:
                    self._handed_over_to_all(batch)

    # To be called with the mutex held.
    def _pass_on(self, batch: _Batch, late: list[_Waiter]) -> None:
        """Lets another lead those for whom the leader was late."""
        now = monotonic()
        others = []
        # Where the sidecar says so before the leader's deadline, another leader would be told the same.
        if now + EARLY_SECONDS >= batch.deadline:
            others = [one for one in late if one is not batch.waiters[0] and not one.is_gone and one.deadline > now]
        if not others:
            _fail(late, _LEADER_LATE)
            return
        others.sort(key=lambda one: one.deadline, reverse=True)
        following = _Batch(others[0].deadline)
        following.waiters = others
        following.asleep = len(others) - 1
        for one in others:
            one.batch = following
        _fail([one for one in late if one.batch is batch], _LEADER_LATE)
        self._under_way.append(following.deadline)

    def _send(self, waiters: list[_Waiter], deadline: float) -> list[_Waiter]:
        """Asks for these, and gives those for whom the deadline came first, which have no verdict."""
        remaining = deadline - monotonic()
        if remaining <= 0:
            return waiters
        if self._batched is not None:
            self._batched(len(waiters))
        try:
            results = self._batches(b"".join([waiter.question for waiter in waiters]), timeout=remaining).results
        except self._errors as error:
            failure = failure_of_error(error)
            if is_halved(failure, len(waiters)):
                limit = len(waiters) // 2
                if keeps_size(failure):
                    self._limit = limit = max(1, min(self._limit, len(waiters)) // 2)
                late: list[_Waiter] = []
                for start in range(0, len(waiters), limit):
                    late += self._send(waiters[start : start + limit], deadline)
                return late
            if failure.code == LATE.code:
                return waiters
            _fail(waiters, failure)
            return []
        if len(results) != len(waiters):
            _fail(waiters, UNEQUAL)
            return []
        for waiter, verdict in zip(waiters, verdicts_of_results(results), strict=True):
            waiter.verdict = verdict
        return []


def _at_most(seconds: float, deadline: float) -> float:
    return max(min(seconds, deadline - monotonic()), 0)


def _fail(waiters: list[_Waiter], failure: Failure) -> None:
    verdict = Verdict(None, failure)
    for waiter in waiters:
        waiter.verdict = verdict
