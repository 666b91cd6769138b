// What the network and the sidecar's end do to checks.

import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import net from 'node:net';
import { test } from 'node:test';
import { Client, events } from 'consentd';
import {
  BUSINESS,
  clientOf,
  eventually,
  evidence,
  freePort,
  NO_ANSWER,
  marketing,
  newUser,
  PATIENCE_MS,
  redisOf,
  sidecarOf,
  sleep,
} from './helpers.mjs';

/** Two users: one who opted in, and one who did not. */
async function twoUsers(client) {
  const [allowed, denied] = [newUser(), newUser()];
  const about = { user: allowed, business: BUSINESS };
  await client.record(events.optIn({ ...about, category: 'marketing', evidence }));
  return { allowed, denied };
}

/** Callers who ask about both users until they are stopped, and count what they are told. */
function load(client, { allowed, denied }, callers = 16) {
  const counts = { asked: 0, decided: 0, unavailable: 0, causes: new Set() };
  let running = true;
  const caller = async () => {
    while (running) {
      for (const user of [allowed, denied]) {
        const verdict = await client.verdict(marketing(user));
        counts.asked += 1;
        if (verdict.unavailable) {
          counts.unavailable += 1;
          counts.causes.add(`${verdict.code}: ${verdict.cause}`);
          await sleep(1);
        } else {
          counts.decided += 1;
          assert.equal(verdict.allowed, user === allowed);
        }
      }
    }
  };
  const all = Promise.all(Array.from({ length: callers }, caller));
  const stop = () => {
    running = false;
    return all;
  };
  return { counts, stop };
}

test('without a sidecar a check is denied within its deadline, with the cause', async (t) => {
  const client = clientOf(t, `127.0.0.1:${await freePort()}`, { deadlineMs: 3_000 });
  const verdict = await client.verdict(marketing(newUser()));
  assert.equal(verdict.allowed, false);
  assert.equal(verdict.unavailable, true);
  assert.match(verdict.code, NO_ANSWER);
  assert.match(verdict.cause, /ECONNREFUSED/);
  assert.equal(await client.maySend(marketing(newUser())), false);
  await assert.rejects(client.check(marketing(newUser())), { code: NO_ANSWER });
  await assert.rejects(client.ready({ timeoutMs: 100 }), { code: NO_ANSWER });
});

test('without a socket file a check is denied', async (t) => {
  const client = clientOf(t, 'unix:/nonexistent/consentd.sock', { deadlineMs: 3_000 });
  const verdict = await client.verdict(marketing(newUser()));
  assert.equal(verdict.unavailable, true);
  assert.match(verdict.cause, /ENOENT/);
});

test('a sidecar that accepts and never answers is late', async (t) => {
  const sockets = new Set();
  const server = net.createServer((socket) => sockets.add(socket)).listen(0, '127.0.0.1');
  await new Promise((resolve) => server.on('listening', resolve));
  t.after(() => {
    sockets.forEach((socket) => socket.destroy());
    server.close();
  });
  const client = clientOf(t, `127.0.0.1:${server.address().port}`, { deadlineMs: 50 });
  const start = performance.now();
  const verdicts = await Promise.all([1, 2, 3].map(() => client.verdict(marketing(newUser()))));
  for (const verdict of verdicts) {
    assert.equal(verdict.unavailable, true);
    assert.equal(verdict.code, 'DEADLINE_EXCEEDED');
  }
  assert.ok(performance.now() - start >= 49);
});

test('a check is late in a sidecar that is stopped, and answered once it goes on', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const { allowed } = await twoUsers(client);
  await sidecar.pause();
  const late = await client.verdict(marketing(allowed), { deadlineMs: 50 });
  assert.equal(late.code, 'DEADLINE_EXCEEDED');
  const patient = client.maySend(marketing(allowed));
  sidecar.resume();
  assert.equal(await patient, true);
});

for (const address of ['address', 'unixAddress']) {
  test(`checks are answered at a sidecar's ${address}`, async (t) => {
    const sidecar = await sidecarOf(t);
    const client = clientOf(t, sidecar[address]);
    await client.ready();
    const { allowed, denied } = await twoUsers(client);
    assert.equal(await client.maySend(marketing(allowed)), true);
    assert.equal(await client.maySend(marketing(denied)), false);
  });
}

test('an abstract socket is served from Node 22 on, and refused before', async (t) => {
  const address = `unix:@consentd-${process.pid}`;
  if (Number(process.versions.node.split('.')[0]) < 22) {
    assert.throws(() => new Client({ address }), /Node 22/);
    return;
  }
  const sidecar = await sidecarOf(t, '--unix', address.slice('unix:'.length));
  assert.ok(sidecar.pid);
  const client = clientOf(t, address);
  await client.ready();
  assert.equal((await client.verdict(marketing(newUser()))).reason, 'NO_CONSENT');
});

