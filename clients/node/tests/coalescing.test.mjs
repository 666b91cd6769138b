import assert from 'node:assert/strict';
import { test } from 'node:test';
import { CanSendResponse } from 'consentd/proto';
import grpc from '@grpc/grpc-js';
import { ALLOWED, fakeServer } from './fake-server.mjs';
import { clientOf, eventually, marketing, newUser, PATIENCE_MS } from './helpers.mjs';

const sizes = (server) => server.calls.map(({ size }) => size);
const kinds = (server) => server.calls.map(({ kind }) => kind);

test('a check that comes while nothing is under way goes at once, as CanSend', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  assert.equal(await client.maySend(marketing('u2')), true);
  assert.equal(await client.maySend(marketing('u3')), false);
  assert.deepEqual(kinds(server), ['CanSend', 'CanSend']);
});

test('checks that come while one is under way go as a batch before it is answered', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  server.hold();
  const first = client.maySend(marketing('u0'));
  await server.until((calls) => calls.length === 1);
  const others = Promise.all([1, 2, 3].map((i) => client.maySend(marketing(`u${i}`))));
  await server.until((calls) => calls.length === 2);
  server.release();
  assert.equal(await first, true);
  assert.deepEqual(await others, [false, true, false]);
  assert.deepEqual(kinds(server), ['CanSend', 'BatchCanSend']);
});

test('what is gathered goes when an answer arrives', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  const callers = Array.from({ length: 20 }, async (_, caller) => {
    for (let i = 0; i < 20; i += 1) await client.maySend(marketing(`u${caller}${i}`));
  });
  await Promise.all(callers);
  assert.equal(sizes(server).reduce((sum, size) => sum + size), 400);
  assert.ok(server.calls.length < 200, `${server.calls.length} calls for 400 checks`);
});

test('a batch has 1,000 checks at most, and each its own answer', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  const asked = Array.from({ length: 2_500 }, (_, i) => client.maySend(marketing(`u${i}`)));
  const answers = await Promise.all(asked);
  answers.forEach((allowed, i) => assert.equal(allowed, i % 2 === 0));
  assert.deepEqual(sizes(server).sort((a, b) => b - a), [1_000, 1_000, 500]);
});

test('without coalescing each check goes by itself', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address, { coalescing: false });
  await Promise.all([1, 2, 3].map((i) => client.maySend(marketing(`u${i}`))));
  assert.deepEqual(kinds(server), ['CanSend', 'CanSend', 'CanSend']);
});

test('a check with a revision, and a large one, go by themselves', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  await Promise.all([
    client.maySend({ ...marketing('u1'), minRevision: 7n }),
    client.maySend({ ...marketing('u2'), category: `marketing.${'x'.repeat(4_096)}` }),
    client.maySend(marketing('u3')),
    client.maySend(marketing('u4')),
  ]);
  assert.deepEqual(sizes(server).sort(), [1, 1, 2]);
  assert.equal(server.calls.find(({ size }) => size === 2).kind, 'BatchCanSend');
});

test('a batch of large checks has 2 MiB at most', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  const category = `marketing.${'x'.repeat(1_200)}`;
  const asked = Array.from({ length: 1_000 }, (_, i) =>
    client.maySend({ ...marketing(`u${i}`), category }),
  );
  await Promise.all(asked);
  assert.ok(server.calls.length > 1);
  for (const { requests } of server.calls) {
    assert.ok(requests.reduce((sum, request) => sum + request.category.length, 0) < 2 ** 21);
  }
});

test('four batches are under way at most, and those that wait have their deadlines', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  server.hold();
  const ask = (deadlineMs) =>
    Array.from({ length: 3_000 }, (_, i) => client.verdict(marketing(`u${i}`), { deadlineMs }));
  const patient = [...ask(PATIENCE_MS), ...ask(PATIENCE_MS)];
  await server.until((calls) => calls.length === 4);
  for (const { code } of await Promise.all(ask(50))) assert.equal(code, 'DEADLINE_EXCEEDED');
  assert.equal(server.calls.length, 4);
  server.release();
  for (const [i, { allowed }] of (await Promise.all(patient)).entries()) {
    assert.equal(allowed, i % 2 === 0);
  }
  assert.deepEqual(sizes(server), Array(6).fill(1_000));
});

