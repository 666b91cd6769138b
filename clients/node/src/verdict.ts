import { type CanSendResponse, type BatchCanSendResult } from './gen/consent/v1/consent_service';
import { type ItemError, Reason } from './gen/consent/v1/consent';
import type { Timestamp } from './gen/google/protobuf/timestamp';
import type { Duration } from './gen/google/protobuf/duration';
import { codeName, failure, malformed, type Failure, type FieldViolation } from './status';

/** Why the sidecar decided as it did. A newer sidecar may give others, by their number. */
export type ReasonName =
  | 'OPTED_IN'
  | 'WINDOW_OPEN'
  | 'REPLY_AFTER_OPT_OUT'
  | 'ALLOWED_WHILE_STALE'
  | 'NO_CONSENT'
  | 'WINDOW_CLOSED'
  | 'OPTED_OUT'
  | 'OPTED_OUT_ALL'
  | 'PLATFORM_STOPPED'
  | 'CONSENT_EXPIRED'
  | 'CONSENT_PENDING'
  | 'FREQUENCY_CAPPED'
  | 'SUPPRESSED'
  | 'STALE'
  | 'PLATFORM_REFUSED'
  | 'COUNTRY_BLOCKED'
  | (string & {});

/**
 * Whether a message may be sent, and why.
 *
 * A verdict is an object, and JavaScript takes every object for true: always ask for `allowed`, as in
 * `if (verdict.allowed)`, or call `maySend`, which resolves to a boolean.
 */
export interface Verdict {
  /** Whether the message may be sent now. Nothing else decides. */
  readonly allowed: boolean;
  /** Why: `OPTED_IN`, `OPTED_OUT_ALL` and so on. Empty where nothing was decided. */
  readonly reason: ReasonName;
  /** Nothing was decided, as there was no answer: keep the message, and ask again later. */
  readonly unavailable: boolean;
  /** Nothing was decided, as the question is malformed: asking it again is of no use. */
  readonly invalid: boolean;
  /** The name of the gRPC code where nothing was decided, such as `DEADLINE_EXCEEDED`; else empty. */
  readonly code: string;
  /** The same in words; else empty. */
  readonly cause: string;
  /** The field that is malformed, such as `category`; empty where none is. */
  readonly field: string;
  /** All fields that are malformed. */
  readonly violations: readonly FieldViolation[];
  /** Whether a free-form message may be sent. */
  readonly freeFormAllowed: boolean;
  /** Whether a template may be sent. */
  readonly templateAllowed: boolean;
  /** When the 24-hour window, less the safety margin, closes or closed. Unset: the user never wrote. */
  readonly windowExpireTime: Date | undefined;
  /** When to ask again, where time alone will change the answer. */
  readonly retryTime: Date | undefined;
  /** The revision of the pair's partition that the answer rests on. */
  readonly revision: bigint;
  /** How long before the answer the sidecar's table last proved itself current, in milliseconds. */
  readonly stalenessMs: number;
  /** The category that decided, where the question named a template; else empty. */
  readonly categoryUsed: string;
}

const NO_VIOLATIONS: readonly FieldViolation[] = [];

const UNDECIDED = {
  allowed: false,
  reason: '',
  unavailable: true,
  invalid: false,
  code: '',
  cause: '',
  field: '',
  violations: NO_VIOLATIONS,
  freeFormAllowed: false,
  templateAllowed: false,
  windowExpireTime: undefined,
  retryTime: undefined,
  revision: 0n,
  stalenessMs: 0,
  categoryUsed: '',
} satisfies Verdict;

// Codes that say of a question that it can never be answered. OUT_OF_RANGE: it is larger than 1 MiB.
const INVALID = new Set(['INVALID_ARGUMENT', 'OUT_OF_RANGE']);

/** The verdict where nothing was decided. */
export function undecided({ code, details, violations }: Failure): Verdict {
  const invalid = INVALID.has(code);
  const field = violations[0]?.field ?? '';
  return { ...UNDECIDED, unavailable: !invalid, invalid, code, cause: details, field, violations };
}

/** The verdict that makes an answer of the sidecar. */
export function decided(answer: CanSendResponse): Verdict {
  // A sidecar never answers without a reason: this is not its answer, whatever it allows.
  if (answer.reason === Reason.REASON_UNSPECIFIED) return undecided(NO_REASON);
  return {
    allowed: answer.allowed,
    reason: reasonName(answer.reason),
    unavailable: false,
    invalid: false,
    code: '',
    cause: '',
    field: '',
    violations: NO_VIOLATIONS,
    freeFormAllowed: answer.freeFormAllowed,
    templateAllowed: answer.templateAllowed,
    windowExpireTime: dateOf(answer.windowExpireTime),
    retryTime: dateOf(answer.retryTime),
    revision: answer.revision,
    stalenessMs: millisecondsOf(answer.staleness),
    categoryUsed: answer.categoryUsed,
  };
}

const NO_REASON = failure('INTERNAL', 'the answer has no reason');

/** The verdict that makes one result of a batch. */
export function decidedInBatch({ response, error }: BatchCanSendResult): Verdict {
  if (error) return undecided(failureOfItem(error));
  return response ? decided(response) : undecided(failure('INTERNAL', 'the answer is empty'));
}

function failureOfItem({ code, field, message }: ItemError): Failure {
  const name = codeName(code);
  if (name === 'INVALID_ARGUMENT' && field) return malformed([{ field, description: message }]);
  return { ...failure(name, message), answered: true };
}

/** A verdict that denies, of which only the reason is known. */
export function denied(reason: ReasonName): Verdict {
  return { ...UNDECIDED, unavailable: false, reason };
}

/** One user's verdict of a screening, which has a reason and nothing else of its own. */
export function screened(reason: Reason, stalenessMs: number, categoryUsed: string): Verdict {
  const allowed = reason >= FIRST_ALLOWING && reason <= LAST_ALLOWING;
  return { ...denied(reasonName(reason)), allowed, stalenessMs, categoryUsed };
}

// The contract keeps these numbers of reasons for those that allow.
const FIRST_ALLOWING = 1;
const LAST_ALLOWING = 9;

const NAMES = new Map<number, ReasonName>();
for (const [name, number] of Object.entries(Reason)) {
  if (typeof number === 'number' && number > 0) NAMES.set(number, name.replace(/^REASON_/, ''));
}

export function reasonName(reason: number): ReasonName {
  return NAMES.get(reason) ?? String(reason);
}

function dateOf(time: Timestamp | undefined): Date | undefined {
  return time && new Date(Number(time.seconds) * 1_000 + time.nanos / 1_000_000);
}

export function millisecondsOf(duration: Duration | undefined): number {
  return duration ? Number(duration.seconds) * 1_000 + duration.nanos / 1_000_000 : 0;
}
