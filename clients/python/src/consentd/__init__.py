"""Asks consentd whether a business may send a WhatsApp message to a user, and denies when there is no answer.

    import consentd

    client = consentd.Client()
    verdict = client.may_send("+1 555 012 3456", "acme", "marketing", form="TEMPLATE")
    if verdict:
        ...  # Send the message now.

`Client` is for threads and `AsyncClient` for asyncio. `consentd.events` makes the events that `record` takes,
`consentd.testing` has a fake client and a real sidecar for tests, and `consentd.v1` is the contract itself.
"""

from consentd import events
from consentd._async_client import AsyncClient, AsyncWatch
from consentd._client import Client, Watch
from consentd._common import Change, Observer
from consentd._question import Form, Template
from consentd._verdict import ConsentdError, Verdict, Violation
from consentd._version import __version__

__all__ = [
    "AsyncClient",
    "AsyncWatch",
    "Change",
    "Client",
    "ConsentdError",
    "Form",
    "Observer",
    "Template",
    "Verdict",
    "Violation",
    "Watch",
    "__version__",
    "events",
]
