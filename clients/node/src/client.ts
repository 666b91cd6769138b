import { randomUUID } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { credentials, Metadata, type Channel, type Interceptor } from '@grpc/grpc-js';
import { CLOSED, linked, repeated, sleep } from './calls';
import { Checks } from './checks';
import { defaultAddress, open, type TlsOptions } from './connection';
import { ChunkSize, screen, type Screened } from './filter';
import { ConsentEvent } from './gen/consent/v1/consent';
import {
  ConsentServiceClient,
  GetStatusResponse_Phase,
  type GetStatusResponse,
} from './gen/consent/v1/consent_service';
import {
  RecordServiceClient,
  type RecordEventRequest,
  type RecordEventResponse,
} from './gen/consent/v1/record_service';
import type { Observer } from './observer';
import { isText, requestOf, type Message, type Question } from './question';
import { connectionFailed, ConsentError, failure, malformed, mayRepeat, pauseMs } from './status';
import type { Verdict } from './verdict';
import { Watch, type ChangeListener } from './watch';

/** How a client is made. Everything has a default. */
export interface ClientOptions {
  /**
   * Where the sidecar is: `HOST:PORT`, `unix:PATH` or, from Node 22 on, `unix:@NAME`, an abstract socket.
   * The default is the variable `CONSENTD_ADDR`, and else `127.0.0.1:50051`.
   */
  address?: string | undefined;
  /** How long a check may take, in milliseconds: 50 by default. */
  deadlineMs?: number | undefined;
  /** Whether concurrent checks become batches: true by default. */
  coalescing?: boolean | undefined;
  /**
   * Speaks TLS: `true` with the CAs that Node trusts, or with files of one's own. Never to a Unix socket.
   * The host of the address is verified.
   */
  tls?: boolean | TlsOptions | undefined;
  /**
   * A file with the bearer token of `record`: its first line that is neither blank nor begins with `#`. It is
   * read at each call.
   */
  tokenFile?: string | undefined;
  /** Is told the outcome of each check, for metrics. */
  observer?: Observer | undefined;
  /** Interceptors of grpc-js for each call to the sidecar, of which a batch is one. */
  interceptors?: Interceptor[] | undefined;
}

/** How a check is asked. */
export interface CheckOptions {
  /** How long it may take, in milliseconds. The default is the client's. */
  deadlineMs?: number | undefined;
  /** Gives the check up, which is then denied as `CANCELLED`. The others of its batch go on. */
  signal?: AbortSignal | undefined;
}

/** How long to wait for a sidecar. */
export interface ReadyOptions {
  /** How long to wait, in milliseconds: 10,000 by default. */
  timeoutMs?: number | undefined;
  /** Gives the waiting up. */
  signal?: AbortSignal | undefined;
}

/** How an event is recorded. */
export interface RecordOptions {
  /**
   * Makes repeating safe: the same id records an event once. A pair remembers its last 8. The default is a
   * random UUID; name one, such as the id of a webhook, to repeat an event in another process.
   */
  requestId?: string | undefined;
  /** How long it may take, repetitions included, in milliseconds: 5,000 by default. */
  deadlineMs?: number | undefined;
  /** Gives the call up. The event may have been recorded by then. */
  signal?: AbortSignal | undefined;
}

/** What the ledger made of an event. Give its `revision` to a check as `minRevision`. */
export type Recorded = RecordEventResponse;

/** What a {@link Client} does, and the fake one of `consentd/testing`. */
export interface ConsentClient {
  ready(options?: ReadyOptions): Promise<void>;
  maySend(question: Question, options?: CheckOptions): Promise<boolean>;
  verdict(question: Question, options?: CheckOptions): Promise<Verdict>;
  check(question: Question, options?: CheckOptions): Promise<Verdict>;
  filter(
    users: Iterable<string> | AsyncIterable<string>,
    message: Message,
    options?: { signal?: AbortSignal | undefined },
  ): AsyncGenerator<Screened, void, undefined>;
  watch(business: string, onChange: ChangeListener): { close(): void };
  record(event: ConsentEvent, options?: RecordOptions): Promise<Recorded>;
  close(): void;
}

const CHECK_DEADLINE_MS = 50;
const RECORD_DEADLINE_MS = 5_000;
const READY_TIMEOUT_MS = 10_000;
const LONGEST_DEADLINE_MS = 2 ** 31 - 1; // The longest that a timer of Node takes.

/**
 * Asks a sidecar whether a business may send a message to a user, and denies when it gets no answer.
 *
 * A process needs one client. It has one connection, which is opened when the client is made, and again
 * whenever it is lost. An idle client does not keep the process alive.
 */
export class Client implements ConsentClient {
  private readonly deadlineMs: number;
  private readonly tokenFile: string | undefined;
  private readonly channel: Channel;
  private readonly consents: ConsentServiceClient;
  private readonly records: RecordServiceClient;
  private readonly checks: Checks;
  private readonly closing = new AbortController();
  private readonly watches = new Set<Watch>();
  private readonly chunkSize = new ChunkSize();

