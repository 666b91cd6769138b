"""What happens to a sidecar, to its connection and to a client, with the real sidecar."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from conftest import AMPLE_SECONDS, PATIENCE_SECONDS, FakeServer, eventually, eventually_async, run

import consentd
from consentd.testing import Sidecar
from consentd.v1.consent_pb2 import ConsentEvent
from consentd.v1.consent_service_pb2 import WatchConsentsResponse
from consentd.v1.record_service_pb2 import ListEventsRequest

BUSINESS = "acme"


def opt_in(user: str) -> ConsentEvent:
    return consentd.events.opt_in(
        user,
        BUSINESS,
        "marketing",
        method="WEBSITE",
        statement="Yes, send me offers from Acme on WhatsApp",
        business_name="Acme",
        locale="en",
    )


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def is_listening(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


class Load:
    """Checks by threads or by tasks, until it ends: their verdicts by what they came to."""

    def __init__(self, address: str, kind: str, callers: int = 32, timeout: float = AMPLE_SECONDS) -> None:
        self.outcomes: Counter[str] = Counter()
        self._address = address
        self._kind = kind
        self._callers = callers
        self._timeout = timeout
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []

    def _count(self, verdict: consentd.Verdict) -> None:
        self.outcomes["allowed" if verdict else verdict.reason or f"{verdict.code}: {verdict.cause}"] += 1

    def __enter__(self) -> Load:
        if self._kind == "threads":
            self._client = consentd.Client(self._address, timeout=self._timeout)
            self._threads = [threading.Thread(target=self._call) for _ in range(self._callers)]
        else:
            self._threads = [threading.Thread(target=lambda: run(self._run()))]
        for thread in self._threads:
            thread.start()
        return self

    def _call(self) -> None:
        number = random.randrange(1000)
        while not self._is_over.is_set():
            number = (number + 1) % 1000
            self._count(self._client.may_send(f"1555010{number:04}", BUSINESS, "marketing"))

    async def _run(self) -> None:
        async with consentd.AsyncClient(self._address, timeout=self._timeout) as client:

            async def call() -> None:
                number = random.randrange(1000)
                while not self._is_over.is_set():
                    number = (number + 1) % 1000
                    self._count(await client.may_send(f"1555010{number:04}", BUSINESS, "marketing"))

            await asyncio.gather(*(call() for _ in range(self._callers)))

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        if self._kind == "threads":
            self._client.close()

    def has_done(self, more: int) -> Callable[[], bool]:
        """Whether that many more checks were answered than now."""
        target = self.outcomes.total() + more
        return lambda: self.outcomes.total() >= target


both = pytest.mark.parametrize("kind", ["threads", "asyncio"])


@both
def test_sidecar_absent(kind: str) -> None:
    addresses = [f"127.0.0.1:{free_port()}", "unix:/nowhere/consentd.sock", f"unix:@nobody-{os.getpid()}"]
    for address in addresses:
        begun = time.monotonic()
        if kind == "threads":
            with consentd.Client(address, timeout=0.2) as client:
                verdict = client.may_send("15550100001", BUSINESS, "marketing")
                with pytest.raises(consentd.ConsentdError) as raised:
                    client.check("15550100001", BUSINESS, "marketing")
        else:

            async def ask(address: str = address) -> tuple[consentd.Verdict, Any]:
                async with consentd.AsyncClient(address, timeout=0.2) as client:
                    verdict = await client.may_send("15550100001", BUSINESS, "marketing")
                    with pytest.raises(consentd.ConsentdError) as raised:
                        await client.check("15550100001", BUSINESS, "marketing")
                    return verdict, raised

            verdict, raised = run(ask())
        assert not verdict
        assert (verdict.unavailable, verdict.invalid, verdict.reason) == (True, False, "")
        assert verdict.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        assert verdict.cause
        assert raised.value.unavailable
        assert time.monotonic() - begun < PATIENCE_SECONDS


@both
@pytest.mark.parametrize("seconds", [0, -1, float("nan"), 1e-9])
def test_deadline_that_has_passed(shared_sidecar: Sidecar, kind: str, seconds: float) -> None:
    if kind == "threads":
        with consentd.Client(shared_sidecar.address) as client:
            verdict = client.may_send("15550100001", BUSINESS, "marketing", timeout=seconds)
    else:

        async def ask() -> consentd.Verdict:
            async with consentd.AsyncClient(shared_sidecar.address) as client:
                return await client.may_send("15550100001", BUSINESS, "marketing", timeout=seconds)

        verdict = run(ask())
    assert (verdict.allowed, verdict.unavailable, verdict.code) == (False, True, "DEADLINE_EXCEEDED")


@both
def test_revision_that_does_not_come(shared_sidecar: Sidecar, kind: str) -> None:
    def asked() -> consentd.Verdict:
        if kind == "threads":
            with consentd.Client(shared_sidecar.address, timeout=1) as client:
                return client.may_send("15550100001", BUSINESS, "marketing", min_revision=2**60)

        async def ask() -> consentd.Verdict:
            async with consentd.AsyncClient(shared_sidecar.address, timeout=1) as client:
                return await client.may_send("15550100001", BUSINESS, "marketing", min_revision=2**60)

        verdict: consentd.Verdict = run(ask())
        return verdict

    assert asked().code == "DEADLINE_EXCEEDED"


@both
def test_silent_server(kind: str) -> None:
    # The kernel accepts connections, and nobody reads from them.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        if kind == "threads":
            with consentd.Client(address) as client, ThreadPoolExecutor(20) as pool:
                begun = time.monotonic()
                asked = [pool.submit(client.may_send, f"user-{i}", BUSINESS, "marketing") for i in range(20)]
                verdicts = [one.result() for one in asked]
        else:

            async def ask() -> list[consentd.Verdict]:
                async with consentd.AsyncClient(address) as client:
                    asked = (client.may_send(f"user-{i}", BUSINESS, "marketing") for i in range(20))
                    return await asyncio.gather(*asked)

            begun = time.monotonic()
            verdicts = run(ask())
        assert time.monotonic() - begun < PATIENCE_SECONDS
    assert {(one.allowed, one.code) for one in verdicts} == {(False, "DEADLINE_EXCEEDED")}


@both
def test_sidecar_killed_in_mid_batch(sidecar: Sidecar, kind: str) -> None:
    with consentd.Client(sidecar.address) as client:
        client.record(opt_in("15550100007"))
    with Load(sidecar.address, kind, timeout=0.05) as load:
        eventually(load.has_done(500), "checks")
        # It is stopped, so that calls are under way when it is killed.
        sidecar.pause()
        time.sleep(0.02)
        sidecar.kill()
        eventually(lambda: any("UNAVAILABLE" in outcome for outcome in load.outcomes), "checks without a sidecar")
        before = load.outcomes["allowed"], load.outcomes["NO_CONSENT"]
        eventually(load.has_done(100), "more checks without a sidecar")
        # A verdict that was on its way may still have been counted.
        assert load.outcomes["NO_CONSENT"] - before[1] <= 32
        sidecar.start()
        before = load.outcomes["allowed"], load.outcomes["NO_CONSENT"]
        eventually(lambda: load.outcomes["NO_CONSENT"] > before[1] + 100, "answers after the restart")
        eventually(lambda: load.outcomes["allowed"] > before[0], "the opt-in after the restart")


@both
def test_short_absence_is_waited_for(sidecar: Sidecar, kind: str) -> None:
    with Load(sidecar.address, kind) as load:
        for _ in range(2):
            eventually(load.has_done(500), "checks")
            sidecar.kill()
            sidecar.start(wait=False)
        eventually(load.has_done(500), "checks")
    # What was asked while it loaded was answered so, and is not asked again. No connection that was lost is told.
    assert {outcome for outcome in load.outcomes if not outcome.startswith("UNAVAILABLE: ")} == {"NO_CONSENT"}
    assert not [outcome for outcome in load.outcomes if "ocket" in outcome or "onnect" in outcome]


@both
def test_drain_under_load_loses_no_call(kind: str) -> None:
    with Sidecar("--drain-timeout", "5s") as sidecar, Load(sidecar.address, kind) as load:
        eventually(load.has_done(500), "checks")
        sidecar.drain()
        sidecar.start()
        eventually(load.has_done(500), "checks of the next sidecar")
    # The next sidecar may be asked while it loads its table, and says so, which is an answer.
    assert {outcome for outcome in load.outcomes if "has not been loaded yet" not in outcome} == {"NO_CONSENT"}


@both
def test_connections_of_an_age_lose_no_call(kind: str) -> None:
    with Sidecar("--max-connection-age", "1s") as sidecar, Load(sidecar.address, kind) as load:
        time.sleep(4)
        eventually(load.has_done(500), "checks")
    assert set(load.outcomes) == {"NO_CONSENT"}


@both
def test_smaller_batches_of_the_real_sidecar(kind: str) -> None:
    with Sidecar("--max-batch", "100") as sidecar:
        if kind == "asyncio":

            async def ask() -> list[consentd.Verdict]:
                async with consentd.AsyncClient(sidecar.address, timeout=AMPLE_SECONDS) as client:
                    asked = (client.may_send(f"user-{i}", BUSINESS, "marketing") for i in range(3_000))
                    return await asyncio.gather(*asked)

            verdicts = run(ask())
        else:
            with consentd.Client(sidecar.address, timeout=AMPLE_SECONDS) as client:
                verdicts = in_threads(client, 300, 3_000)
    assert Counter(one.reason for one in verdicts) == {"NO_CONSENT": 3_000}


def in_threads(client: consentd.Client, threads: int, checks: int) -> list[consentd.Verdict]:
    verdicts: list[consentd.Verdict] = []

    def call(first: int) -> None:
        for number in range(first, checks, threads):
            verdicts.append(client.may_send(f"user-{number}", BUSINESS, "marketing"))

    began = [threading.Thread(target=call, args=(i,)) for i in range(threads)]
    for thread in began:
        thread.start()
    for thread in began:
        thread.join()
    return verdicts


@pytest.mark.parametrize("coalesce", [True, False], ids=["coalesced", "alone"])
def test_ten_thousand_concurrent_calls(shared_sidecar: Sidecar, coalesce: bool) -> None:
    async def ask() -> list[consentd.Verdict]:
        async with consentd.AsyncClient(shared_sidecar.address, timeout=120, coalesce=coalesce) as client:
            return await asyncio.gather(*(client.may_send(f"user-{i}", BUSINESS, "marketing") for i in range(10_000)))

    verdicts = run(ask())
    # Without coalescing the sidecar may have too much at once, and says so.
    outcomes = Counter(one.reason or one.code for one in verdicts)
    assert outcomes.total() == 10_000
    assert set(outcomes) <= ({"NO_CONSENT"} if coalesce else {"NO_CONSENT", "RESOURCE_EXHAUSTED"})


def test_ten_thousand_calls_of_a_thousand_threads(shared_sidecar: Sidecar) -> None:
    with consentd.Client(shared_sidecar.address, timeout=120) as client:
        verdicts = in_threads(client, 1_000, 10_000)
    assert Counter(one.reason or one.code for one in verdicts) == {"NO_CONSENT": 10_000}


def test_stale_table(tmp_path: Path) -> None:
    port = free_port()
    redis = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: is_listening(port), "Redis")
        ledger = ("--ledger", f"redis://127.0.0.1:{port}/0")
        binary = os.environ.get("CONSENTD_BIN") or "consentd"
        subprocess.run([binary, "init", *ledger], check=True, capture_output=True)
        record = f"unix:{tmp_path / 'record.sock'}"
        with (
            Sidecar(*ledger, "--max-staleness", "1s", "--record", record) as sidecar,
            consentd.Client(sidecar.address, timeout=AMPLE_SECONDS) as client,
            consentd.Client(record) as recorder,
        ):
            revision = recorder.record(opt_in("15550100001")).revision
            # Where the sidecar does not come to read the ledger for a second, it says STALE meanwhile.
            eventually(
                lambda: client.may_send("15550100001", BUSINESS, "marketing", min_revision=revision).reason
                == "OPTED_IN",
                "the opt-in",
            )
            redis.kill()
            redis.wait()
            reasons = Counter[str]()

            def stale() -> bool:
                verdict = client.may_send("15550100001", BUSINESS, "marketing")
                reasons[verdict.reason] += 1
                return verdict.reason == "STALE" and not verdict.allowed and not verdict.unavailable

            eventually(stale, "a denial as STALE")
            assert set(reasons) <= {"OPTED_IN", "STALE"}
            screened = list(client.filter(["15550100001"], BUSINESS, "marketing"))
            assert [verdict.reason for _, verdict in screened] == ["STALE"]
    finally:
        redis.kill()
        redis.wait()


class TestFilter:
    """Screening of a campaign."""

    COUNT = 100_000

    def users(self) -> Iterator[str]:
        return (f"user-{i}" for i in range(self.COUNT))

    def test_large_campaign_in_bounded_memory(self, shared_sidecar: Sidecar) -> None:
        with consentd.Client(shared_sidecar.address) as client:
            client.record(opt_in("user-70000"))
            list(client.filter(["user-1"] * 5_000, BUSINESS, "marketing"))
            tracemalloc.start()
            try:
                allowed = []
                for number, (user, verdict) in enumerate(client.filter(self.users(), BUSINESS, "marketing")):
                    assert user == f"user-{number}"
                    if verdict:
                        allowed.append(user)
                    else:
                        assert verdict.reason == "NO_CONSENT"
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
        assert number == self.COUNT - 1
        assert allowed == ["user-70000"]
        # Four chunks of users take less than one megabyte; all users would take ten.
        assert peak < 4 * 2**20

    def test_large_campaign_of_asyncio(self, shared_sidecar: Sidecar) -> None:
        taken = 0

        async def source() -> AsyncIterator[str]:
            nonlocal taken
            for user in self.users():
                taken += 1
                yield user

        async def screen() -> None:
            async with consentd.AsyncClient(shared_sidecar.address) as client:
                given = 0
                async for user, verdict in client.filter(source(), BUSINESS, "marketing"):
                    assert user == f"user-{given}"
                    assert not verdict.unavailable
                    given += 1
                    assert taken - given <= 4_000
                assert given == self.COUNT
                assert [user async for user, _ in client.filter(["a", "b"], BUSINESS, "marketing")] == ["a", "b"]

        run(screen())

    @both
    def test_restart_in_its_middle(self, sidecar: Sidecar, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        # On a busy machine a sidecar may take longer to start than users wait for an answer.
        for module in ("consentd._common", "consentd._client"):
            monkeypatch.setattr(f"{module}.FILTER_SECONDS", AMPLE_SECONDS)
        reasons: Counter[str] = Counter()
        number = 0

        def count(user: str, verdict: consentd.Verdict) -> None:
            nonlocal number
            assert user == f"user-{number}"
            number += 1
            reasons[verdict.reason or verdict.code] += 1
            if number == self.COUNT // 3:
                sidecar.kill()
                # Also what was under way is lost by then.
                threading.Timer(0.2, sidecar.start).start()

        if kind == "threads":
            with consentd.Client(sidecar.address) as client:
                for user, verdict in client.filter(self.users(), BUSINESS, "marketing"):
                    count(user, verdict)
        else:

            async def screen() -> None:
                async with consentd.AsyncClient(sidecar.address) as client:
                    async for user, verdict in client.filter(self.users(), BUSINESS, "marketing"):
                        count(user, verdict)

            run(screen())
        assert reasons == {"NO_CONSENT": self.COUNT}

    def test_odd_users(self, shared_sidecar: Sidecar) -> None:
        odd: list[Any] = ["user-1", "", "a\0b", "\ud800", None, 7, "0171 1234567", "x" * 1_000_000, "user-2"]
        with consentd.Client(shared_sidecar.address) as client:
            screened = list(client.filter(iter(odd), BUSINESS, "marketing"))
            assert [user for user, _ in screened] == odd
            assert [verdict.invalid for _, verdict in screened] == [False, *[True] * 7, False]
            assert {verdict.field for _, verdict in screened} == {"", "user_id"}
            malformed = list(client.filter(["user-1", "\ud800"], BUSINESS, "newsletter"))
            assert [verdict.field for _, verdict in malformed] == ["category", "user_id"]
            with pytest.raises(TypeError):
                client.filter("15550100001", BUSINESS, "marketing")
            assert list(client.filter([], BUSINESS, "marketing")) == []

    def test_without_a_sidecar(self) -> None:
        async def screen() -> list[tuple[str, consentd.Verdict]]:
            async with consentd.AsyncClient(f"127.0.0.1:{free_port()}") as client:
                return [each async for each in client.filter(["user-1", "user-2"], BUSINESS, "marketing")]

        screened = run(screen())
        assert [(user, verdict.unavailable) for user, verdict in screened] == [("user-1", True), ("user-2", True)]

    @both
    def test_smaller_chunks_are_learnt(self, server: FakeServer, kind: str) -> None:
        server.recipients = 300
        users = [f"{'yes' if i % 3 else 'no'}-{i}" for i in range(2_500)]
        rounds: list[list[tuple[str, consentd.Verdict]]] = []
        if kind == "threads":
            with consentd.Client(server.address) as client:
                for _ in range(2):
                    server.screened.clear()
                    rounds.append(list(client.filter(users, BUSINESS, "marketing")))
        else:

            async def screen() -> None:
                async with consentd.AsyncClient(server.address) as client:
                    for _ in range(2):
                        server.screened.clear()
                        rounds.append([each async for each in client.filter(users, BUSINESS, "marketing")])

            run(screen())
        for screened in rounds:
            assert [user for user, _ in screened] == users
            assert [verdict.allowed for _, verdict in screened] == [user.startswith("yes") for user in users]
        assert server.screened == [250] * 10

    @both
    def test_smaller_chunks_of_the_real_sidecar(self, kind: str) -> None:
        users = [f"user-{i}" for i in range(1_001)]
        with Sidecar("--max-recipients", "500") as sidecar:
            if kind == "threads":
                with consentd.Client(sidecar.address) as client:
                    screened = list(client.filter(users, BUSINESS, "marketing"))
            else:

                async def screen() -> list[tuple[str, consentd.Verdict]]:
                    async with consentd.AsyncClient(sidecar.address) as client:
                        return [each async for each in client.filter(users, BUSINESS, "marketing")]

                screened = run(screen())
        assert [user for user, _ in screened] == users
        assert {verdict.reason for _, verdict in screened} == {"NO_CONSENT"}

    def test_may_be_left_early(self, shared_sidecar: Sidecar) -> None:
        with consentd.Client(shared_sidecar.address, timeout=AMPLE_SECONDS) as client:
            for _ in client.filter(self.users(), BUSINESS, "marketing"):
                break
            assert client.may_send("user-1", BUSINESS, "marketing").reason == "NO_CONSENT"


def kept(changes: list[consentd.Change]) -> Callable[[consentd.Change], None]:
    """Keeps what a watch tells, but no reset after a reset: a sidecar that has just loaded its table may send one."""

    def keep(change: consentd.Change) -> None:
        if change.kind != "reset" or not changes or changes[-1].kind != "reset":
            changes.append(change)

    return keep


class TestWatch:
    """What is told of changes."""

    def test_changes_and_a_restart(self, sidecar: Sidecar) -> None:
        changes: list[consentd.Change] = []
        with consentd.Client(sidecar.address) as client:
            with client.watch(BUSINESS, kept(changes)):
                eventually(lambda: changes, "the first reset")
                assert changes == [consentd.Change("reset", BUSINESS)]
                recorded = client.record(consentd.events.opt_out("user-1", BUSINESS))
                client.record(consentd.events.opt_out("user-1", "another"))
                client.record(consentd.events.template_category(BUSINESS, "offer", "en", "marketing"))
                eventually(lambda: len(changes) >= 3, "two changes")
                assert changes[1] == consentd.Change("changed", BUSINESS, "user-1", revision=recorded.revision)
                assert (changes[2].kind, changes[2].template) == ("template_changed", ("offer", "en"))
                sidecar.kill()
                eventually(lambda: len(changes) >= 4, "silence")
                assert changes[3].kind == "silent"
                sidecar.start()
                eventually(lambda: len(changes) >= 5, "a reset after the restart")
                assert changes[4].kind == "reset"
            told = len(changes)
            client.record(consentd.events.suppression("user-1", BUSINESS))
            assert len(changes) == told

    def test_changes_and_a_restart_of_asyncio(self, sidecar: Sidecar) -> None:
        async def watch() -> None:
            changes: list[consentd.Change] = []

            async def on_change(change: consentd.Change) -> None:
                await asyncio.sleep(0)
                kept(changes)(change)

            async with consentd.AsyncClient(sidecar.address) as client:
                async with client.watch("", on_change):
                    await eventually_async(lambda: changes, "the first reset")
                    await client.record(consentd.events.opt_out("user-1", BUSINESS))
                    await eventually_async(lambda: len(changes) >= 2, "a change")
                    assert (changes[1].kind, changes[1].user, changes[1].business) == ("changed", "user-1", BUSINESS)
                    sidecar.kill()
                    await eventually_async(lambda: len(changes) >= 3, "silence")
                    await asyncio.to_thread(sidecar.start)
                    await eventually_async(lambda: len(changes) >= 4, "a reset after the restart")
                    assert [change.kind for change in changes] == ["reset", "changed", "silent", "reset"]
                told = len(changes)
                await client.record(consentd.events.suppression("user-1", BUSINESS))
                assert len(changes) == told

        run(watch())

    @both
    def test_silence(self, sidecar: Sidecar, kind: str) -> None:
        changes: list[tuple[str, float]] = []

        def on_change(change: consentd.Change) -> None:
            if not changes or (change.kind, changes[-1][0]) != ("reset", "reset"):
                changes.append((change.kind, time.monotonic()))

        def silence() -> None:
            eventually(lambda: changes, "the first reset")
            sidecar.pause()
            paused = time.monotonic()
            eventually(lambda: len(changes) >= 2, "silence")
            assert changes[1][0] == "silent"
            # The last checkpoint came two seconds before it was stopped, or more where the sidecar was held up.
            assert changes[1][1] - paused > 3
            sidecar.resume()
            eventually(lambda: len(changes) >= 3, "a reset")
            assert changes[2][0] == "reset"

        if kind == "threads":
            with consentd.Client(sidecar.address) as client, client.watch(BUSINESS, on_change):
                silence()
        else:

            async def watch() -> None:
                async with consentd.AsyncClient(sidecar.address) as client:
                    client.watch(BUSINESS, on_change)
                    await asyncio.to_thread(silence)

            run(watch())

    @staticmethod
    def watched(address: str, kind: str, until: Callable[[list[consentd.Change], Any], object]) -> Any:
        """What a watch tells until something is so, and its error."""
        changes: list[consentd.Change] = []
        if kind == "threads":
            with consentd.Client(address) as client, client.watch(BUSINESS, changes.append) as watch:
                eventually(lambda: until(changes, watch), "changes")
                return changes, watch.error

        async def in_tasks() -> Any:
            async with consentd.AsyncClient(address) as client, client.watch(BUSINESS, changes.append) as watch:
                await eventually_async(lambda: until(changes, watch), "changes")
                return changes, watch.error

        return run(in_tasks())

    @both
    def test_unknown_message_is_a_reset(self, server: FakeServer, kind: str) -> None:
        checkpoint = WatchConsentsResponse(checkpoint=WatchConsentsResponse.Checkpoint())
        changed = WatchConsentsResponse(changed=WatchConsentsResponse.Changed(user_id="user-1", business_id=BUSINESS))
        # A message without a field that is known, as that of a newer sidecar.
        newer = WatchConsentsResponse.FromString(b"\x9a\x06\x00")
        server.messages = [checkpoint, newer, checkpoint, changed]
        changes, _ = self.watched(server.address, kind, lambda told, _: len(told) >= 3)
        assert [change.kind for change in changes] == ["reset", "reset", "changed"]

    @both
    @pytest.mark.parametrize("code", ["UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT"])
    def test_refusal_ends_it(self, server: FakeServer, kind: str, code: str, caplog: pytest.LogCaptureFixture) -> None:
        server.refusal = grpc.StatusCode[code]
        changes, error = self.watched(server.address, kind, lambda told, watch: told and watch.error)
        assert changes == [consentd.Change("silent", BUSINESS, code=code, cause="refused")]
        assert (error.code, error.cause) == (code, "refused")
        assert [record.levelname for record in caplog.records if code in record.message] == ["ERROR"]

    @both
    def test_that_cannot_begin_is_silent_once(self, kind: str) -> None:
        told: list[float] = []

        def is_over(changes: list[consentd.Change], _: object) -> bool:
            if changes and not told:
                told.append(time.monotonic())
            # It would be told again within three seconds, as attempts to connect are a second apart at most.
            return bool(told) and time.monotonic() > told[0] + 3

        begun = time.monotonic()
        changes, error = self.watched(f"127.0.0.1:{free_port()}", kind, is_over)
        assert told[0] - begun >= 9
        assert [(change.kind, bool(change.code)) for change in changes] == [("silent", True)]
        assert error is None

    @both
    def test_failure_of_on_change_is_as_a_loss(
        self, shared_sidecar: Sidecar, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        told: list[str] = []

        def on_change(change: consentd.Change) -> None:
            if (change.kind, told[-1:]) != ("reset", ["reset"]):
                told.append(change.kind)
            if change.kind == "changed":
                raise RuntimeError(f"the queue of {change.user} is gone")

        event = consentd.events.opt_out(f"failing-{kind}", f"business-{kind}")
        if kind == "threads":
            with consentd.Client(shared_sidecar.address) as client, client.watch(f"business-{kind}", on_change):
                eventually(lambda: told, "the first reset")
                client.record(event)
                eventually(lambda: len(told) >= 4, "another reset")
        else:

            async def watch() -> None:
                async with consentd.AsyncClient(shared_sidecar.address) as client:
                    client.watch(f"business-{kind}", on_change)
                    await eventually_async(lambda: told, "the first reset")
                    await client.record(event)
                    await eventually_async(lambda: len(told) >= 4, "another reset")

            run(watch())
        assert told == ["reset", "changed", "silent", "reset"]
        assert "RuntimeError" in caplog.text
        assert f"failing-{kind}" not in caplog.text

    def test_business_that_cannot_be_sent_is_refused(self, shared_sidecar: Sidecar) -> None:
        async def watch() -> None:
            async with consentd.AsyncClient(shared_sidecar.address) as client:
                client.watch("\ud800", print)

        with pytest.raises(consentd.ConsentdError, match="INVALID_ARGUMENT: business_id"):
            run(watch())
        with (
            consentd.Client(shared_sidecar.address) as client,
            pytest.raises(consentd.ConsentdError, match="INVALID_ARGUMENT: business_id"),
        ):
            client.watch("\ud800", print)

    def test_closing_from_within(self, shared_sidecar: Sidecar) -> None:
        closed = threading.Event()
        with consentd.Client(shared_sidecar.address) as client:
            watches: list[consentd.Watch] = []

            def on_change(_: consentd.Change) -> None:
                eventually(lambda: watches, "the watch")
                watches[0].close()
                closed.set()

            watches.append(client.watch(BUSINESS, on_change))
            assert closed.wait(PATIENCE_SECONDS)
            watches[0]._thread.join(PATIENCE_SECONDS)
            assert not watches[0]._thread.is_alive()


class TestRecord:
    """Recording of events."""

    @both
    def test_repeated_over_a_restart_is_recorded_once(self, sidecar: Sidecar, kind: str) -> None:
        users = [f"user-{i}" for i in range(200)]
        recorded: dict[str, Any] = {}
        restart = threading.Thread(target=self.restart, args=(sidecar, recorded))
        restart.start()
        if kind == "threads":
            with consentd.Client(sidecar.address) as client:

                def record(user: str) -> None:
                    recorded[user] = client.record(consentd.events.opt_out(user, BUSINESS), timeout=PATIENCE_SECONDS)

                with ThreadPoolExecutor(4) as pool:
                    list(pool.map(record, users))
        else:

            async def record_all() -> None:
                async with consentd.AsyncClient(sidecar.address) as client:
                    for user in users:
                        event = consentd.events.opt_out(user, BUSINESS)
                        recorded[user] = await client.record(event, timeout=PATIENCE_SECONDS)

            run(record_all())
        restart.join()
        assert {answer.applied for answer in recorded.values()} == {True}
        with consentd.Client(sidecar.address, timeout=AMPLE_SECONDS) as client:
            for user in users:
                listed = list(client._open().records.ListEvents(ListEventsRequest(user_id=user, business_id=BUSINESS)))
                assert len([one for one in listed if one.HasField("event")]) == 1
                assert client.may_send(user, BUSINESS, "marketing").reason == "OPTED_OUT_ALL"

    @staticmethod
    def restart(sidecar: Sidecar, recorded: dict[str, Any]) -> None:
        for target in (20, 60):
            eventually(lambda target=target: len(recorded) >= target, "records")  # type: ignore[misc]
            sidecar.kill()
            sidecar.start()

    @both
    def test_raises_where_nothing_is_known_to_be_recorded(self, kind: str) -> None:
        event = consentd.events.opt_out("user-1", BUSINESS)
        address = f"127.0.0.1:{free_port()}"

        async def record() -> None:
            async with consentd.AsyncClient(address) as client:
                await client.record(event, timeout=0.3)

        def recorded() -> None:
            if kind == "asyncio":
                run(record())
            with consentd.Client(address) as client:
                client.record(event, timeout=0.3)

        with pytest.raises(consentd.ConsentdError) as raised:
            recorded()
        assert raised.value.code in ("UNAVAILABLE", "DEADLINE_EXCEEDED")
        assert raised.value.unavailable

    def test_token_is_read_at_each_call(self, tmp_path: Path) -> None:
        accepted, own = tmp_path / "accepted", tmp_path / "own"
        accepted.write_text("0123456789abcdef0123456789abcdef\n")
        accepted.chmod(0o600)
        event = consentd.events.opt_out("user-1", BUSINESS)
        with (
            Sidecar("--record-token-file", str(accepted)) as sidecar,
            consentd.Client(sidecar.address, token_file=own, timeout=AMPLE_SECONDS) as client,
        ):
            with pytest.raises(consentd.ConsentdError, match="UNAUTHENTICATED: the token file cannot be read"):
                client.record(event)
            own.write_text("fedcba9876543210fedcba9876543210")
            with pytest.raises(consentd.ConsentdError) as raised:
                client.record(event)
            assert raised.value.code == "UNAUTHENTICATED"
            for nothing in (b"", b" \n\n", b"# a comment\n", b"\xff", "tok\u00e9n".encode()):
                own.write_bytes(nothing)
                with pytest.raises(consentd.ConsentdError, match="UNAUTHENTICATED: the token"):
                    client.record(event)
            own.write_text("# ours\r\n\r\n  0123456789abcdef0123456789abcdef \t\r\nanother that is not taken\n")
            assert client.record(event).applied
            assert client.may_send("user-1", BUSINESS, "marketing").reason == "OPTED_OUT_ALL"


class TestAddress:
    """Where a sidecar is reached, and as whom."""

    @both
    @pytest.mark.parametrize("name", ["unix:{folder}/a b%20.sock", "unix:@consentd test/%41 {pid}", "localhost:{port}"])
    def test_kinds_of_addresses(self, tmp_path: Path, kind: str, name: str) -> None:
        address = name.format(folder=tmp_path, pid=os.getpid(), port=0)
        more = ("--unix", address.removeprefix("unix:")) if address.startswith("unix:") else ()
        with Sidecar(*more) as sidecar:
            if not more:
                address = f"localhost:{sidecar.address.split(':')[-1]}"
            if kind == "threads":
                with consentd.Client(address, timeout=AMPLE_SECONDS) as client:
                    client.ready()
                    verdict = client.may_send("user-1", BUSINESS, "marketing")
            else:

                async def ask() -> consentd.Verdict:
                    async with consentd.AsyncClient(address, timeout=AMPLE_SECONDS) as client:
                        await client.ready()
                        return await client.may_send("user-1", BUSINESS, "marketing")

                verdict = run(ask())
        assert verdict.reason == "NO_CONSENT"

    def test_sidecar_on_a_unix_socket(self) -> None:
        with Sidecar(unix=True) as sidecar, consentd.Client(sidecar.address, timeout=AMPLE_SECONDS) as client:
            assert sidecar.address.startswith("unix:/")
            assert client.may_send("user-1", BUSINESS, "marketing").reason == "NO_CONSENT"

    def test_address_of_the_environment(self, shared_sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CONSENTD_ADDR", shared_sidecar.address)
        with consentd.Client(timeout=AMPLE_SECONDS) as client:
            assert client.may_send("user-1", BUSINESS, "marketing").reason == "NO_CONSENT"

    @pytest.mark.parametrize(
        "address",
        [
            "x",
            "host",
            "host:",
            ":1",
            "host:0",
            "host:70000",
            "a b:1",
            "http://a:1",
            "unix:",
            "unix:@",
            "unix:/a\0b",
            "::1:50051",
            "a@b:1",
        ],
    )
    def test_malformed_addresses(self, address: str) -> None:
        with pytest.raises(ValueError, match="no address"):
            consentd.Client(address)
        with pytest.raises(ValueError, match="no address"):
            consentd.AsyncClient(address)

    @both
    def test_no_proxy_of_the_environment(self, shared_sidecar: Sidecar, kind: str) -> None:
        # Of a process of its own, since gRPC reads the environment when it likes.
        of_threads = "consentd.Client(sys.argv[1], timeout=30).may_send('user-1', 'acme', 'marketing')"
        of_asyncio = (
            "asyncio.run(consentd.AsyncClient(sys.argv[1], timeout=30).may_send('user-1', 'acme', 'marketing'))"
        )
        code = f"import asyncio, consentd, sys; print({of_threads if kind == 'threads' else of_asyncio}.reason)"
        nowhere = f"http://127.0.0.1:{free_port()}"
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy", "HTTP_PROXY", "all_proxy"), nowhere)
        asked = subprocess.run(
            [sys.executable, "-c", code, shared_sidecar.address],
            env={**os.environ, **proxies},
            capture_output=True,
            text=True,
            timeout=10 * PATIENCE_SECONDS,
            check=False,
        )
        assert (asked.stdout.strip(), asked.returncode) == ("NO_CONSENT", 0), asked.stderr

    @both
    def test_tls_with_a_certificate_of_the_client(self, tmp_path: Path, kind: str) -> None:
        for name, subject in (("ca", "/CN=try-ca"), ("server", "/CN=server"), ("client", "/CN=client")):
            key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", f"{name}.key"]
            made = ["-x509", "-days", "2", "-out", "ca.crt"] if name == "ca" else ["-out", f"{name}.csr"]
            self.openssl(tmp_path, "req", *key, "-subj", subject, *made)
        for name, names in (("server", "DNS:localhost,IP:127.0.0.1"), ("client", "DNS:sender.internal")):
            (tmp_path / f"{name}.ext").write_text(f"subjectAltName={names}\n")
            ca = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"]
            self.openssl(
                tmp_path,
                "x509",
                "-req",
                "-in",
                f"{name}.csr",
                *ca,
                "-days",
                "2",
                "-out",
                f"{name}.crt",
                "-extfile",
                f"{name}.ext",
            )
        served = ("--tls-cert-file", "server.crt", "--tls-key-file", "server.key", "--tls-client-ca-file", "ca.crt")
        arguments = [str(tmp_path / part) if not part.startswith("--") else part for part in served]
        mine = {"cert_file": tmp_path / "client.crt", "key_file": tmp_path / "client.key"}

        def ask(timeout: float, **files: Any) -> consentd.Verdict:
            if kind == "threads":
                with consentd.Client(sidecar.address, timeout=timeout, **files) as client:
                    return client.may_send("user-1", BUSINESS, "marketing")

            async def ask_async() -> consentd.Verdict:
                async with consentd.AsyncClient(sidecar.address, timeout=timeout, **files) as client:
                    return await client.may_send("user-1", BUSINESS, "marketing")

            verdict: consentd.Verdict = run(ask_async())
            return verdict

        with Sidecar(*arguments) as sidecar:
            assert ask(AMPLE_SECONDS, ca_file=tmp_path / "ca.crt", **mine).reason == "NO_CONSENT"
            assert ask(1, ca_file=tmp_path / "ca.crt").unavailable
            assert ask(1, tls=True, **mine).unavailable
            assert ask(1).unavailable
        with pytest.raises(ValueError, match="belong together"):
            consentd.Client(cert_file=tmp_path / "client.crt")
        with pytest.raises(FileNotFoundError):
            consentd.Client(ca_file=tmp_path / "nothing.crt")

    @staticmethod
    def openssl(folder: Path, *arguments: str) -> None:
        assert shutil.which("openssl")
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)
