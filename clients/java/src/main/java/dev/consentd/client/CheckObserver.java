package dev.consentd.client;

/**
 * Is told about checks, such as for metrics. It never gets a user's id. What it throws is dropped.
 * It is called by threads that have more to do, and so must not block.
 */
public interface CheckObserver {
  /**
   * Is told about one check that has its verdict.
   *
   * @param outcome {@code allowed}, the reason of a denial such as {@code OPTED_OUT}, or gRPC's
   *     code where nothing was decided, such as {@code UNAVAILABLE}: a label with few values
   * @param nanos how long the check took, in nanoseconds
   */
  default void checked(String outcome, long nanos) {}

  /**
   * Is told about one batch that is sent, a repeated one too.
   *
   * @param size how many checks it has, from 2 to 1,000
   */
  default void batched(int size) {}
}
