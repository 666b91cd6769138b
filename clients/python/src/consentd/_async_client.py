"""The client of asyncio."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from threading import get_ident
from time import monotonic
from types import TracebackType
from typing import Any

import grpc

from consentd._aio_coalescing import AsyncCoalescer, is_cancelled
from consentd._channel import Target, bearer_token
from consentd._common import (
    CHECK_SECONDS,
    CHUNKS_UNDER_WAY,
    FILTER_METHOD,
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    RECORD_SECONDS,
    Change,
    Chunk,
    ChunkSize,
    Observer,
    Screening,
    batch_call,
    may_repeat,
    record_request,
    refuse_single_id,
    refuse_unsendable_business,
    told_batched,
    told_checked,
)
from consentd._question import Form, TemplateLike, question, seconds
from consentd._verdict import CLOSED, LATE, ConsentdError, Failure, Verdict, failure_of_error
from consentd._watch import HANDLER_FAILED, WatchState, log_handler_failed
from consentd.v1.consent_pb2 import ConsentEvent
from consentd.v1.consent_service_pb2 import (
    CanSendRequest,
    FilterRecipientsRequest,
    FilterRecipientsResponse,
    GetStatusRequest,
    GetStatusResponse,
    WatchConsentsRequest,
)
from consentd.v1.consent_service_pb2_grpc import ConsentServiceStub
from consentd.v1.record_service_pb2 import RecordEventResponse
from consentd.v1.record_service_pb2_grpc import RecordServiceStub


class _Connection:
    """The channel of a client, and what is made of it. For use from one event loop."""

    def __init__(self, target: Target, interceptors: Sequence[Any], observer: Observer | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.thread = get_ident()
        if target.credentials is None:
            channel = grpc.aio.insecure_channel(target.name, options=target.options, interceptors=interceptors)
        else:
            channel = grpc.aio.secure_channel(
                target.name, target.credentials, options=target.options, interceptors=interceptors
            )
        self.channel = channel
        self.checks = ConsentServiceStub(channel)
        self.records = RecordServiceStub(channel)
        self.filter = channel.unary_unary(
            FILTER_METHOD,
            request_serializer=FilterRecipientsRequest.SerializeToString,
            response_deserializer=FilterRecipientsResponse.FromString,
        )
        batches = batch_call(channel, is_intercepted=bool(interceptors))
        self.coalescer = AsyncCoalescer(self.checks, batches, self.loop, told_batched(observer) if observer else None)
        channel.get_state(try_to_connect=True)


class AsyncClient:
    """Asks a sidecar whether messages may be sent. Of asyncio; `Client` is the same for threads.

    An event loop makes one and keeps it: concurrent checks of its tasks become batches. It connects by itself, at
    once where it is made within the event loop. Used in a second event loop, it connects anew, once the first loop is
    closed.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        timeout: float = CHECK_SECONDS,
        coalesce: bool = True,
        token_file: str | os.PathLike[str] | None = None,
        tls: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        cert_file: str | os.PathLike[str] | None = None,
        key_file: str | os.PathLike[str] | None = None,
        observer: Observer | None = None,
        interceptors: Sequence[Any] = (),
    ) -> None:
        """Makes a client: see `ready`.

        Args:
            address: `HOST:PORT`, `unix:PATH` or `unix:@NAME`, an abstract socket. Default: the environment variable
                `CONSENTD_ADDR`, and without it `127.0.0.1:50051`.
            timeout: The deadline of a check in seconds, an hour at most.
            coalesce: Whether concurrent checks become batches.
            token_file: A file with the bearer token that recording needs where the sidecar has
                `--record-token-file`. It is read at each `record`.
            tls: Connect by TLS, and trust the system's CA certificates. Not over Unix sockets, which never have it.
            ca_file: Connect by TLS, and trust these CA certificates instead, in PEM form.
            cert_file: The certificate of this client in PEM form, with those between it and its CA.
            key_file: The key of that certificate.
            observer: Is told what checks come to.
            interceptors: The client interceptors of `grpc.aio`, the outermost first.

        Raises:
            ValueError: The address is malformed, or one of `cert_file` and `key_file` is missing.
            OSError: A file of TLS cannot be read.
        """
        self._target = Target.of(address, tls=tls, ca_file=ca_file, cert_file=cert_file, key_file=key_file)
        self._timeout = seconds(timeout, CHECK_SECONDS)
        self._coalesce = coalesce
        self._token_file = token_file
        self._observer = observer
        self._interceptors = tuple(interceptors)
        self._connection: _Connection | None = None
        self._closed = False
        self._chunk_size = ChunkSize()
        self._watches: set[AsyncWatch] = set()
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return
        self._open()

    async def may_send(
        self,
        user: str,
        business: str,
        category: str,
        form: Form | None = None,
        template: TemplateLike | None = None,
        min_revision: int = 0,
        *,
        timeout: float | None = None,
    ) -> Verdict:
        """Whether a message may be sent now. To be called right before each send.

        Never raises for a denial or because there is no answer: the verdict is false then, and says why.

        Args:
            user: A phone number in any usual notation, country code first, a business-scoped user id, or an id of your
                own with a letter in it; 160 bytes at most.
            business: The business that would send, by the deployment's own id; 128 bytes at most.
            category: `CLASS` or `CLASS.TOPIC`; the class is marketing, utility, authentication or service.
            form: How the message is written. None: not decided yet, and the verdict says which forms are allowed.
            template: The template that the message will be, as `(name, language)`. It stands for the form `TEMPLATE`.
            min_revision: Wait, up to the deadline, until the sidecar knows of this revision, as `record` returned it.
            timeout: The deadline of this check in seconds, instead of the client's.

        Raises:
            RuntimeError: The client is in use by another event loop.
        """
        begun = monotonic()
        deadline = begun + (self._timeout if timeout is None else seconds(timeout, CHECK_SECONDS))
        pause = FIRST_PAUSE_SECONDS
        while True:
            future = None
            # What waits for a revision would delay the others of a batch.
            if self._coalesce and not min_revision:
                try:
                    # What `_open` begins with, without the time that a call of it takes.
                    connection = self._connection
                    if connection is None or connection.thread != get_ident() or not connection.loop.is_running():
                        connection = self._open()
                    future = connection.coalescer.join(user, business, category, form, template, deadline)
                except RuntimeError:
                    raise
                except Exception:
                    # The client is closed, or the question cannot be sent: what asks it by itself says which.
                    future = None
            if future is not None:
                verdict = await future
            else:
                verdict = await self._ask(question(user, business, category, form, template, min_revision), deadline)
            failure = verdict._failure
            if failure is None or not failure.lost or self._closed or monotonic() + pause >= deadline:
                break
            await asyncio.sleep(pause)
            pause *= 2
        if self._observer is not None:
            told_checked(self._observer, verdict, monotonic() - begun)
        return verdict

    async def check(
        self,
        user: str,
        business: str,
        category: str,
        form: Form | None = None,
        template: TemplateLike | None = None,
        min_revision: int = 0,
        *,
        timeout: float | None = None,
    ) -> Verdict:
        """The same as `may_send`, but raises where nothing was decided.

        Raises:
            ConsentdError: There is no answer, or the question is malformed.
            RuntimeError: The client is in use by another event loop.
        """
        verdict = await self.may_send(user, business, category, form, template, min_revision, timeout=timeout)
        if verdict._failure is not None:
            raise ConsentdError(verdict._failure)
        return verdict

    async def _ask(self, request: CanSendRequest | Failure, deadline: float) -> Verdict:
        """Asks a question by itself."""
        if isinstance(request, Failure):
            return Verdict(None, request)
        try:
            coalescer = self._open().coalescer
        except ConsentdError as error:
            return Verdict(None, error._failure)
        if self._coalesce and not request.min_revision:
            return await coalescer.ask_first(request, deadline)
        return await coalescer.ask_alone(request, deadline)

    async def filter(
        self,
        users: Iterable[str] | AsyncIterable[str],
        business: str,
        category: str,
        form: Form | None = None,
        template: TemplateLike | None = None,
    ) -> AsyncIterator[tuple[str, Verdict]]:
        """Screens a campaign: gives each user with a verdict, in order.

        Screening is no check: ask `may_send` again before each send. Users are taken from the iterable as verdicts are
        taken, at most four chunks of 1,000 ahead. It never ends early: users about whom there is no answer within 5 s
        are `unavailable`, and malformed ids are `invalid`. Besides the reason a verdict has `staleness` and
        `category_used`.

        Args:
            users: Ids of users, as in `may_send`; any iterable, asynchronous or not.
            business: As in `may_send`.
            category: As in `may_send`.
            form: As in `may_send`.
            template: As in `may_send`.

        Raises:
            TypeError: `users` is a single id.
            RuntimeError: The client is in use by another event loop.
        """
        refuse_single_id(users)
        chunks = _chunks(users, self._chunk_size)
        under_way: deque[asyncio.Task[list[tuple[str, Verdict]]]] = deque()
        try:
            while True:
                while len(under_way) < CHUNKS_UNDER_WAY and (taken := await anext(chunks, None)):
                    chunk = Chunk(taken, business, category, form, template)
                    under_way.append(asyncio.create_task(self._screen(chunk)))
                if not under_way:
                    return
                for screened in await under_way.popleft():
                    yield screened
        finally:
            for task in under_way:
                task.cancel()

    async def _screen(self, chunk: Chunk) -> list[tuple[str, Verdict]]:
        screening = Screening(chunk, self._chunk_size)
        while (part := screening.part()) is not None:
            try:
                answer = await self._open().filter(part.request, timeout=screening.remaining())
            except ConsentdError as error:
                failure = error._failure
            except asyncio.CancelledError:
                if not self._closed or is_cancelled():
                    raise
                failure = CLOSED
            except Exception as error:
                failure = failure_of_error(error)
            else:
                screening.answered(answer)
                continue
            await asyncio.sleep(screening.failed(failure, is_last=self._closed))
        return screening.verdicts

    def watch(self, business: str, on_change: Callable[[Change], object]) -> AsyncWatch:
        """Tells what to withdraw from a queue, until the watch or the client is closed.

        Args:
            business: The business to watch. Empty: all of them.
            on_change: A function, or an async one, that is given each `Change`, one after another, in the event loop.
                The first is a `reset`, or `silent` where the watch does not begin within 10 s. Where it raises, the
                class of the exception is logged, and the watch begins again, with a `silent` and a `reset`: the change
                may not have been handled.

        A sidecar that refuses the watch (`UNIMPLEMENTED`, `PERMISSION_DENIED`, `UNAUTHENTICATED`, `INVALID_ARGUMENT`)
        ends it: that is told as `silent` with the code and the cause, logged as an error, and kept as
        `AsyncWatch.error`.

        Raises:
            ConsentdError: The client is closed, or `business` is no text that can be sent.
            RuntimeError: There is no running event loop, or the client is in use by another one.
        """
        refuse_unsendable_business(business)
        self._open()
        watch = AsyncWatch(self, business, on_change)
        self._watches.add(watch)
        watch._task.add_done_callback(lambda _: self._watches.discard(watch))
        return watch

    async def record(
        self, event: ConsentEvent, *, request_id: str | None = None, timeout: float = RECORD_SECONDS
    ) -> RecordEventResponse:
        """Records one event, and returns once it is durable and enforced by this sidecar.

        Args:
            event: What happened: `consentd.events` makes them.
            request_id: Makes a repetition safe: the same id for the same event, 8 of which are remembered of each user.
                Default: a random UUID, which covers the repetitions that are made here while there is no sidecar.
            timeout: Until when the event is repeated, in seconds.

        Returns:
            What the ledger made of it. Its `revision` is a `min_revision` for checks of another sidecar.

        Raises:
            ConsentdError: The event is not known to be recorded. Record it again with the same `request_id`, unless
                the error is `invalid`. Also where the token file cannot be read or holds no token: the code is
                `UNAUTHENTICATED` then.
            RuntimeError: The client is in use by another event loop.
        """
        deadline = monotonic() + seconds(timeout, RECORD_SECONDS)
        request = record_request(event, request_id)
        pause = FIRST_PAUSE_SECONDS
        while True:
            remaining = deadline - monotonic()
            if remaining <= 0:
                raise ConsentdError(LATE)
            metadata = None
            if self._token_file is not None:
                metadata = (("authorization", f"Bearer {bearer_token(self._token_file)}"),)
            connection = self._open()
            try:
                response: RecordEventResponse = await connection.records.RecordEvent(
                    request, timeout=remaining, metadata=metadata
                )
                return response
            except asyncio.CancelledError as error:
                if not self._closed or is_cancelled():
                    raise
                raise ConsentdError(CLOSED) from error
            except Exception as error:
                failure = failure_of_error(error)
                if not may_repeat(failure) or self._closed or monotonic() + pause >= deadline:
                    raise ConsentdError(failure) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    async def ready(self, timeout: float = 10.0) -> None:
        """Connects, and waits for a sidecar that answers checks.

        Args:
            timeout: How long to wait, in seconds.

        Raises:
            ConsentdError: There is none yet.
            RuntimeError: The client is in use by another event loop.
        """
        deadline = monotonic() + seconds(timeout, 10.0)
        while True:
            connection = self._open()
            remaining = max(deadline - monotonic(), 0)
            try:
                status = await connection.checks.GetStatus(GetStatusRequest(), timeout=remaining)
                failure = Failure("UNAVAILABLE", "the sidecar loads its table")
                if status.phase != GetStatusResponse.PHASE_LOADING:
                    return
            except asyncio.CancelledError:
                # To close the channel cancels its calls.
                if not self._closed or is_cancelled():
                    raise
                raise ConsentdError(CLOSED) from None
            except Exception as error:
                failure = failure_of_error(error)
                if not failure.lost:
                    raise ConsentdError(failure) from error
            if monotonic() + 0.02 >= deadline:
                raise ConsentdError(failure)
            await asyncio.sleep(0.02)

    async def close(self) -> None:
        """Closes the connection and all watches. Calls that are under way end, and checks are `unavailable`."""
        self._closed = True
        connection, self._connection = self._connection, None
        for watch in list(self._watches):
            await watch.close()
        if connection is not None and not connection.loop.is_closed():
            connection.coalescer.close()
            await connection.channel.close()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def _open(self) -> _Connection:
        connection = self._connection
        # The same as to compare get_running_loop(), which asks the kernel for the process and takes a microsecond.
        if connection is not None and connection.thread == get_ident() and connection.loop.is_running():
            return connection
        if self._closed:
            raise ConsentdError(CLOSED)
        if connection is not None and not connection.loop.is_closed():
            raise RuntimeError("this client is in use by another event loop, and each loop needs a client of its own")
        self._connection = connection = _Connection(self._target, self._interceptors, self._observer)
        return connection


