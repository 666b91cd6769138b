"""What a check comes to: a verdict, or an error where nothing was decided."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from consentd._rpc_status_pb2 import BadRequest, Status
from consentd.v1.consent_pb2 import Reason
from consentd.v1.consent_service_pb2 import BatchCanSendResult, CanSendResponse

_REASONS = {number: name.removeprefix("REASON_") for name, number in Reason.items()}
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}

# Codes after which the same question has the same fault. OUT_OF_RANGE is the answer to one that is too large.
_INVALID = ("INVALID_ARGUMENT", "OUT_OF_RANGE")

# gRPC core ends a call whose connection is lost as UNAVAILABLE, but where the end was an RST_STREAM, its code is made
# one of these others, and the words are what tells it from an answer of the sidecar.
_LOST_CODES = ("CANCELLED", "INTERNAL", "UNKNOWN")
_LOST_WORDS = ("RST_STREAM", "Stream removed", "Socket closed", "Connection reset", "GOAWAY")


class Violation(NamedTuple):
    """One field that is malformed."""

    field: str
    """The field's path, such as `category` or `event.opt_in.evidence.statement`."""
    description: str
    """What is wrong with it, and what would be right."""


class Failure(NamedTuple):
    """Why nothing was decided."""

    code: str
    cause: str
    violations: tuple[Violation, ...] = ()
    lost: bool = False
    """Whether the connection failed before the sidecar answered, so that asking again may help at once."""

    @property
    def invalid(self) -> bool:
        return self.code in _INVALID

    @property
    def field(self) -> str:
        return self.violations[0].field if self.violations else ""


LATE = Failure("DEADLINE_EXCEEDED", "no answer in time")
CLOSED = Failure("CANCELLED", "the client is closed")


def malformed(field: str, description: str) -> Failure:
    return Failure("INVALID_ARGUMENT", f"{field}: {description}", (Violation(field, description),))


def failure_of_error(error: BaseException) -> Failure:
    """What an exception of a call means. It need not be gRPC's: interceptors may raise any."""
    if not isinstance(error, grpc.RpcError) or not hasattr(error, "code"):
        return Failure("UNKNOWN", f"{type(error).__name__}: {error}")
    code, words = error.code().name, error.details() or ""
    if code == LATE.code and words in ("", "Deadline Exceeded"):
        words = LATE.cause
    packed = _details_of(error)
    lost = packed is None and (
        code == "UNAVAILABLE" or (code in _LOST_CODES and any(part in words for part in _LOST_WORDS))
    )
    return Failure(code, words, _violations(packed), lost)


def _details_of(error: Any) -> bytes | None:
    """The details that a sidecar sends with an error, and a connection that failed never has."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            return bytes(value)
    return None


def _violations(packed: bytes | None) -> tuple[Violation, ...]:
    if packed is None:
        return ()
    found: list[Violation] = []
    try:
        for detail in Status.FromString(packed).details:
            if detail.type_url.endswith("/google.rpc.BadRequest"):
                request = BadRequest.FromString(detail.value)
                found += [Violation(one.field, one.description) for one in request.field_violations]
    except DecodeError:
        # The error counts by its code all the same: only the fields that it names are not known.
        return ()
    return tuple(found)


class ConsentdError(Exception):
    """Nothing was decided, or the event is not known to be recorded.

    Raised by `check`, `record` and `ready`. `may_send` returns a `Verdict` instead, and `filter` one for each user.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.code}: {failure.cause}")
        self.code: str = failure.code
        """The name of the gRPC code, such as `UNAVAILABLE`, `DEADLINE_EXCEEDED` or `INVALID_ARGUMENT`."""
        self.cause: str = failure.cause
        """The same in words."""
        self.field: str = failure.field
        """The first field that is malformed, such as `category`. Empty: the fault is not a field's."""
        self.violations: tuple[Violation, ...] = failure.violations
        """All fields that are malformed."""
        self.unavailable: bool = not failure.invalid
        """Whether the same call may succeed later."""
        self.invalid: bool = failure.invalid
        """Whether the call is malformed: the same one cannot succeed."""
        self._failure = failure

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._failure,)


