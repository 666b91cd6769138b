import type { ClientDuplexStream, ServiceError } from '@grpc/grpc-js';
import { cancelled, offAbort, onAbort, sleep } from './calls';
import type {
  ConsentServiceClient,
  FilterRecipientsRequest,
  FilterRecipientsResponse,
} from './gen/consent/v1/consent_service';
import { Reason } from './gen/consent/v1/consent';
import { isText, messageOf, type Message } from './question';
import { failure, failureOf, malformed, pauseMs, type Failure } from './status';
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

/** Codes of failures that asking again does not mend. */
const FINAL = new Set([
  'INVALID_ARGUMENT',
  'OUT_OF_RANGE',
  'PERMISSION_DENIED',
  'UNAUTHENTICATED',
  'UNIMPLEMENTED',
]);

/** Screens users in chunks, a few of which are under way at a time, and keeps their order. */
export async function* screen(
  stub: ConsentServiceClient,
  users: Iterable<string> | AsyncIterable<string>,
  message: Message,
  signal: AbortSignal,
): AsyncGenerator<Screened, void, undefined> {
  const underWay: Promise<Screened[]>[] = [];
  for await (const chunk of chunksOf(users)) {
    underWay.push(screenChunk(stub, chunk, message, signal));
    if (underWay.length === CHUNKS_UNDER_WAY) yield* await underWay.shift()!;
  }
  while (underWay.length > 0) yield* await underWay.shift()!;
}

async function* chunksOf(users: Iterable<string> | AsyncIterable<string>): AsyncGenerator<string[]> {
  let chunk: string[] = [];
  let bytes = 0;
  for await (const user of users) {
    const most = typeof user === 'string' ? 3 * user.length + 4 : 0;
    if (chunk.length === CHUNK_USERS || (chunk.length > 0 && bytes + most > CHUNK_BYTES)) {
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
): Promise<Screened[]> {
  const asked = messageOf(message);
  const verdicts =
    'code' in asked
      ? users.map(() => undecided(asked))
      : await answers(stub, users.filter(isText), asked, signal);
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
): Promise<Verdict[]> {
  if (userIds.length === 0) return [];
  const deadline = performance.now() + CHUNK_DEADLINE_MS;
  for (let attempt = 0; ; attempt += 1) {
    const outcome = await once(stub, { ...asked, userIds }, deadline, signal);
    if ('reasons' in outcome) return verdictsOf(outcome);
    const { failed } = outcome;
    if (userIds.length > 1 && failed.violations[0]?.field === 'user_ids') {
      // The sidecar takes fewer users at once (--max-recipients).
      const half = Math.ceil(userIds.length / 2);
      const first = await answers(stub, userIds.slice(0, half), asked, signal);
      return first.concat(await answers(stub, userIds.slice(half), asked, signal));
    }
    const pause = pauseMs(attempt);
    if (FINAL.has(failed.code) || signal.aborted || performance.now() + pause >= deadline) {
      return userIds.map(() => undecided(failed));
    }
    await sleep(pause, signal);
  }
}

function verdictsOf({ reasons, staleness, categoryUsed }: FilterRecipientsResponse): Verdict[] {
  const stalenessMs = millisecondsOf(staleness);
  return reasons.map((reason) =>
    reason === Reason.REASON_UNSPECIFIED
      ? MALFORMED
      : screened(reason, stalenessMs, categoryUsed),
  );
}

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
      done(whole ? answer : { failed: failure('INTERNAL', 'not one reason for each user') });
    });
    stream.on('error', (error: ServiceError) => {
      done({ failed: signal.aborted ? cancelled(signal) : failureOf(error) });
    });
    stream.on('end', () => done({ failed: failure('UNAVAILABLE', 'the stream has no answer') }));
    stream.write(request);
    stream.end();
  });
}
