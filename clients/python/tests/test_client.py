"""What a client does beside asking: verdicts, observers, interceptors, forks, event loops, its end, its fake."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections import Counter
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import AMPLE_SECONDS, PATIENCE_SECONDS, FakeServer, eventually, eventually_async, run

import consentd
from consentd._verdict import LATE, Verdict, verdict_of_response, verdict_of_result
from consentd.testing import FakeAsyncClient, FakeClient, Sidecar
from consentd.v1.consent_service_pb2 import BatchCanSendResult, CanSendResponse

BUSINESS = "acme"


class TestVerdict:
    """What a verdict says."""

    @pytest.mark.parametrize("number", [1, 4, 9, 99, 1_000_000])
    def test_allowed_by_any_reason(self, number: int) -> None:
        verdict = verdict_of_response(CanSendResponse(allowed=True, reason=number))  # type: ignore[arg-type]
        assert verdict
        assert verdict.allowed is True
        assert not verdict.unavailable
        assert verdict.reason == {1: "OPTED_IN", 4: "ALLOWED_WHILE_STALE"}.get(number, str(number))

    def test_nothing_is_allowed_without_a_reason(self) -> None:
        for verdict in (
            verdict_of_response(CanSendResponse(allowed=True)),
            verdict_of_result(BatchCanSendResult(response=CanSendResponse(allowed=True))),
            verdict_of_result(BatchCanSendResult()),
        ):
            assert not verdict
            assert (verdict.allowed, verdict.unavailable, verdict.invalid, verdict.reason) == (False, True, False, "")
            assert verdict.code == "INTERNAL"

    def test_reason_denies_where_not_allowed(self) -> None:
        verdict = verdict_of_response(CanSendResponse(allowed=False, reason=1))  # type: ignore[arg-type]
        assert not verdict
        assert verdict.reason == "OPTED_IN"

    def test_fields_of_an_answer(self) -> None:
        now = datetime.now(timezone.utc).replace(microsecond=250_000)
        answer = CanSendResponse(
            allowed=True,
            reason=2,
            free_form_allowed=True,
            revision=2**63,
            category_used="marketing",  # type: ignore[arg-type]
        )
        answer.window_expire_time.FromDatetime(now)
        answer.staleness.FromTimedelta(timedelta(milliseconds=1_500))
        verdict = verdict_of_response(answer)
        assert (verdict.free_form_allowed, verdict.template_allowed) == (True, False)
        assert (verdict.window_expire_time, verdict.retry_time) == (now, None)
        assert (verdict.revision, verdict.category_used) == (2**63, "marketing")
        assert verdict.staleness == timedelta(milliseconds=1_500)
        assert (verdict.code, verdict.cause, verdict.field) == ("", "", "")

    def test_is_a_value(self) -> None:
        allowed = verdict_of_response(CanSendResponse(allowed=True, reason=1))  # type: ignore[arg-type]
        for verdict in (allowed, Verdict(None, LATE)):
            copy = pickle.loads(pickle.dumps(verdict))
            assert copy == verdict
            assert hash(copy) == hash(verdict)
            assert bool(copy) is bool(verdict)
            with pytest.raises(AttributeError):
                verdict.allowed = True  # type: ignore[misc]
        assert allowed != Verdict(None, LATE)
        assert repr(allowed) == "<Verdict allowed: OPTED_IN>"
        assert repr(Verdict(None, LATE)) == "<Verdict unavailable: DEADLINE_EXCEEDED: no answer in time>"
        error = pickle.loads(pickle.dumps(consentd.ConsentdError(LATE)))
        assert (error.code, str(error)) == ("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED: no answer in time")


class Observer:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.sizes: list[int] = []

    def checked(self, outcome: str, seconds: float) -> None:
        assert 0 <= seconds < PATIENCE_SECONDS
        self.outcomes[outcome] += 1
        raise RuntimeError("an observer that fails is none of the caller's business")

    def batched(self, size: int) -> None:
        self.sizes.append(size)
        raise RuntimeError("an observer that fails is none of the caller's business")


def test_observer_is_told_outcomes_and_sizes(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    of_tasks, of_threads = Observer(), Observer()

    async def ask() -> None:
        async with consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS, observer=of_tasks) as client:
            asked = ["yes"] * 20 + ["no"] * 10 + ["\ud800"]
            await asyncio.gather(*(client.may_send(user, BUSINESS, "marketing") for user in asked))

    run(ask())
    assert of_tasks.outcomes == {"allowed": 20, "NO_CONSENT": 10, "INVALID_ARGUMENT": 1}
    assert of_tasks.sizes == [29]
    with consentd.Client(server.address, timeout=AMPLE_SECONDS, observer=of_threads) as client:
        client.may_send("yes-secret-id", BUSINESS, "marketing")
        with pytest.raises(consentd.ConsentdError):
            client.check("\ud800", BUSINESS, "marketing")
    assert client.may_send("yes", BUSINESS, "marketing").code == "CANCELLED"
    assert of_threads.outcomes == {"allowed": 1, "INVALID_ARGUMENT": 1, "CANCELLED": 1}
    assert "secret" not in caplog.text


class Interceptor(grpc.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """Adds metadata, as tracing does, and counts calls."""

    def __init__(self) -> None:
        self.methods: list[str] = []

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        self.methods.append(details.method.split("/")[-1])
        return continuation(details, request)


class AsyncInterceptor(grpc.aio.UnaryUnaryClientInterceptor):  # type: ignore[misc]
    """The same of asyncio."""

    def __init__(self) -> None:
        self.methods: list[str] = []
        self.failure: Exception | None = None

    async def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        method = details.method
        self.methods.append((method if isinstance(method, str) else method.decode()).split("/")[-1])
        if self.failure:
            raise self.failure
        return await continuation(details, request)


def test_interceptors_are_passed_on(shared_sidecar: Sidecar) -> None:
    own = Interceptor()
    with consentd.Client(shared_sidecar.address, timeout=AMPLE_SECONDS, interceptors=[own]) as client:
        client.ready()
        assert client.may_send("user-1", BUSINESS, "marketing").reason == "NO_CONSENT"
        assert len(list(client.filter(["user-1"], BUSINESS, "marketing"))) == 1
        client.record(consentd.events.inbound_message("intercepted", BUSINESS))
    assert own.methods == ["GetStatus", "CanSend", "FilterRecipients", "RecordEvent"]

    of_tasks = AsyncInterceptor()

    async def ask() -> None:
        async with consentd.AsyncClient(
            shared_sidecar.address, timeout=AMPLE_SECONDS, interceptors=[of_tasks]
        ) as client:
            verdicts = await asyncio.gather(*(client.may_send("user-1", BUSINESS, "marketing") for _ in range(9)))
            assert {verdict.reason for verdict in verdicts} == {"NO_CONSENT"}
            # Whatever an interceptor raises, nothing is allowed, and nobody waits for ever.
            of_tasks.failure = RuntimeError("an interceptor that fails")
            verdicts = await asyncio.gather(*(client.may_send("user-1", BUSINESS, "marketing") for _ in range(9)))
            assert {(verdict.unavailable, verdict.code) for verdict in verdicts} == {(True, "UNKNOWN")}

    run(ask())
    assert of_tasks.methods == ["CanSend", "BatchCanSend"] * 2


class TestFork:
    """A client that a process has before it forks, as servers with workers do."""

    def test_made_or_used_before(self, shared_sidecar: Sidecar, tmp_path: Path) -> None:
        # In a process of its own: forks and gRPC do not go together where other tests have left threads of gRPC.
        program = tmp_path / "program.py"
        program.write_text(
            "import os, sys, consentd\n"
            "client = consentd.Client(sys.argv[1], timeout=30)\n"
            "def ask(): return client.may_send('user-1', 'acme', 'marketing').reason == 'NO_CONSENT'\n"
            "if sys.argv[2] == 'used': assert ask()\n"
            "child = os.fork()\n"
            "if child == 0: os._exit(0 if ask() and ask() else 1)\n"
            "assert os.waitpid(child, 0)[1] == 0, 'the child'\n"
            "assert ask(), 'the parent'\n"
        )
        for how in ("made", "used"):
            self.succeeds(program, shared_sidecar.address, how)

    def test_calls_under_way(self, server: FakeServer, tmp_path: Path) -> None:
        # gRPC does not work in such a child. It is told so, and does not hang.
        program = tmp_path / "program.py"
        program.write_text(
            "import os, sys, threading, time, consentd\n"
            "client = consentd.Client(sys.argv[1], timeout=30)\n"
            "thread = threading.Thread(target=client.may_send, args=('yes', 'acme', 'marketing'))\n"
            "thread.start()\n"
            "while not client._is_busy(): time.sleep(0.01)\n"
            "time.sleep(0.2)\n"
            "child = os.fork()\n"
            "if child == 0:\n"
            "    own = client.may_send('yes', 'acme', 'marketing')\n"
            "    new = consentd.Client(sys.argv[1]).may_send('yes', 'acme', 'marketing')\n"
            "    os._exit(0 if own.unavailable and new.unavailable and 'forked' in own.cause + new.cause else 1)\n"
            "assert os.waitpid(child, 0)[1] == 0, 'the child'\n"
            "os._exit(0)\n"
        )
        server.gate.clear()
        self.succeeds(program, server.address, "")

    @staticmethod
    def succeeds(program: Path, *arguments: str) -> None:
        ran = subprocess.run(
            [sys.executable, str(program), *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE_SECONDS,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr


class TimeLimitError(Exception):
    """As the soft time limit of Celery, which a signal's handler raises wherever the main thread is."""


