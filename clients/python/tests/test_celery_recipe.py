"""The recipe of a Celery task, with a worker, a broker in memory and the real sidecar."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.contrib.testing.worker import start_worker
from conftest import AMPLE_SECONDS, PATIENCE_SECONDS, eventually

import consentd
from consentd.testing import Sidecar

sys.path.insert(0, str(Path(__file__).parents[1] / "recipes"))

BUSINESS = "acme"


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    import celery_task

    celery_task.app.conf.update(broker_url="memory://", result_backend="cache+memory://")
    celery_task.app.set_current()
    monkeypatch.setattr(celery_task, "UNAVAILABLE_SECONDS", 0.1)
    delivered: list[str] = []
    monkeypatch.setattr(celery_task, "deliver", lambda user, *_: delivered.append(user))
    celery_task.delivered = delivered
    with start_worker(celery_task.app, pool="threads", perform_ping_check=False, shutdown_timeout=PATIENCE_SECONDS):
        yield celery_task


def opt_in(user: str) -> Any:
    statement = "Yes, send me offers from Acme on WhatsApp"
    return consentd.events.opt_in(
        user, BUSINESS, "marketing", method="WEBSITE", statement=statement, business_name="Acme", locale="en"
    )


def test_task_sends_what_is_allowed_alone(recipe: Any, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    with consentd.Client(sidecar.address, timeout=AMPLE_SECONDS) as client:
        monkeypatch.setattr(recipe, "client", client)
        client.record(opt_in("15550100001"))
        results = [
            recipe.send_template.delay(user, BUSINESS, "marketing", "offer", "en").get(PATIENCE_SECONDS)
            for user in ("15550100001", "15550100002")
        ]
        malformed = recipe.send_template.delay("", BUSINESS, "marketing", "offer", "en").get(PATIENCE_SECONDS)
    assert results == ["sent", "NO_CONSENT"]
    assert malformed == "INVALID_ARGUMENT"
    assert recipe.delivered == ["15550100001"]


def test_task_waits_for_a_sidecar(recipe: Any, sidecar: Sidecar, monkeypatch: pytest.MonkeyPatch) -> None:
    with consentd.Client(sidecar.address) as client:
        monkeypatch.setattr(recipe, "client", client)
        client.record(opt_in("15550100001"))
        sidecar.kill()
        asked = []
        ask = client.may_send
        monkeypatch.setattr(client, "may_send", lambda *a, **n: asked.append(ask(*a, **n)) or asked[-1])
        task = recipe.send_template.delay("15550100001", BUSINESS, "marketing", "offer", "en")
        eventually(lambda: any(verdict.unavailable for verdict in asked), "a check without an answer")
        assert recipe.delivered == []
        sidecar.start()
        assert task.get(PATIENCE_SECONDS) == "sent"
    assert recipe.delivered == ["15550100001"]
