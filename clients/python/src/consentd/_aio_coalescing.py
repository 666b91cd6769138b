"""Coalescing: concurrent checks of tasks become batches."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from time import monotonic

from consentd._coalescing import GATHER_SECONDS, UNEQUAL, is_halved, keeps_size
from consentd._question import BATCH_LIMIT, Form, TemplateLike, known_rests, rest_of
from consentd._verdict import CLOSED, LATE, Failure, Verdict, failure_of_error, verdict_of_response, verdicts_of_results
from consentd.v1.consent_service_pb2 import BatchCanSendResponse, CanSendRequest
from consentd.v1.consent_service_pb2_grpc import ConsentServiceStub


class _Batch:
    __slots__ = ("deadlines", "futures", "questions", "timer")

    def __init__(self) -> None:
        # One of each for each question.
        self.questions: list[bytes] = []
        self.futures: list[asyncio.Future[Verdict]] = []
        self.deadlines: list[float] = []
        # While the batch is gathered: when to send it. Afterwards: when the first of its calls is late.
        self.timer: asyncio.TimerHandle

    def part(self, indices: Iterable[int]) -> _Batch:
        part = _Batch()
        for i in indices:
            part.questions.append(self.questions[i])
            part.futures.append(self.futures[i])
            part.deadlines.append(self.deadlines[i])
        return part


class AsyncCoalescer:
    """Sends checks, gathering those that come while others are under way. For use from one event loop.

    Deadlines are times of the monotonic clock.
    """

    def __init__(
        self,
        stub: ConsentServiceStub,
        batches: Callable[..., Awaitable[BatchCanSendResponse]],
        loop: asyncio.AbstractEventLoop,
        batched: Callable[[int], None] | None,
    ) -> None:
        self._stub = stub
        self._batches = batches
        self._loop = loop
        self._new_future = loop.create_future
        self._batched = batched
        self._limit = BATCH_LIMIT
        self._closed = False
        # How many calls are under way, and the batch that is being gathered; there is none while nothing is.
        self._under_way = 0
        self._gathered: _Batch | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def join(
        self, user: str, business: str, category: str, form: Form | None, template: TemplateLike | None, deadline: float
    ) -> asyncio.Future[Verdict] | None:
        """Gathers a question, whose verdict is the future's. None: it is to be asked alone.

        Raises:
            Exception: The question cannot be sent.
        """
        if not self._under_way:
            return None
        name = user.encode()
        found = known_rests.get((business, category, form, template))
        heads, rest = found or rest_of(business, category, form, template)
        try:
            question = heads[len(name)] + name + rest
        except IndexError:
            return None
        batch = self._gathered
        if batch is None:
            batch = self._gathered = _Batch()
            batch.timer = self._loop.call_later(GATHER_SECONDS, self._start)
        future = self._new_future()
        batch.questions.append(question)
        batch.futures.append(future)
        batch.deadlines.append(deadline)
        if len(batch.futures) >= self._limit:
            self._start()
        return future

    async def ask_first(self, request: CanSendRequest, deadline: float) -> Verdict:
        """Asks one question by itself, while others are gathered."""
        self._under_way += 1
        try:
            return await self.ask_alone(request, deadline)
        finally:
            self._landed()

    async def ask_alone(self, request: CanSendRequest, deadline: float) -> Verdict:
        """Asks one question by itself, without regard to others."""
        remaining = deadline - monotonic()
        if remaining <= 0:
            return Verdict(None, LATE)
        try:
            return verdict_of_response(await self._stub.CanSend(request, timeout=remaining))
        except Exception as error:
            return Verdict(None, failure_of_error(error))
        except asyncio.CancelledError:
            # gRPC says the same of a call whose channel is closed and of a task that is cancelled.
            if not self._closed or is_cancelled():
                raise
            return Verdict(None, CLOSED)

    def close(self) -> None:
        """Ends what is gathered or under way. The channel is to be closed after it."""
        self._closed = True
        batch, self._gathered = self._gathered, None
        if batch is not None:
            batch.timer.cancel()
            _fail(batch, CLOSED)
        for task in self._tasks:
            task.cancel()

    def _start(self) -> None:
        """Sends the batch that is being gathered."""
        batch, self._gathered = self._gathered, None
        if batch is not None:
            batch.timer.cancel()
            self._under_way += 1
            task = self._loop.create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _landed(self) -> None:
        self._under_way -= 1
        self._start()

    async def _run(self, batch: _Batch) -> None:
        waiting = [i for i, future in enumerate(batch.futures) if not future.done()]
        if len(waiting) < len(batch.futures):
            batch = batch.part(waiting)
        try:
            if waiting:
                self._expire_at(batch, batch.deadlines)
                await self._send(batch)
        except asyncio.CancelledError:
            _fail(batch, CLOSED)
            raise
        except Exception as error:
            _fail(batch, failure_of_error(error))
        finally:
            if waiting:
                batch.timer.cancel()
            # The callers that were answered run before this, since their turn was asked for earlier. What they ask
            # next is gathered, and makes one batch again.
            self._loop.call_soon(self._landed)

    async def _send(self, batch: _Batch) -> None:
        size = len(batch.futures)
        if self._batched is not None:
            self._batched(size)
        try:
            answer = await self._batches(b"".join(batch.questions), timeout=max(batch.deadlines) - monotonic())
        except Exception as error:
            failure = failure_of_error(error)
            if not is_halved(failure, size):
                _fail(batch, failure)
                return
            limit = size // 2
            if keeps_size(failure):
                self._limit = limit = max(1, min(self._limit, size) // 2)
            parts = [batch.part(range(start, min(start + limit, size))) for start in range(0, size, limit)]
            await asyncio.gather(*map(self._send, parts))
            return
        results = answer.results
        if len(results) != size:
            _fail(batch, UNEQUAL)
            return
        for future, verdict in zip(batch.futures, verdicts_of_results(results), strict=True):
            if not future.done():
                future.set_result(verdict)

    def _expire_at(self, batch: _Batch, deadlines: list[float]) -> None:
        batch.timer = self._loop.call_later(min(deadlines) - monotonic(), self._expire, batch)

    def _expire(self, batch: _Batch) -> None:
        now = monotonic()
        waiting = []
        for future, deadline in zip(batch.futures, batch.deadlines, strict=True):
            if future.done():
                continue
            if deadline <= now:
                future.set_result(Verdict(None, LATE))
            else:
                waiting.append(deadline)
        if waiting:
            self._expire_at(batch, waiting)


def _fail(batch: _Batch, failure: Failure) -> None:
    verdict = Verdict(None, failure)
    for future in batch.futures:
        if not future.done():
            future.set_result(verdict)


def is_cancelled() -> bool:
    """Whether the current task is asked to end. Python 3.10 does not tell, and then it is taken as not so."""
    task = asyncio.current_task()
    return task is not None and bool(getattr(task, "cancelling", int)())
