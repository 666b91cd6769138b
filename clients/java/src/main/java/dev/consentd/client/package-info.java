/**
 * Asks consentd whether a WhatsApp message may be sent, and denies when it gets no answer. Begin
 * with {@link dev.consentd.client.ConsentClient}.
 */
package dev.consentd.client;
