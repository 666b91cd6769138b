"""For tests of what uses this package: clients that answer by rules, and the real sidecar on a ledger of its own.

client = consentd.testing.FakeClient()
client.allow(user="15550123456", category="marketing")
assert client.may_send("15550123456", "acme", "marketing")
assert client.may_send("15550123457", "acme", "marketing").reason == "NO_CONSENT"

with consentd.testing.Sidecar() as sidecar, consentd.Client(sidecar.address) as client:
    client.record(consentd.events.opt_out("15550123456", "acme"))
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import grpc

from consentd._async_client import AsyncClient, AsyncWatch
from consentd._client import Client, Watch
from consentd._common import RECORD_SECONDS, Change, refuse_single_id
from consentd._question import Form, TemplateLike
from consentd._verdict import ConsentdError, Failure, Verdict, malformed, verdict_of_response
from consentd.v1.consent_pb2 import ConsentEvent, Reason
from consentd.v1.consent_service_pb2 import CanSendResponse
from consentd.v1.record_service_pb2 import RecordEventResponse


class _Rule(NamedTuple):
    user: str | None
    business: str | None
    category: str | None
    verdict: Verdict

    def applies(self, user: str, business: str, category: str) -> bool:
        return (
            (self.user is None or self.user == user)
            and (self.business is None or self.business == business)
            and (self.category is None or self.category == category)
        )


class _Rules:
    """The rules of a fake client. The latest that applies decides; without any a check is denied as `NO_CONSENT`."""

    def __init__(self) -> None:
        self._rules: list[_Rule] = []
        self.asked: list[tuple[str, str, str]] = []
        """The user, business and category of each check, in order."""
        self.recorded: list[ConsentEvent] = []
        """The events that were recorded, in order. They change no answer: rules alone do."""
        self._record_failure: Failure | None = None

    def allow(
        self,
        *,
        user: str | None = None,
        business: str | None = None,
        category: str | None = None,
        reason: str = "OPTED_IN",
    ) -> None:
        """Allows what matches: exactly these strings, and anything where None is given.

        Raises:
            ValueError: There is no such reason, or it is one that denies.
        """
        self._decide(user, business, category, reason, allowed=True)

    def deny(
        self,
        *,
        user: str | None = None,
        business: str | None = None,
        category: str | None = None,
        reason: str = "NO_CONSENT",
    ) -> None:
        """Denies what matches, for a reason such as `OPTED_OUT_ALL`.

        Raises:
            ValueError: There is no such reason, or it is one that allows.
        """
        self._decide(user, business, category, reason, allowed=False)

    def fail(
        self,
        *,
        user: str | None = None,
        business: str | None = None,
        category: str | None = None,
        code: str = "UNAVAILABLE",
        cause: str = "no sidecar, as a test has stated",
    ) -> None:
        """Gives no answer to what matches, but an error of this gRPC code: `INVALID_ARGUMENT` makes it `invalid`.

        Raises:
            ValueError: There is no such code.
        """
        failure = Failure(_code(code), cause)
        self._rules.append(_Rule(user, business, category, Verdict(None, failure)))

    def fail_records(self, code: str | None = "UNAVAILABLE", cause: str = "no sidecar, as a test has stated") -> None:
        """Lets `record` raise this from now on. None: no more.

        Raises:
            ValueError: There is no such code.
        """
        self._record_failure = None if code is None else Failure(_code(code), cause)

    def _decide(
        self, user: str | None, business: str | None, category: str | None, reason: str, *, allowed: bool
    ) -> None:
        number = Reason.Value(f"REASON_{reason}")
        if number == 0 or allowed != (number <= 9):
            raise ValueError(f"{reason} is no reason that {'allows' if allowed else 'denies'}")
        response = CanSendResponse(
            allowed=allowed,
            reason=number,  # type: ignore[arg-type]
            free_form_allowed=allowed,
            template_allowed=allowed,
            revision=1,
        )
        self._rules.append(_Rule(user, business, category, verdict_of_response(response)))

    def _answer(self, user: str, business: str, category: str) -> Verdict:
        self.asked.append((user, business, category))
        for field, value in (("user_id", user), ("business_id", business), ("category", category)):
            if not isinstance(value, str) or not value:
                return Verdict(None, malformed(field, "required"))
        for rule in reversed(self._rules):
            if rule.applies(user, business, category):
                return rule.verdict
        return verdict_of_response(CanSendResponse(reason=Reason.REASON_NO_CONSENT, revision=1))

    def _record(self, event: ConsentEvent) -> RecordEventResponse:
        if self._record_failure is not None:
            raise ConsentdError(self._record_failure)
        self.recorded.append(event)
        return RecordEventResponse(revision=len(self.recorded), applied=True)


def _code(name: str) -> str:
    if name == "OK" or name not in grpc.StatusCode.__members__:
        raise ValueError(f"{name} is no gRPC code of an error")
    return name


class FakeWatch(Watch):
    """A watch of a `FakeClient`: `tell` is called by the test."""

    def __init__(self, business: str, on_change: Callable[[Change], object]) -> None:
        self.business = business
        self.is_closed = False
        self._on_change = on_change
        self.tell(Change("reset", business))

    def tell(self, change: Change) -> None:
        """Gives a change to `on_change`, unless the watch is closed."""
        if not self.is_closed:
            self._on_change(change)

    def close(self) -> None:
        self.is_closed = True


class FakeClient(_Rules, Client):
    """A `Client` without a sidecar. All is denied as `NO_CONSENT` but what rules say otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.watches: list[FakeWatch] = []
        """What was begun to be watched."""

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
        return self._answer(user, business, category)

    def filter(
        self,
        users: Iterable[str],
        business: str,
        category: str,
        form: Form | None = None,
        template: TemplateLike | None = None,
    ) -> Iterator[tuple[str, Verdict]]:
        refuse_single_id(users)
        return ((user, self._answer(user, business, category)) for user in users)

    def watch(self, business: str, on_change: Callable[[Change], object]) -> FakeWatch:
        watch = FakeWatch(business, on_change)
        self.watches.append(watch)
        return watch

    def record(
        self, event: ConsentEvent, *, request_id: str | None = None, timeout: float = RECORD_SECONDS
    ) -> RecordEventResponse:
        return self._record(event)

    def ready(self, timeout: float = 10.0) -> None:
        pass

    def close(self) -> None:
        for watch in self.watches:
            watch.close()


