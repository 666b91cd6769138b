package dev.consentd.tests;

import dev.consentd.client.ConsentClient;
import dev.consentd.client.Event;
import dev.consentd.client.Verdict;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;

/** Threads that ask all the time: even users have opted in, odd ones have opted out. */
final class Load implements AutoCloseable {
  private static final int USERS = 20;
  private static final int CALLERS = 16;

  private final List<Thread> threads = new ArrayList<>();
  private final AtomicReference<String> fault = new AtomicReference<>();
  private final AtomicInteger checks = new AtomicInteger();
  private volatile boolean ended;

  /** Records the users that the load asks about. */
  static void prepare(ConsentClient client) {
    for (int i = 0; i < USERS; i++) {
      client.record(Support.optIn(Support.user(i)));
      if (i % 2 == 1) {
        client.record(Event.optOut(Support.user(i), Support.BUSINESS, "*"));
      }
    }
  }

  Load(ConsentClient client) {
    for (int i = 0; i < CALLERS; i++) {
      int first = i;
      var thread =
          new Thread(
              () -> {
                for (int number = first; !ended; number++) {
                  ask(client, number % USERS);
                }
              });
      threads.add(thread);
      thread.start();
    }
  }

  private void ask(ConsentClient client, int number) {
    Verdict verdict = client.maySend(Support.offer(Support.user(number)));
    checks.incrementAndGet();
    if (verdict.cause().contains("ask again shortly")) {
      return; // A sidecar that was just started, and is loading its table, is not asked again.
    }
    if (!verdict.decided()) {
      fault.compareAndSet(null, "a call was lost: " + verdict + ": " + verdict.cause());
    } else if (verdict.allowed() != (number % 2 == 0)) {
      fault.compareAndSet(null, "the verdict is wrong: " + verdict);
    }
  }

  /** Waits until so many more checks have their verdict. */
  void more(int count) {
    int before = checks.get();
    Support.eventually(
        "checks have verdicts", () -> fault.get() != null || checks.get() >= before + count);
  }

  /** Ends the load and returns what went wrong, or null. */
  String fault() {
    close();
    return fault.get();
  }

  @Override
  public void close() {
    ended = true;
    for (Thread thread : threads) {
      try {
        thread.join();
      } catch (InterruptedException e) {
        throw new IllegalStateException(e);
      }
    }
  }
}
