import datetime

from consentd.v1 import consent_pb2 as _consent_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CanSendRequest(_message.Message):
    __slots__ = ("user_id", "business_id", "category", "form", "min_revision", "template")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    BUSINESS_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    MIN_REVISION_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    business_id: str
    category: str
    form: _consent_pb2.MessageForm
    min_revision: int
    template: _consent_pb2.Template
    def __init__(self, user_id: _Optional[str] = ..., business_id: _Optional[str] = ..., category: _Optional[str] = ..., form: _Optional[_Union[_consent_pb2.MessageForm, str]] = ..., min_revision: _Optional[int] = ..., template: _Optional[_Union[_consent_pb2.Template, _Mapping]] = ...) -> None: ...

class CanSendResponse(_message.Message):
    __slots__ = ("allowed", "reason", "free_form_allowed", "template_allowed", "window_expire_time", "retry_time", "revision", "staleness", "category_used")
    ALLOWED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FREE_FORM_ALLOWED_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_ALLOWED_FIELD_NUMBER: _ClassVar[int]
    WINDOW_EXPIRE_TIME_FIELD_NUMBER: _ClassVar[int]
    RETRY_TIME_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_USED_FIELD_NUMBER: _ClassVar[int]
    allowed: bool
    reason: _consent_pb2.Reason
    free_form_allowed: bool
    template_allowed: bool
    window_expire_time: _timestamp_pb2.Timestamp
    retry_time: _timestamp_pb2.Timestamp
    revision: int
    staleness: _duration_pb2.Duration
    category_used: str
    def __init__(self, allowed: bool = ..., reason: _Optional[_Union[_consent_pb2.Reason, str]] = ..., free_form_allowed: bool = ..., template_allowed: bool = ..., window_expire_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., retry_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., revision: _Optional[int] = ..., staleness: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., category_used: _Optional[str] = ...) -> None: ...

class BatchCanSendRequest(_message.Message):
    __slots__ = ("requests",)
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[CanSendRequest]
    def __init__(self, requests: _Optional[_Iterable[_Union[CanSendRequest, _Mapping]]] = ...) -> None: ...

class BatchCanSendResponse(_message.Message):
    __slots__ = ("results",)
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    results: _containers.RepeatedCompositeFieldContainer[BatchCanSendResult]
    def __init__(self, results: _Optional[_Iterable[_Union[BatchCanSendResult, _Mapping]]] = ...) -> None: ...

class BatchCanSendResult(_message.Message):
    __slots__ = ("response", "error")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    response: CanSendResponse
    error: _consent_pb2.ItemError
    def __init__(self, response: _Optional[_Union[CanSendResponse, _Mapping]] = ..., error: _Optional[_Union[_consent_pb2.ItemError, _Mapping]] = ...) -> None: ...

class StreamCanSendRequest(_message.Message):
    __slots__ = ("sequence", "request")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    request: CanSendRequest
    def __init__(self, sequence: _Optional[int] = ..., request: _Optional[_Union[CanSendRequest, _Mapping]] = ...) -> None: ...

class StreamCanSendResponse(_message.Message):
    __slots__ = ("sequence", "result")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    result: BatchCanSendResult
    def __init__(self, sequence: _Optional[int] = ..., result: _Optional[_Union[BatchCanSendResult, _Mapping]] = ...) -> None: ...

class FilterRecipientsRequest(_message.Message):
    __slots__ = ("business_id", "category", "form", "user_ids", "template")
    BUSINESS_ID_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    USER_IDS_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    business_id: str
    category: str
    form: _consent_pb2.MessageForm
    user_ids: _containers.RepeatedScalarFieldContainer[str]
    template: _consent_pb2.Template
    def __init__(self, business_id: _Optional[str] = ..., category: _Optional[str] = ..., form: _Optional[_Union[_consent_pb2.MessageForm, str]] = ..., user_ids: _Optional[_Iterable[str]] = ..., template: _Optional[_Union[_consent_pb2.Template, _Mapping]] = ...) -> None: ...

class FilterRecipientsResponse(_message.Message):
    __slots__ = ("reasons", "allowed_count", "staleness", "category_used")
    REASONS_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_COUNT_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_USED_FIELD_NUMBER: _ClassVar[int]
    reasons: _containers.RepeatedScalarFieldContainer[_consent_pb2.Reason]
    allowed_count: int
    staleness: _duration_pb2.Duration
    category_used: str
    def __init__(self, reasons: _Optional[_Iterable[_Union[_consent_pb2.Reason, str]]] = ..., allowed_count: _Optional[int] = ..., staleness: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., category_used: _Optional[str] = ...) -> None: ...

