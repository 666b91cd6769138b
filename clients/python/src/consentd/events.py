"""Makes the events that `record` takes. What is malformed is refused by the sidecar, which says why.

All have in common:

- `user`: a phone number in any usual notation, country code first, a business-scoped user id, or an id of your own with
  a letter in it; 160 bytes at most.
- `business`: by the deployment's own id; 128 bytes at most.
- `at`: when it happened, with a time zone. None: now, by the ledger's clock. Give it where the event is older than the
  call, such as a message that was delivered late. At most five minutes ahead.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from google.protobuf.timestamp_pb2 import Timestamp

from consentd.v1.consent_pb2 import (
    ConsentEvent,
    DeliveryFailure,
    Evidence,
    InboundMessage,
    Link,
    OptIn,
    OptOut,
    PlatformPreference,
    Suppression,
    TemplateCategory,
    TemplateRestriction,
)

Method = Literal["SMS", "WEBSITE", "WHATSAPP", "PHONE", "IN_PERSON", "WHATSAPP_SIGNUP"]
"""How an opt-in was obtained."""


def opt_in(
    user: str,
    business: str,
    category: str,
    *,
    method: Method,
    statement: str = "",
    business_name: str = "",
    locale: str = "",
    reference: str = "",
    phone_number_id: str = "",
    expire: datetime | None = None,
    pending: bool = False,
    at: datetime | None = None,
) -> ConsentEvent:
    """The user agreed to a category, or to a whole class.

    Args:
        user: See above.
        business: See above.
        category: `CLASS` or `CLASS.TOPIC`, such as `utility.order_updates`.
        method: How the opt-in was obtained.
        statement: The words that the user agreed to, which name the business and, unless the sidecar is told
            otherwise, WhatsApp. Not needed for `WHATSAPP_SIGNUP`.
        business_name: The business's name as the user saw it; the statement must contain it.
        locale: The BCP 47 tag of the statement's language, such as `pt-BR`.
        reference: Where the proof is kept: a URL, a message id, a call or document reference.
        phone_number_id: For `WHATSAPP_SIGNUP`: Meta's id of the business's number.
        expire: When the opt-in lapses, with a time zone. None: never.
        pending: Whether it waits for the confirmation of a double opt-in: a second event without it confirms.
        at: See above.

    Raises:
        ValueError: There is no such method, or a time has no time zone.
    """
    evidence = Evidence(
        method=f"OPT_IN_METHOD_{method}",
        statement=statement,
        business_name=business_name,
        locale=locale,
        reference=reference,
        phone_number_id=phone_number_id,
    )
    what = OptIn(category=category, evidence=evidence, expire_time=_timestamp(expire), pending=pending)
    return _event(user, business, at, opt_in=what)


def opt_out(
    user: str, business: str, scope: str = "*", *, reference: str = "", at: datetime | None = None
) -> ConsentEvent:
    """The user withdrew from a category, a class, or everything (`*`).

    Args:
        user: See above.
        business: See above.
        scope: `*`, `CLASS` or `CLASS.TOPIC`.
        reference: What the user said or did, for the record.
        at: See above.
    """
    return _event(user, business, at, opt_out=OptOut(scope=scope, reference=reference))


def inbound_message(
    user: str, business: str, *, text: str = "", message_id: str = "", at: datetime | None = None
) -> ConsentEvent:
    """The user sent the business a message, or called it: the 24-hour window opens again.

    Args:
        user: See above.
        business: See above.
        text: The text, which is read for opt-out and opt-in keywords, such as STOP, and never stored.
        message_id: The platform's id of the message, for the record. A `request_id` made of it lets a webhook that is
            delivered twice be recorded once.
        at: See above.
    """
    return _event(user, business, at, inbound_message=InboundMessage(message_id=message_id, text=text))


def platform_preference(
    user: str, business: str, *, marketing_stopped: bool, phone_number_id: str = "", at: datetime | None = None
) -> ConsentEvent:
    """The user turned the business's marketing off or on in WhatsApp's own settings.

    Args:
        user: See above.
        business: See above.
        marketing_stopped: True to stop marketing, false to resume it.
        phone_number_id: Meta's id of the business's number that it was stopped or resumed at. Empty: unknown.
        at: See above.
    """
    what = PlatformPreference(marketing_stopped=marketing_stopped, phone_number_id=phone_number_id)
    return _event(user, business, at, platform_preference=what)


def delivery_failure(
    user: str, business: str, code: int, *, phone_number_id: str = "", at: datetime | None = None
) -> ConsentEvent:
    """WhatsApp refused a message that was sent to this user.

    Args:
        user: See above.
        business: See above.
        code: WhatsApp's error code, such as 131047, 131049 or 131050.
        phone_number_id: Meta's id of the business's number that the message was sent from.
        at: See above.
    """
    what = DeliveryFailure(code=code, phone_number_id=phone_number_id)
    return _event(user, business, at, delivery_failure=what)


def suppression(
    user: str, business: str, *, suppressed: bool = True, reference: str = "", at: datetime | None = None
) -> ConsentEvent:
    """The user must not be contacted, or may be again.

    Args:
        user: See above.
        business: See above.
        suppressed: True to suppress, false to lift it.
        reference: Why, for the record.
        at: See above.
    """
    return _event(user, business, at, suppression=Suppression(suppressed=suppressed, reference=reference))


def link(user: str, business: str, other_user: str, *, moved: bool = False, at: datetime | None = None) -> ConsentEvent:
    """Two ids are one person's: a denial under either holds under both.

    Args:
        user: See above.
        business: See above.
        other_user: The person's other id.
        moved: Whether the person left `user` for `other_user`, such as by changing the number.
        at: See above.
    """
    return _event(user, business, at, link=Link(other_user_id=other_user, moved=moved))


def template_category(
    business: str, name: str, language: str, category: str, *, reference: str = "", at: datetime | None = None
) -> ConsentEvent:
    """WhatsApp has a template in this category from now on.

    Args:
        business: See above.
        name: The template's name.
        language: Its language, such as `en` or `pt_BR`.
        category: The class: marketing, utility or authentication.
        reference: Who or what said so, for the record.
        at: See above.
    """
    what = TemplateCategory(category=category, reference=reference)
    return _event(f"template:{name}:{language}", business, at, template_category=what)


def template_restriction(
    business: str, *, restricted: bool, until: datetime | None = None, reference: str = "", at: datetime | None = None
) -> ConsentEvent:
    """WhatsApp counts all utility templates of the business as marketing, or no longer.

    Args:
        business: See above.
        restricted: Whether it does.
        until: When that ends by itself, with a time zone. None: not before it is lifted.
        reference: Who or what said so, for the record.
        at: See above.
    """
    what = TemplateRestriction(restricted=restricted, until_time=_timestamp(until), reference=reference)
    return _event("template:*", business, at, template_restriction=what)


def _event(user: str, business: str, at: datetime | None, **what: Any) -> ConsentEvent:
    return ConsentEvent(user_id=user, business_id=business, event_time=_timestamp(at), **what)


def _timestamp(time: datetime | None) -> Timestamp | None:
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError("a time needs a time zone: datetime.now(timezone.utc)")
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp
