package dev.consentd.tests;

import static dev.consentd.tests.Support.BUSINESS;
import static dev.consentd.tests.Support.PATIENCE;
import static dev.consentd.tests.Support.optIn;
import static dev.consentd.tests.Support.user;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.consentd.client.Change;
import dev.consentd.client.ConsentClient;
import dev.consentd.client.Event;
import dev.consentd.client.Template;
import dev.consentd.testing.Sidecar;
import io.grpc.Status;
import java.util.Optional;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** Watches. */
final class WatchTest {
  private final BlockingQueue<Change> changes = new LinkedBlockingQueue<>();
  private Change last;
  private Sidecar sidecar;
  private ConsentClient client;

  @BeforeEach
  void start() {
    sidecar = Sidecar.start();
    client = Support.ready(Support.patient(sidecar.address()).build());
  }

  @AfterEach
  void stop() {
    client.close();
    sidecar.close();
  }

  /**
   * Waits for what is told next, and skips a reset after a reset: a sidecar that has just loaded its
   * table may send one, since all may have changed while it loaded.
   */
  private Change next() throws InterruptedException {
    boolean afterReset = last instanceof Change.Reset;
    do {
      last = changes.poll(PATIENCE.toSeconds(), TimeUnit.SECONDS);
      assertNotNull(last, "nothing was told");
    } while (afterReset && last instanceof Change.Reset);
    return last;
  }

  @Test
  void itBeginsWithAResetAndTellsChangesOfItsBusiness() throws Exception {
    try (var watch = client.watch(BUSINESS, changes::add)) {
      assertEquals(new Change.Reset(), next());
      client.record(Event.inboundMessage(user(1), "other", "hello"));
      long revision = client.record(optIn(user(0))).revision();
      assertEquals(new Change.Changed(user(0), BUSINESS, revision), next());
      var template = new Template("offer", "en");
      revision = client.record(Event.templateCategory(template, BUSINESS, "utility")).revision();
      assertEquals(new Change.TemplateChanged(Optional.of(template), BUSINESS, revision), next());
      revision = client.record(Event.templateRestriction(BUSINESS, true)).revision();
      assertEquals(new Change.TemplateChanged(Optional.empty(), BUSINESS, revision), next());
      watch.close();
      client.record(Event.optOut(user(0), BUSINESS, "*"));
      assertNull(changes.poll(300, TimeUnit.MILLISECONDS));
    }
  }

  @Test
  void aRestartIsSilenceAndThenAReset() throws Exception {
    try (var watch = client.watch("", changes::add)) {
      assertEquals(new Change.Reset(), next());
      for (int i = 0; i < 2; i++) {
        sidecar.kill();
        assertInstanceOf(Change.Silent.class, next());
        sidecar.restart();
        assertEquals(new Change.Reset(), next());
      }
      long revision = client.record(optIn(user(0))).revision();
      assertEquals(new Change.Changed(user(0), BUSINESS, revision), next());
      assertNotNull(watch);
    }
  }

  @Test
  void tenSecondsOfSilenceAreToldAndThenAReset() throws Exception {
    try (var watch = client.watch(BUSINESS, changes::add)) {
      assertEquals(new Change.Reset(), next());
      sidecar.pause();
      long before = System.nanoTime();
      Change change = next();
      long seconds = TimeUnit.NANOSECONDS.toSeconds(System.nanoTime() - before);
      sidecar.resume();
      assertEquals(
          Status.Code.DEADLINE_EXCEEDED,
          assertInstanceOf(Change.Silent.class, change).code(),
          () -> "after " + seconds + " s");
      assertEquals(new Change.Reset(), next());
      long revision = client.record(optIn(user(0))).revision();
      assertEquals(new Change.Changed(user(0), BUSINESS, revision), next());
      assertNotNull(watch);
    }
  }

  @Test
  void theEndOfAConnectionIsSilenceAndThenAReset() throws Exception {
    try (var aging = Sidecar.start("--max-connection-age", "1s");
        var other = Support.ready(Support.patient(aging.address()).build());
        var watch = other.watch(BUSINESS, changes::add)) {
      assertEquals(new Change.Reset(), next());
      assertInstanceOf(Change.Silent.class, next());
      assertEquals(new Change.Reset(), next());
      assertNotNull(watch);
    }
  }

  @ParameterizedTest
  @ValueSource(classes = {Change.Changed.class, Change.Silent.class, Change.Reset.class})
  void whatThrowsBeginsAnew(Class<? extends Change> at) throws Exception {
    var thrown = new AtomicBoolean();
    try (var watch =
        client.watch(
            BUSINESS,
            change -> {
              changes.add(change);
              if (at.isInstance(change) && !thrown.getAndSet(true)) {
                throw new AssertionError("of whoever is told");
              }
            })) {
      assertEquals(new Change.Reset(), next());
      if (at == Change.Reset.class) {
        assertInstanceOf(Change.Silent.class, next());
        assertEquals(new Change.Reset(), next());
      }
      client.record(optIn(user(0)));
      assertInstanceOf(Change.Changed.class, next());
      if (at == Change.Changed.class) {
        assertEquals(Status.Code.ABORTED, assertInstanceOf(Change.Silent.class, next()).code());
        assertEquals(new Change.Reset(), next());
      }
      sidecar.kill();
      assertInstanceOf(Change.Silent.class, next());
      sidecar.restart();
      assertEquals(new Change.Reset(), next());
      assertNotNull(watch);
    }
  }

  @Test
  void oneThatMayNotBeginEndsWithTheError() throws Exception {
    try (var refusing = Sidecar.start("--max-watchers", "0");
        var other = Support.ready(Support.patient(refusing.address()).build());
        var watch = other.watch(BUSINESS, changes::add)) {
      var last = assertInstanceOf(Change.Silent.class, next());
      assertEquals(Status.Code.UNIMPLEMENTED, last.code());
      assertTrue(last.isFinal());
      assertFalse(last.cause().isEmpty());
      refusing.kill();
      assertNull(changes.poll(300, TimeUnit.MILLISECONDS));
      assertNotNull(watch);
    }
  }
}