class GetConsentRequest(_message.Message):
    __slots__ = ("user_id", "business_id")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    BUSINESS_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    business_id: str
    def __init__(self, user_id: _Optional[str] = ..., business_id: _Optional[str] = ...) -> None: ...

class GetConsentResponse(_message.Message):
    __slots__ = ("last_inbound_time", "opted_in", "opted_out", "platform_stopped", "suppressed", "revision", "staleness", "pair_key", "stopped_phone_number_ids", "failures")
    LAST_INBOUND_TIME_FIELD_NUMBER: _ClassVar[int]
    OPTED_IN_FIELD_NUMBER: _ClassVar[int]
    OPTED_OUT_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_STOPPED_FIELD_NUMBER: _ClassVar[int]
    SUPPRESSED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    PAIR_KEY_FIELD_NUMBER: _ClassVar[int]
    STOPPED_PHONE_NUMBER_IDS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    last_inbound_time: _timestamp_pb2.Timestamp
    opted_in: _containers.RepeatedScalarFieldContainer[str]
    opted_out: _containers.RepeatedScalarFieldContainer[str]
    platform_stopped: bool
    suppressed: bool
    revision: int
    staleness: _duration_pb2.Duration
    pair_key: str
    stopped_phone_number_ids: _containers.RepeatedScalarFieldContainer[str]
    failures: _containers.RepeatedCompositeFieldContainer[HeldFailure]
    def __init__(self, last_inbound_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., opted_in: _Optional[_Iterable[str]] = ..., opted_out: _Optional[_Iterable[str]] = ..., platform_stopped: bool = ..., suppressed: bool = ..., revision: _Optional[int] = ..., staleness: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., pair_key: _Optional[str] = ..., stopped_phone_number_ids: _Optional[_Iterable[str]] = ..., failures: _Optional[_Iterable[_Union[HeldFailure, _Mapping]]] = ...) -> None: ...

