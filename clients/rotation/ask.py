"""Asks until a time of the clock, and prints how many checks were answered and why others were not; see run."""
import json, sys, time

import consentd

address, ca, certificate, key, end = sys.argv[1:]
asked, failures = 0, {}
with consentd.Client(address, timeout=5, ca_file=ca, cert_file=certificate, key_file=key) as client:
    while time.time() < float(end):
        verdict = client.may_send("15550100001", "acme", "marketing")
        asked += 1
        if verdict.reason != "NO_CONSENT":
            failures[str(verdict)] = failures.get(str(verdict), 0) + 1
        time.sleep(0.01)
print(json.dumps({"asked": asked, "failures": failures}))