class TestInterruption:
    """An exception that a signal's handler raises within a call."""

    @pytest.mark.parametrize("kind", [KeyboardInterrupt, TimeLimitError])
    @pytest.mark.parametrize("how", ["alone", "first", "record"])
    def test_is_the_callers_and_breaks_nothing(self, sidecar: Sidecar, kind: type[BaseException], how: str) -> None:
        with consentd.Client(sidecar.address, timeout=AMPLE_SECONDS, coalesce=how == "first") as client:
            client.ready()
            before = client._open()

            def interrupt(*_: object, **__: object) -> None:
                raise kind

            before.checks.CanSend = before.records.RecordEvent = interrupt
            with pytest.raises(kind):
                (
                    client.record(consentd.events.opt_out("user-1", BUSINESS))
                    if how == "record"
                    else client.may_send("user-1", BUSINESS, "marketing")
                )
            # gRPC may have been left in a state in which its calls never end.
            assert client._open() is not before
            assert client.may_send("user-1", BUSINESS, "marketing").reason == "NO_CONSENT"


class TestEventLoops:
    """A client of asyncio outside of the event loop that it was made for."""

    def test_one_after_another(self, shared_sidecar: Sidecar) -> None:
        client = consentd.AsyncClient(shared_sidecar.address, timeout=AMPLE_SECONDS)

        async def ask() -> str:
            asked = (client.may_send("user-1", BUSINESS, "marketing") for _ in range(5))
            return {verdict.reason for verdict in await asyncio.gather(*asked)}.pop()

        assert [run(ask()) for _ in range(3)] == ["NO_CONSENT"] * 3
        run(client.close())
        assert run(client.may_send("user-1", BUSINESS, "marketing")).code == "CANCELLED"

    def test_two_at_once_are_refused(self, shared_sidecar: Sidecar) -> None:
        async def first() -> None:
            async with consentd.AsyncClient(shared_sidecar.address, timeout=AMPLE_SECONDS) as client:
                await client.ready()

                def second() -> None:
                    with pytest.raises(RuntimeError, match="another event loop"):
                        asyncio.run(client.may_send("user-1", BUSINESS, "marketing"))

                await asyncio.to_thread(second)
                assert (await client.may_send("user-1", BUSINESS, "marketing")).reason == "NO_CONSENT"

        run(first())