test('a late check is denied at its deadline, and the others of its batch are answered', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  // One whose deadline passes before the batch is made, as on a busy machine, is not asked at all.
  await eventually('a late check of a batch', async () => {
    server.calls.length = 0;
    server.hold();
    const patient = client.verdict(marketing('u2'));
    const late = await client.verdict(marketing('u4'), { deadlineMs: 30 });
    assert.equal(late.unavailable, true);
    assert.equal(late.code, 'DEADLINE_EXCEEDED');
    await server.until((calls) => calls.length > 0);
    server.release();
    assert.equal((await patient).allowed, true);
    return sizes(server)[0] === 2;
  });
});

test('an answer that is read after the deadline allows nothing', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  await client.maySend(marketing('u0'));
  const asked = client.verdict(marketing('u2'), { deadlineMs: 20 });
  setImmediate(() => {
    // The process is busy while the answer arrives and the deadline passes.
    for (const end = performance.now() + 60; performance.now() < end; );
  });
  const verdict = await asked;
  assert.equal(verdict.allowed, false);
  assert.equal(verdict.code, 'DEADLINE_EXCEEDED');
});

test('a check that is cancelled leaves the others of its batch alone', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  const cancelling = new AbortController();
  server.hold();
  const cancelled = client.verdict(marketing('u2'), { signal: cancelling.signal });
  const other = client.verdict(marketing('u4'));
  await server.until((calls) => calls.length === 1);
  cancelling.abort();
  assert.equal((await cancelled).code, 'CANCELLED');
  assert.equal((await cancelled).allowed, false);
  server.release();
  assert.equal((await other).allowed, true);
  const before = await client.verdict(marketing('u2'), { signal: AbortSignal.abort() });
  assert.equal(before.code, 'CANCELLED');
});

test('thousands of checks may share a signal', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  const sharing = new AbortController();
  const { signal } = sharing;
  const ask = () => Array.from({ length: 10_000 }, (_, i) => client.verdict(marketing(`u${i}`), { signal }));
  for (const [i, { allowed }] of (await Promise.all(ask())).entries()) {
    assert.equal(allowed, i % 2 === 0);
  }
  const cancelled = Promise.all(ask());
  sharing.abort();
  for (const { code } of await cancelled) assert.equal(code, 'CANCELLED');
});

test('a call whose checks are all cancelled is cancelled', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  const cancelling = new AbortController();
  server.hold();
  const { signal } = cancelling;
  const deadlineMs = 2 ** 31 - 1; // The sidecar would not see the call end otherwise.
  const asked = [1, 2].map((i) => client.verdict(marketing(`u${i}`), { signal, deadlineMs }));
  await server.until((calls) => calls.length === 1);
  cancelling.abort();
  await Promise.all(asked);
  await server.until(([call]) => call.cancelled);
});

test('an answer that is none denies', async (t) => {
  const answers = {
    u0: { response: CanSendResponse.create({ allowed: true }) },
    u1: { response: CanSendResponse.create({ allowed: true, reason: 99 }) },
    u2: {},
    u3: ALLOWED,
  };
  const server = await fakeServer(t, ({ userId }) => answers[userId]);
  const client = clientOf(t, server.address);
  const asked = Object.keys(answers).map((user) => client.verdict(marketing(user)));
  const [unspecified, unknown, empty, allowed] = await Promise.all(asked);
  assert.equal(unspecified.allowed, false);
  assert.equal(unspecified.unavailable, true);
  assert.equal(unspecified.reason, '');
  // A newer sidecar may give a reason that the client does not know.
  assert.equal(unknown.allowed, true);
  assert.equal(unknown.reason, '99');
  assert.equal(empty.allowed, false);
  assert.equal(empty.unavailable, true);
  assert.equal(allowed.allowed, true);
});