test('an address that is none is refused', () => {
  for (const address of ['localhost', 'http://localhost:1', 'unix:', 'host:port', '::1:50051', ':1', 'a b:1']) {
    assert.throws(() => new Client({ address }), TypeError, address);
  }
  for (const deadlineMs of [0, NaN, '50', Infinity]) {
    assert.throws(() => new Client({ deadlineMs }), TypeError);
  }
});

test('CONSENTD_ADDR is asked where no address is given, and no proxy of the environment', async (t) => {
  const sidecar = await sidecarOf(t);
  const nobody = `http://127.0.0.1:${await freePort()}`;
  const script = `
    const { Client } = require('consentd');
    const client = new Client({ deadlineMs: 60_000 });
    client.ready({ timeoutMs: 60_000 })
      .then(() => client.verdict({ user: '447700900000', business: 'acme', category: 'marketing' }))
      .then(({ reason }) => { console.log(reason); client.close(); });`;
  const proxies = { http_proxy: nobody, https_proxy: nobody, grpc_proxy: nobody, no_proxy: '' };
  const env = { ...process.env, ...proxies, CONSENTD_ADDR: sidecar.address };
  const said = execFileSync(process.execPath, ['-e', script], { env, encoding: 'utf8' });
  assert.equal(said.trim(), 'NO_CONSENT');
});

test('an idle client keeps no process alive', async (t) => {
  const sidecar = await sidecarOf(t);
  const script = `
    const { Client } = require('consentd');
    const client = new Client({ address: process.argv[1] });
    const nobody = new Client({ address: '127.0.0.1:1' });
    client.ready().then(() => console.log('ready'));`;
  const options = { encoding: 'utf8', timeout: PATIENCE_MS };
  const said = execFileSync(process.execPath, ['-e', script, sidecar.address], options);
  assert.equal(said.trim(), 'ready');
});

test('a batch whose sidecar is killed is denied or answered, and the next sidecar is found', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address, { deadlineMs: 300 });
  const users = await twoUsers(client);
  await sidecar.pause(); // So that the batch is under way when the sidecar ends.
  const underWay = Array.from({ length: 100 }, (_, i) =>
    client.verdict(marketing(i % 2 ? users.allowed : users.denied)),
  );
  await sleep(20);
  await sidecar.kill();
  for (const verdict of await Promise.all(underWay)) {
    assert.equal(verdict.allowed, false);
    assert.equal(verdict.unavailable, true);
    assert.match(verdict.code, NO_ANSWER);
  }
  await sidecar.restart();
  await eventually('an allowed check', () => client.maySend(marketing(users.allowed)));
  const denied = await client.verdict(marketing(users.denied), { deadlineMs: PATIENCE_MS });
  assert.equal(denied.reason, 'NO_CONSENT');
});

test('a batch whose sidecar is killed is answered by the next one within its deadline', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const users = await twoUsers(client);
  await sidecar.pause();
  const underWay = Array.from({ length: 100 }, (_, i) =>
    client.verdict(marketing(i % 2 ? users.allowed : users.denied)),
  );
  await sleep(20);
  await sidecar.kill();
  await sidecar.restart();
  // A sidecar that loads its table says so, which is an answer: it is not repeated.
  for (const [i, { allowed, unavailable, cause }] of (await Promise.all(underWay)).entries()) {
    if (unavailable) assert.match(cause, /load/);
    else assert.equal(allowed, i % 2 === 1);
  }
  await client.ready();
});

test('a sidecar that drains under load loses no check, and allows none by mistake', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const users = await twoUsers(client);
  const { counts, stop } = load(client, users);
  await eventually('checks', () => counts.decided > 200);
  await sidecar.stop();
  await sidecar.restart();
  const before = counts.decided;
  await eventually('checks after the restart', () => counts.decided > before + 200);
  await stop();
  // Between its first word and its table, a sidecar refuses. All else is repeated within the deadline.
  const lost = [...counts.causes].filter((cause) => !/load/.test(cause));
  assert.deepEqual(lost, []);
});

test('connections that end by age lose no check', async (t) => {
  const sidecar = await sidecarOf(t, '--max-connection-age', '1s');
  const client = clientOf(t, sidecar.address);
  const users = await twoUsers(client);
  const { counts, stop } = load(client, users);
  await sleep(5_000); // Some five connections.
  await stop();
  assert.equal(counts.unavailable, 0, [...counts.causes].join());
  assert.ok(counts.decided > 200);
});

test('10,000 concurrent checks are answered', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const { allowed, denied } = await twoUsers(client);
  const asked = Array.from({ length: 10_000 }, (_, i) =>
    client.verdict(marketing(i % 2 ? allowed : denied)),
  );
  for (const [i, verdict] of (await Promise.all(asked)).entries()) {
    assert.equal(verdict.allowed, i % 2 === 1);
    assert.equal(verdict.unavailable, false);
  }
});

