"""How alerts about the ledger and the table are made to fire, and what ends them."""
import glob, os, re, shutil, signal, threading, time

from stage import LEDGER, REPOSITORY

SCENARIOS = {}
CHANNEL = "&{consent:0}:ch"
# Few, so that a scrub, which compares one at a time, comes to each within seconds.
BUCKETS = 16


def scenario(alert, how):
    def added(function):
        SCENARIOS[alert] = (how, function)
        return function
    return added


def with_a_recorder(on, *flags):
    """A ledger in Redis, a sidecar and a recorder. Returns the processes of Redis and of the recorder."""
    redis = on.ledger()
    on.sidecar(*flags)
    recorder = on.recorder()
    on.opt_out("15550100001")
    on.watch(9464, 9474)
    return redis, recorder


def user(on, name):
    """A user of Redis with the rights that docs/redis.md lists, and the flags by which a sidecar becomes it."""
    with open(os.path.join(REPOSITORY, "docs/redis.md")) as page:
        (line,) = re.findall(rf"(?m)^user {name} on .*$", page.read())
    on.redis_cli("acl", "setuser", *line.replace(">PASSWORD", ">a-password-of-a-test").split()[1:])
    on.write("password", "a-password-of-a-test\n")
    return ["--ledger-user", name, "--ledger-password-file", "password"]


def with_redis_stopped(on):
    """A sidecar that is watched, and whose Redis has been stopped."""
    redis = on.ledger()
    on.sidecar()
    on.watch()
    on.causes()
    on.stop(redis)


@scenario("ConsentdStale", "its Redis was stopped")
def stale(on):
    with_redis_stopped(on)
    on.fires()
    on.look("phase      stale", "the ledger cannot be reached", "the connection was refused")
    on.redis()
    on.ends()


@scenario("ConsentdDeniesAsStale", "its Redis was stopped, and checks went on")
def denies_as_stale(on):
    with_redis_stopped(on)
    on.fires(meanwhile=on.check)
    on.look("phase      stale")
    on.redis()
    on.ends(meanwhile=on.check)
    assert "NO_CONSENT" in on.check()


@scenario("ConsentdLedgerUnreachable", "its Redis was stopped")
def ledger_unreachable(on):
    with_redis_stopped(on)
    on.fires()
    on.look("not subscribed to the ledger's announcements", "the connection was refused")
    on.redis()
    on.ends()


@scenario("ConsentdSubscriptionRefused", "the channel was taken out of the user's ACL")
def subscription_refused(on):
    on.ledger()
    on.sidecar(*user(on, "sidecar"))
    on.watch()
    on.causes()
    on.redis_cli("acl", "setuser", "sidecar", "resetchannels")
    on.fires()
    on.look("resetchannels", "rejected the subscription")
    on.do("OK")
    on.ends()


@scenario("ConsentdSlowEnforcement", "the channel was taken out of the users' ACL, so that polls alone find what is recorded")
def slow_enforcement(on):
    with_a_recorder(on)
    users = iter(range(15550101000, 15550109999))
    def record():
        on.opt_out(str(next(users)))
    on.causes()
    on.redis_cli("acl", "setuser", "default", "resetchannels")
    on.fires(meanwhile=record)
    on.look('consent_subscriptions_total{outcome="refused"}', "consent_clock_offset_seconds")
    on.redis_cli("acl", "setuser", "default", CHANNEL)
    on.ends(meanwhile=record)


@scenario("ConsentdClockOffset", "its clock was set three seconds ahead, by libfaketime")
def clock_offset(on):
    on.ledger()
    on.write("clock", "+0\n")
    (library,) = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    on.sidecar(LD_PRELOAD=library, FAKETIME_TIMESTAMP_FILE=on.path("clock"), FAKETIME_NO_CACHE="1",
               FAKETIME_DONT_FAKE_MONOTONIC="1")
    on.watch()
    on.causes()
    on.write("clock", "+3\n")
    on.fires()
    on.look("the ledger's clock is")
    on.write("clock", "+0\n")
    on.ends()


@scenario("ConsentdLedgerForked", "its Redis came back with an older append-only file, while its recorder ran")
def ledger_forked(on):
    redis, _ = with_a_recorder(on)
    on.causes()
    lose_the_last_changes(on, redis)
    on.fires()
    on.look("consent_forks_total 1", "consent_remembered_pairs")
    on.until("the recorder has given back what was lost", 60, lambda: "recorded again" in on.read("recorder.log"))
    assert on.metric("consent_denials_given_back_total", 9474) == 2
    assert "OPTED_OUT_ALL" in on.check("15550100002")
    on.ends()


@scenario("ConsentdRemembersLostDenials", "its Redis came back with an older append-only file, and no recorder ran any more")
def remembers_lost_denials(on):
    redis, recorder = with_a_recorder(on)
    on.causes()
    lose_the_last_changes(on, redis, recorder)
    on.fires()
    on.look("remembers")
    assert "OPTED_OUT_ALL" in on.check("15550100002")
    on.do("1")
    on.ends()
    assert "NO_CONSENT" in on.check("15550100002"), "an accepted loss is forgotten"


def lose_the_last_changes(on, redis, recorder=None):
    """Puts Redis back to what it was before two opt-outs that both processes have seen."""
    folder = on.path("redis-6379")
    shutil.copytree(folder, on.path("before"))
    for user in ("15550100002", "15550100003"):
        on.opt_out(user)
        on.until("the sidecar denies it", 20, lambda: "OPTED_OUT_ALL" in on.check(user))
    if recorder:
        on.stop(recorder, signal.SIGKILL)
    on.stop(redis, signal.SIGKILL)
    shutil.rmtree(folder)
    os.rename(on.path("before"), folder)
    on.redis()


