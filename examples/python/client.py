"""A client of consentd: records, checks with a deadline, and does not send on error.

Usage: client.py ADDRESS [DEADLINE_MS]; ADDRESS is HOST:PORT, unix:PATH or unix:@NAME.
"""

import sys
import uuid
from dataclasses import dataclass

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from consent.v1 import consent_pb2, consent_service_pb2, record_service_pb2
from consent.v1.consent_service_pb2_grpc import ConsentServiceStub
from consent.v1.record_service_pb2_grpc import RecordServiceStub

CHECK_SECONDS = 0.25  # A check is answered from memory: one that takes longer has gone wrong.
RECORD_SECONDS = 5.0  # An event is acknowledged once it is on the disk.


def connect(address: str) -> grpc.Channel:
    """Opens the one channel of a process: it is thread-safe, and connects again by itself."""
    options = [
        ("grpc.enable_http_proxy", 0),  # http_proxy is not for a sidecar, but gRPC would use it.
        ("grpc.max_reconnect_backoff_ms", 1_000),  # Else up to two minutes after an outage.
    ]
    if address.startswith("unix:"):
        # gRPC would send the socket's path as the authority, which HTTP/2 servers refuse.
        options.append(("grpc.default_authority", "localhost"))
    if address.startswith("unix:@"):
        address = "unix-abstract:" + address.removeprefix("unix:@")
    return grpc.insecure_channel(address, options=options)


@dataclass(frozen=True)
class Verdict:
    """Whether to send, and why."""

    send: bool
    why: str

    def __str__(self) -> str:
        return f"send: {self.why}" if self.send else f"do not send: {self.why}"


def verdict(answer: consent_service_pb2.CanSendResponse) -> Verdict:
    known = consent_pb2.Reason.DESCRIPTOR.values_by_number.get(answer.reason)
    # A newer server may have reasons that this client does not know: `allowed` decides.
    why = known.name.removeprefix("REASON_") if known else str(answer.reason)
    return Verdict(answer.allowed, why)


def no_answer(error: grpc.RpcError) -> Verdict:
    """An error, a timeout or no sidecar means: do not send. Keep the message, and ask again."""
    return Verdict(False, f"no answer ({error.code().name})")


def may_send(
    checks: ConsentServiceStub,
    question: consent_service_pb2.CanSendRequest,
    timeout: float = CHECK_SECONDS,
) -> Verdict:
    """To be called right before each send."""
    try:
        return verdict(checks.CanSend(question, timeout=timeout))
    except grpc.RpcError as error:
        return no_answer(error)


def may_send_each(
    checks: ConsentServiceStub,
    questions: list[consent_service_pb2.CanSendRequest],
    timeout: float = CHECK_SECONDS,
) -> list[Verdict]:
    """The same for many at once; a malformed one has its own error and does not stop the others."""
    batch = consent_service_pb2.BatchCanSendRequest(requests=questions)
    try:
        answers = checks.BatchCanSend(batch, timeout=timeout)
    except grpc.RpcError as error:
        return [no_answer(error)] * len(questions)
    return [
        verdict(result.response)
        if result.HasField("response")
        else Verdict(False, f"{result.error.field}: {result.error.message}")
        for result in answers.results
    ]


def record(
    records: RecordServiceStub, request_id: str, event: consent_pb2.ConsentEvent
) -> record_service_pb2.RecordEventResponse:
    """Records an event. After an error call it again: the same request_id makes that safe."""
    request = record_service_pb2.RecordEventRequest(event=event, request_id=request_id)
    return records.RecordEvent(request, timeout=RECORD_SECONDS)


def violations(error: grpc.RpcError) -> list[str]:
    """What was wrong with each field, from the details of an INVALID_ARGUMENT."""
    status = rpc_status.from_call(error)
    found = []
    for detail in status.details if status else []:
        bad = error_details_pb2.BadRequest()
        if detail.Unpack(bad):
            found += [f"{one.field}: {one.description}" for one in bad.field_violations]
    return found


def converse(address: str, timeout: float) -> None:
    user = f"example-{uuid.uuid4()}"  # A phone number in any notation, or an id of your own.

    def question(category: str, min_revision: int = 0) -> consent_service_pb2.CanSendRequest:
        return consent_service_pb2.CanSendRequest(
            user_id=user,
            business_id="acme",
            category=category,
            form=consent_pb2.MESSAGE_FORM_TEMPLATE,
            min_revision=min_revision,
        )

    def opt_in(category: str, statement: str) -> consent_pb2.ConsentEvent:
        evidence = consent_pb2.Evidence(
            method=consent_pb2.OPT_IN_METHOD_WEBSITE,
            statement=statement,
            business_name="Acme",
            locale="en",
        )
        given = consent_pb2.OptIn(category=category, evidence=evidence)
        return consent_pb2.ConsentEvent(user_id=user, business_id="acme", opt_in=given)

    with connect(address) as channel:
        checks, records = ConsentServiceStub(channel), RecordServiceStub(channel)

        agreed = opt_in("marketing", "Yes, send me offers from Acme on WhatsApp")
        recorded = record(records, f"signup-{user}", agreed)
        print("opt-in recorded")
        # Whichever sidecar is asked, it answers once it knows of what was just recorded.
        print("marketing:", may_send(checks, question("marketing", recorded.revision), timeout))

        said = consent_pb2.InboundMessage(text="STOP")
        stop = consent_pb2.ConsentEvent(user_id=user, business_id="acme", inbound_message=said)
        recorded = record(records, f"message-{user}", stop)
        print(f"STOP recorded: opted out of {recorded.opted_out_scope}")
        print("marketing:", may_send(checks, question("marketing", recorded.revision), timeout))

        categories = ["marketing", "newsletter", "utility.order_updates"]
        verdicts = may_send_each(checks, [question(name) for name in categories], timeout)
        for category, one in zip(categories, verdicts, strict=True):
            print(f"in a batch, {category}: {one}")

        try:
            record(records, f"second-{user}", opt_in("newsletter", "Yes, send me offers"))
        except grpc.RpcError as error:
            print(f"opt-in refused: {error.code().name}")
            for violation in violations(error):
                print(f"  {violation}")

        not_yet = question("marketing", recorded.revision + 1_000_000)
        print("not known in time:", may_send(checks, not_yet, timeout=0.05))

    nowhere = f"{address}.nobody" if address.startswith("unix:") else "127.0.0.1:1"
    with connect(nowhere) as channel:
        print("no sidecar:", may_send(ConsentServiceStub(channel), question("marketing"), timeout))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    converse(sys.argv[1], float(sys.argv[2]) / 1000 if len(sys.argv) == 3 else CHECK_SECONDS)
