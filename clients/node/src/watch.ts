import type { ClientReadableStream, ServiceError } from '@grpc/grpc-js';
import type { ConsentServiceClient, WatchConsentsResponse } from './gen/consent/v1/consent_service';
import { ConsentError, failure, failureOf, type Failure } from './status';

/** What happened to the messages that are queued. */
export type Change =
  | {
      /** The state of a user changed: ask again before sending to that user. */
      readonly type: 'changed';
      /** The user, as written to the ledger: perhaps in another notation than yours. */
      readonly user: string;
      readonly business: string;
      /** The revision that changed it. */
      readonly revision: bigint;
    }
  | {
      /** The category of a template changed: ask again before sending that template. */
      readonly type: 'template_changed';
      /** The template. Unset: all of the business's. */
      readonly template: { readonly name: string; readonly language: string } | undefined;
      readonly business: string;
      /** The revision that changed it. */
      readonly revision: bigint;
    }
  | {
      /** Something may have been missed: ask again about everything that is queued. */
      readonly type: 'reset';
    }
  | {
      /**
       * The sidecar is not heard, or refuses the watch, which ends it ({@link Watch.error}): trust nothing that
       * is queued until the next `reset`.
       */
      readonly type: 'silent';
      /** The name of the gRPC code of what is wrong, such as `UNAVAILABLE`. */
      readonly code: string;
      /** The same in words. */
      readonly cause: string;
    };

/** Is told each change, in order. What it throws is an uncaught exception of the process. */
export type ChangeListener = (change: Change) => void;

const SILENCE_MS = 10_000;
const FIRST_BACKOFF_MS = 20;
const LONGEST_BACKOFF_MS = 1_000;

// Failures after which to begin again is of no use.
const FINAL = new Set(['UNIMPLEMENTED', 'PERMISSION_DENIED', 'UNAUTHENTICATED', 'INVALID_ARGUMENT']);

const SILENCE = failure('DEADLINE_EXCEEDED', `nothing was heard for ${SILENCE_MS / 1_000} s`);

/** A watch that was begun. It connects again by itself until it is closed, or the sidecar refuses it. */
export class Watch {
  private stream: ClientReadableStream<WatchConsentsResponse> | undefined;
  private timer: NodeJS.Timeout | undefined;
  private silenceTimer: NodeJS.Timeout | undefined;
  private backoffMs = FIRST_BACKOFF_MS;
  /** Whether the stream has begun, so that all since the last `reset` was told. */
  private current = false;
  /** Whether the listener was told `silent` after the last `reset`. */
  private toldSilent = false;
  private closed = false;
  private lastFailure: Failure = SILENCE;
  private refusal: ConsentError | undefined;

  /** @internal */
  constructor(
    private readonly stub: ConsentServiceClient,
    private readonly businessId: string,
    private readonly listener: ChangeListener,
    private readonly onClose: (watch: Watch) => void,
  ) {
    this.awaitWord();
    this.begin();
  }

  /** Why the watch ended, where the sidecar refuses it. Unset: it goes on, or was closed. */
  get error(): ConsentError | undefined {
    return this.refusal;
  }

  /** Ends the watch: nothing more is told. */
  close(): void {
    if (this.closed) return;
    this.closed = true;
    clearTimeout(this.timer);
    clearTimeout(this.silenceTimer);
    this.stream?.cancel();
    this.onClose(this);
  }

  private begin(): void {
    const stream = this.stub.watchConsents({ businessId: this.businessId });
    this.stream = stream;
    // A stream that was given up may still have messages and an error to give.
    const ifCurrent = <T>(then: (value: T) => void) => {
      return (value: T) => (this.stream === stream && !this.closed ? then(value) : undefined);
    };
    stream.on('data', ifCurrent((message: WatchConsentsResponse) => this.heard(message)));
    stream.on('error', ifCurrent((error: ServiceError) => this.lost(failureOf(error))));
    stream.on('end', ifCurrent(() => this.lost(failure('UNAVAILABLE', 'the stream ended'))));
  }

  private heard({ changed, templateChanged, checkpoint, reset }: WatchConsentsResponse): void {
    // A kind of message that this client does not know may be about anything.
    const unknown = !changed && !templateChanged && !checkpoint && !reset;
    this.awaitWord();
    this.backoffMs = FIRST_BACKOFF_MS;
    if (!this.current || reset || unknown) {
      this.current = true;
      this.toldSilent = false;
      this.tell({ type: 'reset' });
    }
    if (changed) {
      const { userId, businessId, revision } = changed;
      this.tell({ type: 'changed', user: userId, business: businessId, revision });
    } else if (templateChanged) {
      const { template, businessId, revision } = templateChanged;
      this.tell({ type: 'template_changed', template, business: businessId, revision });
    }
  }

  /** Waits for the sidecar's next word, which comes within a second or two. */
  private awaitWord(): void {
    clearTimeout(this.silenceTimer);
    this.silenceTimer = setTimeout(() => {
      this.tellSilent(this.stream ? SILENCE : this.lastFailure);
      // The stream is kept: a sidecar whose table is stale says nothing. What it says next is told as a reset first.
      this.current = false;
      this.awaitWord();
    }, SILENCE_MS);
  }

  private lost(failed: Failure): void {
    if (FINAL.has(failed.code)) return this.refused(failed);
    if (this.current) this.tellSilent(failed);
    const { stream } = this;
    this.stream = undefined;
    stream?.cancel();
    this.current = false;
    this.lastFailure = failed;
    const pause = this.backoffMs * (0.8 + 0.4 * Math.random());
    this.backoffMs = Math.min(this.backoffMs * 2, LONGEST_BACKOFF_MS);
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.begin(), pause);
  }

  /** Ends the watch. It is told even where it was silent before, since it stays so. */
  private refused(failed: Failure): void {
    const { code, details } = failed;
    this.refusal = new ConsentError(failed);
    process.emitWarning(`a watch ended: ${code}: ${details}`, { code: 'CONSENTD_WATCH' });
    this.tell({ type: 'silent', code, cause: details });
    this.close();
  }

  /** Says once that nothing is heard, until the next reset. */
  private tellSilent({ code, details }: Failure): void {
    if (this.toldSilent) return;
    this.toldSilent = true;
    this.tell({ type: 'silent', code, cause: details });
  }

  private tell(change: Change): void {
    if (this.closed) return;
    try {
      this.listener(change);
    } catch (error) {
      // Thrown where it stops nothing here: the watch goes on if the process does.
      process.nextTick(() => {
        throw error;
      });
    }
  }
}
