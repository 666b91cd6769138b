"""How alerts about webhooks, certificates, callers, memory and the decision log are made to fire, and what ends them."""
import json, os, time

from stage import SECRET

SCENARIOS = {}
NUMBER = "106540352242922"


def scenario(alert, how):
    def added(function):
        SCENARIOS[alert] = (how, function)
        return function
    return added


def receiver(on, *flags):
    """A ledger in Redis, and a sidecar that receives webhooks. Returns the process of Redis."""
    redis = on.ledger()
    on.sidecar(*on.webhook_flags(), *flags)
    return redis


@scenario("ConsentdRefusesCalls", "recordings came without a token")
def refuses_calls(on):
    on.ledger()
    on.write("record-tokens", "a-token-of-a-recorder\n")
    on.sidecar("--record", "127.0.0.1:50052", "--record-token-file", "record-tokens")
    on.watch()
    on.causes()
    on.fires(meanwhile=lambda: on.opt_out("15550100001", check=False))
    on.look('consent_refused_total{limit="unauthenticated"}')
    on.opt_out("15550100001", "--token-file", "record-tokens")
    on.ends()


@scenario("ConsentdMemoryNearLimit", "its limit was set to a little more than it takes")
def memory_near_limit(on):
    on.ledger()
    process = on.sidecar()
    takes = on.metric("process_resident_memory_bytes")
    on.stop(process)
    group = on.cgroup()
    def started(size):
        with open(os.path.join(group, "memory.limit_in_bytes" if "memory" in group else "memory.max"), "w") as file:
            file.write(str(int(size)))
        return on.sidecar(before=("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"))
    process = started(takes * 8)
    on.watch()
    on.causes()
    on.stop(process)
    process = started(takes / 0.87)
    on.fires()
    on.look("consent_memory_limit_bytes")
    on.stop(process)
    process = started(takes * 8)
    on.ends()
    on.stop(process)


@scenario("ConsentdDecisionLogDrops", "the disk of its decision log became full")
def decision_log_drops(on):
    os.makedirs(on.path("log"))
    on.run("mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", on.path("log"))
    on.ledger()
    on.sidecar("--decision-log", on.path("log", "decisions"))
    on.watch()
    def ask():
        on.consentd("bench", "load", "--rate", "200", "--duration", "1s", "--warm-up", "0s", check=False)
    on.causes()
    on.fires(meanwhile=ask)
    on.look('consent_decision_log_dropped_total{cause="file"}', "No space left on device")
    on.run("mount", "-o", "remount,size=64m", on.path("log"))
    on.ends(meanwhile=ask)


@scenario("ConsentdWebhookFailing", "its Redis was stopped while webhooks arrived")
def webhook_failing(on):
    redis = receiver(on)
    on.watch()
    on.causes()
    on.stop(redis)
    on.fires(meanwhile=lambda: on.post(on.fixture("inbound_stop")))
    on.look('consent_webhook_requests_total{code="503"}', "the connection was refused")
    on.redis()
    on.until("a webhook is taken", 60, lambda: on.post(on.fixture("inbound_stop")) == 200)
    on.ends()


@scenario("ConsentdWebhookUnsigned", "webhooks were signed by a new secret of the app")
def webhook_unsigned(on):
    receiver(on)
    on.watch()
    def post():
        return on.post(on.fixture("inbound_stop"), "another-app-secret")
    on.causes()
    on.fires(meanwhile=post)
    on.look('consent_webhook_requests_total{code="403"}')
    on.write("app-secret", f"another-app-secret\n{SECRET}\n")
    on.until("the new secret is read", 30, lambda: post() == 200)
    on.ends()


@scenario("ConsentdWebhookMalformed", "a signed webhook had a message without its time")
def webhook_malformed(on):
    receiver(on)
    on.watch()
    body = json.loads(on.fixture("inbound_stop"))
    del body["entry"][0]["changes"][0]["value"]["messages"][0]["timestamp"]
    on.causes()
    assert on.post(json.dumps(body).encode()) == 200
    on.fires()
    on.look("no_time")
    on.do("recorded")
    on.ends()


