"""How concurrent checks become batches, with a server that answers when the test lets it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

import grpc
import pytest
from conftest import AMPLE_SECONDS, FakeServer, eventually, eventually_async, run

import consentd
from consentd._coalescing import GATHER_SECONDS
from consentd._question import BATCH_LIMIT, batched_question, question
from consentd._verdict import Failure
from consentd.v1.consent_service_pb2 import BatchCanSendRequest


def users(count: int) -> list[str]:
    return [f"{'yes' if i % 3 else 'no'}-{i}" for i in range(count)]


def assert_answered(asked: list[str], verdicts: list[consentd.Verdict]) -> None:
    assert [bool(verdict) for verdict in verdicts] == [user.startswith("yes") for user in asked]
    assert {verdict.reason for verdict in verdicts} <= {"OPTED_IN", "NO_CONSENT"}
    assert not any(verdict.unavailable or verdict.invalid for verdict in verdicts)


@pytest.mark.parametrize("template", [None, ("offer", "en")])
@pytest.mark.parametrize("form", [None, "TEMPLATE"])
@pytest.mark.parametrize("user", ["", "15550100001", "é" * 63, "x" * 127, "x" * 128, "x" * 1_024, "\U0001f600"])
def test_batched_questions_are_the_contracts(user: str, form: consentd.Form, template: tuple[str, str] | None) -> None:
    encoded = batched_question(user, "acme", "marketing", form, template)
    single = question(user, "acme", "marketing", form, template, 0)
    assert not isinstance(single, Failure)
    assert encoded is not None
    assert BatchCanSendRequest.FromString(encoded) == BatchCanSendRequest(requests=[single])


def test_large_questions_are_not_batched() -> None:
    assert batched_question("x" * 2_000, "acme", "marketing", None, None) is None
    assert batched_question("x" * 1_000, "y" * 1_000, "marketing", None, None) is None
    # A thousand of the largest are within what a sidecar takes.
    largest = max((batched_question("x" * n, "acme", "marketing", None, None) or b"" for n in range(2_000)), key=len)
    assert 1_900 < len(largest) < 2 * 2**20 / BATCH_LIMIT


def test_longer_strings_than_any_may_be_are_not_sent() -> None:
    longest, longer = "x" * 1_024, "é" * 513
    questions = [
        question(longer, "acme", "marketing", None, None, 0),
        question("user", longer, "marketing", None, None, 0),
        question("user", "acme", longer, None, None, 0),
        question("user", "acme", "marketing", None, (longer, "en"), 0),
        question("user", "acme", "marketing", None, ("offer", longer), 0),
    ]
    fields = [one.field if isinstance(one, Failure) else "" for one in questions]
    assert fields == ["user_id", "business_id", "category", "template.name", "template.language"]
    assert not isinstance(question(longest, longest, longest, None, (longest, longest), 0), Failure)


def test_first_goes_at_once_and_the_others_together(server: FakeServer) -> None:
    asked = users(50)

    async def check() -> None:
        async with consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS) as client:
            server.gate.clear()
            first = asyncio.create_task(client.may_send(asked[0], "acme", "marketing"))
            await eventually_async(lambda: server.singles, "the first check")
            others = [asyncio.create_task(client.may_send(user, "acme", "marketing")) for user in asked[1:]]
            # The first is not answered: the others go when they have been gathered for a while.
            await eventually_async(lambda: server.batches, "the batch")
            server.gate.set()
            assert_answered(asked, await asyncio.gather(first, *others))

    run(check())
    assert server.singles == asked[:1]
    assert server.batches == [asked[1:]]


def test_answers_of_a_batch_make_the_next_batch(server: FakeServer) -> None:
    async def check() -> None:
        async with consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS) as client:

            async def caller(number: int) -> None:
                for turn in range(20):
                    assert await client.may_send(f"yes-{number}-{turn}", "acme", "marketing")

            await asyncio.gather(*(caller(number) for number in range(64)))

    run(check())
    assert sum(map(len, server.batches)) + len(server.singles) == 64 * 20
    # Those that are answered together ask together again. A busy machine may split some.
    assert len(server.batches) + len(server.singles) < 64 * 20 / 8


def test_full_batch_is_not_waited_with(server: FakeServer) -> None:
    asked = users(3 * BATCH_LIMIT + 1)

    async def check() -> None:
        async with consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS) as client:
            assert_answered(asked, await asyncio.gather(*(client.may_send(user, "a", "marketing") for user in asked)))

    run(check())
    assert [len(batch) for batch in server.batches] == [BATCH_LIMIT] * 3
    assert len(server.singles) == 1


def test_each_call_has_its_own_deadline(server: FakeServer) -> None:
    async def check() -> None:
        async with consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS) as client:
            await client.may_send("yes", "acme", "marketing")
            server.gate.clear()
            first = asyncio.create_task(client.may_send("yes-1", "acme", "marketing"))
            await eventually_async(lambda: len(server.singles) == 2, "the first check")
            early = asyncio.create_task(client.may_send("yes-2", "acme", "marketing", timeout=0.2))
            late = asyncio.create_task(client.may_send("yes-3", "acme", "marketing"))
            begun = time.monotonic()
            verdict = await early
            assert time.monotonic() - begun >= 0.19
            assert (verdict.code, verdict.unavailable, verdict.allowed) == ("DEADLINE_EXCEEDED", True, False)
            assert not late.done()
            server.gate.set()
            assert await late
            assert await first

    run(check())
    assert ["yes-2", "yes-3"] in server.batches


@pytest.mark.parametrize("sent", [True, False], ids=["under way", "gathered"])
def test_cancelling_one_leaves_the_others(server: FakeServer, sent: bool) -> None:
    async def check() -> None:
        async with consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS) as client:
            await client.may_send("yes", "acme", "marketing")
            server.gate.clear()
            first = asyncio.create_task(client.may_send("yes-0", "acme", "marketing"))
            await eventually_async(lambda: len(server.singles) == 2, "the first check")
            others = [asyncio.create_task(client.may_send(f"yes-{i}", "acme", "marketing")) for i in range(1, 6)]
            await asyncio.sleep(0)
            if sent:
                await eventually_async(lambda: server.batches, "the batch")
            others[2].cancel()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await others[2]
            with pytest.raises(asyncio.CancelledError):
                await first
            server.gate.set()
            assert all([await other for i, other in enumerate(others) if i != 2])

    run(check())
    expected = [f"yes-{i}" for i in range(1, 6) if sent or i != 3]
    assert server.batches == [expected]


def test_smaller_batches_are_learnt(server: FakeServer) -> None:
    asked = users(2_000)
    server.limit = 100

    async def check() -> None:
        async with consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS) as client:
            assert_answered(asked, await asyncio.gather(*(client.may_send(user, "a", "marketing") for user in asked)))

    run(check())
    # 1,000, 500, 250 and 125 are refused. What was on its way meanwhile may be, too.
    sizes = [len(batch) for batch in server.batches]
    assert 1 <= sum(size > 100 for size in sizes) <= 16
    assert sum(size for size in sizes if size <= 100) + len(server.singles) == 2_000


def test_batch_refused_as_a_whole_is_halved(server: FakeServer) -> None:
    server.spoiler = "yes-7"
    asked = [f"yes-{i}" for i in range(21)]

    async def check() -> None:
        async with consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS) as client:
            verdicts = await asyncio.gather(*(client.may_send(user, "a", "marketing") for user in asked))
            assert [user for user, verdict in zip(asked, verdicts, strict=True) if not verdict] == ["yes-7"]
            assert verdicts[7].invalid
            # The size is not kept.
            server.batches.clear()
            assert all(await asyncio.gather(*(client.may_send("yes", "a", "marketing") for _ in asked)))

    run(check())
    # Whether the first goes by itself depends on whether the batch before has ended.
    assert [len(batch) >= 20 for batch in server.batches] == [True]


def test_batch_of_threads_refused_as_a_whole_is_halved(server: FakeServer) -> None:
    server.spoiler = "yes-7"
    asked = [f"yes-{i}" for i in range(21)]
    with consentd.Client(server.address, timeout=AMPLE_SECONDS) as client, ThreadPoolExecutor(21) as pool:
        server.gate.clear()
        first = pool.submit(client.may_send, asked[0], "a", "marketing")
        eventually(lambda: server.singles, "the first check")
        others = [pool.submit(client.may_send, user, "a", "marketing") for user in asked[1:]]
        eventually(lambda: sum(map(len, server.batches)) == 20, "the batches")
        server.gate.set()
        assert [one.result().allowed for one in [first, *others]] == [user != "yes-7" for user in asked]
        assert others[6].result().invalid
        assert client._open().coalescer._limit == BATCH_LIMIT


def test_batch_with_another_number_of_answers_allows_nothing(server: FakeServer) -> None:
    server.results_missing = 1

    async def check() -> None:
        async with consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS) as client:
            verdicts = await asyncio.gather(*(client.may_send(f"yes-{i}", "a", "marketing") for i in range(10)))
            assert all(verdicts[:1])
            assert not any(verdicts[1:])
            assert {(verdict.unavailable, verdict.code) for verdict in verdicts[1:]} == {(True, "INTERNAL")}

    run(check())


def test_malformed_question_spoils_no_batch(server: FakeServer) -> None:
    odd = ["\ud800", None, 7, b"yes-bytes", ["yes"], "x" * 1_000_000]

    async def check() -> None:
        async with consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS) as client:
            asked = [*users(20), *odd, *users(20)]
            verdicts = await asyncio.gather(*(client.may_send(user, "a", "marketing") for user in asked))  # type: ignore[arg-type]
            assert_answered(users(20) * 2, verdicts[:20] + verdicts[26:])
            refused = verdicts[20:26]
            assert not any(refused)
            assert [(one.invalid, one.field) for one in refused] == [(True, "user_id")] * 6

    run(check())


def test_coalescing_can_be_switched_off(server: FakeServer) -> None:
    asked = users(30)

    async def check() -> None:
        async with consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS, coalesce=False) as client:
            assert_answered(asked, await asyncio.gather(*(client.may_send(user, "a", "marketing") for user in asked)))

    run(check())
    assert sorted(server.singles) == sorted(asked)
    assert server.batches == []


def test_what_waits_for_a_revision_goes_alone(server: FakeServer) -> None:
    async def check() -> None:
        async with consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS) as client:
            await asyncio.gather(*(client.may_send(f"yes-{i}", "a", "marketing", min_revision=5) for i in range(9)))

    run(check())
    assert len(server.singles) == 9
    assert server.batches == []


def test_error_details_that_are_not_readable_change_nothing(server: FakeServer) -> None:
    server.failure, server.failure_details = (grpc.StatusCode.INTERNAL, "broken"), b"\xff\xff\xff"

    async def check() -> None:
        async with consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS) as client:
            verdicts = await asyncio.gather(*(client.may_send(f"yes-{i}", "a", "marketing") for i in range(10)))
            assert {(verdict.code, verdict.unavailable) for verdict in verdicts} == {("INTERNAL", True)}

    run(check())
    with consentd.Client(server.address, timeout=AMPLE_SECONDS) as client:
        assert client.may_send("yes", "a", "marketing").code == "INTERNAL"


def test_overload_is_not_asked_again(server: FakeServer) -> None:
    server.failure = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many")

    async def check() -> None:
        async with consentd.AsyncClient(server.address, timeout=AMPLE_SECONDS) as client:
            verdicts = await asyncio.gather(*(client.may_send(f"yes-{i}", "a", "marketing") for i in range(10)))
            assert {(verdict.code, verdict.unavailable) for verdict in verdicts} == {("RESOURCE_EXHAUSTED", True)}

    run(check())
    assert len(server.singles) + len(server.batches) == 2


class TestThreads:
    """The same of threads."""

    @staticmethod
    def ask(client: consentd.Client, asked: list[str], **named: float) -> list[Future[consentd.Verdict]]:
        pool = ThreadPoolExecutor(max_workers=max(len(asked), 1))
        began = [pool.submit(client.may_send, user, "acme", "marketing", **named) for user in asked]  # type: ignore[arg-type]
        pool.shutdown(wait=False)
        return began

    def test_first_goes_at_once_and_the_others_in_batches(self, server: FakeServer) -> None:
        asked = users(50)
        with consentd.Client(server.address, timeout=AMPLE_SECONDS) as client:
            server.gate.clear()
            first = self.ask(client, asked[:1])
            eventually(lambda: server.singles, "the first check")
            others = self.ask(client, asked[1:])
            eventually(lambda: sum(map(len, server.batches)) == 49, "the batches")
            server.gate.set()
            assert_answered(asked, [one.result() for one in first + others])
        assert server.singles == asked[:1]

    def test_answers_of_a_batch_make_the_next_batch(self, server: FakeServer) -> None:
        allowed: Counter[bool] = Counter()
        with consentd.Client(server.address, timeout=AMPLE_SECONDS) as client:

            def caller(number: int) -> None:
                for turn in range(20):
                    allowed[bool(client.may_send(f"yes-{number}-{turn}", "acme", "marketing"))] += 1

            threads = [threading.Thread(target=caller, args=(number,)) for number in range(64)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert allowed == {True: 64 * 20}
        assert sum(map(len, server.batches)) + len(server.singles) == 64 * 20
        assert len(server.batches) + len(server.singles) < 64 * 20

    def test_last_one_to_be_woken_joins_the_next_batch(
        self, server: FakeServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Shorter than an answer takes: a thread that was late once is then never again with the others.
        monkeypatch.setattr("consentd._coalescing.GATHER_SECONDS", 0.2)
        callers, turns, attempts = 16, 4, 8
        server.seconds = 0.3

        def calls() -> int:
            before = len(server.batches) + len(server.singles)
            with consentd.Client(server.address, timeout=AMPLE_SECONDS) as client:

                def caller() -> None:
                    for _ in range(turns):
                        assert client.may_send("yes", "acme", "marketing")

                threads = [threading.Thread(target=caller) for _ in range(callers)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            return len(server.batches) + len(server.singles) - before

        # One for each turn, and one more at the start. A busy machine may hold a thread up now and then; where the last
        # one is left behind by design, it is two for each turn every time.
        assert any(calls() < 1.5 * turns for _ in range(attempts))

    def test_each_call_has_its_own_deadline(self, server: FakeServer) -> None:
        with consentd.Client(server.address, timeout=AMPLE_SECONDS) as client:
            client.may_send("yes", "acme", "marketing")
            server.gate.clear()
            first = self.ask(client, ["yes-1"])
            eventually(lambda: len(server.singles) == 2, "the first check")
            early = self.ask(client, [f"yes-early-{i}" for i in range(5)], timeout=0.2)
            late = self.ask(client, [f"yes-late-{i}" for i in range(5)])
            assert {one.result().code for one in early} == {"DEADLINE_EXCEEDED"}
            assert not any(one.done() for one in late)
            server.gate.set()
            assert all(one.result() for one in late + first)

    def test_near_deadlines_spoil_no_others(self, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        # So that nothing is asked again after a pause.
        monkeypatch.setattr("consentd._client.FIRST_PAUSE_SECONDS", 10 * AMPLE_SECONDS)
        with consentd.Client(server.address) as client:
            eventually(lambda: client.may_send("yes", "acme", "marketing"), "an answer")
            server.seconds = 0.02
            codes: Counter[str] = Counter()

            def caller(number: int) -> None:
                for turn in range(40):
                    if number % 2:
                        client.may_send(f"yes-{number}-{turn}", "acme", "marketing", timeout=0.002)
                    else:
                        user = f"yes-{number}-{turn}"
                        codes[client.may_send(user, "acme", "marketing", timeout=AMPLE_SECONDS).code] += 1

            threads = [threading.Thread(target=caller, args=(number,)) for number in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert codes == {"": 8 * 40}
        assert any(len(batch) > 1 for batch in server.batches)

    def test_another_leads_where_the_leader_is_late(self, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
        # So that nothing is asked again after a pause.
        monkeypatch.setattr("consentd._client.FIRST_PAUSE_SECONDS", 10 * AMPLE_SECONDS)
        with consentd.Client(server.address, timeout=0.5) as client:
            eventually(lambda: client.may_send("yes", "acme", "marketing"), "an answer")
            server.gate.clear()
            first = self.ask(client, ["yes-first"], timeout=AMPLE_SECONDS)
            eventually(lambda: server.singles[-1] == "yes-first", "the first check")
            coalescer = client._open().coalescer
            with coalescer._mutex:
                early = self.ask(client, ["yes-early"])
                time.sleep(0.05)
                late = self.ask(client, [f"yes-late-{i}" for i in range(10)], timeout=AMPLE_SECONDS)
                time.sleep(0.1)
            assert early[0].result().code == "DEADLINE_EXCEEDED"
            server.gate.set()
            assert all(one.result() for one in late + first)
            eventually(coalescer.is_idle, "an end of all calls")
            assert not coalescer._handed_over

    def test_batch_with_another_number_of_answers_allows_nothing(self, server: FakeServer) -> None:
        server.results_missing = 1
        with consentd.Client(server.address, timeout=AMPLE_SECONDS) as client:
            verdicts = [one.result() for one in self.ask(client, [f"yes-{i}" for i in range(30)])]
        assert len([one for one in verdicts if one]) == len(server.singles)
        assert {one.code for one in verdicts if not one} <= {"INTERNAL"}

    def test_thread_that_is_gone_leaves_the_others(self, server: FakeServer) -> None:
        # As Control-C does: the thread that leads is interrupted while the batch is under way.
        with consentd.Client(server.address, timeout=AMPLE_SECONDS) as client:
            client.may_send("yes", "acme", "marketing")
            coalescer = client._open().coalescer
            send = coalescer._send
            interrupted = threading.Event()

            def interrupt(waiters: object, deadline: float) -> object:
                if not interrupted.is_set():
                    interrupted.set()
                    raise KeyboardInterrupt
                return send(waiters, deadline)  # type: ignore[arg-type]

            coalescer._send = interrupt  # type: ignore[method-assign]
            server.gate.clear()
            first = self.ask(client, ["yes-1"])
            eventually(lambda: len(server.singles) == 2, "the first check")
            others = self.ask(client, [f"yes-{i}" for i in range(2, 12)])
            eventually(interrupted.is_set, "a batch")
            server.gate.set()
            outcomes = [one.exception() or one.result() for one in first + others]
            assert sum(isinstance(one, KeyboardInterrupt) for one in outcomes) == 1
            assert sum(bool(one) for one in outcomes if isinstance(one, consentd.Verdict)) == 10
            # It goes on as before: a check that is alone is sent alone.
            eventually(coalescer.is_idle, "an end of all calls")
            assert client.may_send("yes-alone", "acme", "marketing")
            assert server.singles[-1] == "yes-alone"


def test_call_that_ended_without_saying_so_is_forgotten(server: FakeServer) -> None:
    with consentd.Client(server.address, timeout=0.5) as client:
        eventually(lambda: client.may_send("yes", "acme", "marketing"), "an answer")
        coalescer = client._open().coalescer
        coalescer._under_way.append(time.monotonic())

        def is_forgotten() -> bool:
            client.may_send("yes", "acme", "marketing")
            return coalescer.is_idle()

        eventually(is_forgotten, "an end of the call")
        alone = len(server.singles)
        eventually(lambda: client.may_send("yes", "acme", "marketing"), "an answer")
        assert len(server.singles) > alone


def test_gathering_is_short() -> None:
    assert GATHER_SECONDS == 0.001
    assert BATCH_LIMIT == 1_000
