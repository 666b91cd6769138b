import assert from 'node:assert/strict';
import { test } from 'node:test';
import { events } from 'consentd';
import { FakeClient, Sidecar } from 'consentd/testing';
import { BUSINESS, marketing } from './helpers.mjs';

test('a fake client denies all that no rule allows', async () => {
  const client = new FakeClient();
  await client.ready();
  assert.equal(await client.maySend(marketing('u1')), false);
  assert.equal((await client.check(marketing('u1'))).reason, 'NO_CONSENT');
});

test('the rule that was stated last wins', async () => {
  const client = new FakeClient();
  const template = { name: 'offer', language: 'en' };
  client
    .allow({ category: 'marketing' })
    .deny({ user: 'u2' })
    .unavailable({ user: 'u3' })
    .deny({ template }, 'NO_CONSENT', { categoryUsed: 'marketing' });
  assert.equal(await client.maySend(marketing('u1')), true);
  assert.equal(await client.maySend({ ...marketing('u1'), category: 'utility' }), false);
  assert.equal((await client.verdict(marketing('u2'))).reason, 'OPTED_OUT_ALL');
  assert.equal((await client.verdict(marketing('u3'))).unavailable, true);
  await assert.rejects(client.check(marketing('u3')), { name: 'ConsentError', code: 'UNAVAILABLE' });
  const other = { ...template, language: 'de' };
  assert.equal(await client.maySend({ ...marketing('u1'), template: other }), true);
  const moved = await client.verdict({ ...marketing('u1'), template });
  assert.deepEqual([moved.allowed, moved.categoryUsed], [false, 'marketing']);
  assert.equal((await client.verdict(marketing('a\ud800'))).invalid, true);
  assert.equal(client.asked.length, 7);
  const screened = [];
  for await (const { user, verdict } of client.filter(['u1', 'u2', 'a\ud800'], marketing())) {
    screened.push([user, verdict.allowed, verdict.invalid]);
  }
  assert.deepEqual(screened, [['u1', true, false], ['u2', false, false], ['a\ud800', false, true]]);
});

test('a fake client keeps events, and tells changes', async () => {
  const client = new FakeClient();
  const event = events.optOut({ user: 'u1', business: BUSINESS });
  const first = await client.record(event, { requestId: 'one' });
  assert.deepEqual(await client.record(event, { requestId: 'one' }), first);
  assert.deepEqual(client.recorded, [event]);
  client.failRecording('UNAVAILABLE');
  await assert.rejects(client.record(event), { code: 'UNAVAILABLE' });
  client.failRecording();
  await client.record(event);

  const told = [];
  const watch = client.watch(BUSINESS, ({ type }) => told.push(type));
  await null;
  client.change({ type: 'changed', user: 'u1', business: BUSINESS, revision: 1n });
  client.change({ type: 'changed', user: 'u1', business: 'another', revision: 1n });
  client.change({ type: 'silent', code: 'UNAVAILABLE', cause: '' });
  watch.close();
  client.change({ type: 'reset' });
  assert.deepEqual(told, ['reset', 'changed', 'silent']);
});

test('a fake client obeys signals as the real one does', async () => {
  const client = new FakeClient().allow();
  const signal = AbortSignal.abort();
  assert.equal((await client.verdict(marketing('u1'), { signal })).code, 'CANCELLED');
  for await (const { verdict } of client.filter(['u1', 'u2'], marketing(), { signal })) {
    assert.equal(verdict.code, 'CANCELLED');
  }
  const event = events.optOut({ user: 'u1', business: BUSINESS });
  await assert.rejects(client.record(event, { signal }), { code: 'CANCELLED' });
  await assert.rejects(client.ready({ signal }), { code: 'CANCELLED' });
  assert.deepEqual(client.recorded, []);
});

test('a sidecar that is missing or does not start says so', async () => {
  await assert.rejects(Sidecar.start({ binary: '/nonexistent/consentd' }), /CONSENTD_BIN/);
  await assert.rejects(Sidecar.start({ args: ['--no-such-flag'] }), /--no-such-flag/);
});

test('a sidecar has nothing of the environment but its own', async (t) => {
  process.env.CONSENTD_LEDGER = 'redis://127.0.0.1:1';
  t.after(() => delete process.env.CONSENTD_LEDGER);
  const sidecar = await Sidecar.start();
  await sidecar.close();
});
