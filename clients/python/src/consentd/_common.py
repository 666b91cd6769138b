"""What the clients of threads and of asyncio have in common."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

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
from consentd._verdict import Failure, Verdict, malformed, verdict_of_response
from consentd.v1.consent_pb2 import ConsentEvent
from consentd.v1.consent_service_pb2 import (
    CanSendResponse,
    FilterRecipientsRequest,
    FilterRecipientsResponse,
    WatchConsentsResponse,
)
from consentd.v1.record_service_pb2 import RecordEventRequest

log = logging.getLogger("consentd")

CHECK_SECONDS = 0.05
RECORD_SECONDS = 5.0
FILTER_SECONDS = 5.0
SILENCE_SECONDS = 10.0

# The pause before a call is repeated, which doubles each time, and the longest one of calls that are not checks.
FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.5

# FilterRecipients takes a stream. On the wire a call with one message each way is the same as a unary one, which costs
# less, and so each chunk is a call of its own: what ends with its connection is asked again without the others.
FILTER_METHOD = "/consent.v1.ConsentService/FilterRecipients"
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
    - `silent`: nothing was heard for 10 s, or the connection is lost. Trust nothing that is queued until the next
      `reset`.
    """
    business: str
    """The business that changed; the one that is watched where everything is concerned."""
    user: str = ""
    """The user, as it was written to the ledger. Empty unless `changed`."""
    template: Template | None = None
    """The template. None: all of the business, or not `template_changed`."""
    revision: int = 0
    """The revision of the ledger that changed it: a `min_revision` for the check that follows. 0: none."""


def change_of(message: WatchConsentsResponse) -> Change | None:
    """What is to be told of a message. None: it is a checkpoint."""
    if message.HasField("changed"):
        changed = message.changed
        return Change("changed", changed.business_id, user=changed.user_id, revision=changed.revision)
    if message.HasField("template_changed"):
        about = message.template_changed
        template = Template(about.template.name, about.template.language) if about.HasField("template") else None
        return Change("template_changed", about.business_id, template=template, revision=about.revision)
    return None


class Chunk:
    """Users whose verdicts are asked for by one call of FilterRecipients."""

    def __init__(
        self, users: list[str], business: str, category: str, form: Form | None, template: TemplateLike | None
    ) -> None:
        self.users = users
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


def may_ask_chunk_again(failure: Failure) -> bool:
    """Whether a chunk is asked again. A campaign can wait for a sidecar that loads or has too much to do."""
    return failure.lost or failure.code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED")


def may_record_again(failure: Failure) -> bool:
    """Whether an event is recorded again, which its request id makes safe."""
    return failure.lost or failure.code in ("UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED")


def record_request(event: ConsentEvent, request_id: str | None) -> RecordEventRequest:
    return RecordEventRequest(event=event, request_id=request_id or str(uuid.uuid4()))


def is_list_of_users(users: object) -> None:
    """A single id in the place of a list would be taken for a list of its characters."""
    if isinstance(users, (str, bytes)):
        raise TypeError("users must be an iterable of ids, and is a single one")
