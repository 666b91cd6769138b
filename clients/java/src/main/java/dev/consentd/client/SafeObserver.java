package dev.consentd.client;

/** Calls an observer, which must not be able to harm a check, not even by an error. */
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
      } catch (Throwable e) {
        // An observer that fails must not make the check fail.
      }
    }
  }

  void batched(int size) {
    if (observer != null) {
      try {
        observer.batched(size);
      } catch (Throwable e) {
        // An observer that fails must not make the batch fail.
      }
    }
  }
}
