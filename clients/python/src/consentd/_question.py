"""Questions as they are sent, and what one may be at most."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, Union

from consentd._verdict import Failure, malformed
from consentd.v1.consent_pb2 import MessageForm
from consentd.v1.consent_pb2 import Template as TemplateMessage
from consentd.v1.consent_service_pb2 import CanSendRequest

Form = Literal["FREE_FORM", "TEMPLATE"]
"""How a message is written: free-form, which WhatsApp takes in the customer service window alone, or a template."""


class Template(NamedTuple):
    """A message template. The stricter of the category asked for and of what the ledger knows of it decides."""

    name: str
    """Its name as WhatsApp has it: 1 to 512 of a-z, 0-9 and _."""
    language: str
    """Its language, such as `en` or `pt_BR`; `pt-br` is the same."""


TemplateLike = Union[Template, "tuple[str, str]"]

FORMS = {None: 0, "": 0, "FREE_FORM": MessageForm.MESSAGE_FORM_FREE_FORM, "TEMPLATE": MessageForm.MESSAGE_FORM_TEMPLATE}

# No string of a question may be as long as that: an id of a user has 160 bytes at most. A longer one is not sent at
# all, since the sidecar bounds how many bytes of all calls of a connection wait together.
LONGEST_BYTES = 1_024

# Most questions in one batch, and the most bytes of one of them: a thousand of them are within the 2 MiB that a sidecar
# takes. A larger question, which is malformed anyway, goes by itself, so that it spoils no batch.
BATCH_LIMIT = 1_000
BATCHED_BYTES_LIMIT = 2_000

# gRPC cannot express every number as a deadline: an hour is longer than any call may take.
LONGEST_SECONDS = 3_600.0


def question(
    user: str, business: str, category: str, form: Form | None, template: TemplateLike | None, min_revision: int
) -> CanSendRequest | Failure:
    """The question as it is sent, or what keeps it from being sent at all."""
    try:
        request = CanSendRequest(
            user_id=user,
            business_id=business,
            category=category,
            form=FORMS[form],  # type: ignore[arg-type]
            template=None if template is None else template_message(template),
            min_revision=min_revision,
        )
    except Exception:
        request = None
    # protobuf takes None and bytes for a string, too.
    are_strings = isinstance(user, str) and isinstance(business, str) and isinstance(category, str)
    if request is not None and are_strings and request.ByteSize() <= LONGEST_BYTES:
        return request
    failure = (
        string_failure("user_id", user)
        or string_failure("business_id", business)
        or string_failure("category", category)
        or form_failure(form)
        or template_failure(template)
    )
    if failure is None and request is None:
        failure = malformed("min_revision", "must be an int from 0 to 2^64 - 1")
    return failure or request  # type: ignore[return-value]


def _varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128, number >> 7])


_VARINTS = [_varint(number) for number in range(BATCHED_BYTES_LIMIT + 1)]


def _heads(rest: int) -> list[bytes]:
    """What comes before the user's id in an element, by the id's size, where so many bytes come after it."""
    heads: list[bytes] = []
    for size in range(BATCHED_BYTES_LIMIT):
        length = _VARINTS[size]
        element = 1 + len(length) + size + rest
        if element > BATCHED_BYTES_LIMIT:
            break
        heads.append(b"\n%b\n%b" % (_VARINTS[element], length))
    return heads


_Rest = tuple[str, str, "Form | None", "TemplateLike | None"]
known_rests: dict[_Rest, tuple[list[bytes], bytes]] = {}
_RESTS_LIMIT = 10_000
# By the size of what comes after the user's id.
_heads_of: dict[int, list[bytes]] = {}


def batched_question(
    user: str, business: str, category: str, form: Form | None, template: TemplateLike | None
) -> bytes | None:
    """The question as an element of a serialised BatchCanSendRequest. None: it is too large for a batch.

    To add a message to a batch takes 0.7 µs, and this 0.2 µs, of the 7 µs that a check costs. The rest of the question
    is the same for most, and serialised once; the user's id, the first field of CanSendRequest, is put before it. The
    elements of a batch, one after the other, are a BatchCanSendRequest.

    Raises:
        Exception: The question cannot be sent: `question` says why.
    """
    name = user.encode()
    found = known_rests.get((business, category, form, template))
    heads, rest = found or rest_of(business, category, form, template)
    try:
        return heads[len(name)] + name + rest
    except IndexError:
        return None


def rest_of(
    business: str, category: str, form: Form | None, template: TemplateLike | None
) -> tuple[list[bytes], bytes]:
    """What comes before a user's id, and what comes after it."""
    request = question("", business, category, form, template, 0)
    if isinstance(request, Failure):
        raise ValueError(request.cause)
    rest = request.SerializeToString()
    size = len(rest)
    heads = _heads_of.get(size)
    if heads is None:
        heads = _heads_of[size] = _heads(size)
    if len(known_rests) >= _RESTS_LIMIT:
        known_rests.clear()
    known_rests[business, category, form, template] = heads, rest
    return heads, rest


def template_message(template: TemplateLike) -> TemplateMessage:
    name, language = template
    return TemplateMessage(name=name, language=language)


def string_failure(field: str, value: object) -> Failure | None:
    """What keeps a value from being sent as a string."""
    if not isinstance(value, str):
        return malformed(field, f"must be a str, and is a {type(value).__name__}")
    try:
        if len(value.encode()) > LONGEST_BYTES:
            return malformed(field, f"longer than {LONGEST_BYTES} bytes of UTF-8, which none may be")
    except UnicodeEncodeError:
        return malformed(field, "holds a surrogate, which is half of a character: it is no UTF-8")
    return None


def form_failure(form: object) -> Failure | None:
    if (isinstance(form, str) and form in FORMS) or form is None:
        return None
    return malformed("form", "must be FREE_FORM, TEMPLATE or None")


def template_failure(template: Any) -> Failure | None:
    if template is None:
        return None
    try:
        name, language = template
    except (TypeError, ValueError):
        return malformed("template", "must be a Template or a tuple of its name and language")
    return string_failure("template.name", name) or string_failure("template.language", language)


def seconds(timeout: float | None, default: float) -> float:
    """A time that gRPC takes: at least 0, which is late at once, and at most an hour."""
    if timeout is None:
        return default
    return min(max(timeout, 0.0), LONGEST_SECONDS) if not math.isnan(timeout) else 0.0