class HeldFailure(_message.Message):
    __slots__ = ("code", "meaning", "again", "retry_time")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MEANING_FIELD_NUMBER: _ClassVar[int]
    AGAIN_FIELD_NUMBER: _ClassVar[int]
    RETRY_TIME_FIELD_NUMBER: _ClassVar[int]
    code: int
    meaning: str
    again: str
    retry_time: _timestamp_pb2.Timestamp
    def __init__(self, code: _Optional[int] = ..., meaning: _Optional[str] = ..., again: _Optional[str] = ..., retry_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class WatchConsentsRequest(_message.Message):
    __slots__ = ("business_id",)
    BUSINESS_ID_FIELD_NUMBER: _ClassVar[int]
    business_id: str
    def __init__(self, business_id: _Optional[str] = ...) -> None: ...

class WatchConsentsResponse(_message.Message):
    __slots__ = ("changed", "checkpoint", "reset", "template_changed")
    class Changed(_message.Message):
        __slots__ = ("user_id", "business_id", "revision")
        USER_ID_FIELD_NUMBER: _ClassVar[int]
        BUSINESS_ID_FIELD_NUMBER: _ClassVar[int]
        REVISION_FIELD_NUMBER: _ClassVar[int]
        user_id: str
        business_id: str
        revision: int
        def __init__(self, user_id: _Optional[str] = ..., business_id: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...
    class TemplateChanged(_message.Message):
        __slots__ = ("template", "business_id", "revision")
        TEMPLATE_FIELD_NUMBER: _ClassVar[int]
        BUSINESS_ID_FIELD_NUMBER: _ClassVar[int]
        REVISION_FIELD_NUMBER: _ClassVar[int]
        template: _consent_pb2.Template
        business_id: str
        revision: int
        def __init__(self, template: _Optional[_Union[_consent_pb2.Template, _Mapping]] = ..., business_id: _Optional[str] = ..., revision: _Optional[int] = ...) -> None: ...
    class Checkpoint(_message.Message):
        __slots__ = ("partition_revisions",)
        PARTITION_REVISIONS_FIELD_NUMBER: _ClassVar[int]
        partition_revisions: _containers.RepeatedScalarFieldContainer[int]
        def __init__(self, partition_revisions: _Optional[_Iterable[int]] = ...) -> None: ...
    class Reset(_message.Message):
        __slots__ = ()
        def __init__(self) -> None: ...
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    RESET_FIELD_NUMBER: _ClassVar[int]
    TEMPLATE_CHANGED_FIELD_NUMBER: _ClassVar[int]
    changed: WatchConsentsResponse.Changed
    checkpoint: WatchConsentsResponse.Checkpoint
    reset: WatchConsentsResponse.Reset
    template_changed: WatchConsentsResponse.TemplateChanged
    def __init__(self, changed: _Optional[_Union[WatchConsentsResponse.Changed, _Mapping]] = ..., checkpoint: _Optional[_Union[WatchConsentsResponse.Checkpoint, _Mapping]] = ..., reset: _Optional[_Union[WatchConsentsResponse.Reset, _Mapping]] = ..., template_changed: _Optional[_Union[WatchConsentsResponse.TemplateChanged, _Mapping]] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("phase", "staleness", "revision", "pairs", "ledger", "version", "partition_revisions", "cause", "current_time", "warnings", "remembered_pairs", "businesses", "business_count", "partitions")
    class Phase(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PHASE_UNSPECIFIED: _ClassVar[GetStatusResponse.Phase]
        PHASE_LOADING: _ClassVar[GetStatusResponse.Phase]
        PHASE_LIVE: _ClassVar[GetStatusResponse.Phase]
        PHASE_STALE: _ClassVar[GetStatusResponse.Phase]
        PHASE_INVALID: _ClassVar[GetStatusResponse.Phase]
    PHASE_UNSPECIFIED: GetStatusResponse.Phase
    PHASE_LOADING: GetStatusResponse.Phase
    PHASE_LIVE: GetStatusResponse.Phase
    PHASE_STALE: GetStatusResponse.Phase
    PHASE_INVALID: GetStatusResponse.Phase
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    LEDGER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PARTITION_REVISIONS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    CURRENT_TIME_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    REMEMBERED_PAIRS_FIELD_NUMBER: _ClassVar[int]
    BUSINESSES_FIELD_NUMBER: _ClassVar[int]
    BUSINESS_COUNT_FIELD_NUMBER: _ClassVar[int]
    PARTITIONS_FIELD_NUMBER: _ClassVar[int]
    phase: GetStatusResponse.Phase
    staleness: _duration_pb2.Duration
    revision: int
    pairs: int
    ledger: str
    version: str
    partition_revisions: _containers.RepeatedScalarFieldContainer[int]
    cause: str
    current_time: _timestamp_pb2.Timestamp
    warnings: _containers.RepeatedScalarFieldContainer[str]
    remembered_pairs: int
    businesses: _containers.RepeatedScalarFieldContainer[str]
    business_count: int
    partitions: _containers.RepeatedCompositeFieldContainer[PartitionStatus]
    def __init__(self, phase: _Optional[_Union[GetStatusResponse.Phase, str]] = ..., staleness: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., revision: _Optional[int] = ..., pairs: _Optional[int] = ..., ledger: _Optional[str] = ..., version: _Optional[str] = ..., partition_revisions: _Optional[_Iterable[int]] = ..., cause: _Optional[str] = ..., current_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., warnings: _Optional[_Iterable[str]] = ..., remembered_pairs: _Optional[int] = ..., businesses: _Optional[_Iterable[str]] = ..., business_count: _Optional[int] = ..., partitions: _Optional[_Iterable[_Union[PartitionStatus, _Mapping]]] = ...) -> None: ...

class PartitionStatus(_message.Message):
    __slots__ = ("number", "phase", "staleness", "revision", "pairs", "cause", "remembered_pairs")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STALENESS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    REMEMBERED_PAIRS_FIELD_NUMBER: _ClassVar[int]
    number: int
    phase: GetStatusResponse.Phase
    staleness: _duration_pb2.Duration
    revision: int
    pairs: int
    cause: str
    remembered_pairs: int
    def __init__(self, number: _Optional[int] = ..., phase: _Optional[_Union[GetStatusResponse.Phase, str]] = ..., staleness: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., revision: _Optional[int] = ..., pairs: _Optional[int] = ..., cause: _Optional[str] = ..., remembered_pairs: _Optional[int] = ...) -> None: ...
