"""A Celery task that sends a message only if the user's consent allows it at that moment.

Copy it, and put your own call of WhatsApp's API in `deliver`. The check belongs in the task, right before the send, and
not where the task is queued: what was allowed then may be denied now.

- The client is made once for each worker process. It connects at the first check, after Celery's prefork pool has
  forked, and tasks of a thread pool that check at the same time share batches.
- No answer (`unavailable`) is not a denial: the task is tried again later, and nothing is sent meanwhile.
- Where time alone changes the answer (`retry_time`, such as a frequency cap), the task is tried again then.
- Any other denial is final for this message.

Run it with `celery --app celery_task worker`, with the sidecar's address in `CONSENTD_ADDR`.
"""

from __future__ import annotations

from typing import Any

from celery import Celery

import consentd

# How long to wait before an answer is asked for again, in seconds.
UNAVAILABLE_SECONDS = 5.0

app = Celery("sender")
# A task whose worker is lost is run again by another, and checks again.
app.conf.task_acks_late = True
app.conf.task_reject_on_worker_lost = True

client = consentd.Client()


def deliver(user: str, business: str, template: str, language: str) -> None:
    """Sends the template by WhatsApp's API."""
    raise NotImplementedError("call WhatsApp's API here")


@app.task(bind=True, max_retries=None)  # type: ignore[untyped-decorator]
def send_template(self: Any, user: str, business: str, category: str, template: str, language: str) -> str:
    """Sends a template, or says why not: `sent`, or the reason of the denial."""
    verdict = client.may_send(user, business, category, template=(template, language))
    if verdict:
        deliver(user, business, template, language)
        return "sent"
    if verdict.unavailable:
        raise self.retry(countdown=UNAVAILABLE_SECONDS)
    if verdict.retry_time is not None:
        raise self.retry(eta=verdict.retry_time)
    return verdict.reason or verdict.code