class Verdict:
    """Whether a message may be sent now, and why. True only if it may: `if client.may_send(...)`.

    A verdict does not change, and can be pickled.
    """

    __slots__ = ("_allowed", "_answer", "_failure")

    # Made by verdict_of_response and verdict_of_result, of an answer with a reason or of a failure. The answer is kept
    # as it came, and its fields are read when they are asked for: most senders ask for none.
    def __init__(self, answer: CanSendResponse | None, failure: Failure | None = None) -> None:
        self._answer = answer
        self._failure = failure
        self._allowed = answer is not None and answer.allowed

    @property
    def allowed(self) -> bool:
        """Whether the message may be sent now."""
        return self._allowed

    def __bool__(self) -> bool:
        return self._allowed

    @property
    def reason(self) -> str:
        """Why, such as `OPTED_IN` or `OPTED_OUT_ALL`; as digits where this package does not know the reason.

        Empty where nothing was decided.
        """
        if self._answer is None:
            return ""
        return _REASONS.get(self._answer.reason) or str(self._answer.reason)

    @property
    def unavailable(self) -> bool:
        """Nothing was decided: no sidecar, an error, an overload, a deadline. Keep the message, and ask again later."""
        return self._failure is not None and not self._failure.invalid

    @property
    def invalid(self) -> bool:
        """Nothing was decided, since the question is malformed. Asking it again is of no use."""
        return self._failure is not None and self._failure.invalid

    @property
    def code(self) -> str:
        """The name of the gRPC code where nothing was decided, such as `UNAVAILABLE`. Else empty."""
        return self._failure.code if self._failure else ""

    @property
    def cause(self) -> str:
        """The code in words, such as `category: unknown class "newsletter", …`. Else empty."""
        return self._failure.cause if self._failure else ""

    @property
    def field(self) -> str:
        """The field that is malformed, such as `category`. Else empty."""
        return self._failure.field if self._failure else ""

    @property
    def free_form_allowed(self) -> bool:
        """Whether a free-form message may be sent now."""
        return self._answer is not None and self._answer.free_form_allowed

    @property
    def template_allowed(self) -> bool:
        """Whether a template may be sent now."""
        return self._answer is not None and self._answer.template_allowed

    @property
    def window_expire_time(self) -> datetime | None:
        """When the customer service window closes or closed, in UTC. None: the user never wrote, or not decided."""
        if self._answer is None or not self._answer.HasField("window_expire_time"):
            return None
        return _utc(self._answer.window_expire_time)

    @property
    def retry_time(self) -> datetime | None:
        """When to ask again, in UTC, where time alone will change the answer. Else None."""
        if self._answer is None or not self._answer.HasField("retry_time"):
            return None
        return _utc(self._answer.retry_time)

    @property
    def revision(self) -> int:
        """The revision that the answer rests on, of the user's part of the ledger. 0: not decided, or by `filter`."""
        return self._answer.revision if self._answer is not None else 0

    @property
    def staleness(self) -> timedelta | None:
        """How long before the answer the sidecar's table last proved itself current. None: not decided."""
        if self._answer is None:
            return None
        duration = self._answer.staleness
        return timedelta(seconds=duration.seconds, microseconds=duration.nanos // 1000)

    @property
    def category_used(self) -> str:
        """The category that decided, where the question named a template. Else empty."""
        return self._answer.category_used if self._answer is not None else ""

    def _key(self) -> tuple[Any, ...]:
        answer = None if self._answer is None else self._answer.SerializeToString(deterministic=True)
        return answer, self._failure

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Verdict) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, self._key()

    def __repr__(self) -> str:
        if self._answer is not None:
            return f"<Verdict {'allowed' if self._allowed else 'denied'}: {self.reason}>"
        return f"<Verdict {'invalid' if self.invalid else 'unavailable'}: {self.code}: {self.cause}>"


def _unpickled(answer: bytes | None, failure: Failure | None) -> Verdict:
    return Verdict(None if answer is None else CanSendResponse.FromString(answer), failure and Failure(*failure))


def _utc(time: Any) -> datetime:
    moment: datetime = time.ToDatetime(tzinfo=timezone.utc)
    return moment


UNDECIDED = Failure("INTERNAL", "the sidecar's answer decides nothing")


def verdict_of_response(response: CanSendResponse) -> Verdict:
    """The verdict of an answer.

    REASON_UNSPECIFIED, which is 0, is never sent by a sidecar, and decides nothing. Any other number counts, since a
    newer sidecar may have reasons that this package does not know.
    """
    return Verdict(response) if response.reason else Verdict(None, UNDECIDED)


def verdicts_of_results(results: Iterable[BatchCanSendResult]) -> list[Verdict]:
    """The verdicts of the answers in a batch."""
    return [
        Verdict(response) if (response := result.response).reason else verdict_of_result(result) for result in results
    ]


def verdict_of_result(result: BatchCanSendResult) -> Verdict:
    """The verdict of one answer in a batch."""
    response = result.response
    if response.reason:
        return Verdict(response)
    if not result.HasField("error"):
        return Verdict(None, UNDECIDED)
    error = result.error
    code = _CODES.get(error.code, "UNKNOWN")
    if not error.field:
        return Verdict(None, Failure(code, error.message))
    cause = f"{error.field}: {error.message}"
    return Verdict(None, Failure(code, cause, (Violation(error.field, error.message),)))
