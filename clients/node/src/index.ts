/**
 * Asks consentd whether a business may send a WhatsApp message to a user, and denies when it gets no
 * answer.
 *
 * @packageDocumentation
 */
export {
  Client,
  type CheckOptions,
  type ClientOptions,
  type ConsentClient,
  type ReadyOptions,
  type Recorded,
  type RecordOptions,
} from './client';
export type { TlsOptions } from './connection';
export * as events from './events';
export type { Screened } from './filter';
export type { CheckOutcome, Observer } from './observer';
export type { Message, Question } from './question';
export { ConsentError, type FieldViolation } from './status';
export type { ReasonName, Verdict } from './verdict';
export type { Change, ChangeListener, Watch } from './watch';
