package dev.consentd.tests;

import static dev.consentd.tests.Support.BUSINESS;
import static dev.consentd.tests.Support.offer;
import static dev.consentd.tests.Support.optIn;
import static dev.consentd.tests.Support.user;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.consentd.client.ConsentClient;
import dev.consentd.client.ConsentException;
import dev.consentd.client.Event;
import dev.consentd.client.Verdict;
import dev.consentd.testing.Sidecar;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Random;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicLong;
import org.junit.jupiter.api.Test;

/**
 * The first promise, under faults: no message is allowed to a user whose opt-out was acknowledged
 * before the question was asked, whatever happens to the sidecar.
 */
final class FaultTest {
  private static final int CALLERS = 8;

  private final AtomicInteger lastUser = new AtomicInteger();
  private final ConcurrentHashMap<Integer, Boolean> optedOut = new ConcurrentHashMap<>();
  private final AtomicLong broken = new AtomicLong();
  private final AtomicLong allowed = new AtomicLong();
  private final AtomicLong denied = new AtomicLong();
  private final AtomicLong undecided = new AtomicLong();
  private volatile boolean ended;

  @Test
  void noAcknowledgedOptOutIsEverForgotten() throws Exception {
    long seconds = Long.parseLong(Support.required("fault.seconds"));
    long seed = System.nanoTime();
    System.out.println("faults for " + seconds + " s, by seed " + seed);
    var random = new Random(seed);
    try (var sidecar = Sidecar.start();
        var client = Support.ready(ConsentClient.create(sidecar.address()));
        var recorder = Support.ready(Support.patient(sidecar.address()).build())) {
      var threads = new ArrayList<Thread>();
      threads.add(new Thread(() -> optInAndOut(recorder)));
      for (int i = 0; i < CALLERS; i++) {
        threads.add(new Thread(() -> ask(client)));
      }
      threads.forEach(Thread::start);
      long end = System.nanoTime() + Duration.ofSeconds(seconds).toNanos();
      while (System.nanoTime() < end) {
        Support.pause(Duration.ofMillis(random.nextInt(1_500)));
        switch (random.nextInt(3)) {
          case 0 -> {
            sidecar.kill();
            Support.pause(Duration.ofMillis(random.nextInt(300)));
            sidecar.restart();
          }
          case 1 -> {
            sidecar.pause();
            Support.pause(Duration.ofMillis(random.nextInt(700)));
            sidecar.resume();
          }
          default -> {
            sidecar.terminate();
            sidecar.await();
            sidecar.restart();
          }
        }
      }
      // The last opt-out needs a sidecar, which runs by now.
      ended = true;
      for (Thread thread : threads) {
        thread.join();
      }
    }
    String counts =
        String.format(
            "allowed %s, denied %s, undecided %s, opted out %s",
            allowed, denied, undecided, optedOut.size());
    System.out.println(counts);
    assertEquals(0, broken.get(), counts);
    for (long count : List.of(allowed.get(), denied.get(), undecided.get())) {
      assertTrue(count > 0, () -> "the test proved little: " + counts);
    }
    assertTrue(optedOut.size() >= seconds / 4, () -> "the test proved little: " + counts);
  }

  /** Opts one user in after the other, and out again after a while. */
  private void optInAndOut(ConsentClient recorder) {
    while (!ended) {
      int number = lastUser.get() + 1;
      record(recorder, optIn(user(number)));
      lastUser.set(number);
      Support.pause(Duration.ofMillis(20));
      record(recorder, Event.optOut(user(number), BUSINESS, "*"));
      optedOut.put(number, true);
    }
  }

  /** Records an event, however often it takes. */
  private static void record(ConsentClient recorder, Event event) {
    for (; ; ) {
      try {
        recorder.record(event);
        return;
      } catch (ConsentException e) {
        Support.pause(Duration.ofMillis(10));
      }
    }
  }

  private void ask(ConsentClient client) {
    var random = new Random();
    while (!ended) {
      int last = lastUser.get();
      if (last == 0) {
        continue;
      }
      int number = Math.max(1, last - random.nextInt(5));
      boolean wasOptedOut = optedOut.containsKey(number);
      Verdict verdict = client.maySend(offer(user(number)));
      if (!verdict.decided()) {
        undecided.incrementAndGet();
      } else if (!verdict.allowed()) {
        denied.incrementAndGet();
      } else {
        allowed.incrementAndGet();
        if (wasOptedOut) {
          broken.incrementAndGet();
        }
      }
    }
  }
}
