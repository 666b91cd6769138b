package dev.consentd.tests;

import static dev.consentd.tests.Support.BUSINESS;
import static dev.consentd.tests.Support.PATIENCE;
import static dev.consentd.tests.Support.offer;
import static dev.consentd.tests.Support.optIn;
import static dev.consentd.tests.Support.user;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.consentd.client.ConsentClient;
import dev.consentd.client.ConsentException;
import dev.consentd.client.Event;
import dev.consentd.client.Recorded;
import dev.consentd.testing.Sidecar;
import dev.consentd.v1.ListEventsRequest;
import dev.consentd.v1.RecordServiceGrpc;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.Status;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** Recording. */
final class RecordTest {
  private static long eventCount(Sidecar sidecar, String user) {
    var channel =
        Grpc.newChannelBuilder(sidecar.address(), InsecureChannelCredentials.create())
            .proxyDetector(server -> null)
            .build();
    try {
      var request = ListEventsRequest.newBuilder().setUserId(user).setBusinessId(BUSINESS).build();
      long count = 0;
      var listed =
          RecordServiceGrpc.newBlockingStub(channel)
              .withDeadlineAfter(PATIENCE)
              .listEvents(request);
      while (listed.hasNext()) {
        count += listed.next().hasEvent() ? 1 : 0;
      }
      return count;
    } finally {
      channel.shutdownNow();
    }
  }

  @Test
  void oneThatIsRepeatedOverARestartIsRecordedOnce() throws Exception {
    try (var sidecar = Sidecar.start();
        var client = Support.ready(Support.patient(sidecar.address()).build())) {
      Event event = optIn(user(0));
      Recorded first = client.record(event);
      assertTrue(first.applied());
      sidecar.kill();
      // The sidecar is not there yet, and the call repeats itself until it is.
      var second = CompletableFuture.supplyAsync(() -> client.record(event));
      Support.pause(Duration.ofMillis(300));
      assertFalse(second.isDone());
      sidecar.restart();
      assertEquals(first, second.get(PATIENCE.toSeconds(), TimeUnit.SECONDS));
      assertEquals(1, eventCount(sidecar, user(0)));
      // Another object is another event, however alike.
      assertNotEquals(event.requestId(), optIn(user(0)).requestId());
    }
  }

  @Test
  void oneThatIsUnderWayWhenTheSidecarIsKilledIsRecordedOnce() throws Exception {
    try (var sidecar = Sidecar.start();
        var client = Support.ready(Support.patient(sidecar.address()).build())) {
      sidecar.pause();
      var recorded = CompletableFuture.supplyAsync(() -> client.record(optIn(user(0))));
      Support.pause(Duration.ofMillis(200));
      sidecar.kill();
      sidecar.restart();
      var question =
          offer(user(0))
              .withMinRevision(recorded.get(PATIENCE.toSeconds(), TimeUnit.SECONDS).revision());
      assertTrue(client.maySend(question).allowed());
      assertEquals(1, eventCount(sidecar, user(0)));
    }
  }

  @Test
  void whatIsNotKnownToBeRecordedThrows() {
    try (var client =
        ConsentClient.builder()
            .address("127.0.0.1:9")
            .recordDeadline(Duration.ofMillis(100))
            .build()) {
      var error = assertThrows(ConsentException.class, () -> client.record(optIn(user(0))));
      // On a busy machine the connection may not even have failed by then.
      assertTrue(
          List.of(Status.Code.UNAVAILABLE, Status.Code.DEADLINE_EXCEEDED).contains(error.code()),
          error::getMessage);
    }
    try (var sidecar = Sidecar.start();
        var client =
            Support.ready(
                ConsentClient.builder()
                    .address(sidecar.address())
                    .recordDeadline(Duration.ofMillis(200))
                    .build())) {
      sidecar.pause();
      var error = assertThrows(ConsentException.class, () -> client.record(optIn(user(0))));
      assertEquals(Status.Code.DEADLINE_EXCEEDED, error.code());
      Thread.currentThread().interrupt();
      error = assertThrows(ConsentException.class, () -> client.record(optIn(user(0))));
      assertEquals(Status.Code.CANCELLED, error.code());
      assertTrue(Thread.interrupted());
    }
  }

  @Test
  void eachKindOfEventIsTaken() {
    try (var sidecar = Sidecar.start("--deny-after-failure", "130497");
        var client = Support.ready(Support.patient(sidecar.address()).build())) {
      client.record(optIn(user(0)).withTime(Instant.now().minusSeconds(60)));
      assertEquals("OPTED_IN", client.maySend(offer(user(0))).reason());
      client.record(Event.deliveryFailure(user(0), BUSINESS, 130497, "12345"));
      assertEquals("PLATFORM_REFUSED", client.maySend(offer(user(0))).reason());
      client.record(Event.platformPreference(user(0), BUSINESS, true, ""));
      assertEquals("PLATFORM_STOPPED", client.maySend(offer(user(0))).reason());
      client.record(Event.suppression(user(0), BUSINESS, true));
      assertEquals("SUPPRESSED", client.maySend(offer(user(0))).reason());
      client.record(optIn(user(1)));
      assertTrue(client.maySend(offer(user(1))).allowed());
      client.record(Event.link(user(0), BUSINESS, user(1), true));
      assertEquals("SUPPRESSED", client.maySend(offer(user(1))).reason());
      Recorded stop = client.record(Event.inboundMessage(user(2), BUSINESS, "STOP"));
      assertEquals("*", stop.optedOutScope());
      assertEquals("stop", stop.matchedKeyword());
    }
  }

  @Test
  void aTokenIsReadForEachEvent(@TempDir Path folder) throws Exception {
    Path known = Files.writeString(folder.resolve("tokens"), "a-token-that-is-long-enough-1\n");
    known.toFile().setReadable(false, false);
    known.toFile().setReadable(true, true);
    Path token = folder.resolve("token");
    try (var sidecar = Sidecar.start("--record-token-file", known.toString());
        var client = Support.ready(Support.patient(sidecar.address()).tokenFile(token).build())) {
      var error = assertThrows(ConsentException.class, () -> client.record(optIn(user(0))));
      assertEquals(Status.Code.UNAUTHENTICATED, error.code());
      Files.writeString(token, "a-token-that-nobody-knows-of\n");
      error = assertThrows(ConsentException.class, () -> client.record(optIn(user(0))));
      assertEquals(Status.Code.UNAUTHENTICATED, error.code());
      Files.writeString(token, "# no token\n \n");
      error = assertThrows(ConsentException.class, () -> client.record(optIn(user(0))));
      assertEquals(Status.Code.UNAUTHENTICATED, error.code());
      assertTrue(error.getMessage().contains("there is no token"), error::getMessage);
      Files.write(token, new byte[] {(byte) 0xff, '\n'});
      error = assertThrows(ConsentException.class, () -> client.record(optIn(user(0))));
      assertEquals(Status.Code.UNAUTHENTICATED, error.code());
      Files.writeString(token, "# of 2026\r\n\r\n  a-token-that-is-long-enough-1 \r\nanother\r\n");
      assertTrue(client.record(optIn(user(0))).applied());
      assertTrue(client.maySend(offer(user(0))).allowed());
    }
  }
}