  /**
   * Makes a client, and begins to connect.
   *
   * @throws TypeError - the address or the deadline is malformed.
   * @throws Error - a file of TLS cannot be read.
   */
  constructor(options: ClientOptions = {}) {
    const { address = defaultAddress(), deadlineMs = CHECK_DEADLINE_MS, tls = false } = options;
    if (!isDeadline(deadlineMs)) throw new TypeError(`deadlineMs ${DEADLINE_BOUNDS}`);
    const { coalescing = true, tokenFile, observer, interceptors } = options;
    this.deadlineMs = deadlineMs;
    this.tokenFile = tokenFile;
    this.channel = open({ address, tls });
    const stubOptions = { channelOverride: this.channel, ...(interceptors && { interceptors }) };
    // The address and the credentials are those of the channel.
    this.consents = new ConsentServiceClient('', credentials.createInsecure(), stubOptions);
    this.records = new RecordServiceClient('', credentials.createInsecure(), stubOptions);
    this.checks = new Checks(this.consents, coalescing, observer);
  }

  /**
   * Waits until there is a connection, and a sidecar that has loaded its table. Call it before the first
   * check: connecting takes longer than a check may.
   *
   * @throws ConsentError - that did not come in time, or the sidecar refuses this client.
   */
  async ready(options: ReadyOptions = {}): Promise<void> {
    const { timeoutMs = READY_TIMEOUT_MS } = options;
    if (!isDeadline(timeoutMs)) throw new TypeError(`timeoutMs ${DEADLINE_BOUNDS}`);
    const deadline = performance.now() + timeoutMs;
    const { signal, unlink } = linked(this.closing.signal, options.signal);
    try {
      for (let attempt = 0; ; attempt += 1) {
        const { phase } = await repeated<GetStatusResponse>(
          (metadata, callOptions, done) =>
            this.consents.getStatus({}, metadata, callOptions, done),
          () => new Metadata(),
          deadline,
          signal,
          (failed) => failed.code === 'UNAVAILABLE' || connectionFailed(failed),
        );
        if (phase !== GetStatusResponse_Phase.PHASE_LOADING) return;
        const pause = pauseMs(attempt);
        if (performance.now() + pause >= deadline) throw new ConsentError(LOADING);
        await sleep(pause, signal);
      }
    } finally {
      unlink();
    }
  }

  /**
   * May this message be sent now? Ask right before each send.
   *
   * Resolves to true only if the sidecar allows it: a denial is false, and so is no answer. It never
   * rejects. {@link verdict} says why.
   */
  async maySend(question: Question, options?: CheckOptions): Promise<boolean> {
    return (await this.verdict(question, options)).allowed;
  }

  /**
   * The same as {@link maySend}, and why. It never rejects: without an answer the verdict is one that
   * denies, and says so by `unavailable` or `invalid`. A verdict is an object, and therefore always true:
   * ask for its `allowed`.
   */
  async verdict(question: Question, options?: CheckOptions): Promise<Verdict> {
    try {
      const request = requestOf(question);
      if ('code' in request) return this.checks.refuse(request);
      const { deadlineMs = this.deadlineMs, signal } = options ?? {};
      if (!isDeadline(deadlineMs)) {
        const description = DEADLINE_BOUNDS;
        return this.checks.refuse(malformed([{ field: 'deadline_ms', description }]));
      }
      if (signal != null && !isSignal(signal)) {
        return this.checks.refuse(malformed([{ field: 'signal', description: 'must be an AbortSignal' }]));
      }
      return await this.checks.ask(request, deadlineMs, signal);
    } catch {
      // A getter of the question or of the options threw. What it threw may name the user.
      return this.checks.refuse(malformed([{ field: 'question', description: 'cannot be read' }]));
    }
  }

  /**
   * The same as {@link verdict} where the sidecar decided, be it allowed or denied. A verdict is an
   * object, and therefore always true: ask for its `allowed`.
   *
   * @throws ConsentError - nothing was decided.
   */
  async check(question: Question, options?: CheckOptions): Promise<Verdict> {
    const verdict = await this.verdict(question, options);
    const { code, cause, violations } = verdict;
    if (code) throw new ConsentError({ code, details: cause, violations });
    return verdict;
  }

  /**
   * Screens the users of a campaign: gives one verdict for each user, in order, and never ends early.
   * Screening is no check: ask again right before each send.
   *
   * Memory is bounded, whatever the number of users: at most four chunks of 1,000 are under way. A chunk
   * without an answer for 5 s is `unavailable` for each of its users.
   */
  async *filter(
    users: Iterable<string> | AsyncIterable<string>,
    message: Message,
    options: { signal?: AbortSignal | undefined } = {},
  ): AsyncGenerator<Screened, void, undefined> {
    const { signal, abort, unlink } = linked(this.closing.signal, options.signal);
    try {
      yield* screen(this.consents, users, message, signal, this.chunkSize);
    } finally {
      abort(); // The caller may have left its loop before the end.
      unlink();
    }
  }

