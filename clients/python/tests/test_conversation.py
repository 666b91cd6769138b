"""The shared conversation of all packages, with the real sidecar, as the top of its file says."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from conftest import AMPLE_SECONDS, CLIENTS, run
from google.protobuf.json_format import ParseDict

import consentd
from consentd.testing import Sidecar
from consentd.v1.consent_pb2 import ConsentEvent

CONVERSATION = json.loads((CLIENTS / "conversation.json").read_text(encoding="utf-8"))
CASES = list(enumerate(CONVERSATION["cases"]))


@pytest.fixture(scope="module")
def spoken_to() -> Iterator[Sidecar]:
    # What the package's own sidecar has for these is the same: a ledger and an address of its own.
    own = ("--listen", "--admin", "--unix", "--ledger")
    pairs = zip(CONVERSATION["serve"][::2], CONVERSATION["serve"][1::2], strict=True)
    with Sidecar(*(part for pair in pairs if pair[0] not in own for part in pair)) as started:
        yield started


class Blocking:
    """A `Client` with the methods of an `AsyncClient`, so that one test is of both."""

    def __init__(self, client: consentd.Client) -> None:
        self._client = client

    async def __aenter__(self) -> Blocking:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._client.close()

    async def may_send(self, *arguments: Any, **named: Any) -> consentd.Verdict:
        return self._client.may_send(*arguments, **named)

    async def check(self, *arguments: Any, **named: Any) -> consentd.Verdict:
        return self._client.check(*arguments, **named)

    async def record(self, *arguments: Any, **named: Any) -> Any:
        return self._client.record(*arguments, **named)


@pytest.mark.parametrize("number", [number for number, _ in CASES], ids=[case["name"] for _, case in CASES])
@pytest.mark.parametrize("coalesce", [True, False], ids=["coalesced", "alone"])
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_conversation(spoken_to: Sidecar, number: int, coalesce: bool, kind: str) -> None:
    rounds = ["threads", "asyncio"].index(kind) * 2 + int(coalesce)
    digits = f"{100_000 + 1_000 * rounds + number:06}"

    async def converse() -> None:
        if kind == "threads":
            client: Any = Blocking(consentd.Client(spoken_to.address, timeout=AMPLE_SECONDS, coalesce=coalesce))
        else:
            client = consentd.AsyncClient(spoken_to.address, timeout=AMPLE_SECONDS, coalesce=coalesce)
        async with client:
            await steps_of(client, CONVERSATION["cases"][number], digits)

    run(converse())


async def steps_of(client: Any, case: dict[str, Any], digits: str) -> None:
    own = f"1555{digits}0" if case.get("country_is_blocked") else f"4477009{digits}"
    revision = 0
    for step in filled(case["steps"], digits):
        expected = step.get("expect", {})
        user = step.get("user", own)
        if "record" in step:
            event = ParseDict(step["record"], ConsentEvent(user_id=user, business_id=CONVERSATION["business"]))
            if "at" in step:
                event.event_time.FromDatetime(datetime.now(timezone.utc) + timedelta(milliseconds=step["at"]))
            if "error" in expected:
                with pytest.raises(consentd.ConsentdError) as raised:
                    await client.record(event, request_id=step.get("request_id"))
                assert raised.value.code == expected["error"]
                assert {one.field for one in raised.value.violations} == set(expected["fields"])
                continue
            recorded = await client.record(event, request_id=step.get("request_id"))
            assert {name: getattr(recorded, name) for name in expected} == expected
            revision = recorded.revision
            continue
        await expect(client, step["check"], own, revision, expected)


async def expect(client: Any, asked: dict[str, Any], own: str, revision: int, expected: dict[str, Any]) -> None:
    template = asked.get("template")
    arguments = (
        asked.get("user", own),
        asked.get("business", CONVERSATION["business"]),
        asked["category"],
        asked.get("form"),
        (template["name"], template["language"]) if template else None,
    )
    deadline = time.monotonic() + AMPLE_SECONDS
    while True:
        verdict = await client.may_send(*arguments, 0 if template else revision)
        found = {name: getattr(verdict, name) for name in expected if name != "cause_contains"}
        wanted = {name: value for name, value in expected.items() if name != "cause_contains"}
        if found == wanted or not template or time.monotonic() > deadline:
            break
    assert found == wanted, verdict
    assert expected.get("cause_contains", "") in verdict.cause
    assert bool(verdict) is expected["allowed"]
    assert not verdict.unavailable
    if expected.get("invalid"):
        with pytest.raises(consentd.ConsentdError) as raised:
            await client.check(*arguments)
        assert raised.value.invalid
        assert (raised.value.code, raised.value.field) == (expected["code"], expected["field"])
        assert raised.value.cause == verdict.cause
    else:
        # Without a revision, so that the question is one that is gathered.
        assert (await client.check(*arguments)).reason == expected["reason"]


def filled(steps: list[dict[str, Any]], digits: str) -> list[dict[str, Any]]:
    hour_ago = (datetime.now(timezone.utc) - timedelta(hours=1)).isoformat().replace("+00:00", "Z")
    written = json.dumps(steps).replace("{n}", digits).replace("{now-1h}", hour_ago)
    parsed: list[dict[str, Any]] = json.loads(written)
    return parsed
