package dev.consentd.client;

import java.time.Duration;

/** Times that the system's clock of nanoseconds can count with. */
final class Deadlines {
  private static final Duration MAX = Duration.ofDays(365);

  private Deadlines() {}

  static Duration check(Duration time) {
    if (time.isNegative() || time.isZero()) {
      throw new IllegalArgumentException("the time must be more than zero, and is " + time);
    }
    return time;
  }

  /** Returns the nanoseconds; a time that they cannot count is as good as a year. */
  static long nanos(Duration time) {
    return (time.compareTo(MAX) < 0 ? time : MAX).toNanos();
  }
}