test('a batch that lacks an answer denies all of it', async (t) => {
  const server = await fakeServer(t, ({ userId }) => ({ ...ALLOWED, missing: userId === 'u1' }));
  const client = clientOf(t, server.address);
  const asked = [0, 1, 2].map((i) => client.verdict(marketing(`u${i}`)));
  for (const { allowed, code } of await Promise.all(asked)) {
    assert.equal(allowed, false);
    assert.equal(code, 'INTERNAL');
  }
});

test('a batch that is refused as a whole is halved, and its size is not kept', async (t) => {
  const status = { code: grpc.status.INVALID_ARGUMENT, details: 'refused' };
  const server = await fakeServer(t, ({ userId }) => (userId === 'odd1' ? { status } : ALLOWED));
  const client = clientOf(t, server.address);
  const users = Array.from({ length: 20 }, (_, i) => (i === 7 ? 'odd1' : `u${i}`));
  const verdicts = await Promise.all(users.map((user) => client.verdict(marketing(user))));
  verdicts.forEach((verdict, i) => {
    assert.equal(verdict.allowed, i !== 7);
    assert.equal(verdict.invalid, i === 7);
  });
  const before = server.calls.length;
  await Promise.all(users.map(() => client.verdict(marketing('u'))));
  assert.deepEqual(server.calls.slice(before).map(({ size }) => size), [20]);
});

for (const code of ['UNAVAILABLE', 'RESOURCE_EXHAUSTED', 'INTERNAL', 'CANCELLED', 'UNKNOWN']) {
  test(`an answer of ${code} is not repeated`, async (t) => {
    const status = { code: grpc.status[code], details: 'so it is' };
    const server = await fakeServer(t, () => ({ status }));
    const client = clientOf(t, server.address);
    const verdict = await client.verdict(marketing(newUser()));
    assert.equal(verdict.allowed, false);
    assert.equal(verdict.unavailable, true);
    assert.equal(verdict.code, code);
    assert.equal(verdict.cause, 'so it is');
    assert.equal(server.calls.length, 1);
    await assert.rejects(client.check(marketing(newUser())), { name: 'ConsentError', code });
  });
}

test('an observer is told outcomes and sizes of batches, and its faults change nothing', async (t) => {
  const server = await fakeServer(t);
  const outcomes = [];
  const batches = [];
  const observer = {
    onCheck: (outcome) => {
      outcomes.push(outcome);
      throw new Error('a fault of the observer');
    },
    onBatch: (size) => batches.push(size),
  };
  const warned = new Promise((resolve) => process.once('warning', resolve));
  const client = clientOf(t, server.address, { observer });
  const answers = await Promise.all([0, 1, 2].map((i) => client.maySend(marketing(`u${i}`))));
  assert.deepEqual(answers, [true, false, true]);
  assert.equal(await client.maySend(marketing(undefined)), false);
  assert.deepEqual(batches, [3]);
  assert.deepEqual(
    outcomes.map(({ allowed, outcome }) => [allowed, outcome]),
    [
      [true, 'allowed'],
      [false, 'NO_CONSENT'],
      [true, 'allowed'],
      [false, 'INVALID_ARGUMENT'],
    ],
  );
  assert.deepEqual(Object.keys(outcomes[0]).sort(), ['allowed', 'durationMs', 'outcome']);
  assert.ok(outcomes.every(({ durationMs }) => durationMs >= 0));
  assert.equal((await warned).code, 'CONSENTD_OBSERVER');
});

test('interceptors see each call', async (t) => {
  const server = await fakeServer(t);
  const methods = [];
  const interceptor = (options, nextCall) => {
    methods.push(options.method_definition.path);
    return new grpc.InterceptingCall(nextCall(options));
  };
  const client = clientOf(t, server.address, { interceptors: [interceptor] });
  await client.maySend(marketing('u1'));
  await Promise.all([client.maySend(marketing('u1')), client.maySend(marketing('u2'))]);
  assert.deepEqual(methods, [
    '/consent.v1.ConsentService/CanSend',
    '/consent.v1.ConsentService/BatchCanSend',
  ]);
});

