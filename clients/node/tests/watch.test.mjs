import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { test } from 'node:test';
import { promisify } from 'node:util';
import grpc from '@grpc/grpc-js';
import { events } from 'consentd';
import { ConsentServiceService } from 'consentd/proto';
import { BUSINESS, clientOf, eventually, freePort, NO_ANSWER, newUser, sidecarOf, sleep } from './helpers.mjs';

/** Watches, and keeps what is told, a reset after a reset not: a sidecar that has just loaded its table may send one. */
function watching(t, client, business = BUSINESS) {
  const changes = [];
  const watch = client.watch(business, (change) => {
    if (change.type !== 'reset' || changes.at(-1)?.type !== 'reset') changes.push(change);
  });
  t.after(() => watch.close());
  const told = (type) => changes.filter((change) => change.type === type);
  return { changes, watch, told };
}

test('a watch begins with a reset, and tells the changes of its business', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const { changes, watch, told } = watching(t, client);
  await eventually('a reset', () => told('reset').length === 1);
  const user = newUser();
  const { revision } = await client.record(events.optOut({ user, business: BUSINESS }));
  await client.record(events.optOut({ user, business: 'another' }));
  const template = { name: 'offer', language: 'en' };
  const category = 'marketing';
  await client.record(events.templateCategory({ business: BUSINESS, template, category }), {
    requestId: 'template',
  });
  await eventually('a change of a template', () => told('template_changed').length === 1);
  assert.deepEqual(changes.slice(0, 2), [
    { type: 'reset' },
    { type: 'changed', user, business: BUSINESS, revision },
  ]);
  assert.equal(changes.length, 3);
  assert.deepEqual({ ...changes[2].template }, template);
  watch.close();
  watch.close();
  await client.record(events.optOut({ user: newUser(), business: BUSINESS }));
  await client.ready();
  assert.equal(changes.length, 3);
});

test('a restart is told as silence, and then as a reset', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const { changes, told } = watching(t, client);
  await eventually('a reset', () => told('reset').length === 1);
  await sidecar.kill();
  await eventually('silence', () => told('silent').length === 1);
  assert.equal(told('silent')[0].code, 'UNAVAILABLE');
  await sidecar.restart();
  await eventually('another reset', () => told('reset').length === 2);
  const user = newUser();
  await client.record(events.optOut({ user, business: BUSINESS }));
  await eventually('a change', () => told('changed').length === 1);
  assert.deepEqual(changes.map(({ type }) => type), ['reset', 'silent', 'reset', 'changed']);
});

test('connections that end by age are told as resets', async (t) => {
  const sidecar = await sidecarOf(t, '--max-connection-age', '1s');
  const client = clientOf(t, sidecar.address);
  const { changes, told } = watching(t, client);
  await eventually('resets', () => told('reset').length === 3);
  const types = changes.map(({ type }) => type);
  assert.deepEqual(types.slice(0, 5), ['reset', 'silent', 'reset', 'silent', 'reset']);
});

test('a sidecar that says nothing for 10 s is silent, until it is heard again', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const { changes, told } = watching(t, client);
  await eventually('a reset', () => told('reset').length === 1);
  const start = performance.now();
  await sidecar.pause();
  await eventually('silence', () => told('silent').length === 1);
  // Its last word came a while before it was stopped, two seconds or so.
  assert.ok(performance.now() - start > 5_000);
  assert.equal(told('silent')[0].code, 'DEADLINE_EXCEEDED');
  sidecar.resume();
  await eventually('another reset', () => told('reset').length === 2);
  assert.deepEqual(changes.map(({ type }) => type), ['reset', 'silent', 'reset']);
});

test('a watch that is refused ends, and says why', async (t) => {
  const sidecar = await sidecarOf(t, '--max-watchers', '0');
  const client = clientOf(t, sidecar.address);
  const warned = new Promise((resolve) => process.once('warning', resolve));
  const { changes, watch } = watching(t, client);
  await eventually('the end', () => watch.error);
  assert.deepEqual(changes.map(({ type, code }) => [type, code]), [['silent', 'UNIMPLEMENTED']]);
  assert.equal(changes[0].cause, watch.error.details);
  assert.equal(watch.error.code, 'UNIMPLEMENTED');
  assert.equal((await warned).code, 'CONSENTD_WATCH');
});

test('a watch that cannot begin for 10 s is silent, once', async (t) => {
  const client = clientOf(t, `127.0.0.1:${await freePort()}`);
  const { changes } = watching(t, client);
  await eventually('silence', () => changes.length > 0);
  await sleep(3_000); // It would be told again meanwhile: attempts to connect are a second apart at most.
  assert.deepEqual(changes.map(({ type }) => type), ['silent']);
  assert.match(changes[0].code, NO_ANSWER);
});

test('a message of a kind that is not known is told as a reset', async (t) => {
  const server = new grpc.Server();
  server.addService(ConsentServiceService, {
    watchConsents: (call) => {
      call.write({ checkpoint: { partitionRevisions: [] } });
      call.write({}); // As this client sees a field that it does not know.
      call.write({ checkpoint: { partitionRevisions: [] } });
      call.write({ changed: { userId: 'u1', businessId: BUSINESS, revision: 1n } });
    },
  });
  const port = await new Promise((resolve) => {
    server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (_, bound) => resolve(bound));
  });
  t.after(() => server.forceShutdown());
  const changes = [];
  const watch = clientOf(t, `127.0.0.1:${port}`).watch(BUSINESS, (change) => changes.push(change));
  t.after(() => watch.close());
  await eventually('a change', () => changes.length >= 3);
  assert.deepEqual(changes.map(({ type }) => type), ['reset', 'reset', 'changed']);
});

test('a listener that throws is an uncaught exception, and ends no watch', async (t) => {
  const sidecar = await sidecarOf(t);
  const script = `
    const { Client, events } = require('consentd');
    const client = new Client({ address: process.argv[1] });
    let thrown = false;
    process.on('uncaughtException', ({ message }) => console.log(message));
    const watch = client.watch('acme', ({ type }) => {
      if (type === 'reset') {
        if (thrown) return; // A sidecar that has just loaded its table may send a second one.
        thrown = true;
        client.record(events.optOut({ user: '447700900000', business: 'acme' })).catch(() => {});
        throw new Error('thrown');
      }
      console.log(type);
      client.close();
    });`;
  const said = await promisify(execFile)(process.execPath, ['-e', script, sidecar.address]);
  assert.deepEqual(said.stdout.trim().split('\n'), ['thrown', 'changed']);
});

test('a business that is no string is refused, and so is a client that is closed', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  assert.throws(() => client.watch(undefined, () => {}), TypeError);
  client.close();
  assert.throws(() => client.watch(BUSINESS, () => {}), /closed/);
});
