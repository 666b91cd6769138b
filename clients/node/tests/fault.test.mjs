// Kills, stops and restarts a sidecar at random under load while opt-outs are recorded.
//
// FAULT_SECONDS is how long, 20 by default.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { events } from 'consentd';
import { BUSINESS, clientOf, evidence, marketing, newUser, sidecarOf, sleep } from './helpers.mjs';

const SECONDS = Number(process.env.FAULT_SECONDS ?? 20);
const CHECKERS = 16;
const RECORDERS = 4;
const USERS = 50; // Of each recorder. They opt in and out again and again.

const random = (least, most) => least + Math.random() * (most - least);
const pick = (list) => list[Math.floor(Math.random() * list.length)];

test('no check allows what an opt-out forbids that was acknowledged before', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address, { deadlineMs: 50 });
  const counts = { checks: 0, allowed: 0, denied: 0, unavailable: 0, optOuts: 0, unknown: 0, faults: 0 };
  let running = true;

  // Of each user, whether an opt-out was acknowledged after which no opt-in was begun. A check that is
  // asked while it is so must not be allowed, if it is still so at its end.
  const users = Array.from({ length: RECORDERS * USERS }, () => ({ id: newUser(), forbiddenSince: 0 }));
  let clock = 0;

  const record = async (event) => {
    try {
      await client.record(event);
      return true;
    } catch (error) {
      assert.equal(error.name, 'ConsentError');
      counts.unknown += 1;
      return false;
    }
  };

  const recorder = async (own) => {
    while (running) {
      const user = pick(own);
      const about = { user: user.id, business: BUSINESS };
      user.forbiddenSince = 0;
      // One that is not known to be recorded might still be, after the opt-out.
      if (!(await record(events.optIn({ ...about, category: 'marketing', evidence })))) continue;
      await sleep(random(0, 20));
      if (await record(events.optOut(about))) {
        user.forbiddenSince = ++clock;
        counts.optOuts += 1;
      }
      await sleep(random(0, 20));
    }
  };

  const checker = async () => {
    while (running) {
      const user = pick(users);
      const since = user.forbiddenSince;
      const verdict = await client.verdict(marketing(user.id));
      counts.checks += 1;
      if (verdict.unavailable) {
        counts.unavailable += 1;
        await sleep(1);
      } else if (verdict.allowed) {
        counts.allowed += 1;
        const forbidden = since > 0 && user.forbiddenSince === since;
        assert.equal(forbidden, false, 'a check allowed what an opt-out forbids');
      } else {
        counts.denied += 1;
      }
    }
  };

  const faults = [
    async () => {
      await sidecar.kill();
      await sleep(random(0, 300));
      await sidecar.restart();
    },
    async () => {
      await sidecar.stop();
      await sidecar.restart();
    },
    async () => {
      await sidecar.pause();
      await sleep(random(0, 300));
      sidecar.resume();
    },
  ];
  const breaker = async () => {
    for (const end = Date.now() + SECONDS * 1_000; Date.now() < end; ) {
      await sleep(random(0, 800));
      await pick(faults)();
      counts.faults += 1;
    }
    running = false;
  };

  await Promise.all([
    breaker().finally(() => {
      running = false;
    }),
    ...Array.from({ length: CHECKERS }, checker),
    ...Array.from({ length: RECORDERS }, (_, i) => recorder(users.slice(i * USERS, (i + 1) * USERS))),
  ]);
  t.diagnostic(JSON.stringify(counts));
  // A test in which nothing was allowed, or nothing opted out or broke, would prove nothing.
  for (const what of ['allowed', 'denied', 'unavailable', 'optOuts', 'faults']) {
    assert.ok(counts[what] > 0, what);
  }
});
