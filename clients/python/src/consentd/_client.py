"""The synchronous client."""

from __future__ import annotations

import os
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from time import monotonic
from types import TracebackType
from typing import Any

import grpc

from consentd._channel import Target, bearer_token
from consentd._coalescing import Coalescer
from consentd._common import (
    CHECK_SECONDS,
    CHUNKS_UNDER_WAY,
    FILTER_METHOD,
    FILTER_SECONDS,
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
from consentd._question import Form, TemplateLike, batched_question, question, seconds
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

_FORKED = Failure(
    "UNAVAILABLE",
    "the process was forked while calls of gRPC were under way, after which gRPC does not work in the child: fork "
    "before the first call, or start processes by spawn",
)


class _Connection:
    """The channel of a client, and what is made of it."""

    def __init__(self, target: Target, interceptors: Sequence[Any], observer: Observer | None) -> None:
        if target.credentials is None:
            self.channel = grpc.insecure_channel(target.name, options=target.options)
        else:
            self.channel = grpc.secure_channel(target.name, target.credentials, options=target.options)
        channel = grpc.intercept_channel(self.channel, *interceptors)
        self.checks = ConsentServiceStub(channel)
        self.records = RecordServiceStub(channel)
        self.filter = channel.unary_unary(
            FILTER_METHOD,
            request_serializer=FilterRecipientsRequest.SerializeToString,
            response_deserializer=FilterRecipientsResponse.FromString,
        )
        # gRPC raises a ValueError where the channel is closed, and interceptors may raise anything.
        self.errors: tuple[type[Exception], ...] = (Exception,) if interceptors else (grpc.RpcError, ValueError)
        batches = batch_call(channel, is_intercepted=bool(interceptors))
        self.coalescer = Coalescer(self.checks, batches, told_batched(observer) if observer else None, self.errors)
        # One element for each call that is under way beside those of the coalescer. To append and to remove one is
        # atomic.
        self.under_way: list[None] = []


class _UnderWay:
    """A call that is under way, which a fork would break."""

    __slots__ = ("_calls",)

    def __init__(self, connection: _Connection) -> None:
        self._calls = connection.under_way

    def __enter__(self) -> None:
        self._calls.append(None)

    def __exit__(self, *_: object) -> None:
        self._calls.pop()


class Client:
    """Asks a sidecar whether messages may be sent. The synchronous client; `AsyncClient` is the same for asyncio.

    A process makes one and keeps it: it is safe to use from any number of threads, whose concurrent checks become
    batches. It connects at the first call, and again by itself.

    After a fork the child connects anew. Where calls were under way in the parent at that moment, gRPC does not work in
    the child, and each check there is `unavailable`.
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
        """Makes a client, without connecting: see `ready`.

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
            interceptors: gRPC's client interceptors, the outermost first.

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
        self._mutex = threading.Lock()
        self._connection: _Connection | None = None
        self._closed = False
        self._chunk_size = ChunkSize()
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        _fork.add(self)

    def may_send(
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
        """
        begun = monotonic()
        allotted = self._timeout if timeout is None else seconds(timeout, CHECK_SECONDS)
        deadline = begun + allotted
        # A batch has its leader's deadline, which is not to be too near for the others.
        may_lead = allotted >= self._timeout
        pause = FIRST_PAUSE_SECONDS
        while True:
            verdict = None
            # What waits for a revision would delay the others of a batch.
            if self._coalesce and not min_revision:
                verdict = self._join(user, business, category, form, template, deadline, may_lead)
            if verdict is None:
                verdict = self._ask(question(user, business, category, form, template, min_revision), deadline)
            failure = verdict._failure
            if failure is None or not failure.lost or self._closed or monotonic() + pause >= deadline:
                break
            time.sleep(pause)
            pause *= 2
        if self._observer is not None:
            told_checked(self._observer, verdict, monotonic() - begun)
        return verdict

    def check(
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
        """
        verdict = self.may_send(user, business, category, form, template, min_revision, timeout=timeout)
        if verdict._failure is not None:
            raise ConsentdError(verdict._failure)
        return verdict

    def _join(
        self,
        user: str,
        business: str,
        category: str,
        form: Form | None,
        template: TemplateLike | None,
        deadline: float,
        may_lead: bool,
    ) -> Verdict | None:
        """Asks a question together with others. None: it is to be asked by itself."""
        try:
            question = batched_question(user, business, category, form, template)
            connection = self._connection or self._open()
        except Exception:
            # The question cannot be sent, or the client is closed. What asks it by itself says which.
            return None
        try:
            return connection.coalescer.join(question, deadline, may_lead=may_lead)
        except BaseException:
            self._give_up(connection)
            raise

    def _ask(self, request: CanSendRequest | Failure, deadline: float) -> Verdict:
        """Asks a question by itself."""
        if isinstance(request, Failure):
            return Verdict(None, request)
        try:
            connection = self._connection or self._open()
        except ConsentdError as error:
            return Verdict(None, error._failure)
        try:
            if self._coalesce and not request.min_revision:
                return connection.coalescer.ask_first(request, deadline)
            with _UnderWay(connection):
                return connection.coalescer.ask_alone(request, deadline)
        except BaseException:
            self._give_up(connection)
            raise

    def filter(
        self,
        users: Iterable[str],
        business: str,
        category: str,
        form: Form | None = None,
        template: TemplateLike | None = None,
    ) -> Iterator[tuple[str, Verdict]]:
        """Screens a campaign: gives each user with a verdict, in order.

        Screening is no check: ask `may_send` again before each send. Users are taken from the iterable as verdicts are
        taken, at most four chunks of 1,000 ahead. It never ends early: users about whom there is no answer within 5 s
        are `unavailable`, and malformed ids are `invalid`. Besides the reason a verdict has `staleness` and
        `category_used`.

        Args:
            users: Ids of users, as in `may_send`; any iterable.
            business: As in `may_send`.
            category: As in `may_send`.
            form: As in `may_send`.
            template: As in `may_send`.

        Raises:
            TypeError: `users` is a single id.
        """
        refuse_single_id(users)
        return self._filter(iter(users), business, category, form, template)

    def _filter(
        self, users: Iterator[str], business: str, category: str, form: Form | None, template: TemplateLike | None
    ) -> Iterator[tuple[str, Verdict]]:
        under_way: deque[tuple[Chunk, Any]] = deque()
        try:
            while True:
                while len(under_way) < CHUNKS_UNDER_WAY and (taken := list(islice(users, self._chunk_size.users))):
                    chunk = Chunk(taken, business, category, form, template)
                    under_way.append((chunk, self._begin_chunk(chunk, FILTER_SECONDS)))
                if not under_way:
                    return
                chunk, call = under_way.popleft()
                yield from self._end_chunk(chunk, call)
        finally:
            for _, call in under_way:
                if not isinstance(call, Failure):
                    call.cancel()

    def _begin_chunk(self, chunk: Chunk, timeout: float) -> Any:
        """The call of a chunk, or why there is none."""
        try:
            connection = self._connection or self._open()
            with _UnderWay(connection):
                call = connection.filter.future(chunk.request, timeout=timeout)
                connection.under_way.append(None)
                call.add_done_callback(lambda _: connection.under_way.pop())
            return call
        except ConsentdError as error:
            return error._failure
        except Exception as error:
            return failure_of_error(error)

    def _end_chunk(self, chunk: Chunk, call: Any) -> list[tuple[str, Verdict]]:
        screening = Screening(chunk, self._chunk_size)
        while (part := screening.part()) is not None:
            if call is None:
                call = self._begin_chunk(part, screening.remaining())
            failure, call = call, None
            if not isinstance(failure, Failure):
                try:
                    answer = failure.result()
                except Exception as error:
                    failure = failure_of_error(error)
                else:
                    screening.answered(answer)
                    continue
            pause = screening.failed(failure, is_last=self._closed)
            if pause:
                time.sleep(pause)
        return screening.verdicts

    def watch(self, business: str, on_change: Callable[[Change], object]) -> Watch:
        """Tells what to withdraw from a queue, until the watch or the client is closed.

        Args:
            business: The business to watch. Empty: all of them.
            on_change: Is given each `Change`, one after another, by a thread of the watch. The first is a `reset`, or
                `silent` where the watch does not begin within 10 s. Where it raises, the class of the exception is
                logged, and the watch begins again, with a `silent` and a `reset`: the change may not have been handled.

        A sidecar that refuses the watch (`UNIMPLEMENTED`, `PERMISSION_DENIED`, `UNAUTHENTICATED`, `INVALID_ARGUMENT`)
        ends it: that is told as `silent` with the code and the cause, logged as an error, and kept as `Watch.error`.

        Raises:
            ConsentdError: The client is closed, or `business` is no text that can be sent.
        """
        refuse_unsendable_business(business)
        self._connection or self._open()
        watch = Watch(self, business, on_change)
        self._watches.add(watch)
        watch._begin()
        return watch

    def record(
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
            connection = self._connection or self._open()
            try:
                with _UnderWay(connection):
                    response: RecordEventResponse = connection.records.RecordEvent(
                        request, timeout=remaining, metadata=metadata
                    )
                return response
            except connection.errors as error:
                failure = failure_of_error(error)
                if not may_repeat(failure) or self._closed or monotonic() + pause >= deadline:
                    raise ConsentdError(failure) from error
            except BaseException:
                self._give_up(connection)
                raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    def ready(self, timeout: float = 10.0) -> None:
        """Connects, and waits for a sidecar that answers checks.

        Args:
            timeout: How long to wait, in seconds.

        Raises:
            ConsentdError: There is none yet.
        """
        deadline = monotonic() + seconds(timeout, 10.0)
        while True:
            connection = self._connection or self._open()
            remaining = deadline - monotonic()
            try:
                with _UnderWay(connection):
                    status = connection.checks.GetStatus(GetStatusRequest(), timeout=max(remaining, 0))
                failure = Failure("UNAVAILABLE", "the sidecar loads its table")
                if status.phase != GetStatusResponse.PHASE_LOADING:
                    return
            except Exception as error:
                failure = failure_of_error(error)
                if not failure.lost:
                    raise ConsentdError(failure) from error
            if monotonic() + 0.02 >= deadline:
                raise ConsentdError(failure)
            time.sleep(0.02)

    def close(self) -> None:
        """Closes the connection and all watches. Calls that are under way end, and checks are `unavailable`."""
        with self._mutex:
            self._closed = True
            connection, self._connection = self._connection, None
        for watch in list(self._watches):
            watch.close()
        if connection is not None:
            connection.channel.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> _Connection:
        with self._mutex:
            if self._closed:
                raise ConsentdError(CLOSED)
            if _fork.is_broken:
                raise ConsentdError(_FORKED)
            if self._connection is None:
                self._connection = _Connection(self._target, self._interceptors, self._observer)
            return self._connection

    def _give_up(self, connection: _Connection) -> None:
        """Leaves a connection after an exception that a signal's handler raised, such as Control-C or a time limit.

        Raised within gRPC it may leave a lock of the channel held, for which all later calls would wait for ever. To
        close the channel would wait, too.
        """
        with self._mutex:
            if self._connection is connection:
                _fork.kept.append(connection)
                self._connection = None

    def _is_busy(self) -> bool:
        connection = self._connection
        return connection is not None and bool(
            connection.under_way or not connection.coalescer.is_idle() or len(self._watches)
        )

    def _forget_parent(self) -> None:
        """In the child of a fork: the threads of the parent are not here, and its connection is not shared."""
        if self._connection is not None:
            _fork.kept.append(self._connection)
        self._connection = None
        self._mutex = threading.Lock()
        self._watches = weakref.WeakSet()


class Watch:
    """A watch that goes on until it is closed. Made by `Client.watch`."""

    def __init__(self, client: Client, business: str, on_change: Callable[[Change], object]) -> None:
        self._client = client
        self._business = business
        self._on_change = on_change
        self._ended = threading.Event()
        self._call: Any = None
        self._state = WatchState(business)
        self._thread = threading.Thread(target=self._run, name="consentd-watch", daemon=True)

    @property
    def error(self) -> ConsentdError | None:
        """Why the watch ended, where the sidecar refuses it. None: it goes on, or was closed."""
        return self._state.error

    def close(self) -> None:
        """Ends the watch, and waits for a call of `on_change` that is under way, unless it is that which closes it."""
        self._ended.set()
        self._client._watches.discard(self)
        call = self._call
        if call is not None:
            call.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.is_set():
            failure = self._follow()
            if self._ended.is_set():
                return
            change = self._state.stream_ended(failure)
            if change is not None:
                self._tell(change)
            if self._state.error is not None:
                self._ended.set()
                self._client._watches.discard(self)
                return
            self._ended.wait(self._state.next_pause())

    def _follow(self) -> Failure:
        """Follows one stream to its end. Why it ended."""
        state = self._state
        state.begin_stream()
        messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        # A bound for what is read ahead. Whoever falls behind gets a reset by the sidecar.
        room = threading.Semaphore(1_000)
        try:
            connection = self._client._connection or self._client._open()
            call = self._call = connection.checks.WatchConsents(
                WatchConsentsRequest(business_id=self._business), wait_for_ready=True
            )
        except Exception as error:
            return failure_of_error(error)
        if self._ended.is_set():
            call.cancel()
        reader = threading.Thread(target=_read, args=(call, messages, room), name="consentd-watch-reader", daemon=True)
        reader.start()
        try:
            while True:
                try:
                    message = messages.get(timeout=state.remaining())
                except queue.Empty:
                    change = state.timed_out()
                    if change is not None:
                        self._tell(change)
                    continue
                if isinstance(message, BaseException):
                    return failure_of_error(message)
                if self._ended.is_set():
                    return CLOSED
                change = state.change(message)
                if change is not None and not self._tell(change):
                    return HANDLER_FAILED
                state.told(change)
                room.release()
        finally:
            call.cancel()
            room.release()
            reader.join()

    def _tell(self, change: Change) -> bool:
        try:
            self._on_change(change)
        except Exception as error:
            log_handler_failed(error)
            return False
        return True


def _read(call: Any, messages: queue.SimpleQueue[Any], room: threading.Semaphore) -> None:
    try:
        for message in call:
            messages.put(message)
            room.acquire()
        messages.put(EOFError("the stream ended"))
    except BaseException as error:
        messages.put(error)


class _Fork:
    """What a fork does to gRPC, which has threads and locks of its own."""

    def __init__(self) -> None:
        self.is_broken = False
        # Connections that are used no more, and must not be destroyed: those of the parent, whose calls gRPC would end,
        # and those that were given up.
        self.kept: list[_Connection] = []
        self._clients: weakref.WeakSet[Client] = weakref.WeakSet()
        self._mutex = threading.Lock()
        self._was_busy = False

    def add(self, client: Client) -> None:
        with self._mutex:
            self._clients.add(client)

    def before(self) -> None:
        self._mutex.acquire()
        self._was_busy = self.is_broken or any(client._is_busy() for client in self._clients)

    def in_parent(self) -> None:
        self._mutex.release()

    def in_child(self) -> None:
        self.is_broken = self._was_busy
        for client in self._clients:
            client._forget_parent()
        self._mutex.release()


_fork = _Fork()
os.register_at_fork(before=_fork.before, after_in_parent=_fork.in_parent, after_in_child=_fork.in_child)
