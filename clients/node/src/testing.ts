/**
 * For tests of code that sends: a fake client, which answers by the rules that a test states, and a sidecar,
 * which is the real binary on a ledger in a temporary folder.
 *
 * @packageDocumentation
 */
export { FakeClient, type Answer, type Rule } from './testing/fake';
export { Sidecar, type SidecarOptions } from './testing/sidecar';