class FakeAsyncWatch(AsyncWatch):
    """A watch of a `FakeAsyncClient`: `tell` is called by the test, also for the `reset` at the beginning."""

    def __init__(self, business: str, on_change: Callable[[Change], object]) -> None:
        self.business = business
        self.is_closed = False
        self._on_change = on_change

    async def tell(self, change: Change) -> None:
        """Gives a change to `on_change`, unless the watch is closed."""
        if not self.is_closed:
            answer = self._on_change(change)
            if inspect.isawaitable(answer):
                await answer

    async def close(self) -> None:
        self.is_closed = True


class FakeAsyncClient(_Rules, AsyncClient):
    """An `AsyncClient` without a sidecar. All is denied as `NO_CONSENT` but what rules say otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.watches: list[FakeAsyncWatch] = []
        """What was begun to be watched."""

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
        return self._answer(user, business, category)

    async def filter(
        self,
        users: Iterable[str] | AsyncIterable[str],
        business: str,
        category: str,
        form: Form | None = None,
        template: TemplateLike | None = None,
    ) -> AsyncIterator[tuple[str, Verdict]]:
        refuse_single_id(users)
        if isinstance(users, AsyncIterable):
            async for user in users:
                yield user, self._answer(user, business, category)
        else:
            for user in users:
                yield user, self._answer(user, business, category)

    def watch(self, business: str, on_change: Callable[[Change], object]) -> FakeAsyncWatch:
        watch = FakeAsyncWatch(business, on_change)
        self.watches.append(watch)
        return watch

    async def record(
        self, event: ConsentEvent, *, request_id: str | None = None, timeout: float = RECORD_SECONDS
    ) -> RecordEventResponse:
        return self._record(event)

    async def ready(self, timeout: float = 10.0) -> None:
        pass

    async def close(self) -> None:
        for watch in self.watches:
            await watch.close()


class Sidecar:
    """The real sidecar, on a ledger in a temporary folder. Begun by `with`, or by `start` and ended by `close`.

    The binary is the one in the environment variable `CONSENTD_BIN`, or `consentd` on the path.
    """

    def __init__(self, *arguments: str, unix: bool = False, start_seconds: float = 60.0) -> None:
        """Does not start it yet.

        Args:
            arguments: More arguments of `consentd serve`, such as `--max-staleness`, `1s`. Of those that are given
                here by default, `--ledger`, `--admin` and `--listen`, they take the place.
            unix: Whether `address` is a Unix socket.
            start_seconds: How long `start` waits for a sidecar that answers checks.

        Raises:
            FileNotFoundError: There is no such binary.
        """
        binary = os.environ.get("CONSENTD_BIN") or shutil.which("consentd")
        if not binary or not os.access(binary, os.X_OK):
            raise FileNotFoundError(
                "no consentd: put it on the path or its path in CONSENTD_BIN; `cargo install --path .` builds it"
            )
        self._binary = binary
        self._arguments = arguments
        self._unix = unix
        self._start_seconds = start_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="consentd-")
        self._listen = "127.0.0.1:0"
        self._said: deque[str] = deque(maxlen=50)
        self._listening = threading.Event()
        self._loaded = threading.Event()

    @property
    def folder(self) -> Path:
        """The folder of the ledger and the socket."""
        return Path(self._folder.name)

    @property
    def address(self) -> str:
        """Where it is reached, for a client. The same after a restart."""
        return f"unix:{self.folder / 'consentd.sock'}" if self._unix else self._listen

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process, such as to send it signals.

        Raises:
            RuntimeError: It was not started.
        """
        if self._process is None:
            raise RuntimeError("the sidecar was not started")
        return self._process

    def start(self, wait: bool = True) -> None:
        """Starts it, or starts it again on the same ledger and address.

        Args:
            wait: Whether to wait until it answers checks, and not only until it listens.

        Raises:
            RuntimeError: It ended, or took too long. The message has what it said.
        """
        defaults = {"--ledger": f"file:{self.folder / 'consentd.redb'}", "--admin": "none", "--listen": self._listen}
        command = [self._binary, "serve"]
        for name, value in defaults.items():
            if name not in self._arguments:
                command += [name, value]
        if self._unix:
            command += ["--unix", str(self.folder / "consentd.sock")]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("CONSENTD_")}
        self._said.clear()
        self._listening.clear()
        self._loaded.clear()
        self._process = process = subprocess.Popen(
            [*command, *self._arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment
        )
        threading.Thread(target=self._read, args=(process,), name="consentd-log", daemon=True).start()
        if not (self._loaded if wait else self._listening).wait(self._start_seconds) or process.poll() is not None:
            process.kill()
            process.wait()
            raise RuntimeError("the sidecar did not start:\n" + "".join(self._said))

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        with process.stderr as lines:
            for line in lines:
                self._said.append(line.decode(errors="replace"))
                try:
                    said: dict[str, Any] = json.loads(line)
                except ValueError:
                    continue
                if said.get("message") == "listening":
                    address = str(said.get("grpc", "")).split(",")[0]
                    if address and not address.startswith("unix:"):
                        self._listen = address
                    self._listening.set()
                elif str(said.get("message", "")).startswith("the table holds the ledger"):
                    self._loaded.set()
        # It has ended: nobody waits any longer than needed.
        process.wait()
        if process is self._process:
            self._listening.set()
            self._loaded.set()

    def kill(self) -> None:
        """Ends it at once, by SIGKILL."""
        self.process.kill()
        self.process.wait()

    def drain(self) -> None:
        """Lets it finish what is under way and end, by SIGTERM, and waits for that."""
        self.process.terminate()
        self.process.wait()

    def pause(self) -> None:
        """Stops it from running, by SIGSTOP: it keeps its connections, and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)
        # The signal is sent before it is delivered: a thread may go on for a moment, and still answer.
        deadline = time.monotonic() + self._start_seconds
        while not _is_stopped(self.process.pid):
            if time.monotonic() > deadline:
                raise RuntimeError("the sidecar does not stop")
            time.sleep(0.001)

    def resume(self) -> None:
        """Lets it run again, by SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Ends it, and removes the folder."""
        if self._process is not None:
            self.kill()
        self._folder.cleanup()

    def __enter__(self) -> Sidecar:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _is_stopped(pid: int) -> bool:
    """Whether each thread of a process is in the state T; true where the system has no /proc to ask."""
    threads = Path(f"/proc/{pid}/task")
    if not threads.is_dir():
        return True
    try:
        # The state comes after the program's name, which is in brackets and may contain any.
        return all((thread / "stat").read_text().rpartition(")")[2].startswith(" T") for thread in threads.iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return False  # A thread ended while it was looked at.
