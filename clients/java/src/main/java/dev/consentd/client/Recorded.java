package dev.consentd.client;

/**
 * What the sidecar made of an event.
 *
 * @param revision the revision of the user's partition after the event, for {@link
 *     Question#withMinRevision}
 * @param applied whether it changed anything; a repeated event has the answer of the first time
 * @param optedOutScope the scope that a keyword in a message opted out of, so that it can be
 *     confirmed to the user, or the empty string
 * @param optedInCategory the category that a keyword opted in to, or the empty string
 * @param matchedKeyword the keyword that did either, such as {@code stop}, or the empty string
 * @param keywordLocale the BCP 47 tag of the keyword's language, or the empty string where it is
 *     used in several
 */
public record Recorded(
    long revision,
    boolean applied,
    String optedOutScope,
    String optedInCategory,
    String matchedKeyword,
    String keywordLocale) {}