class AsyncWatch:
    """A watch that goes on until it is closed. Made by `AsyncClient.watch`."""

    def __init__(self, client: AsyncClient, business: str, on_change: Callable[[Change], object]) -> None:
        self._client = client
        self._business = business
        self._on_change = on_change
        self._state = WatchState(business)
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def error(self) -> ConsentdError | None:
        """Why the watch ended, where the sidecar refuses it. None: it goes on, or was closed."""
        return self._state.error

    async def close(self) -> None:
        """Ends the watch. A call of `on_change` that is under way is cancelled, unless it is that which closes it."""
        self._task.cancel()
        if asyncio.current_task() is not self._task:
            await asyncio.wait([self._task])

    async def __aenter__(self) -> AsyncWatch:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self) -> None:
        while True:
            change = self._state.stream_ended(await self._follow())
            if change is not None:
                await self._tell(change)
            if self._state.error is not None:
                return
            await asyncio.sleep(self._state.next_pause())

    async def _follow(self) -> Failure:
        """Follows one stream to its end. Why it ended."""
        state = self._state
        state.begin_stream()
        call = None
        reading: asyncio.Future[Any] | None = None
        try:
            call = self._client._open().checks.WatchConsents(
                WatchConsentsRequest(business_id=self._business), wait_for_ready=True
            )
            while True:
                if reading is None:
                    reading = asyncio.ensure_future(call.read())
                await asyncio.wait([reading], timeout=state.remaining())
                if not reading.done():
                    change = state.timed_out()
                    if change is not None:
                        await self._tell(change)
                    continue
                message = reading.result()
                reading = None
                if message is grpc.aio.EOF:
                    return Failure("UNAVAILABLE", "the stream ended")
                change = state.change(message)
                if change is not None and not await self._tell(change):
                    return HANDLER_FAILED
                state.told(change)
        except ConsentdError as error:
            return error._failure
        except Exception as error:
            return failure_of_error(error)
        finally:
            if reading is not None:
                reading.cancel()
            if call is not None:
                call.cancel()

    async def _tell(self, change: Change) -> bool:
        try:
            answer = self._on_change(change)
            if inspect.isawaitable(answer):
                await answer
        except Exception as error:
            log_handler_failed(error)
            return False
        return True


async def _chunks(users: Iterable[str] | AsyncIterable[str], size: ChunkSize) -> AsyncIterator[list[str]]:
    chunk: list[str] = []
    if isinstance(users, AsyncIterable):
        async for user in users:
            chunk.append(user)
            if len(chunk) >= size.users:
                yield chunk
                chunk = []
    else:
        for user in users:
            chunk.append(user)
            if len(chunk) >= size.users:
                yield chunk
                chunk = []
    if chunk:
        yield chunk
