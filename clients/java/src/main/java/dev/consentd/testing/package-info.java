/**
 * For the tests of senders: {@link dev.consentd.testing.FakeConsentClient} answers by rules,
 * and {@link dev.consentd.testing.Sidecar} runs the real binary.
 */
package dev.consentd.testing;
