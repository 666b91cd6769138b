import datetime

from consentd.v1 import consent_pb2 as _consent_pb2
from consentd.v1 import consent_service_pb2 as _consent_service_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RecordEventRequest(_message.Message):
    __slots__ = ("event", "request_id")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    event: _consent_pb2.ConsentEvent
    request_id: str
    def __init__(self, event: _Optional[_Union[_consent_pb2.ConsentEvent, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class RecordEventResponse(_message.Message):
    __slots__ = ("revision", "applied", "opted_out_scope", "opted_in_category", "matched_keyword", "keyword_locale")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    APPLIED_FIELD_NUMBER: _ClassVar[int]
    OPTED_OUT_SCOPE_FIELD_NUMBER: _ClassVar[int]
    OPTED_IN_CATEGORY_FIELD_NUMBER: _ClassVar[int]
    MATCHED_KEYWORD_FIELD_NUMBER: _ClassVar[int]
    KEYWORD_LOCALE_FIELD_NUMBER: _ClassVar[int]
    revision: int
    applied: bool
    opted_out_scope: str
    opted_in_category: str
    matched_keyword: str
    keyword_locale: str
    def __init__(self, revision: _Optional[int] = ..., applied: bool = ..., opted_out_scope: _Optional[str] = ..., opted_in_category: _Optional[str] = ..., matched_keyword: _Optional[str] = ..., keyword_locale: _Optional[str] = ...) -> None: ...

class RecordEventsRequest(_message.Message):
    __slots__ = ("sequence", "event", "request_id")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EVENT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    event: _consent_pb2.ConsentEvent
    request_id: str
    def __init__(self, sequence: _Optional[int] = ..., event: _Optional[_Union[_consent_pb2.ConsentEvent, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class RecordEventsResponse(_message.Message):
    __slots__ = ("sequence", "response", "error")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    response: RecordEventResponse
    error: _consent_pb2.ItemError
    def __init__(self, sequence: _Optional[int] = ..., response: _Optional[_Union[RecordEventResponse, _Mapping]] = ..., error: _Optional[_Union[_consent_pb2.ItemError, _Mapping]] = ...) -> None: ...

class ListEventsRequest(_message.Message):
    __slots__ = ("user_id", "business_id")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    BUSINESS_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    business_id: str
    def __init__(self, user_id: _Optional[str] = ..., business_id: _Optional[str] = ...) -> None: ...

class ListEventsResponse(_message.Message):
    __slots__ = ("event", "record_time", "revision", "number", "chain_head", "chain")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    RECORD_TIME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CHAIN_HEAD_FIELD_NUMBER: _ClassVar[int]
    CHAIN_FIELD_NUMBER: _ClassVar[int]
    event: _consent_pb2.ConsentEvent
    record_time: _timestamp_pb2.Timestamp
    revision: int
    number: int
    chain_head: bytes
    chain: ChainCheck
    def __init__(self, event: _Optional[_Union[_consent_pb2.ConsentEvent, _Mapping]] = ..., record_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., revision: _Optional[int] = ..., number: _Optional[int] = ..., chain_head: _Optional[bytes] = ..., chain: _Optional[_Union[ChainCheck, _Mapping]] = ...) -> None: ...

class ChainCheck(_message.Message):
    __slots__ = ("intact", "head", "event_count", "kept_count", "expired_count", "unreadable_count", "last_inbound_time", "last_failure_time")
    INTACT_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    EVENT_COUNT_FIELD_NUMBER: _ClassVar[int]
    KEPT_COUNT_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_COUNT_FIELD_NUMBER: _ClassVar[int]
    UNREADABLE_COUNT_FIELD_NUMBER: _ClassVar[int]
    LAST_INBOUND_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_FAILURE_TIME_FIELD_NUMBER: _ClassVar[int]
    intact: bool
    head: bytes
    event_count: int
    kept_count: int
    expired_count: int
    unreadable_count: int
    last_inbound_time: _timestamp_pb2.Timestamp
    last_failure_time: _timestamp_pb2.Timestamp
    def __init__(self, intact: bool = ..., head: _Optional[bytes] = ..., event_count: _Optional[int] = ..., kept_count: _Optional[int] = ..., expired_count: _Optional[int] = ..., unreadable_count: _Optional[int] = ..., last_inbound_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_failure_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ExportEventsRequest(_message.Message):
    __slots__ = ("business_id", "since_time", "templates_only")
    BUSINESS_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIME_FIELD_NUMBER: _ClassVar[int]
    TEMPLATES_ONLY_FIELD_NUMBER: _ClassVar[int]
    business_id: str
    since_time: _timestamp_pb2.Timestamp
    templates_only: bool
    def __init__(self, business_id: _Optional[str] = ..., since_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., templates_only: bool = ...) -> None: ...

class ExportEventsResponse(_message.Message):
    __slots__ = ("event", "record_time", "revision", "number", "chain_head")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    RECORD_TIME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CHAIN_HEAD_FIELD_NUMBER: _ClassVar[int]
    event: _consent_pb2.ConsentEvent
    record_time: _timestamp_pb2.Timestamp
    revision: int
    number: int
    chain_head: bytes
    def __init__(self, event: _Optional[_Union[_consent_pb2.ConsentEvent, _Mapping]] = ..., record_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., revision: _Optional[int] = ..., number: _Optional[int] = ..., chain_head: _Optional[bytes] = ...) -> None: ...

class CheckEventsRequest(_message.Message):
    __slots__ = ("sequence", "exported")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    EXPORTED_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    exported: ExportEventsResponse
    def __init__(self, sequence: _Optional[int] = ..., exported: _Optional[_Union[ExportEventsResponse, _Mapping]] = ...) -> None: ...

class CheckEventsResponse(_message.Message):
    __slots__ = ("sequence", "finding", "error")
    class Finding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        FINDING_UNSPECIFIED: _ClassVar[CheckEventsResponse.Finding]
        FINDING_SAME: _ClassVar[CheckEventsResponse.Finding]
        FINDING_EXPIRED: _ClassVar[CheckEventsResponse.Finding]
        FINDING_CHANGED: _ClassVar[CheckEventsResponse.Finding]
        FINDING_MISSING: _ClassVar[CheckEventsResponse.Finding]
        FINDING_EXPORT_CHANGED: _ClassVar[CheckEventsResponse.Finding]
        FINDING_CHAIN_BROKEN: _ClassVar[CheckEventsResponse.Finding]
    FINDING_UNSPECIFIED: CheckEventsResponse.Finding
    FINDING_SAME: CheckEventsResponse.Finding
    FINDING_EXPIRED: CheckEventsResponse.Finding
    FINDING_CHANGED: CheckEventsResponse.Finding
    FINDING_MISSING: CheckEventsResponse.Finding
    FINDING_EXPORT_CHANGED: CheckEventsResponse.Finding
    FINDING_CHAIN_BROKEN: CheckEventsResponse.Finding
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    FINDING_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    finding: CheckEventsResponse.Finding
    error: _consent_pb2.ItemError
    def __init__(self, sequence: _Optional[int] = ..., finding: _Optional[_Union[CheckEventsResponse.Finding, str]] = ..., error: _Optional[_Union[_consent_pb2.ItemError, _Mapping]] = ...) -> None: ...

class ListUserEventsRequest(_message.Message):
    __slots__ = ("user_id", "business_ids")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    BUSINESS_IDS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    business_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, user_id: _Optional[str] = ..., business_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ListUserEventsResponse(_message.Message):
    __slots__ = ("pair", "listed")
    PAIR_FIELD_NUMBER: _ClassVar[int]
    LISTED_FIELD_NUMBER: _ClassVar[int]
    pair: UserPair
    listed: ListEventsResponse
    def __init__(self, pair: _Optional[_Union[UserPair, _Mapping]] = ..., listed: _Optional[_Union[ListEventsResponse, _Mapping]] = ...) -> None: ...

class UserPair(_message.Message):
    __slots__ = ("business_id", "consent")
    BUSINESS_ID_FIELD_NUMBER: _ClassVar[int]
    CONSENT_FIELD_NUMBER: _ClassVar[int]
    business_id: str
    consent: _consent_service_pb2.GetConsentResponse
    def __init__(self, business_id: _Optional[str] = ..., consent: _Optional[_Union[_consent_service_pb2.GetConsentResponse, _Mapping]] = ...) -> None: ...

class ListDueOptInsRequest(_message.Message):
    __slots__ = ("business_id", "since_time", "until_time", "pending")
    BUSINESS_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_TIME_FIELD_NUMBER: _ClassVar[int]
    UNTIL_TIME_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    business_id: str
    since_time: _timestamp_pb2.Timestamp
    until_time: _timestamp_pb2.Timestamp
    pending: bool
    def __init__(self, business_id: _Optional[str] = ..., since_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., until_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., pending: bool = ...) -> None: ...

class ListDueOptInsResponse(_message.Message):
    __slots__ = ("user_id", "business_id", "category", "event_time", "expire_time", "pending")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    BUSINESS_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    EVENT_TIME_FIELD_NUMBER: _ClassVar[int]
    EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    PENDING_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    business_id: str
    category: str
    event_time: _timestamp_pb2.Timestamp
    expire_time: _timestamp_pb2.Timestamp
    pending: bool
    def __init__(self, user_id: _Optional[str] = ..., business_id: _Optional[str] = ..., category: _Optional[str] = ..., event_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., pending: bool = ...) -> None: ...

class EraseUserRequest(_message.Message):
    __slots__ = ("user_id", "business_id")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    BUSINESS_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    business_id: str
    def __init__(self, user_id: _Optional[str] = ..., business_id: _Optional[str] = ...) -> None: ...

class EraseUserResponse(_message.Message):
    __slots__ = ("erased_count", "log_expire_time")
    ERASED_COUNT_FIELD_NUMBER: _ClassVar[int]
    LOG_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    erased_count: int
    log_expire_time: _timestamp_pb2.Timestamp
    def __init__(self, erased_count: _Optional[int] = ..., log_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
