"""No check is allowed after an opt-out that was acknowledged before it was asked, whatever happens to the sidecar."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections import Counter

import pytest
from conftest import PATIENCE_SECONDS, run
from test_scenarios import BUSINESS, opt_in

import consentd
from consentd.testing import Sidecar

SECONDS = float(os.environ.get("FAULT_SECONDS", "20"))
CALLERS = 16
PREPARED = 2_000


class Ledger:
    """What the test knows of users: who has an opt-out that was acknowledged."""

    def __init__(self) -> None:
        self.opted_out: set[int] = set()
        self.next = 0
        self.wrong: list[int] = []
        self.outcomes: Counter[str] = Counter()
        self.is_over = threading.Event()

    def asked(self, number: int, was_opted_out: bool, verdict: consentd.Verdict) -> None:
        self.outcomes["allowed" if verdict else verdict.reason or verdict.code] += 1
        if was_opted_out and verdict:
            self.wrong.append(number)

    def some_user(self) -> int:
        # Mostly those whose opt-out is new or near.
        return max(0, min(PREPARED - 1, self.next + random.randint(-30, 10)))


def user(number: int) -> str:
    return f"user-{number}"


def break_it(sidecar: Sidecar, known: Ledger, done: list[str]) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(random.uniform(0.1, 1.0))
        fault = random.choice(["kill", "pause", "drain", "pause and kill"])
        done.append(fault)
        if "pause" in fault:
            sidecar.pause()
            time.sleep(random.uniform(0.02, 0.8))
        if fault == "drain":
            sidecar.drain()
        elif "kill" in fault:
            sidecar.kill()
        else:
            sidecar.resume()
            continue
        time.sleep(random.uniform(0, 0.2))
        sidecar.start()
    known.is_over.set()


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_no_check_is_allowed_after_an_opt_out(sidecar: Sidecar, kind: str) -> None:
    known = Ledger()
    faults: list[str] = []

    async def prepare() -> None:
        async with consentd.AsyncClient(sidecar.address) as client:
            for first in range(0, PREPARED, 50):
                events = (opt_in(user(number)) for number in range(first, first + 50))
                await asyncio.gather(*(client.record(event, timeout=PATIENCE_SECONDS) for event in events))

    run(prepare())
    breaker = threading.Thread(target=break_it, args=(sidecar, known, faults))
    breaker.start()
    if kind == "threads":
        of_threads(sidecar.address, known)
    else:
        run(of_asyncio(sidecar.address, known))
    breaker.join()
    print(f"{len(faults)} faults, {len(known.opted_out)} opt-outs, {dict(known.outcomes)}")
    assert known.wrong == []
    # Both were to be seen: what is allowed, what an opt-out denies and what nobody answers.
    assert known.outcomes["allowed"] > 0
    assert known.outcomes["OPTED_OUT_ALL"] > 0
    assert known.outcomes["UNAVAILABLE"] + known.outcomes["DEADLINE_EXCEEDED"] > 0
    assert len(faults) >= SECONDS / 10
    assert len(known.opted_out) >= SECONDS / 10


def of_threads(address: str, known: Ledger) -> None:
    with consentd.Client(address) as client:

        def check() -> None:
            while not known.is_over.is_set():
                number = known.some_user()
                was_opted_out = number in known.opted_out
                known.asked(number, was_opted_out, client.may_send(user(number), BUSINESS, "marketing"))

        def record() -> None:
            while not known.is_over.is_set() and known.next < PREPARED:
                number = known.next
                try:
                    client.record(consentd.events.opt_out(user(number), BUSINESS))
                except consentd.ConsentdError:
                    continue
                known.opted_out.add(number)
                known.next += 1
                time.sleep(0.01)

        threads = [threading.Thread(target=check) for _ in range(CALLERS)] + [threading.Thread(target=record)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


async def of_asyncio(address: str, known: Ledger) -> None:
    async with consentd.AsyncClient(address) as client:

        async def check() -> None:
            while not known.is_over.is_set():
                number = known.some_user()
                was_opted_out = number in known.opted_out
                known.asked(number, was_opted_out, await client.may_send(user(number), BUSINESS, "marketing"))

        async def record() -> None:
            while not known.is_over.is_set() and known.next < PREPARED:
                number = known.next
                try:
                    await client.record(consentd.events.opt_out(user(number), BUSINESS))
                except consentd.ConsentdError:
                    continue
                known.opted_out.add(number)
                known.next += 1
                await asyncio.sleep(0.01)

        await asyncio.gather(*(check() for _ in range(CALLERS)), record())
