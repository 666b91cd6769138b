import { setTimeout as delay } from 'node:timers/promises';
import { Metadata, type CallOptions, type ClientUnaryCall, type ServiceError } from '@grpc/grpc-js';
import { failure, failureOf, pauseMs, ConsentError, type Failure } from './status';

/** A unary call of the generated stub. */
export type UnaryCall<Answer> = (
  metadata: Metadata,
  options: Partial<CallOptions>,
  callback: (error: ServiceError | null, answer: Answer) => void,
) => ClientUnaryCall;

/**
 * Makes a call until it is answered, or `again` says of its failure that it must not be repeated, or its
 * deadline comes, by `performance.now()`.
 *
 * @throws ConsentError - the last failure.
 */
export async function repeated<Answer>(
  call: UnaryCall<Answer>,
  metadata: () => Metadata | Promise<Metadata>,
  deadline: number,
  signal: AbortSignal,
  again: (failed: Failure) => boolean,
): Promise<Answer> {
  for (let attempt = 0; ; attempt += 1) {
    const outcome = await once(call, await metadata(), deadline, signal);
    if ('answer' in outcome) return outcome.answer;
    const pause = pauseMs(attempt);
    const late = performance.now() + pause >= deadline;
    if (late || !again(outcome.failed)) throw new ConsentError(outcome.failed);
    await sleep(pause, signal);
  }
}

function once<Answer>(
  call: UnaryCall<Answer>,
  metadata: Metadata,
  deadline: number,
  signal: AbortSignal,
): Promise<{ answer: Answer } | { failed: Failure }> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve({ failed: cancelled(signal) });
    const remaining = Math.max(Math.ceil(deadline - performance.now()), 1);
    const begun = call(metadata, { deadline: Date.now() + remaining }, (error, answer) => {
      offAbort(signal, abort);
      if (!error) return resolve({ answer });
      resolve({ failed: signal.aborted ? cancelled(signal) : failureOf(error) });
    });
    const abort = () => begun.cancel();
    onAbort(signal, abort);
  });
}

// What is to be called when a signal is aborted. Many calls may share a signal, and to add or remove one
// listener among thousands takes Node as long as there are others: there is one, for all of them.
const listeners = new WeakMap<AbortSignal, Set<() => void>>();

/** Calls the listener once the signal is aborted, unless `offAbort` comes first. */
export function onAbort(signal: AbortSignal, listener: () => void): void {
  let all = listeners.get(signal);
  if (!all) {
    const created = new Set<() => void>();
    signal.addEventListener('abort', () => created.forEach((each) => each()), { once: true });
    listeners.set(signal, created);
    all = created;
  }
  all.add(listener);
}

export function offAbort(signal: AbortSignal, listener: () => void): void {
  listeners.get(signal)?.delete(listener);
}

/** The failure of a call that its caller gave up, or that the client's end did. */
export function cancelled({ reason }: AbortSignal): Failure {
  const details = reason === CLOSED ? CLOSED : 'the caller cancelled the call';
  return { ...failure('CANCELLED', details), answered: true };
}

/** Why the signal of a client is aborted. */
export const CLOSED = 'the client is closed';

interface Linked {
  signal: AbortSignal;
  abort(): void;
  unlink(): void;
}

/**
 * A signal that is aborted with either of two, or by itself. `AbortSignal.any` of Node 20 keeps memory for
 * each signal that it made for as long as the longest-lived of those that it watches.
 */
export function linked(closing: AbortSignal, signal: AbortSignal | undefined): Linked {
  const controller = new AbortController();
  const sources = signal ? [closing, signal] : [closing];
  const forward = () => controller.abort(sources.find(({ aborted }) => aborted)?.reason);
  sources.forEach((source) => onAbort(source, forward));
  if (sources.some(({ aborted }) => aborted)) forward();
  return {
    signal: controller.signal,
    abort: () => controller.abort(),
    unlink: () => sources.forEach((source) => offAbort(source, forward)),
  };
}

/** Waits, unless the signal is aborted first. */
export async function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  await delay(milliseconds, undefined, { signal }).catch(() => {});
}
