import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class MessageForm(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MESSAGE_FORM_UNSPECIFIED: _ClassVar[MessageForm]
    MESSAGE_FORM_FREE_FORM: _ClassVar[MessageForm]
    MESSAGE_FORM_TEMPLATE: _ClassVar[MessageForm]

class Reason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[Reason]
    REASON_OPTED_IN: _ClassVar[Reason]
    REASON_WINDOW_OPEN: _ClassVar[Reason]
    REASON_REPLY_AFTER_OPT_OUT: _ClassVar[Reason]
    REASON_ALLOWED_WHILE_STALE: _ClassVar[Reason]
    REASON_NO_CONSENT: _ClassVar[Reason]
    REASON_WINDOW_CLOSED: _ClassVar[Reason]
    REASON_OPTED_OUT: _ClassVar[Reason]
    REASON_OPTED_OUT_ALL: _ClassVar[Reason]
    REASON_PLATFORM_STOPPED: _ClassVar[Reason]
    REASON_CONSENT_EXPIRED: _ClassVar[Reason]
    REASON_CONSENT_PENDING: _ClassVar[Reason]
    REASON_FREQUENCY_CAPPED: _ClassVar[Reason]
    REASON_SUPPRESSED: _ClassVar[Reason]
    REASON_STALE: _ClassVar[Reason]
    REASON_PLATFORM_REFUSED: _ClassVar[Reason]
    REASON_COUNTRY_BLOCKED: _ClassVar[Reason]

class OptInMethod(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPT_IN_METHOD_UNSPECIFIED: _ClassVar[OptInMethod]
    OPT_IN_METHOD_SMS: _ClassVar[OptInMethod]
    OPT_IN_METHOD_WEBSITE: _ClassVar[OptInMethod]
    OPT_IN_METHOD_WHATSAPP: _ClassVar[OptInMethod]
    OPT_IN_METHOD_PHONE: _ClassVar[OptInMethod]
    OPT_IN_METHOD_IN_PERSON: _ClassVar[OptInMethod]
    OPT_IN_METHOD_WHATSAPP_SIGNUP: _ClassVar[OptInMethod]

class StatementNames(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    STATEMENT_NAMES_UNSPECIFIED: _ClassVar[StatementNames]
    STATEMENT_NAMES_BUSINESS: _ClassVar[StatementNames]
MESSAGE_FORM_UNSPECIFIED: MessageForm
MESSAGE_FORM_FREE_FORM: MessageForm
MESSAGE_FORM_TEMPLATE: MessageForm
REASON_UNSPECIFIED: Reason
REASON_OPTED_IN: Reason
REASON_WINDOW_OPEN: Reason
REASON_REPLY_AFTER_OPT_OUT: Reason
REASON_ALLOWED_WHILE_STALE: Reason
REASON_NO_CONSENT: Reason
REASON_WINDOW_CLOSED: Reason
REASON_OPTED_OUT: Reason
REASON_OPTED_OUT_ALL: Reason
REASON_PLATFORM_STOPPED: Reason
REASON_CONSENT_EXPIRED: Reason
REASON_CONSENT_PENDING: Reason
REASON_FREQUENCY_CAPPED: Reason
REASON_SUPPRESSED: Reason
REASON_STALE: Reason
REASON_PLATFORM_REFUSED: Reason
REASON_COUNTRY_BLOCKED: Reason
OPT_IN_METHOD_UNSPECIFIED: OptInMethod
OPT_IN_METHOD_SMS: OptInMethod
OPT_IN_METHOD_WEBSITE: OptInMethod
OPT_IN_METHOD_WHATSAPP: OptInMethod
OPT_IN_METHOD_PHONE: OptInMethod
OPT_IN_METHOD_IN_PERSON: OptInMethod
OPT_IN_METHOD_WHATSAPP_SIGNUP: OptInMethod
STATEMENT_NAMES_UNSPECIFIED: StatementNames
STATEMENT_NAMES_BUSINESS: StatementNames

class Evidence(_message.Message):
    __slots__ = ("method", "statement", "business_name", "locale", "reference", "confirmation", "phone_number_id", "statement_names")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    BUSINESS_NAME_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    CONFIRMATION_FIELD_NUMBER: _ClassVar[int]
    PHONE_NUMBER_ID_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_NAMES_FIELD_NUMBER: _ClassVar[int]
    method: OptInMethod
    statement: str
    business_name: str
    locale: str
    reference: str
    confirmation: str
    phone_number_id: str
    statement_names: StatementNames
    def __init__(self, method: _Optional[_Union[OptInMethod, str]] = ..., statement: _Optional[str] = ..., business_name: _Optional[str] = ..., locale: _Optional[str] = ..., reference: _Optional[str] = ..., confirmation: _Optional[str] = ..., phone_number_id: _Optional[str] = ..., statement_names: _Optional[_Union[StatementNames, str]] = ...) -> None: ...

class OptIn(_message.Message):
    __slots__ = ("category", "evidence", "expire_time", "pending")
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    category: str
    evidence: Evidence
    expire_time: _timestamp_pb2.Timestamp
    pending: bool
    def __init__(self, category: _Optional[str] = ..., evidence: _Optional[_Union[Evidence, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., pending: bool = ...) -> None: ...

class OptOut(_message.Message):
    __slots__ = ("scope", "reference")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    scope: str
    reference: str
    def __init__(self, scope: _Optional[str] = ..., reference: _Optional[str] = ...) -> None: ...

class InboundMessage(_message.Message):
    __slots__ = ("message_id", "text")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    text: str
    def __init__(self, message_id: _Optional[str] = ..., text: _Optional[str] = ...) -> None: ...

class PlatformPreference(_message.Message):
    __slots__ = ("marketing_stopped", "phone_number_id")
    MARKETING_STOPPED_FIELD_NUMBER: _ClassVar[int]
    PHONE_NUMBER_ID_FIELD_NUMBER: _ClassVar[int]
    marketing_stopped: bool
    phone_number_id: str
    def __init__(self, marketing_stopped: bool = ..., phone_number_id: _Optional[str] = ...) -> None: ...

class DeliveryFailure(_message.Message):
    __slots__ = ("code", "phone_number_id")
    CODE_FIELD_NUMBER: _ClassVar[int]
    PHONE_NUMBER_ID_FIELD_NUMBER: _ClassVar[int]
    code: int
    phone_number_id: str
    def __init__(self, code: _Optional[int] = ..., phone_number_id: _Optional[str] = ...) -> None: ...

class Suppression(_message.Message):
    __slots__ = ("suppressed", "reference")
    SUPPRESSED_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    suppressed: bool
    reference: str
    def __init__(self, suppressed: bool = ..., reference: _Optional[str] = ...) -> None: ...

class Link(_message.Message):
    __slots__ = ("other_user_id", "moved")
    OTHER_USER_ID_FIELD_NUMBER: _ClassVar[int]
    MOVED_FIELD_NUMBER: _ClassVar[int]
    other_user_id: str
    moved: bool
    def __init__(self, other_user_id: _Optional[str] = ..., moved: bool = ...) -> None: ...

class Template(_message.Message):
    __slots__ = ("name", "language")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    name: str
    language: str
    def __init__(self, name: _Optional[str] = ..., language: _Optional[str] = ...) -> None: ...

class TemplateCategory(_message.Message):
    __slots__ = ("category", "lift_time", "reference")
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    LIFT_TIME_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    category: str
    lift_time: _timestamp_pb2.Timestamp
    reference: str
    def __init__(self, category: _Optional[str] = ..., lift_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reference: _Optional[str] = ...) -> None: ...

class TemplateRestriction(_message.Message):
    __slots__ = ("restricted", "until_time", "reference")
    RESTRICTED_FIELD_NUMBER: _ClassVar[int]
    UNTIL_TIME_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    restricted: bool
    until_time: _timestamp_pb2.Timestamp
    reference: str
    def __init__(self, restricted: bool = ..., until_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reference: _Optional[str] = ...) -> None: ...

class ConsentEvent(_message.Message):
    __slots__ = ("user_id", "business_id", "event_time", "opt_in", "opt_out", "inbound_message", "platform_preference", "delivery_failure", "suppression", "link", "template_category", "template_restriction")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    BUSINESS_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    OPT_IN_FIELD_NUMBER: _ClassVar[int]
    OPT_OUT_FIELD_NUMBER: _ClassVar[int]
    INBOUND_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_PREFERENCE_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FAILURE_FIELD_NUMBER: _ClassVar[int]
    SUPPRESSION_FIELD_NUMBER: _ClassVar[int]
    LINK_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_CATEGORY_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_RESTRICTION_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    business_id: str
    event_time: _timestamp_pb2.Timestamp
    opt_in: OptIn
    opt_out: OptOut
    inbound_message: InboundMessage
    platform_preference: PlatformPreference
    delivery_failure: DeliveryFailure
    suppression: Suppression
    link: Link
    template_category: TemplateCategory
    template_restriction: TemplateRestriction
    def __init__(self, user_id: _Optional[str] = ..., business_id: _Optional[str] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., opt_in: _Optional[_Union[OptIn, _Mapping]] = ..., opt_out: _Optional[_Union[OptOut, _Mapping]] = ..., inbound_message: _Optional[_Union[InboundMessage, _Mapping]] = ..., platform_preference: _Optional[_Union[PlatformPreference, _Mapping]] = ..., delivery_failure: _Optional[_Union[DeliveryFailure, _Mapping]] = ..., suppression: _Optional[_Union[Suppression, _Mapping]] = ..., link: _Optional[_Union[Link, _Mapping]] = ..., template_category: _Optional[_Union[TemplateCategory, _Mapping]] = ..., template_restriction: _Optional[_Union[TemplateRestriction, _Mapping]] = ...) -> None: ...

class ItemError(_message.Message):
    __slots__ = ("code", "field", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    field: str
    message: str
    def __init__(self, code: _Optional[int] = ..., field: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