class TestClose:
    """The end of a client."""

    def test_calls_under_way_of_threads(self, server: FakeServer) -> None:
        client = consentd.Client(server.address, timeout=AMPLE_SECONDS)
        assert client.may_send("yes", BUSINESS, "marketing")
        server.gate.clear()
        verdicts: list[consentd.Verdict] = []
        threads = [
            threading.Thread(target=lambda: verdicts.append(client.may_send("yes", BUSINESS, "marketing")))
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: sum(map(len, server.batches)) == 19, "calls")
        client.close()
        client.close()
        for thread in threads:
            thread.join(PATIENCE_SECONDS)
        assert [(one.allowed, one.unavailable) for one in verdicts] == [(False, True)] * 20
        verdict = client.may_send("yes", BUSINESS, "marketing")
        assert (verdict.unavailable, verdict.cause) == (True, "the client is closed")
        with pytest.raises(consentd.ConsentdError, match="closed"):
            client.record(consentd.events.opt_out("user-1", BUSINESS))
        with pytest.raises(consentd.ConsentdError, match="closed"):
            client.watch(BUSINESS, print)
        assert [one.unavailable for _, one in client.filter(["user-1"], BUSINESS, "marketing")] == [True]

    def test_calls_under_way_of_tasks(self, server: FakeServer) -> None:
        async def close() -> None:
            client = consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS)
            assert await client.may_send("yes", BUSINESS, "marketing")
            server.gate.clear()
            asked = [asyncio.create_task(client.may_send("yes", BUSINESS, "marketing")) for _ in range(20)]
            await eventually_async(lambda: server.batches, "the batch")
            asked.append(asyncio.create_task(client.may_send("yes", BUSINESS, "marketing")))
            await asyncio.sleep(0)
            await client.close()
            await client.close()
            verdicts = await asyncio.gather(*asked)
            assert [(one.allowed, one.unavailable) for one in verdicts] == [(False, True)] * 21
            assert (await client.may_send("yes", BUSINESS, "marketing")).cause == "the client is closed"
            with pytest.raises(consentd.ConsentdError, match="closed"):
                await client.record(consentd.events.opt_out("user-1", BUSINESS))
            screened = [one async for _, one in client.filter(["user-1"], BUSINESS, "marketing")]
            assert [one.unavailable for one in screened] == [True]

        run(close())

    @pytest.mark.parametrize("kind", ["threads", "asyncio"])
    def test_a_thousand_clients_leave_nothing(self, shared_sidecar: Sidecar, kind: str) -> None:
        def open_and_close(count: int) -> None:
            if kind == "threads":
                for _ in range(count):
                    with consentd.Client(shared_sidecar.address, timeout=AMPLE_SECONDS) as client:
                        assert client.may_send("user-1", BUSINESS, "marketing").reason == "NO_CONSENT"
            else:

                async def all_of_them() -> None:
                    for _ in range(count):
                        async with consentd.AsyncClient(shared_sidecar.address, timeout=AMPLE_SECONDS) as client:
                            assert (await client.may_send("user-1", BUSINESS, "marketing")).reason == "NO_CONSENT"

                run(all_of_them())

        def descriptors() -> int:
            return len(os.listdir("/proc/self/fd"))

        open_and_close(50)
        gc.collect()
        before, threads = descriptors(), threading.active_count()
        open_and_close(1_000)
        gc.collect()
        eventually(lambda: descriptors() <= before + 20, "connections to be closed")
        eventually(lambda: threading.active_count() <= threads + 2, "threads to end")