@scenario("ConsentdWebhookReloadFailed", "a verify token became too short")
def webhook_reload_failed(on):
    receiver(on)
    on.watch()
    on.causes()
    on.write("verify-token", "short\n")
    on.fires()
    on.look("verify-token", 'consent_webhook_reloads_total{outcome="failed"} 1')
    on.write("verify-token", "another-token-that-we-made-up\n")
    on.until("it is read", 30, lambda: on.metric('consent_webhook_reloads_total{outcome="done"}') == 1)
    on.ends()


def days(*ago):
    """Metrics of this receiver in the two hours until so many days ago: an update a minute."""
    requests, updates = [], []
    series = f'field="messages",kind="message",number="{NUMBER}",instance="127.0.0.1:9464",job="consentd"'
    for day in sorted(ago, reverse=True):
        for minute in range(120):
            at = int(time.time()) - day * 86400 - (119 - minute) * 60
            requests.append(f'consent_webhook_requests_total{{code="200",instance="127.0.0.1:9464",job="consentd"}} {minute} {at}')
            updates.append(f"consent_webhook_last_update_timestamp_seconds{{{series}}} {at} {at}")
    return "\n".join(["# TYPE consent_webhook_requests counter", *requests,
                      "# TYPE consent_webhook_last_update_timestamp_seconds gauge", *updates, "# EOF\n"])


@scenario("ConsentdWebhookSilent", "no webhook came; yesterday and a week ago, which were made up, there were some")
def webhook_silent(on):
    receiver(on)
    on.causes_from_the_start()
    on.watch(history=days(1, 7))
    on.fires()
    on.look("consent_webhook_requests_total", "403")
    assert on.post(on.fixture("inbound_text")) == 200
    on.ends()


@scenario("ConsentdWebhookNumberSilent", "no message came for a number; yesterday and a week ago, which were made up, there were some")
def webhook_number_silent(on):
    receiver(on)
    on.causes_from_the_start()
    on.watch(history=days(1, 7))
    on.fires()
    on.look(NUMBER, "consent_webhook_last_update_timestamp_seconds")
    assert on.post(on.fixture("inbound_text")) == 200
    on.ends()


@scenario("ConsentdWebhookNoPreferences", "messages came now and, made up, two weeks ago, and never a preference")
def webhook_no_preferences(on):
    receiver(on)
    on.causes_from_the_start()
    on.watch(history=days(14, 15))
    assert on.post(on.fixture("inbound_text")) == 200
    on.fires()
    # What Meta's Graph API says, as the doctor's help shows it.
    on.write("app.json", json.dumps({"data": [{"object": "whatsapp_business_account", "active": True, "callback_url":
             "https://consent.example.com/webhook", "fields": [{"name": "messages", "version": "v23.0"}]}]}))
    on.write("numbers.json", json.dumps({"data": [{"id": NUMBER, "webhook_configuration": {}}]}))
    on.look("user_preferences")
    assert on.post(on.fixture("user_preferences_stop")) == 200
    on.ends()


def tls_sidecar(on):
    """A sidecar that serves TLS by a certificate of 30 days, and is watched."""
    on.ledger()
    on.certificate("tls", 30)
    on.sidecar("--tls-cert-file", "tls.crt", "--tls-key-file", "tls.key", "--tls-listeners", "listen")
    on.watch()


def renew(on, *endings):
    """Puts these files of the next certificate in the place of those in use, in this order."""
    for ending in endings:
        os.rename(on.path(f"next.{ending}"), on.path(f"tls.{ending}"))


@scenario("ConsentdCertificateExpires", "its certificate had three days left")
def certificate_expires(on):
    tls_sidecar(on)
    on.certificate("next", 3)
    on.causes()
    renew(on, "key", "crt")
    on.fires()
    on.look("consent_tls_certificate_expiry_seconds", "notAfter=")
    on.certificate("next", 30)
    renew(on, "key", "crt")
    on.ends()


@scenario("ConsentdCertificateReloadFailed", "the key was replaced, and the certificate was not")
def certificate_reload_failed(on):
    tls_sidecar(on)
    on.certificate("next", 30)
    on.causes()
    renew(on, "key")
    on.fires()
    said = on.look("keeping the previous certificate")
    digests = [line for line in said.splitlines() if line.endswith("  -")]
    assert len(set(digests)) == 2, digests
    renew(on, "crt")
    on.ends()
    assert on.metric('consent_tls_reloads_total{outcome="done"}') == 1
