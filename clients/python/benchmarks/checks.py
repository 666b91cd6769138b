"""What checks cost the sender: run by `bench`, which see."""

from __future__ import annotations

import asyncio
import itertools
import json
import resource
import sys
import threading
import time
from collections.abc import Iterator

import grpc

import consentd
from consentd._common import BATCH_METHOD
from consentd.v1.consent_service_pb2 import BatchCanSendRequest, CanSendRequest
from consentd.v1.consent_service_pb2_grpc import ConsentServiceStub

WARM_UP_SECONDS = 1.0
DEADLINE_SECONDS = 1.0


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Measurement:
    """How long checks took while it was measured."""

    def __init__(self) -> None:
        self.is_over = False
        self.is_measuring = False
        self.seconds: list[float] = []
        self.errors = 0
        self.cpu_seconds = 0.0

    def begin(self) -> None:
        self.cpu_seconds = -cpu_seconds()
        self.is_measuring = True

    def end(self) -> None:
        self.is_measuring = False
        self.cpu_seconds += cpu_seconds()
        self.is_over = True

    def report(self) -> str:
        self.seconds.sort()
        count = len(self.seconds)
        return json.dumps(
            {
                "checks": count,
                "errors": self.errors,
                "cpu_seconds": round(self.cpu_seconds, 6),
                "p50_us": round(self.seconds[count // 2] * 1e6, 1) if count else None,
                "p99_us": round(self.seconds[count * 99 // 100] * 1e6, 1) if count else None,
            }
        )


# The stub and its channel as whoever copies an example has them: the address in consentd's notation, no proxy.
def naive_options(address: str) -> tuple[str, list[tuple[str, object]]]:
    options: list[tuple[str, object]] = [("grpc.enable_http_proxy", 0)]
    if address.startswith("unix:"):
        options.append(("grpc.default_authority", "localhost"))
    return address.replace("unix:@", "unix-abstract:"), options


async def run_tasks(
    client: bool, address: str, callers: int, seconds: float, questions: list[tuple[str, str, str]]
) -> str:
    measured = Measurement()

    async def naive_caller(stub: ConsentServiceStub, asked: Iterator[tuple[str, str, str]]) -> None:
        while not measured.is_over:
            user, business, category = next(asked)
            begun = time.perf_counter()
            try:
                request = CanSendRequest(user_id=user, business_id=business, category=category)
                failed = (await stub.CanSend(request, timeout=DEADLINE_SECONDS)).reason == 0
            except grpc.RpcError:
                failed = True
            if measured.is_measuring:
                measured.seconds.append(time.perf_counter() - begun)
                measured.errors += failed

    async def client_caller(own: consentd.AsyncClient, asked: Iterator[tuple[str, str, str]]) -> None:
        while not measured.is_over:
            user, business, category = next(asked)
            begun = time.perf_counter()
            verdict = await own.may_send(user, business, category)
            if measured.is_measuring:
                measured.seconds.append(time.perf_counter() - begun)
                measured.errors += not verdict and not verdict.reason

    async with consentd.AsyncClient(address, timeout=DEADLINE_SECONDS) as own:
        await own.ready()
        target, options = naive_options(address)
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub = ConsentServiceStub(channel)
            tasks = []
            for i in range(callers):
                asked = itertools.cycle(questions[i * 151 % len(questions) :] + questions[: i * 151 % len(questions)])
                caller = client_caller(own, asked) if client else naive_caller(stub, asked)
                tasks.append(asyncio.create_task(caller))
            await asyncio.sleep(WARM_UP_SECONDS)
            measured.begin()
            await asyncio.sleep(seconds)
            measured.end()
            await asyncio.gather(*tasks)
    return measured.report()


def run_threads(client: bool, address: str, callers: int, seconds: float, questions: list[tuple[str, str, str]]) -> str:
    measured = Measurement()

    def naive_caller(stub: ConsentServiceStub, asked: Iterator[tuple[str, str, str]]) -> None:
        while not measured.is_over:
            user, business, category = next(asked)
            begun = time.perf_counter()
            try:
                request = CanSendRequest(user_id=user, business_id=business, category=category)
                failed = stub.CanSend(request, timeout=DEADLINE_SECONDS).reason == 0
            except grpc.RpcError:
                failed = True
            if measured.is_measuring:
                measured.seconds.append(time.perf_counter() - begun)
                measured.errors += failed

    def client_caller(own: consentd.Client, asked: Iterator[tuple[str, str, str]]) -> None:
        while not measured.is_over:
            user, business, category = next(asked)
            begun = time.perf_counter()
            verdict = own.may_send(user, business, category)
            if measured.is_measuring:
                measured.seconds.append(time.perf_counter() - begun)
                measured.errors += not verdict and not verdict.reason

    target, options = naive_options(address)
    with consentd.Client(address, timeout=DEADLINE_SECONDS) as own, grpc.insecure_channel(target, options) as channel:
        own.ready()
        stub = ConsentServiceStub(channel)
        threads = []
        for i in range(callers):
            asked = itertools.cycle(questions[i * 151 % len(questions) :] + questions[: i * 151 % len(questions)])
            threads.append(
                threading.Thread(target=client_caller, args=(own, asked))
                if client
                else threading.Thread(target=naive_caller, args=(stub, asked))
            )
        for thread in threads:
            thread.start()
        time.sleep(WARM_UP_SECONDS)
        measured.begin()
        time.sleep(seconds)
        measured.end()
        for thread in threads:
            thread.join()
    return measured.report()


# What gRPC and the interpreter cost alone: one call for all callers, whose questions are made once and whose answer is
# not read, and each caller waits to be woken. No package can be below it.
async def run_bare_tasks(address: str, callers: int, seconds: float, questions: list[tuple[str, str, str]]) -> str:
    measured = Measurement()
    loop = asyncio.get_running_loop()
    waiting: list[asyncio.Future[None]] = []
    # The call that is under way, since an event loop keeps no task.
    asked: list[asyncio.Task[None]] = []

    async def ask(ask_batch: grpc.aio.UnaryUnaryMultiCallable, batch: bytes) -> None:
        await ask_batch(batch, timeout=DEADLINE_SECONDS)
        woken = waiting.copy()
        waiting.clear()
        for future in woken:
            future.set_result(None)

    async def caller(ask_batch: grpc.aio.UnaryUnaryMultiCallable, batch: bytes) -> None:
        while not measured.is_over:
            begun = time.perf_counter()
            future = loop.create_future()
            waiting.append(future)
            if len(waiting) == callers:
                asked.append(loop.create_task(ask(ask_batch, batch)))
                del asked[:-1]
            await future
            if measured.is_measuring:
                measured.seconds.append(time.perf_counter() - begun)

    target, options = naive_options(address)
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        ask_batch = channel.unary_unary(BATCH_METHOD)
        batch = serialised(questions[:callers])
        tasks = [asyncio.create_task(caller(ask_batch, batch)) for _ in range(callers)]
        await asyncio.sleep(WARM_UP_SECONDS)
        measured.begin()
        await asyncio.sleep(seconds)
        measured.end()
        for task in [*asked, *tasks]:
            task.cancel()
    return measured.report()


def run_bare_threads(address: str, callers: int, seconds: float, questions: list[tuple[str, str, str]]) -> str:
    measured = Measurement()
    mutex = threading.Lock()

    class Batch:
        def __init__(self) -> None:
            self.size = 0
            self.turn = threading.Lock()
            self.turn.acquire()

    def caller(ask_batch: grpc.UnaryUnaryMultiCallable, batch: bytes) -> None:
        while not measured.is_over:
            begun = time.perf_counter()
            with mutex:
                joined = gathered[0]
                joined.size += 1
                is_last = joined.size == callers
                if is_last:
                    gathered[0] = Batch()
            if is_last:
                ask_batch(batch, timeout=DEADLINE_SECONDS)
            elif not joined.turn.acquire(timeout=DEADLINE_SECONDS):
                return
            joined.turn.release()
            if measured.is_measuring:
                measured.seconds.append(time.perf_counter() - begun)

    gathered = [Batch()]
    target, options = naive_options(address)
    with grpc.insecure_channel(target, options) as channel:
        arguments = channel.unary_unary(BATCH_METHOD), serialised(questions[:callers])
        threads = [threading.Thread(target=caller, args=arguments) for _ in range(callers)]
        for thread in threads:
            thread.start()
        time.sleep(WARM_UP_SECONDS)
        measured.begin()
        time.sleep(seconds)
        measured.end()
        for thread in threads:
            thread.join()
    return measured.report()


def serialised(questions: list[tuple[str, str, str]]) -> bytes:
    requests = [CanSendRequest(user_id=user, business_id=business, category=name) for user, business, name in questions]
    return BatchCanSendRequest(requests=requests).SerializeToString()


def main() -> None:
    address, mode, callers, seconds, file = sys.argv[1:]
    with open(file, encoding="utf-8") as opened:
        questions = [(one["userId"], one["businessId"], one["category"]) for one in json.load(opened)]
    is_client = mode.startswith("client")
    if mode == "bare":
        print(asyncio.run(run_bare_tasks(address, int(callers), float(seconds), questions)))
    elif mode == "bare-threads":
        print(run_bare_threads(address, int(callers), float(seconds), questions))
    elif mode.endswith("-threads"):
        print(run_threads(is_client, address, int(callers), float(seconds), questions))
    else:
        print(asyncio.run(run_tasks(is_client, address, int(callers), float(seconds), questions)))


if __name__ == "__main__":
    main()
