import type { ClientDuplexStream, ServiceError } from '@grpc/grpc-js';
import { cancelled, offAbort, onAbort, sleep } from './calls';
import type {
  ConsentServiceClient,
  FilterRecipientsRequest,
  FilterRecipientsResponse,
} from './gen/consent/v1/consent_service';
import { Reason } from './gen/consent/v1/consent';
import { isText, messageOf, type Message } from './question';
import { failure, failureOf, malformed, mayRepeat, pauseMs, type Failure } from './status';
import { millisecondsOf, screened, undecided, type Verdict } from './verdict';

/** A user of a campaign, and whether the message may be sent. */
export interface Screened {
  /** The user, as it was given. */
  readonly user: string;
  /**
   * Whether the message may be sent. A screening tells `allowed`, `reason`, `stalenessMs` and
   * `categoryUsed`, or why nothing was decided; the other fields keep their defaults.
   */
  readonly verdict: Verdict;
}

const CHUNK_USERS = 1_000;
// A message to the sidecar has at most 2 MiB, and a valid id at most 160 bytes.
const CHUNK_BYTES = 1024 * 1024;
const CHUNKS_UNDER_WAY = 4;
const CHUNK_DEADLINE_MS = 5_000;

/** How many users a sidecar takes at once, as far as a client knows (--max-recipients). */
export class ChunkSize {
  users = CHUNK_USERS;
}

/** Screens users in chunks, a few of which are under way at a time, and keeps their order. */
export async function* screen(
  stub: ConsentServiceClient,
  users: Iterable<string> | AsyncIterable<string>,
  message: Message,
  signal: AbortSignal,
  size: ChunkSize,
): AsyncGenerator<Screened, void, undefined> {
  const underWay: Promise<Screened[]>[] = [];
  for await (const chunk of chunksOf(users, size)) {
    underWay.push(screenChunk(stub, chunk, message, signal, size));
    if (underWay.length === CHUNKS_UNDER_WAY) yield* await underWay.shift()!;
  }
  while (underWay.length > 0) yield* await underWay.shift()!;
}

async function* chunksOf(
  users: Iterable<string> | AsyncIterable<string>,
  size: ChunkSize,
): AsyncGenerator<string[]> {
  let chunk: string[] = [];
  let bytes = 0;
  for await (const user of users) {
    const most = typeof user === 'string' ? 3 * user.length + 4 : 0;
    if (chunk.length >= size.users || (chunk.length > 0 && bytes + most > CHUNK_BYTES)) {
      yield chunk;
      chunk = [];
      bytes = 0;
    }
    chunk.push(user);
    bytes += most;
  }
  if (chunk.length > 0) yield chunk;
}

async function screenChunk(
  stub: ConsentServiceClient,
  users: readonly string[],
  message: Message,
  signal: AbortSignal,
  size: ChunkSize,
): Promise<Screened[]> {
  const asked = messageOf(message);
  const verdicts =
    'code' in asked
      ? users.map(() => undecided(asked))
      : await answers(stub, users.filter(isText), asked, signal, size);
  let next = 0;
  return users.map((user) => ({
    user,
    verdict: 'code' in asked || isText(user) ? verdicts[next++] : MALFORMED,
  }));
}

// A screening names no fault of an id: a check of it does.
const MALFORMED = undecided(malformed([{ field: 'user_id', description: 'is malformed' }]));

type Asked = Omit<FilterRecipientsRequest, 'userIds'>;

/** One verdict for each user, in order. */
async function answers(
  stub: ConsentServiceClient,
  userIds: string[],
  asked: Asked,
  signal: AbortSignal,
  size: ChunkSize,
): Promise<Verdict[]> {
  const verdicts: Verdict[] = [];
  // The users without a verdict, in parts: more than one where the sidecar takes fewer users at once.
  let parts = userIds.length > 0 ? [userIds] : [];
  // Parts that follow one without an answer have no time of their own.
  let deadline = performance.now() + CHUNK_DEADLINE_MS;
  for (let attempt = 0; parts.length > 0; ) {
    const part = parts[0];
    const outcome = await once(stub, { ...asked, userIds: part }, deadline, signal);
    if ('reasons' in outcome) {
      for (const verdict of verdictsOf(outcome)) verdicts.push(verdict);
      parts.shift();
    } else {
      const { failed } = outcome;
      const pause = pauseMs(attempt);
      if (part.length > 1 && isTooMany(failed)) {
        size.users = Math.min(size.users, Math.floor(part.length / 2));
        parts = [...split(part, size.users), ...parts.slice(1)];
      } else if (!mayRepeat(failed) || signal.aborted || performance.now() + pause >= deadline) {
        for (const _ of part) verdicts.push(undecided(failed));
        parts.shift();
        continue;
      } else {
        attempt += 1;
        await sleep(pause, signal);
        continue;
      }
    }
    attempt = 0;
    deadline = performance.now() + CHUNK_DEADLINE_MS;
  }
  return verdicts;
}

function isTooMany({ code, violations }: Failure): boolean {
  return code === 'INVALID_ARGUMENT' && violations[0]?.field === 'user_ids';
}

function split(users: string[], size: number): string[][] {
  const parts: string[][] = [];
  for (let i = 0; i < users.length; i += size) parts.push(users.slice(i, i + size));
  return parts;
}

function verdictsOf({ reasons, staleness, categoryUsed }: FilterRecipientsResponse): Verdict[] {
  const stalenessMs = millisecondsOf(staleness);
  return reasons.map((reason) =>
    reason === Reason.REASON_UNSPECIFIED
      ? MALFORMED
      : screened(reason, stalenessMs, categoryUsed),
  );
}

const NOT_WHOLE: Failure = { ...failure('INTERNAL', 'not one reason for each user'), answered: true };

/** Asks on a stream of its own. It answers one message, and is then at its end. */
function once(
  stub: ConsentServiceClient,
  request: FilterRecipientsRequest,
  deadline: number,
  signal: AbortSignal,
): Promise<FilterRecipientsResponse | { failed: Failure }> {
  return new Promise((resolve) => {
    if (signal.aborted) return resolve({ failed: cancelled(signal) });
    const remaining = Math.max(Math.ceil(deadline - performance.now()), 1);
    const stream: ClientDuplexStream<FilterRecipientsRequest, FilterRecipientsResponse> =
      stub.filterRecipients({ deadline: Date.now() + remaining });
    const abort = () => stream.cancel();
    onAbort(signal, abort);
    const done = (outcome: FilterRecipientsResponse | { failed: Failure }) => {
      offAbort(signal, abort);
      resolve(outcome);
    };
    stream.on('data', (answer: FilterRecipientsResponse) => {
      const whole = answer.reasons.length === request.userIds.length;
      done(whole ? answer : { failed: NOT_WHOLE });
    });
    stream.on('error', (error: ServiceError) => {
      done({ failed: signal.aborted ? cancelled(signal) : failureOf(error) });
    });
    stream.on('end', () => done({ failed: failure('UNAVAILABLE', 'the stream has no answer') }));
    stream.write(request);
    stream.end();
  });
}
