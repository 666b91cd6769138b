import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import grpc from '@grpc/grpc-js';
import { ConsentError, events } from 'consentd';
import { ConsentServiceClient, RecordServiceClient } from 'consentd/proto';
import {
  BUSINESS,
  clientOf,
  evidence,
  freePort,
  marketing,
  NO_ANSWER,
  newUser,
  sidecarOf,
  sleep,
} from './helpers.mjs';

/** The events that the ledger has of a user. */
async function recorded(address, userId) {
  const stub = new RecordServiceClient(address, grpc.credentials.createInsecure());
  const listed = [];
  for await (const { event } of stub.listEvents({ userId, businessId: BUSINESS })) {
    if (event) listed.push(event);
  }
  stub.close();
  return listed;
}

test('each kind of event is recorded', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const about = { user: newUser(), business: BUSINESS };
  const time = new Date(Date.now() - 60_000);
  const template = { name: 'offer', language: 'en' };
  const all = [
    events.optIn({ ...about, time, category: 'marketing', evidence }),
    events.optIn({
      ...about,
      category: 'utility.orders',
      evidence: { method: 'WHATSAPP_SIGNUP', reference: 'signup-1', phoneNumberId: '42' },
      expireTime: new Date(Date.now() + 3_600_000),
      pending: true,
    }),
    events.inboundMessage({ ...about, text: 'hello', messageId: 'wamid.1' }),
    events.inboundMessage(about),
    events.platformPreference({ ...about, marketingStopped: true, phoneNumberId: '42' }),
    events.deliveryFailure({ ...about, code: 131049 }),
    events.suppression({ ...about, suppressed: true, reference: 'asked by phone' }),
    events.link({ ...about, otherUser: newUser() }),
    events.optOut({ ...about, scope: 'marketing.offers', reference: 'asked by mail' }),
    events.optOut(about),
    events.templateCategory({ business: BUSINESS, template, category: 'marketing' }),
    events.templateRestriction({ business: BUSINESS, restricted: true, untilTime: new Date(Date.now() + 60_000) }),
  ];
  for (const event of all) {
    const { revision } = await client.record(event);
    assert.ok(revision > 0n);
  }
  const [first] = await recorded(sidecar.address, about.user);
  assert.equal(Number(first.eventTime.seconds) * 1_000 + first.eventTime.nanos / 1e6, time.getTime());
  assert.equal(first.optIn.evidence.statement, evidence.statement);
});

test('an event that is recorded twice with one request id is recorded once', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const user = newUser();
  const event = events.optIn({ user, business: BUSINESS, category: 'marketing', evidence });
  const first = await client.record(event, { requestId: 'signup' });
  const second = await client.record(event, { requestId: 'signup' });
  assert.deepEqual(second, first);
  assert.equal((await recorded(sidecar.address, user)).length, 1);
});

test('an event that is under way while the sidecar restarts is recorded once', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  await client.ready();
  for (let round = 0; round < 3; round += 1) {
    const users = Array.from({ length: 20 }, newUser);
    const recording = users.map((user) => {
      const event = events.optIn({ user, business: BUSINESS, category: 'marketing', evidence });
      return client.record(event, { deadlineMs: 60_000 });
    });
    await sleep(round * 3); // So that the kill meets calls before, in and after the ledger's work.
    await sidecar.kill();
    await sidecar.restart();
    await Promise.all(recording);
    for (const user of users) {
      assert.equal((await recorded(sidecar.address, user)).length, 1);
      assert.equal(await client.maySend(marketing(user)), true);
    }
  }
});

test('an event that is not known to be recorded throws, and names its request id', async (t) => {
  const client = clientOf(t, `127.0.0.1:${await freePort()}`);
  const event = events.optOut({ user: newUser(), business: BUSINESS });
  const own = client.record(event, { requestId: 'own', deadlineMs: 100 });
  await assert.rejects(own, { name: 'ConsentError', code: NO_ANSWER, requestId: 'own' });
  await assert.rejects(client.record(event, { deadlineMs: 100 }), ({ requestId }) => {
    assert.match(requestId, /^[0-9a-f-]{36}$/);
    return true;
  });
  await assert.rejects(client.record(event, { signal: AbortSignal.timeout(20) }), { code: 'CANCELLED' });
  const closed = assert.rejects(client.record(event), { code: 'CANCELLED' });
  client.close();
  await closed;
  await assert.rejects(client.record(event), { code: 'CANCELLED' });
});

test('a malformed event throws what is wrong with each field', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const about = { user: newUser(), business: BUSINESS };
  const statement = { ...evidence, statement: 'Yes' };
  const event = events.optIn({ ...about, category: 'newsletter', evidence: statement });
  await assert.rejects(client.record(event), (error) => {
    assert.ok(error instanceof ConsentError);
    assert.equal(error.code, 'INVALID_ARGUMENT');
    assert.equal(error.field, error.violations[0].field);
    assert.ok(error.violations.length >= 2);
    return true;
  });
  const surrogate = events.inboundMessage({ ...about, text: 'a\ud800' });
  await assert.rejects(client.record(surrogate), { field: 'event.inbound_message.text' });
  for (const odd of [undefined, null, {}, { userId: 7 }]) {
    await assert.rejects(client.record(odd), { code: 'INVALID_ARGUMENT' });
  }
});

test('a token is read from its file at each call', async (t) => {
  const tokens = join(import.meta.dirname, 'tokens');
  writeFileSync(tokens, 'a-token-that-is-long-enough-to-be-taken\n');
  const listen = `127.0.0.1:${await freePort()}`;
  const sidecar = await sidecarOf(t, '--listen', listen, '--record-token-file', tokens);
  const tokenFile = join(sidecar.folder, 'token');
  const client = clientOf(t, sidecar.address, { tokenFile });
  const event = () => events.optOut({ user: newUser(), business: BUSINESS });
  const refused = (words) => assert.rejects(client.record(event()), (error) => {
    assert.equal(error.code, 'UNAUTHENTICATED');
    assert.match(error.details, words);
    return true;
  });
  await refused(/ENOENT/);
  for (const text of ['', '\n \n', '# only a comment\n', 'tok\u00e9n']) {
    writeFileSync(tokenFile, text);
    await refused(/has no token/);
  }
  writeFileSync(tokenFile, 'another-token-that-is-long-enough-as-well');
  await refused(/./);
  for (const text of ['%\n', '# ours\r\n\r\n  % \t\r\nanother-one-that-is-not-taken\n']) {
    writeFileSync(tokenFile, text.replace('%', 'a-token-that-is-long-enough-to-be-taken'));
    assert.equal((await client.record(event())).applied, true);
  }
});
