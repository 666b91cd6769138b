package dev.consentd.client;

/**
 * A user of a campaign, and whether it may be messaged.
 *
 * @param user the user, as it was given
 * @param verdict the verdict; of what the sidecar decided it has {@code allowed} and the reason
 *     alone
 */
public record Screened(String user, Verdict verdict) {}
