// Runs the recipe for BullMQ: a worker on a real Redis and a real sidecar.

import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { events } from 'consentd';
import { BUSINESS, clientOf, evidence, newUser, PATIENCE_MS, redisOf, sidecarOf } from './helpers.mjs';

const recipe = join(process.cwd(), 'recipes/bullmq');

test('a worker sends what is allowed, and asks again about what was not decided', async (t) => {
  const { messageWorker } = await import(pathToFileURL(join(recipe, 'worker.mjs')));
  const { Queue, QueueEvents } = createRequire(join(recipe, 'package.json'))('bullmq');
  const redis = await redisOf(t);
  const connection = { host: '127.0.0.1', port: redis.port };
  const sidecar = await sidecarOf(t);
  const client = clientOf(t, sidecar.address, { deadlineMs: 2_000 });
  const [allowed, denied] = [newUser(), newUser()];
  const optIn = { user: allowed, business: BUSINESS, category: 'marketing', evidence };
  await client.record(events.optIn(optIn));

  const sent = [];
  const queue = new Queue('messages', { connection });
  const queueEvents = new QueueEvents('messages', { connection });
  const send = async ({ user }) => sent.push(user);
  const worker = messageWorker({ queue: 'messages', business: BUSINESS, client, send, connection });
  try {
    await queueEvents.waitUntilReady();
    const add = (user, category = 'marketing') => queue.add('message', { user, category, form: 'TEMPLATE' });
    const result = (job) => job.waitUntilFinished(queueEvents, PATIENCE_MS);

    assert.deepEqual(await result(await add(allowed)), { sent: true, reason: 'OPTED_IN' });
    assert.deepEqual(await result(await add(denied)), { sent: false, reason: 'NO_CONSENT' });
    await assert.rejects(result(await add(allowed, 'newsletter')), /unknown class/);

    await sidecar.kill();
    const delayed = new Promise((resolve) => queueEvents.once('delayed', resolve));
    const kept = await add(allowed);
    await delayed;
    assert.deepEqual(sent, [allowed]);
    await sidecar.restart();
    assert.deepEqual(await result(kept), { sent: true, reason: 'OPTED_IN' });
    assert.deepEqual(sent, [allowed, allowed]);
  } finally {
    await worker.close();
    await queueEvents.close();
    await queue.close();
  }
});
