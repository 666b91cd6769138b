package dev.consentd.client;

/** A watch that goes on until it is closed. */
public interface Watch extends AutoCloseable {
  /**
   * Ends the watch. It tells nothing more once this returns, but for a change that is being told,
   * which is not waited for.
   */
  @Override
  void close();
}
