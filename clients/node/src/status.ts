import { status as grpcStatus, type ServiceError } from '@grpc/grpc-js';
import { BadRequest, Status } from './gen/google/rpc/status';

/** A field of a request that is malformed. */
export interface FieldViolation {
  /** The field's path, such as `category` or `event.opt_in.category`. */
  readonly field: string;
  /** What is wrong with it, and what would be right. */
  readonly description: string;
}

/** Why nothing was decided, or not known to be recorded. */
export class ConsentError extends Error {
  override readonly name = 'ConsentError';
  /** The name of the gRPC code, such as `UNAVAILABLE` or `INVALID_ARGUMENT`. */
  readonly code: string;
  /** The same in words. */
  readonly details: string;
  /** The first field that is malformed, such as `category`; empty where none is. */
  readonly field: string;
  /** All fields that are malformed. */
  readonly violations: readonly FieldViolation[];

  /** Of an event that is not known to be recorded: call `record` again with this `requestId`. */
  requestId: string | undefined;

  /** @internal */
  constructor(failure: Omit<Failure, 'answered'>) {
    super(`${failure.code}: ${failure.details}`);
    this.code = failure.code;
    this.details = failure.details;
    this.field = failure.violations[0]?.field ?? '';
    this.violations = failure.violations;
  }
}

/** Why a call has no answer of use: what {@link ConsentError} and a verdict are made from. */
export interface Failure {
  code: string;
  details: string;
  violations: readonly FieldViolation[];
  /** Whether the sidecar said so, and not this process about its connection. */
  answered: boolean;
}

export const codeName = (code: number): string => grpcStatus[code] ?? String(code);

export function failure(code: string, details: string): Failure {
  return { code, details, violations: [], answered: false };
}

export function malformed(violations: readonly FieldViolation[]): Failure {
  const details = violations.map(({ field, description }) => `${field}: ${description}`).join('; ');
  return { code: 'INVALID_ARGUMENT', details, violations, answered: true };
}

/** The failure of a call that grpc-js ended with an error. */
export function failureOf(error: ServiceError): Failure {
  const violations = violationsOf(error);
  if (violations.length > 0) return malformed(violations);
  return {
    code: codeName(error.code),
    details: error.details || error.message,
    violations,
    // An error that the sidecar answered has its headers. One that grpc-js made has none.
    answered: Object.keys(error.metadata?.getMap() ?? {}).length > 0,
  };
}

function violationsOf(error: ServiceError): FieldViolation[] {
  const [bytes] = error.metadata?.get('grpc-status-details-bin') ?? [];
  if (!(bytes instanceof Uint8Array)) return [];
  try {
    return Status.decode(bytes)
      .details.filter(({ typeUrl }) => typeUrl.endsWith('/google.rpc.BadRequest'))
      .flatMap(({ value }) => BadRequest.decode(value).fieldViolations);
  } catch {
    return []; // Details that cannot be read leave the code and the message.
  }
}

// What grpc-js makes of a connection that ends, besides UNAVAILABLE: of a stream that is reset or
// that ends without a status.
const ENDED_CONNECTION = new Set(['UNAVAILABLE', 'CANCELLED', 'INTERNAL', 'UNKNOWN']);

/** Whether a connection failed, so that nothing is known and a call may be repeated. */
export function connectionFailed(failure: Failure): boolean {
  return !failure.answered && ENDED_CONNECTION.has(failure.code);
}

// ABORTED: too many events of one user at once. RESOURCE_EXHAUSTED: too many calls at once.
const TRY_AGAIN = new Set(['UNAVAILABLE', 'ABORTED', 'RESOURCE_EXHAUSTED']);

/** Whether an event is recorded again, which its request id makes safe, or a chunk of a campaign asked again. */
export function mayRepeat(failure: Failure): boolean {
  return TRY_AGAIN.has(failure.code) || connectionFailed(failure);
}

// The pause before the first repetition of a call, in milliseconds. Each further one is twice as
// long, up to the second.
const FIRST_PAUSE_MS = 5;
const LONGEST_PAUSE_MS = 500;

/** How long to wait before a call is repeated that was repeated `attempt` times before. */
export function pauseMs(attempt: number): number {
  return Math.min(FIRST_PAUSE_MS * 2 ** Math.min(attempt, 10), LONGEST_PAUSE_MS);
}
