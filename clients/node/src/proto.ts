/**
 * The generated code of the contract, `consent.v1`: its messages, and the plain stubs
 * `ConsentServiceClient` and `RecordServiceClient` for calls that {@link Client} has no verb for.
 *
 * @packageDocumentation
 */
export * from './gen/consent/v1/consent';
export * from './gen/consent/v1/consent_service';
export * from './gen/consent/v1/record_service';
export { Duration } from './gen/google/protobuf/duration';
export { Timestamp } from './gen/google/protobuf/timestamp';