def pair(on):
    """The only pair in the ledger: its bucket, field and record."""
    for number in range(BUCKETS):
        bucket = "{consent:0}:b:%d" % number
        found = on.resp("HGETALL", bucket)
        for field, record in zip(found[::2], found[1::2]):
            if len(field) == 16:
                return bucket, field, record
    raise AssertionError("there is no pair")


@scenario("ConsentdLedgerKeysLost", "the bucket of a pair was deleted by hand")
def ledger_keys_lost(on):
    on.redis()
    on.consentd("init", "--ledger", LEDGER, "--buckets", str(BUCKETS))
    on.sidecar("--record", "127.0.0.1:50052", "--scrub-every", "200ms")
    on.opt_out("15550100001")
    on.watch()
    bucket = pair(on)[0]
    on.causes()
    on.redis_cli("del", bucket)
    on.fires(150)
    on.look(bucket, "noeviction")
    on.do(bucket)
    on.ends()
    assert "OPTED_OUT_ALL" in on.check()


@scenario("ConsentdLedgerWrittenPast", "the record of a pair was replaced by hand by an older one")
def ledger_written_past(on):
    on.redis()
    on.consentd("init", "--ledger", LEDGER, "--buckets", str(BUCKETS))
    on.sidecar("--record", "127.0.0.1:50052", "--scrub-every", "200ms")
    on.consentd("record", "opt-in", "15550100001", "acme", "marketing", "--method", "website", "--statement",
                "Yes, send me offers from Acme on WhatsApp", "--business-name", "Acme", "--addr", "127.0.0.1:50052")
    bucket, field, agreed = pair(on)
    on.opt_out("15550100001")
    _, _, left = pair(on)
    on.watch()
    on.causes()
    on.resp("HSET", bucket, field, left[:16] + agreed[16:])
    on.fires(150)
    on.look("1 ", "default")
    assert "OPTED_OUT_ALL" in on.check()
    on.do()
    on.ends()
    assert "OPTED_OUT_ALL" in on.check()


@scenario("ConsentdLedgerNotDurable", "its Redis was started without an append-only file")
def ledger_not_durable(on):
    on.redis("appendonly no")
    on.consentd("init", "--ledger", LEDGER, check=False)
    on.sidecar()
    on.causes_from_the_start()
    on.watch()
    on.fires()
    on.look("durable")
    on.do("OK")
    on.ends()


@scenario("ConsentdLedgerUnfenced", "its Redis got a replica, and needs none to write")
def ledger_unfenced(on):
    on.ledger()
    on.sidecar()
    on.watch()
    on.causes()
    on.redis("replicaof 127.0.0.1 6379", port=6380)
    on.fires()
    on.look("min-replicas-to-write")
    on.do("OK")
    on.ends()


@scenario("ConsentdUnannouncedAppends", "the channel was taken out of the recorder's ACL")
def unannounced_appends(on):
    on.ledger()
    on.sidecar("--record", "127.0.0.1:50052", *user(on, "recorder"))
    on.watch()
    on.causes()
    on.redis_cli("acl", "setuser", "recorder", "resetchannels")
    on.opt_out("15550100001")
    on.fires()
    on.look("consent_unannounced_appends_total 1", "resetchannels")
    assert "OPTED_OUT_ALL" in on.check()
    on.do("OK")
    on.ends()
    on.opt_out("15550100002")
    assert on.metric("consent_unannounced_appends_total") == 1


@scenario("ConsentdSnapshotFailing", "the disk of its snapshot became full")
def snapshot_failing(on):
    os.makedirs(on.path("snapshot"))
    on.run("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", on.path("snapshot"))
    on.ledger()
    on.sidecar("--record", "127.0.0.1:50052", "--snapshot", on.path("snapshot", "table"), "--snapshot-every", "1s")
    on.opt_out("15550100001")
    on.watch()
    on.causes()
    on.run("dd", "if=/dev/zero", "of=" + on.path("snapshot", "other"), "bs=4k", check=False)
    on.fires(meanwhile=lambda: on.opt_out("15550100002"))
    on.look("the table could not be saved", "No space left on device", 'consent_snapshots_total{outcome="failed"}')
    os.remove(on.path("snapshot", "other"))
    on.ends()


@scenario("ConsentdRecordingFails", "its Redis was stopped while events were recorded")
def recording_fails(on):
    redis = on.ledger()
    on.sidecar("--record", "127.0.0.1:50052")
    on.watch()
    on.causes()
    on.stop(redis)
    recording = threading.Thread(target=lambda: [on.opt_out("15550100001", check=False) for _ in range(3)])
    recording.start()
    on.fires()
    on.look("the ledger cannot be reached", "the connection was refused")
    recording.join()
    on.redis()
    on.until("an event is recorded", 60, lambda: re.search("recorded|unchanged", on.opt_out("15550100001", check=False)))
    on.ends()


@scenario("ConsentdRestarts", "it was killed three times")
def restarts(on):
    on.ledger()
    process = on.sidecar()
    on.watch()
    on.causes()
    for _ in range(3):
        on.stop(process, signal.SIGKILL)
        process = on.sidecar()
        # A scrape has to see it.
        time.sleep(2.5)
    on.fires()
    on.look()
    on.ends()


@scenario("ConsentdDown", "it was stopped by SIGSTOP")
def down(on):
    on.ledger()
    process = on.sidecar()
    on.watch()
    on.causes()
    process.send_signal(signal.SIGSTOP)
    on.fires()
    on.look("Operation timed out")
    process.send_signal(signal.SIGCONT)
    on.ends()
