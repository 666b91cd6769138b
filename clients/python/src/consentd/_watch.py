"""What both kinds of watch do with what they hear. It has no I/O: streams, threads and tasks are its callers'."""

from __future__ import annotations

from time import monotonic

from consentd._common import Change, log
from consentd._question import Template
from consentd._verdict import ConsentdError, Failure
from consentd.v1.consent_service_pb2 import WatchConsentsResponse

SILENCE_SECONDS = 10.0

# The shortest and the longest pause before a watch begins another stream.
_FIRST_PAUSE_SECONDS = 0.02
_LAST_PAUSE_SECONDS = 1.0

# Codes after which a watch does not begin again, since that would be of no use.
_FINAL_CODES = ("UNIMPLEMENTED", "PERMISSION_DENIED", "UNAUTHENTICATED", "INVALID_ARGUMENT")

_SILENCE = Failure("DEADLINE_EXCEEDED", f"nothing was heard for {SILENCE_SECONDS:.0f} s")
HANDLER_FAILED = Failure("INTERNAL", "on_change raised an exception")


class WatchState:
    """Which changes `on_change` is to be told, of what is heard on one stream after the other."""

    def __init__(self, business: str) -> None:
        self._business = business
        # When something was heard last, or the watch was begun.
        self._heard = monotonic()
        # Whether all that happened on this stream was told, since it began with a reset.
        self._current = False
        # Whether on_change was told `silent`, and no `reset` after it.
        self._silent = False
        self._pause = _FIRST_PAUSE_SECONDS
        self._warned = ""
        self.error: ConsentdError | None = None
        """Why the watch has ended, where the sidecar refuses it."""

    def begin_stream(self) -> None:
        """A stream begins: what changed before its first message was not reported."""
        self._current = False

    def remaining(self) -> float | None:
        """For how many seconds nothing may be heard from now on. None: that there is silence was told already."""
        return None if self._silent else max(self._heard + SILENCE_SECONDS - monotonic(), 0)

    def timed_out(self) -> Change | None:
        """Nothing was heard in time. What is to be told, if anything.

        The stream is kept: a sidecar whose table is stale says nothing. What comes next on it is a reset.
        """
        self._current = False
        return self._silence(_SILENCE)

    def change(self, message: WatchConsentsResponse) -> Change | None:
        """What is to be told of a message, before `told`. None: it is a checkpoint."""
        if not self._current:
            return Change("reset", self._business)
        return _change_of(message, self._business)

    def told(self, change: Change | None) -> None:
        """What a message said was told."""
        if change is not None and change.kind == "reset":
            self._silent = False
        self._current = True
        self._heard = monotonic()

    def stream_ended(self, failure: Failure) -> Change | None:
        """A stream ended. What is to be told, if anything; `error` is set where no other may begin."""
        if failure.code in _FINAL_CODES:
            log.error("a watch of consentd has ended: %s: %s", failure.code, failure.cause)
            self.error = ConsentdError(failure)
            # Told even where it was silent before, since it stays so.
            return _silent(self._business, failure)
        if failure.code != self._warned:
            self._warned = failure.code
            log.warning("a watch of consentd is interrupted: %s: %s", failure.code, failure.cause)
        if self._current:
            self._pause = _FIRST_PAUSE_SECONDS
        if self._current or failure is HANDLER_FAILED or monotonic() - self._heard >= SILENCE_SECONDS:
            return self._silence(failure)
        return None

    def next_pause(self) -> float:
        """For how many seconds to wait before the next stream begins."""
        pause, self._pause = self._pause, min(2 * self._pause, _LAST_PAUSE_SECONDS)
        return pause

    def _silence(self, failure: Failure) -> Change | None:
        """`silent`, once until the next reset."""
        if self._silent:
            return None
        self._silent = True
        return _silent(self._business, failure)


def log_handler_failed(error: BaseException) -> None:
    """Logs that `on_change` raised, without the text of the exception, which may hold the id of a user."""
    log.error("on_change of a watch of consentd raised %s", type(error).__name__)


def _silent(business: str, failure: Failure) -> Change:
    return Change("silent", business, code=failure.code, cause=failure.cause)


def _change_of(message: WatchConsentsResponse, watched: str) -> Change | None:
    """What is to be told of a message. None: it is a checkpoint."""
    if message.HasField("checkpoint"):
        return None
    if message.HasField("changed"):
        changed = message.changed
        return Change("changed", changed.business_id, user=changed.user_id, revision=changed.revision)
    if message.HasField("template_changed"):
        about = message.template_changed
        template = Template(about.template.name, about.template.language) if about.HasField("template") else None
        return Change("template_changed", about.business_id, template=template, revision=about.revision)
    # A reset, or a kind of message that this package does not know, which may be about anything.
    return Change("reset", watched)
