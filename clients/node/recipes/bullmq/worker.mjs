// A BullMQ worker that asks consentd right before it sends each message.
//
// A job's data is { user, category, form, template, text }. What becomes of it:
//   allowed      it is sent
//   denied       it completes with the reason: sending it later is another decision
//   invalid      it fails, and is not tried again
//   unavailable  it goes back to the queue, and is asked about again: nothing was decided

import { DelayedError, UnrecoverableError, Worker } from 'bullmq';

// How long a message waits that nothing was decided about, in milliseconds.
const ASK_AGAIN_MS = 1_000;

/**
 * Sends the messages of a queue, each only if it may be sent.
 *
 * @param client - the process's one client of consentd.
 * @param send - sends a job's message. Nothing may come between the check and it that takes long.
 */
export function messageWorker({ queue, business, client, send, ...options }) {
  const work = async (job, token) => {
    const { user, category, form, template } = job.data;
    const verdict = await client.verdict({ user, business, category, form, template });
    if (verdict.invalid) throw new UnrecoverableError(verdict.cause);
    if (verdict.unavailable) {
      await job.moveToDelayed(Date.now() + ASK_AGAIN_MS, token);
      throw new DelayedError(); // Tells BullMQ that the job was moved, and has not failed.
    }
    if (verdict.allowed) await send(job.data);
    return { sent: verdict.allowed, reason: verdict.reason };
  };
  return new Worker(queue, work, { concurrency: 64, ...options });
}