test('an interceptor that throws denies', async (t) => {
  const server = await fakeServer(t);
  let faulty = true;
  const interceptor = (options, nextCall) => {
    if (faulty) throw new Error('a fault of the interceptor');
    return new grpc.InterceptingCall(nextCall(options));
  };
  const client = clientOf(t, server.address, { interceptors: [interceptor] });
  const verdict = await client.verdict(marketing('u2'));
  assert.equal(verdict.allowed, false);
  assert.equal(verdict.code, 'INTERNAL');
  faulty = false;
  assert.equal(await client.maySend(marketing('u2')), true);
});

test('closing denies what is under way and what comes later', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  server.hold();
  const underWay = client.verdict(marketing('u0'));
  await server.until((calls) => calls.length === 1);
  const gathered = client.verdict(marketing('u2'));
  client.close();
  client.close();
  const later = client.verdict(marketing('u4'));
  for (const verdict of [await underWay, await gathered, await later]) {
    assert.equal(verdict.allowed, false);
    assert.equal(verdict.code, 'CANCELLED');
  }
});

test('odd questions are malformed, and harm no other of the batch', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  const good = client.maySend(marketing('u2'));
  const odd = [
    undefined,
    null,
    {},
    marketing(undefined),
    marketing(null),
    marketing(4477000000002),
    marketing('u\ud8002'),
    { ...marketing('u2'), business: 'ac\udc00me' },
    { ...marketing('u2'), category: undefined },
    { ...marketing('u2'), form: 'LETTER' },
    { ...marketing('u2'), template: {} },
    { ...marketing('u2'), template: { name: 'n', language: '\ud800' } },
    { ...marketing('u2'), minRevision: 7 },
    { ...marketing('u2'), minRevision: -1n },
    { ...marketing('u2'), minRevision: 2n ** 64n },
  ];
  for (const question of odd) {
    const verdict = await client.verdict(question);
    assert.equal(verdict.allowed, false);
    assert.equal(verdict.invalid, true);
    assert.equal(verdict.code, 'INVALID_ARGUMENT');
    assert.notEqual(verdict.field, '');
    assert.equal(await client.maySend(question), false);
  }
  for (const deadlineMs of [0, -1, NaN, Infinity, '50', 2 ** 31]) {
    const verdict = await client.verdict(marketing('u2'), { deadlineMs });
    assert.equal(verdict.field, 'deadline_ms');
  }
  assert.equal(await good, true);
  assert.equal(await client.maySend(marketing('u2'), null), true);
  assert.deepEqual(sizes(server), [1, 1]);
});

test('what is no signal, and what throws when it is read, is malformed', async (t) => {
  const server = await fakeServer(t);
  const client = clientOf(t, server.address);
  const thrower = (name) => Object.defineProperty({}, name, { get: () => assert.fail('read') });
  const cannotListen = { aborted: false, addEventListener: () => assert.fail('listened') };
  const odd = [
    [marketing('u2'), { signal: new AbortController() }],
    [marketing('u2'), { signal: 'none' }],
    [marketing('u2'), { signal: cannotListen }],
    [marketing('u2'), thrower('signal')],
    [marketing('u2'), thrower('deadlineMs')],
    [thrower('user')],
    [{ ...marketing('u2'), template: thrower('name') }],
  ];
  for (const [question, options] of odd) {
    assert.equal(await client.maySend(question, options), false);
    const verdict = await client.verdict(question, options);
    assert.equal(verdict.invalid, true);
    assert.equal(verdict.code, 'INVALID_ARGUMENT');
    assert.notEqual(verdict.field, '');
  }
  assert.equal(server.calls.length, 0);
  // A template is read once: what was checked is what is sent.
  let reads = 0;
  const name = () => (reads++ === 0 ? 'offer' : assert.fail('read again'));
  const template = Object.defineProperty({ language: 'en' }, 'name', { get: name });
  assert.equal(await client.maySend({ ...marketing('u2'), template }), true);
  assert.equal(server.calls[0].requests[0].template.name, 'offer');
});
