package dev.consentd.client;

/** Calls an observer, which must not be able to harm a check. */
final class SafeObserver {
  private final CheckObserver observer;

  /** Makes one of an observer, or of null. */
  SafeObserver(CheckObserver observer) {
    this.observer = observer;
  }

  void checked(Verdict verdict, long since) {
    if (observer != null) {
      try {
        String outcome =
            verdict.allowed()
                ? "allowed"
                : verdict.decided() ? verdict.reason() : verdict.code().name();
        observer.checked(outcome, System.nanoTime() - since);
      } catch (RuntimeException e) {
        // The check goes on as if nobody watched.
      }
    }
  }

  void batched(int size) {
    if (observer != null) {
      try {
        observer.batched(size);
      } catch (RuntimeException e) {
        // The batch goes on as if nobody watched.
      }
    }
  }
}
