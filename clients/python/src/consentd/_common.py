"""What the synchronous client and that of asyncio have in common."""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal, Protocol

from consentd._question import (
    FORMS,
    Form,
    Template,
    TemplateLike,
    form_failure,
    string_failure,
    template_failure,
    template_message,
)
from consentd._verdict import ConsentdError, Failure, Verdict, malformed, verdict_of_response
from consentd.v1.consent_pb2 import ConsentEvent
from consentd.v1.consent_service_pb2 import (
    BatchCanSendRequest,
    BatchCanSendResponse,
    CanSendResponse,
    FilterRecipientsRequest,
    FilterRecipientsResponse,
)
from consentd.v1.consent_service_pb2_grpc import ConsentServiceStub
from consentd.v1.record_service_pb2 import RecordEventRequest

log = logging.getLogger("consentd")

CHECK_SECONDS = 0.05
RECORD_SECONDS = 5.0
FILTER_SECONDS = 5.0

# The pause before a call is repeated, which doubles each time, and the longest one of calls that are not checks.
FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.5

# FilterRecipients takes a stream. On the wire a call with one message each way is the same as a unary one, which costs
# less, and so each chunk is a call of its own: what ends with its connection is asked again without the others.
FILTER_METHOD = "/consent.v1.ConsentService/FilterRecipients"
BATCH_METHOD = "/consent.v1.ConsentService/BatchCanSend"
CHUNK_USERS = 1_000
CHUNKS_UNDER_WAY = 4


class Observer(Protocol):
    """Is told what checks came to, such as to count them in a metrics library. No user id is given to it.

    Its methods are called by the thread or event loop that asks, and should return at once. What they raise is logged
    and otherwise ignored.
    """

    def checked(self, outcome: str, seconds: float) -> None:
        """One `may_send` or `check` ended.

        Args:
            outcome: `allowed`; or the reason of a denial, such as `OPTED_OUT_ALL`; or the gRPC code where nothing was
                decided, such as `UNAVAILABLE`. A few dozen values at most.
            seconds: How long the caller waited.
        """

    def batched(self, size: int) -> None:
        """A batch of that many checks, at least 1 and at most 1,000, is about to be sent."""


def told_checked(observer: Observer, verdict: Verdict, seconds: float) -> None:
    outcome = "allowed" if verdict.allowed else verdict.reason or verdict.code
    try:
        observer.checked(outcome, seconds)
    except Exception:
        log.exception("the observer of consentd failed")


def told_batched(observer: Observer) -> Callable[[int], None]:
    def tell(size: int) -> None:
        try:
            observer.batched(size)
        except Exception:
            log.exception("the observer of consentd failed")

    return tell


@dataclass(frozen=True)
class Change:
    """What a watch tells."""

    kind: Literal["changed", "template_changed", "reset", "silent"]
    """What it is:

    - `changed`: the state of a user changed. Ask again before sending to that user.
    - `template_changed`: the category of a template, or of all of a business, changed. Ask again about what is queued
      by it.
    - `reset`: something may have been missed. Ask again about everything that is queued.
    - `silent`: nothing was heard for 10 s, or the connection is lost, or the watch has ended since the sidecar refuses
      it. Trust nothing that is queued until the next `reset`. `code` and `cause` say why.
    """
    business: str
    """The business that changed; the one that is watched where everything is concerned."""
    user: str = ""
    """The user, as it was written to the ledger. Empty unless `changed`."""
    template: Template | None = None
    """The template. None: all of the business, or not `template_changed`."""
    revision: int = 0
    """The revision of the ledger that changed it: a `min_revision` for the check that follows. 0: none."""
    code: str = ""
    """The name of the gRPC code of what is wrong, such as `UNAVAILABLE`. Empty unless `silent`.

    `UNIMPLEMENTED`, `PERMISSION_DENIED`, `UNAUTHENTICATED` and `INVALID_ARGUMENT` end the watch: no `reset` follows.
    """
    cause: str = ""
    """The same in words."""


def batch_call(channel: Any, *, is_intercepted: bool) -> Any:
    """What asks a batch, given the elements of its BatchCanSendRequest as they are sent.

    Interceptors are given the message. Without any it is not made, which saves the time to parse and to write it again.
    """
    if not is_intercepted:
        return channel.unary_unary(BATCH_METHOD, response_deserializer=BatchCanSendResponse.FromString)
    ask = ConsentServiceStub(channel).BatchCanSend

    def ask_message(elements: bytes, timeout: float) -> Any:
        return ask(BatchCanSendRequest.FromString(elements), timeout=timeout)

    return ask_message