class TestFake:
    """The clients of tests."""

    def test_rules(self) -> None:
        client = FakeClient()
        client.allow(user="user-1", category="marketing")
        client.deny(user="user-2", reason="OPTED_OUT_ALL")
        client.fail(user="user-3")
        client.fail(user="user-4", code="INVALID_ARGUMENT", cause="user_id: malformed")
        assert client.may_send("user-1", BUSINESS, "marketing")
        assert client.may_send("user-1", BUSINESS, "utility").reason == "NO_CONSENT"
        assert client.may_send("user-2", BUSINESS, "marketing").reason == "OPTED_OUT_ALL"
        assert client.may_send("user-3", BUSINESS, "marketing").unavailable
        assert client.may_send("user-4", BUSINESS, "marketing").invalid
        assert client.may_send("", BUSINESS, "marketing").field == "user_id"
        with pytest.raises(consentd.ConsentdError):
            client.check("user-3", BUSINESS, "marketing")
        client.deny(user="user-1")
        assert not client.may_send("user-1", BUSINESS, "marketing")
        screened = client.filter(["user-2", "user-3"], BUSINESS, "marketing")
        assert [verdict.reason for _, verdict in screened] == ["OPTED_OUT_ALL", ""]
        assert client.asked[0] == ("user-1", BUSINESS, "marketing")
        for decide, reason in ((client.allow, "OPTED_OUT"), (client.deny, "OPTED_IN"), (client.deny, "NOTHING")):
            with pytest.raises(ValueError, match=reason):
                decide(reason=reason)
        with pytest.raises(ValueError, match="no gRPC code"):
            client.fail(code="OK")

    def test_records_and_watches(self) -> None:
        told: list[str] = []
        event = consentd.events.opt_out("user-1", BUSINESS)
        with FakeClient() as client:
            client.ready()
            assert client.record(event).applied
            assert client.recorded == [event]
            client.fail_records()
            with pytest.raises(consentd.ConsentdError):
                client.record(event)
            client.watch(BUSINESS, lambda change: told.append(change.kind))
            client.watches[0].tell(consentd.Change("changed", BUSINESS, "user-1"))
        client.watches[0].tell(consentd.Change("changed", BUSINESS, "user-1"))
        assert told == ["reset", "changed"]

    def test_of_asyncio(self) -> None:
        told: list[str] = []

        async def use() -> None:
            async with FakeAsyncClient() as client:
                client.allow(user="user-1")
                await client.ready()
                assert await client.may_send("user-1", BUSINESS, "marketing")
                assert (await client.check("user-2", BUSINESS, "marketing")).reason == "NO_CONSENT"
                screened = [bool(one) async for _, one in client.filter(["user-1", "user-2"], BUSINESS, "marketing")]
                assert screened == [True, False]
                await client.record(consentd.events.opt_out("user-1", BUSINESS))
                client.watch(BUSINESS, lambda change: told.append(change.kind))
                await client.watches[0].tell(consentd.Change("reset", BUSINESS))
            await client.watches[0].tell(consentd.Change("changed", BUSINESS, "user-1"))

        run(use())
        assert told == ["reset"]

    def test_missing_binary_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CONSENTD_BIN", "/nowhere/consentd")
        with pytest.raises(FileNotFoundError, match="CONSENTD_BIN"):
            Sidecar()

    def test_sidecar_that_does_not_start_says_why(self) -> None:
        with pytest.raises(RuntimeError, match="no-such-flag"), Sidecar("--no-such-flag"):
            pass


