package dev.consentd.tests;

import static dev.consentd.tests.Support.BUSINESS;
import static dev.consentd.tests.Support.eventually;
import static dev.consentd.tests.Support.user;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.consentd.client.ConsentClient;
import dev.consentd.client.Question;
import dev.consentd.client.Verdict;
import java.time.Duration;
import java.util.ArrayList;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.atomic.AtomicInteger;
import org.junit.jupiter.api.Test;

/** Callers of one batch are woken when it is answered, whatever became of the others. */
final class WakingTest {
  private static final int CALLERS = 96;
  private static final int ROUNDS = 8;

  @Test
  void callersWhoseDeadlinesPassLeaveNobodyAsleep() throws Exception {
    // A verdict that is told at the deadline is an old one: an opt-out may lie in between.
    Duration deadline = Duration.ofMinutes(2);
    try (FakeServer server = new FakeServer();
        ConsentClient client = Support.patient(server.address()).build()) {
      assertTrue(client.maySend(Question.of(user(0), BUSINESS, "marketing")).decided());
      for (int round = 0; round < ROUNDS; round++) {
        server.checks.set(0);
        server.hold();
        var expired = new AtomicInteger();
        var answered = new ConcurrentLinkedQueue<Verdict>();
        var threads = new ArrayList<Thread>();
        for (int i = 0; i < CALLERS; i++) {
          boolean isShort = i % 3 == 1;
          Question question =
              Question.of(user(i), BUSINESS, "marketing")
                  .withDeadline(isShort ? Duration.ofMillis(500) : deadline);
          var thread =
              new Thread(
                  () -> {
                    Verdict verdict = client.maySend(question);
                    if (isShort) {
                      expired.incrementAndGet();
                    } else {
                      answered.add(verdict);
                    }
                  });
          thread.start();
          threads.add(thread);
        }
        eventually("the short deadlines have passed", () -> expired.get() == CALLERS / 3);
        long released = System.nanoTime();
        server.release();
        for (Thread thread : threads) {
          thread.join();
        }
        long took = System.nanoTime() - released;
        assertTrue(took < deadline.dividedBy(2).toNanos(), () -> "woken after " + took + " ns");
        assertEquals(CALLERS - CALLERS / 3, answered.size());
        assertTrue(answered.stream().allMatch(Verdict::decided));
      }
    }
  }
}