  /**
   * Tells what to withdraw from a queue, until it is closed. The first thing that it tells is a `reset`,
   * once the watch has begun, or `silent`, if it has not for 10 s. An open watch keeps the process alive.
   *
   * A sidecar that refuses it (`UNIMPLEMENTED`, `PERMISSION_DENIED`, `UNAUTHENTICATED`, `INVALID_ARGUMENT`) ends
   * it: that is told as `silent` with the code and the cause, is a warning of the process, and the watch's `error`.
   *
   * @param business - whose changes; empty: every business's.
   * @param onChange - is told each change, in order; what it throws is an uncaught exception.
   */
  watch(business: string, onChange: ChangeListener): Watch {
    if (!isText(business)) throw new TypeError('business must be a string of whole characters');
    if (this.closing.signal.aborted) throw new Error(CLOSED);
    const watch = new Watch(this.consents, business, onChange, (one) => this.watches.delete(one));
    this.watches.add(watch);
    return watch;
  }

  /**
   * Records an event, and waits until it is durable. It is repeated while its deadline allows, which is
   * safe by its request id.
   *
   * @param event - what happened: see `events`.
   * @throws ConsentError - the event is not known to be recorded: call it again with the error's
   * `requestId`. An `INVALID_ARGUMENT` names what is wrong in `violations`, and was not recorded.
   */
  async record(event: ConsentEvent, options: RecordOptions = {}): Promise<Recorded> {
    const { requestId = randomUUID(), deadlineMs = RECORD_DEADLINE_MS } = options;
    const { signal, unlink } = linked(this.closing.signal, options.signal);
    try {
      if (!isDeadline(deadlineMs)) throw new TypeError(`deadlineMs ${DEADLINE_BOUNDS}`);
      const request = eventRequest(event, requestId);
      return await repeated<RecordEventResponse>(
        (metadata, callOptions, done) =>
          this.records.recordEvent(request, metadata, callOptions, done),
        () => this.authorization(),
        performance.now() + deadlineMs,
        signal,
        mayRepeat,
      );
    } catch (error) {
      if (error instanceof ConsentError) error.requestId = requestId;
      throw error;
    } finally {
      unlink();
    }
  }

  /** Closes the connection. What is under way is denied, and ends as `CANCELLED`. */
  close(): void {
    if (this.closing.signal.aborted) return;
    this.closing.abort(CLOSED);
    this.checks.close();
    for (const watch of this.watches) watch.close();
    // A channel of grpc-js that is closed in the turn in which it was made connects all the same, and
    // its connection then stays open until the process ends.
    setImmediate(() => this.channel.close());
  }

  private async authorization(): Promise<Metadata> {
    const metadata = new Metadata();
    if (this.tokenFile === undefined) return metadata;
    const text = await readFile(this.tokenFile, 'utf8').catch(({ code }) => {
      throw new ConsentError(failure('UNAUTHENTICATED', `the token file cannot be read: ${code}`));
    });
    // The sidecar reads its own files of tokens alike.
    const lines = text.split('\n').map((line) => line.trim());
    const token = lines.find((line) => line !== '' && !line.startsWith('#'));
    if (token === undefined || !/^[\x20-\x7e]+$/.test(token)) {
      throw new ConsentError(failure('UNAUTHENTICATED', 'the token file has no token of printable ASCII'));
    }
    metadata.set('authorization', `Bearer ${token}`);
    return metadata;
  }
}

const LOADING = failure('UNAVAILABLE', 'the sidecar has not loaded its table yet');

const DEADLINE_BOUNDS = `must be a number above 0, and at most ${LONGEST_DEADLINE_MS}`;

function isDeadline(milliseconds: unknown): milliseconds is number {
  return typeof milliseconds === 'number' && milliseconds > 0 && milliseconds <= LONGEST_DEADLINE_MS;
}

/** Whether a value is a signal. It need not be of the class of this realm, as those of polyfills are not. */
function isSignal(value: unknown): value is AbortSignal {
  const { aborted, addEventListener } = value as Partial<AbortSignal>;
  return typeof value === 'object' && typeof aborted === 'boolean' && typeof addEventListener === 'function';
}

/** The request that records an event, unless UTF-8 cannot hold one of its strings. */
function eventRequest(event: ConsentEvent, requestId: string): RecordEventRequest {
  if (typeof event !== 'object' || event === null) {
    throw new ConsentError(malformed([{ field: 'event', description: 'must be an event' }]));
  }
  const request = { event: ConsentEvent.fromPartial(event), requestId };
  const field = illFormed(request, '');
  if (field) {
    const description = 'must not have a surrogate without its partner';
    throw new ConsentError(malformed([{ field, description }]));
  }
  return request;
}

/** The path of the first string that UTF-8 cannot hold, in the contract's notation. */
function illFormed(value: unknown, path: string): string | undefined {
  if (typeof value === 'string') return isText(value) ? undefined : path;
  if (typeof value !== 'object' || value === null) return undefined;
  for (const [key, inner] of Object.entries(value)) {
    const name = key.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);
    const found = illFormed(inner, path ? `${path}.${name}` : name);
    if (found) return found;
  }
  return undefined;
}