def test_events() -> None:
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    event = consentd.events.opt_in("user-1", BUSINESS, "marketing", method="WEBSITE", expire=at, at=at)
    assert event.opt_in.evidence.method == 2
    assert event.opt_in.expire_time.ToDatetime(tzinfo=timezone.utc) == at
    assert event.event_time.ToDatetime(tzinfo=timezone.utc) == at
    with pytest.raises(ValueError, match="time zone"):
        consentd.events.opt_out("user-1", BUSINESS, at=at.replace(tzinfo=None))
    with pytest.raises(ValueError, match="SEMAPHORE"):
        consentd.events.opt_in("user-1", BUSINESS, "marketing", method="SEMAPHORE")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "event",
    [
        consentd.events.opt_in("15550100001", BUSINESS, "marketing", method="WHATSAPP_SIGNUP", reference="form 7"),
        consentd.events.opt_out("15550100001", BUSINESS, "marketing", reference="said so"),
        consentd.events.inbound_message("15550100001", BUSINESS, text="hello", message_id="wamid.1"),
        consentd.events.platform_preference("15550100001", BUSINESS, marketing_stopped=True, phone_number_id="7"),
        consentd.events.delivery_failure("15550100001", BUSINESS, 131049),
        consentd.events.suppression("15550100001", BUSINESS, reference="asked for it"),
        consentd.events.link("15550100001", BUSINESS, "customer-1"),
        consentd.events.template_category(BUSINESS, "offer", "pt_BR", "marketing"),
        consentd.events.template_restriction(BUSINESS, restricted=True, reference="by mail"),
    ],
    ids=lambda event: event.WhichOneof("what"),
)
def test_events_are_taken_by_the_sidecar(shared_sidecar: Sidecar, event: Any) -> None:
    with consentd.Client(shared_sidecar.address) as client:
        assert client.record(event).revision > 0


def test_closing_ends_a_wait_of_another_task() -> None:
    async def check() -> None:
        # It accepts, and never answers.
        with socket.create_server(("127.0.0.1", 0)) as silent:
            client = consentd.AsyncClient(f"127.0.0.1:{silent.getsockname()[1]}")
            waiting = asyncio.create_task(client.ready(AMPLE_SECONDS))
            await asyncio.sleep(0.1)
            await client.close()
            with pytest.raises(consentd.ConsentdError, match="closed"):
                await waiting
            # One that is cancelled itself ends as such.
            client = consentd.AsyncClient(f"127.0.0.1:{silent.getsockname()[1]}")
            waiting = asyncio.create_task(client.ready(AMPLE_SECONDS))
            await asyncio.sleep(0.1)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await client.close()

    run(check())