class Chunk:
    """Users whose verdicts are asked for by one call of FilterRecipients."""

    def __init__(
        self, users: list[str], business: str, category: str, form: Form | None, template: TemplateLike | None
    ) -> None:
        self.users = users
        self._question = (business, category, form, template)
        # Ids that cannot be sent. An empty one takes their place, which is malformed as well.
        self._unsent: dict[int, Failure] = {}
        self._failure = (
            string_failure("business_id", business)
            or string_failure("category", category)
            or form_failure(form)
            or template_failure(template)
        )
        self.request = FilterRecipientsRequest()
        if self._failure is None:
            self.request = FilterRecipientsRequest(
                business_id=business,
                category=category,
                form=FORMS[form],  # type: ignore[arg-type]
                template=None if template is None else template_message(template),
                user_ids=[self._sendable(i, user) for i, user in enumerate(users)],
            )

    def _sendable(self, index: int, user: str) -> str:
        failure = string_failure("user_id", user)
        if failure is not None:
            self._unsent[index] = failure
            return ""
        return user

    def split(self, size: int) -> list[Chunk]:
        """The same users in chunks of so many."""
        return [Chunk(self.users[i : i + size], *self._question) for i in range(0, len(self.users), size)]

    def unsendable(self) -> list[tuple[str, Verdict]] | None:
        """The verdicts, where the question itself cannot be sent."""
        return None if self._failure is None else self.failed(self._failure)

    def failed(self, failure: Failure) -> list[tuple[str, Verdict]]:
        """The verdicts where there is no answer."""
        verdict = Verdict(None, failure)
        return [(user, self._verdict(i, verdict)) for i, user in enumerate(self.users)]

    def answered(self, answer: FilterRecipientsResponse) -> list[tuple[str, Verdict]]:
        """The verdicts of an answer."""
        if len(answer.reasons) != len(self.users):
            return self.failed(Failure("INTERNAL", "the chunk has not one reason for each of its users"))
        # One verdict for each reason is enough: a verdict does not change.
        verdicts = {reason: _screened(reason, answer) for reason in set(answer.reasons)}
        return [
            (user, self._verdict(i, verdicts[reason]))
            for i, (user, reason) in enumerate(zip(self.users, answer.reasons, strict=True))
        ]

    def _verdict(self, index: int, verdict: Verdict) -> Verdict:
        unsent = self._unsent.get(index)
        return verdict if unsent is None else Verdict(None, unsent)


def _screened(reason: int, answer: FilterRecipientsResponse) -> Verdict:
    if reason == 0:
        return Verdict(None, malformed("user_id", "malformed; a check of this user says why"))
    return verdict_of_response(
        CanSendResponse(
            # Screening gives a reason alone, and of these 1 to 9 allow.
            allowed=1 <= reason <= 9,
            reason=reason,  # type: ignore[arg-type]
            staleness=answer.staleness,
            category_used=answer.category_used,
        )
    )


class ChunkSize:
    """How many users a sidecar takes at once, as far as is known. It is kept by a client."""

    def __init__(self) -> None:
        self.users = CHUNK_USERS


class Screening:
    """A chunk on its way to its verdicts, in parts where the sidecar takes fewer users at once (--max-recipients)."""

    def __init__(self, chunk: Chunk, size: ChunkSize) -> None:
        self.verdicts: list[tuple[str, Verdict]] = []
        self._size = size
        # The parts that have no verdicts yet, in order.
        self._parts = deque([chunk])
        unsendable = chunk.unsendable()
        if unsendable is not None:
            self.verdicts, self._parts = unsendable, deque()
        self._deadline = 0.0
        self._pause = FIRST_PAUSE_SECONDS
        self._renew()

    def part(self) -> Chunk | None:
        """What is to be asked next. None: all verdicts are there."""
        return self._parts[0] if self._parts else None

    def remaining(self) -> float:
        """How long an answer is waited for, in seconds."""
        return max(self._deadline - monotonic(), 0)

    def answered(self, answer: FilterRecipientsResponse) -> None:
        self.verdicts += self._parts.popleft().answered(answer)
        self._renew()

    def failed(self, failure: Failure, *, is_last: bool) -> float:
        """Takes a failure of the part. How long to wait before the next call, in seconds."""
        part = self._parts[0]
        count = len(part.users)
        if count > 1 and failure.code == "INVALID_ARGUMENT" and failure.field == "user_ids":
            self._size.users = size = max(1, min(self._size.users, count // 2))
            self._parts.popleft()
            self._parts.extendleft(reversed(part.split(size)))
            self._renew()
            return 0
        pause = self._pause
        if is_last or not may_repeat(failure) or pause >= self.remaining():
            self.verdicts += self._parts.popleft().failed(failure)
            return 0
        self._pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        return pause

    def _renew(self) -> None:
        """Begins the time of an answer. That of parts which follow one without an answer is over, too."""
        self._deadline = monotonic() + FILTER_SECONDS
        self._pause = FIRST_PAUSE_SECONDS


def may_repeat(failure: Failure) -> bool:
    """Whether a chunk is asked or an event recorded again.

    A campaign can wait for a sidecar that loads or has too much to do, and a request id makes recording again safe.
    """
    return failure.lost or failure.code in ("UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED")


def record_request(event: ConsentEvent, request_id: str | None) -> RecordEventRequest:
    return RecordEventRequest(event=event, request_id=request_id or str(uuid.uuid4()))


def refuse_single_id(users: object) -> None:
    """A single id in the place of a list would be taken for a list of its characters."""
    if isinstance(users, (str, bytes)):
        raise TypeError("users must be an iterable of ids, and is a single one")


def refuse_unsendable_business(business: object) -> None:
    """A watch of what cannot be sent would begin again and again, and never be heard."""
    failure = string_failure("business_id", business)
    if failure is not None:
        raise ConsentdError(failure)
