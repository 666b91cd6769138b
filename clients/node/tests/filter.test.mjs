import assert from 'node:assert/strict';
import { test } from 'node:test';
import grpc from '@grpc/grpc-js';
import { events } from 'consentd';
import {
  BUSINESS,
  clientOf,
  eventually,
  evidence,
  freePort,
  NO_ANSWER,
  newUser,
  sidecarOf,
  sleep,
} from './helpers.mjs';

const MESSAGE = { business: BUSINESS, category: 'marketing' };

async function optedIn(client) {
  const user = newUser();
  await client.record(events.optIn({ user, business: BUSINESS, category: 'marketing', evidence }));
  return user;
}

/** Users without end, of whom every 1,000th is the one given. */
function* campaign(size, special) {
  for (let i = 0; i < size; i += 1) yield i % 1_000 === 0 ? special : `447701${i}`.padEnd(12, '0');
}

test('100,000 users are screened in order, with bounded memory', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const special = await optedIn(client);
  let read = 0;
  let most = 0;
  let given = 0;
  function* users() {
    for (const user of campaign(100_000, special)) {
      read += 1;
      most = Math.max(most, read - given);
      yield user;
    }
  }
  const expected = campaign(100_000, special);
  for await (const { user, verdict } of client.filter(users(), MESSAGE)) {
    assert.equal(user, expected.next().value);
    assert.equal(verdict.allowed, given % 1_000 === 0);
    assert.equal(verdict.reason, verdict.allowed ? 'OPTED_IN' : 'NO_CONSENT');
    given += 1;
  }
  assert.equal(given, 100_000);
  // What was read and not given yet: four chunks under way, and one that is being gathered.
  assert.ok(most <= 5_001, `${most} users were kept`);
});

test('a campaign survives a restart of the sidecar in its middle', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const special = await optedIn(client);
  // Users are waited for 5 s. On a busy machine a restart may take as long, and then says nothing.
  await eventually('a campaign that loses no user', async () => {
    const lost = [];
    let given = 0;
    let restart;
    for await (const { verdict } of client.filter(campaign(100_000, special), MESSAGE)) {
      if (verdict.unavailable) lost.push(verdict.cause);
      else assert.equal(verdict.allowed, given % 1_000 === 0);
      given += 1;
      if (given === 50_000) {
        const begun = performance.now();
        await sidecar.kill();
        restart = sidecar.restart().then(() => performance.now() - begun);
      }
    }
    assert.equal(given, 100_000);
    const tookMs = await restart;
    assert.ok(lost.length === 0 || tookMs > 2_000, `${lost[0]}, though it was away for ${tookMs} ms`);
    return lost.length === 0;
  });
});

test('users may come asynchronously', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const special = await optedIn(client);
  async function* users() {
    for (const user of [newUser(), special]) {
      await sleep(1);
      yield user;
    }
  }
  const allowed = [];
  for await (const { verdict } of client.filter(users(), MESSAGE)) allowed.push(verdict.allowed);
  assert.deepEqual(allowed, [false, true]);
  for await (const nobody of client.filter([], MESSAGE)) assert.fail(nobody);
});

test('a malformed user is invalid, and harms no other', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const special = await optedIn(client);
  const long = [2 ** 20, 3 * 2 ** 20].map((length) => 'x'.repeat(length));
  const odd = ['', '\0', 'a\ud800', '0171 1234567', undefined, null, 7, ...long];
  const users = odd.flatMap((user) => [user, special]);
  const screened = [];
  for await (const one of client.filter(users, MESSAGE)) screened.push(one);
  assert.equal(screened.length, users.length);
  screened.forEach(({ user, verdict }, i) => {
    assert.equal(user, users[i]);
    assert.equal(verdict.allowed, i % 2 === 1);
    assert.equal(verdict.invalid, i % 2 === 0);
  });
});

test('a malformed message is invalid for each user', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  for (const message of [
    { business: BUSINESS, category: 'newsletter' },
    { business: '', category: 'marketing' },
    { business: BUSINESS, category: 7 },
    { ...MESSAGE, form: 'FREE_FORM', template: { name: 'a', language: 'en' } },
    undefined,
  ]) {
    const screened = [];
    for await (const one of client.filter([newUser(), newUser()], message)) screened.push(one);
    assert.equal(screened.length, 2);
    for (const { verdict } of screened) {
      assert.equal(verdict.allowed, false);
      assert.equal(verdict.invalid, true, verdict.cause);
    }
  }
});

test('a sidecar that takes fewer users at once gets them', async (t) => {
  const sidecar = await sidecarOf(t, '--max-recipients', '300');
  let calls = 0;
  const count = (options, nextCall) => {
    if (options.method_definition.path.endsWith('FilterRecipients')) calls += 1;
    return new grpc.InterceptingCall(nextCall(options));
  };
  const client = clientOf(t, sidecar.address, { interceptors: [count] });
  const special = await optedIn(client);
  for (let round = 0; round < 2; round += 1) {
    let given = 0;
    calls = 0;
    for await (const { verdict } of client.filter(campaign(2_500, special), MESSAGE)) {
      assert.equal(verdict.allowed, given % 1_000 === 0, verdict.cause);
      given += 1;
    }
    assert.equal(given, 2_500);
  }
  // The first round finds out that 250 are taken, and the second one keeps it.
  assert.equal(calls, 10);
});

test('without a sidecar each user is unavailable, in the end', async (t) => {
  const client = clientOf(t, `127.0.0.1:${await freePort()}`);
  const screened = [];
  for await (const one of client.filter([newUser(), newUser()], MESSAGE)) screened.push(one);
  assert.equal(screened.length, 2);
  for (const { verdict } of screened) {
    assert.equal(verdict.unavailable, true);
    assert.match(verdict.code, NO_ANSWER);
  }
});

test('a campaign that is left or cancelled ends', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  let closed = false;
  function* users() {
    try {
      yield* campaign(1_000_000, newUser());
    } finally {
      closed = true;
    }
  }
  for await (const one of client.filter(users(), MESSAGE)) {
    assert.ok(one);
    break;
  }
  assert.equal(closed, true);

  const cancelling = new AbortController();
  const { signal } = cancelling;
  let cancelled = 0;
  for await (const { verdict } of client.filter(campaign(20_000, newUser()), MESSAGE, { signal })) {
    cancelling.abort();
    if (verdict.code === 'CANCELLED') cancelled += 1;
  }
  assert.ok(cancelled > 0);
});