test('more checks at once than a sidecar keeps for a connection are answered in turn', async (t) => {
  const sidecar = await sidecarOf(t, '--max-connection-bytes', '5MiB');
  // The last of them has to wait for all others, which may take a minute on a busy machine.
  const client = clientOf(t, sidecar.address, { deadlineMs: 10 * PATIENCE_MS });
  const { allowed, denied } = await twoUsers(client);
  const asked = Array.from({ length: 200_000 }, (_, i) =>
    client.verdict(marketing(i % 2 ? allowed : denied)),
  );
  for (const [i, verdict] of (await Promise.all(asked)).entries()) {
    assert.equal(verdict.unavailable, false, verdict.cause);
    assert.equal(verdict.allowed, i % 2 === 1);
  }
});

test('a sidecar that takes smaller batches gets them', async (t) => {
  const sidecar = await sidecarOf(t, '--max-batch', '100');
  const batches = [];
  const observer = { onBatch: (size) => batches.push(size) };
  const client = clientOf(t, sidecar.address, { observer });
  const { allowed, denied } = await twoUsers(client);
  for (let round = 0; round < 2; round += 1) {
    const asked = Array.from({ length: 1_000 }, (_, i) =>
      client.verdict(marketing(i % 2 ? allowed : denied)),
    );
    for (const [i, verdict] of (await Promise.all(asked)).entries()) {
      assert.equal(verdict.allowed, i % 2 === 1);
      assert.equal(verdict.unavailable, false);
    }
    // The first round finds the size out, and the second one keeps it.
    if (round === 0) batches.length = 0;
  }
  assert.ok(batches.every((size) => size <= 100), batches.join());
});

test('a megabyte of user id is malformed, and harms no other of the batch', async (t) => {
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address);
  const { allowed, denied } = await twoUsers(client);
  const asked = [allowed, 'x'.repeat(2 ** 20), 'x'.repeat(1_000), '', '\0', 'a\0b', denied];
  const verdicts = await Promise.all(asked.map((user) => client.verdict(marketing(user))));
  assert.equal(verdicts[0].allowed, true);
  for (const verdict of verdicts.slice(1, -1)) {
    assert.equal(verdict.allowed, false);
    assert.equal(verdict.invalid, true);
  }
  assert.equal(verdicts.at(-1).reason, 'NO_CONSENT');
});

test('a stale table denies', async (t) => {
  const redis = await redisOf(t);
  const ledger = ['--ledger', `redis://127.0.0.1:${redis.port}`];
  execFileSync(process.env.CONSENTD_BIN || 'consentd', ['init', ...ledger], { stdio: 'ignore' });
  const record = `127.0.0.1:${await freePort()}`;
  const sidecar = await sidecarOf(t, ...ledger, '--max-staleness', '1s', '--record', record);
  const client = clientOf(t, sidecar.address);
  const { allowed } = await twoUsers(clientOf(t, record));
  await eventually('an allowed check', () => client.maySend(marketing(allowed)));
  redis.stop();
  await eventually('a stale table', async () => {
    const { reason } = await client.verdict(marketing(allowed));
    return reason === 'STALE';
  });
  assert.equal(await client.maySend(marketing(allowed)), false);
});

test('clients that are made and closed leave nothing behind', async (t) => {
  const sidecar = await sidecarOf(t);
  const script = `
    const { Client } = require('consentd');
    const question = { user: '447700900000', business: 'acme', category: 'marketing' };
    const connections = () => process.getActiveResourcesInfo().filter((one) => /Wrap|Timeout/.test(one)).length;
    const use = async () => {
      const client = new Client({ address: process.argv[1], deadlineMs: 60_000 });
      const asked = client.verdict(question);
      if (Math.random() < 0.5) await asked; // Else it is closed while a check is under way.
      client.close();
      await asked;
    };
    (async () => {
      for (let i = 0; i < 200; i += 1) await use();
      global.gc();
      const { heapUsed } = process.memoryUsage();
      for (let i = 0; i < 1_000; i += 1) await use();
      for (const end = Date.now() + 60_000; connections() > 4 && Date.now() < end; ) {
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      global.gc();
      const kept = Math.round((process.memoryUsage().heapUsed - heapUsed) / 1_000);
      console.log(JSON.stringify({ bytes: kept, connections: connections() }));
    })();`;
  const said = execFileSync(process.execPath, ['--expose-gc', '-e', script, sidecar.address], {
    encoding: 'utf8',
  });
  const { bytes, connections } = JSON.parse(said);
  assert.ok(bytes < 4_000, `${bytes} bytes are kept of each client`);
  assert.ok(connections <= 4, `${connections} connections are open`);
});
