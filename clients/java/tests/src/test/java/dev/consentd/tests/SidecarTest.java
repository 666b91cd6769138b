package dev.consentd.tests;

import static dev.consentd.tests.Support.BUSINESS;
import static dev.consentd.tests.Support.PATIENCE;
import static dev.consentd.tests.Support.eventually;
import static dev.consentd.tests.Support.offer;
import static dev.consentd.tests.Support.optIn;
import static dev.consentd.tests.Support.run;
import static dev.consentd.tests.Support.user;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.consentd.client.ConsentClient;
import dev.consentd.client.ConsentException;
import dev.consentd.client.Question;
import dev.consentd.client.Verdict;
import dev.consentd.testing.Sidecar;
import io.grpc.Status;
import java.io.IOException;
import java.net.ServerSocket;
import java.net.UnixDomainSocketAddress;
import java.nio.channels.SocketChannel;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.ValueSource;

/** What happens to checks when something happens to the sidecar. */
final class SidecarTest {
  private static Verdict get(CompletableFuture<Verdict> asked) throws Exception {
    return asked.get(PATIENCE.toSeconds(), TimeUnit.SECONDS);
  }

  @Test
  void noSidecarIsUnavailable() throws Exception {
    try (var socket = new ServerSocket(0)) {
      String address = "127.0.0.1:" + socket.getLocalPort();
      socket.close();
      try (var client = ConsentClient.create(address)) {
        for (int i = 0; i < 10; i++) {
          Verdict verdict = client.maySend(offer(user(i)));
          assertFalse(verdict.allowed());
          assertTrue(verdict.unavailable());
          assertTrue(
              List.of(Status.Code.UNAVAILABLE, Status.Code.DEADLINE_EXCEEDED)
                  .contains(verdict.code()),
              verdict::toString);
          assertFalse(verdict.cause().isEmpty());
          assertEquals("", verdict.reason());
        }
        var error = assertThrows(ConsentException.class, () -> client.check(offer(user(0))));
        assertTrue(error.getMessage().startsWith(error.code().name()));
        assertThrows(ConsentException.class, () -> client.ready(Duration.ofMillis(100)));
      }
    }
  }

  @Test
  void aSidecarThatComesLaterIsFoundByItself() {
    try (var sidecar = Sidecar.start()) {
      sidecar.kill();
      try (var client = ConsentClient.create(sidecar.address())) {
        for (int i = 0; i < 20; i++) {
          assertFalse(client.maySend(offer(user(0))).allowed());
          Support.pause(Duration.ofMillis(50));
        }
        sidecar.restart();
        eventually("it is found", () -> client.maySend(offer(user(0))).decided());
      }
    }
  }

  @Test
  void aBriefAbsenceIsOverWithinAFractionOfASecond() throws Exception {
    try (var sidecar = Sidecar.start();
        var proxy = new Proxy(sidecar.address());
        var client = Support.ready(Support.patient(proxy.address()).build())) {
      // With gRPC's own first pause, 0.8 seconds at least, none of these would be answered. On a
      // busy machine some are not with a shorter one, either.
      int answered = 0;
      for (int round = 0; round < 20 && answered == 0; round++) {
        proxy.stop();
        Support.pause(Duration.ofMillis(100));
        proxy.restart();
        var question = offer(user(0)).withDeadline(Duration.ofMillis(600));
        answered += client.maySend(question).decided() ? 1 : 0;
      }
      assertEquals(1, answered);
    }
  }

  @Test
  void oneThatIsKilledInMidBatchAllowsNothing() throws Exception {
    try (var sidecar = Sidecar.start();
        var client = Support.ready(Support.patient(sidecar.address()).build())) {
      client.record(optIn(user(0)));
      assertTrue(client.maySend(offer(user(0))).allowed());
      sidecar.pause(); // So that a batch is under way when it is killed.
      var asked = new ArrayList<CompletableFuture<Verdict>>();
      for (int i = 0; i < 500; i++) {
        asked.add(client.maySendAsync(offer(user(0)).withDeadline(Duration.ofMillis(400))));
      }
      Support.pause(Duration.ofMillis(50));
      sidecar.kill();
      for (var one : asked) {
        Verdict verdict = get(one);
        assertFalse(verdict.allowed());
        assertTrue(verdict.unavailable());
      }
      sidecar.restart();
      assertTrue(client.maySend(offer(user(0))).allowed());
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void whatIsUnderWayWhenItsConnectionBreaksIsAskedAgain(boolean coalescing) throws Exception {
    try (var sidecar = Sidecar.start();
        var proxy = new Proxy(sidecar.address());
        var client =
            Support.ready(Support.patient(proxy.address()).coalescing(coalescing).build())) {
      client.record(optIn(user(0)));
      for (int round = 0; round < 3; round++) {
        sidecar.pause();
        var asked = new ArrayList<CompletableFuture<Verdict>>();
        for (int i = 0; i < 500; i++) {
          asked.add(client.maySendAsync(offer(user(i % 2))));
        }
        Support.pause(Duration.ofMillis(50));
        proxy.breakConnections();
        sidecar.resume();
        for (int i = 0; i < asked.size(); i++) {
          Verdict verdict = get(asked.get(i));
          assertTrue(verdict.decided(), verdict::cause);
          assertEquals(i % 2 == 0, verdict.allowed());
        }
      }
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void drainingLosesNoCall(boolean coalescing) {
    try (var sidecar = Sidecar.start();
        var client =
            Support.ready(Support.patient(sidecar.address()).coalescing(coalescing).build())) {
      Load.prepare(client);
      try (var load = new Load(client)) {
        for (int i = 0; i < 3; i++) {
          load.more(2_000);
          sidecar.terminate();
          sidecar.await();
          sidecar.restart();
        }
        load.more(2_000);
        assertNull(load.fault());
      }
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void theAgeOfConnectionsLosesNoCall(boolean coalescing) {
    try (var sidecar = Sidecar.start("--max-connection-age", "1s");
        var client =
            Support.ready(Support.patient(sidecar.unixAddress()).coalescing(coalescing).build())) {
      Load.prepare(client);
      try (var load = new Load(client)) {
        Support.pause(Duration.ofSeconds(6));
        load.more(100);
        assertNull(load.fault());
      }
    }
  }

  /** Whether somebody accepts connections at a socket, whose file is there a moment before that. */
  private static boolean isListening(String socket) {
    try (var channel = SocketChannel.open(UnixDomainSocketAddress.of(socket))) {
      return channel.isConnected();
    } catch (IOException e) {
      return false;
    }
  }

  @Test
  void aStaleTableDenies(@TempDir Path folder) throws Exception {
    String socket = folder.resolve("redis.sock").toString();
    Process redis =
        new ProcessBuilder("redis-server", "--port", "0", "--unixsocket", socket, "--save", "")
            .directory(folder.toFile())
            .redirectErrorStream(true)
            .redirectOutput(ProcessBuilder.Redirect.DISCARD)
            .start();
    try {
      eventually("Redis listens", () -> isListening(socket));
      String ledger = "redis+unix://" + socket + "?db=0";
      String record = "unix:" + folder.resolve("record.sock");
      run(folder, Support.binary(), "init", "--ledger", ledger);
      try (var sidecar =
              Sidecar.start("--ledger", ledger, "--max-staleness", "1s", "--record", record);
          var client = Support.ready(Support.patient(sidecar.address()).build());
          var recorder = Support.patient(record).build()) {
        var recorded = recorder.record(optIn(user(0)));
        var question = offer(user(0)).withMinRevision(recorded.revision());
        // Where the sidecar does not come to read the ledger for a second, it says STALE meanwhile.
        eventually("it allows", () -> client.maySend(question).allowed());
        redis.destroyForcibly().waitFor();
        eventually(
            "it denies as STALE", () -> client.maySend(offer(user(0))).reason().equals("STALE"));
        Verdict verdict = client.check(offer(user(0)));
        assertFalse(verdict.allowed());
        assertTrue(verdict.decided());
        assertTrue(verdict.staleness().compareTo(Duration.ofSeconds(1)) > 0);
      }
    } finally {
      redis.destroyForcibly().waitFor();
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void aDeadlineThatPassesIsUnavailable(boolean coalescing) {
    try (var sidecar = Sidecar.start();
        var client =
            Support.ready(
                ConsentClient.builder()
                    .address(sidecar.address())
                    .coalescing(coalescing)
                    .build())) {
      // The sidecar waits for a revision that does not come.
      var question = offer(user(0)).withMinRevision(1_000_000);
      long before = System.nanoTime();
      Verdict verdict = client.maySend(question.withDeadline(Duration.ofMillis(200)));
      long millis = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - before);
      assertEquals(Status.Code.DEADLINE_EXCEEDED, verdict.code());
      assertTrue(verdict.unavailable());
      // The sidecar says so some milliseconds before the deadline.
      assertTrue(millis >= 100, () -> "after " + millis + " ms");
      sidecar.pause();
      assertEquals(Status.Code.DEADLINE_EXCEEDED, client.maySend(offer(user(0))).code());
      sidecar.resume();
      eventually("it answers again", () -> client.maySend(offer(user(0))).decided());
    }
  }

  @Test
  void aSilentServerIsUnavailableByTheDeadline() throws IOException {
    // The system takes the connection; nobody ever reads from it.
    try (var silent = new ServerSocket(0);
        var client = ConsentClient.create("127.0.0.1:" + silent.getLocalPort())) {
      for (int i = 0; i < 5; i++) {
        Verdict verdict = client.maySend(offer(user(i)));
        assertEquals(Status.Code.DEADLINE_EXCEEDED, verdict.code());
        assertTrue(verdict.unavailable());
      }
      var error = assertThrows(ConsentException.class, () -> client.ready(Duration.ofMillis(100)));
      assertEquals(Status.Code.DEADLINE_EXCEEDED, error.code());
    }
  }

  @ParameterizedTest
  @ValueSource(booleans = {true, false})
  void tenThousandConcurrentCallsAreAnswered(boolean coalescing) throws Exception {
    try (var sidecar = Sidecar.start("--max-in-flight", "20000");
        var client =
            Support.ready(Support.patient(sidecar.address()).coalescing(coalescing).build())) {
      Load.prepare(client);
      var asked = new ArrayList<CompletableFuture<Verdict>>();
      for (int i = 0; i < 10_000; i++) {
        asked.add(client.maySendAsync(offer(user(i % 20))));
      }
      for (int i = 0; i < asked.size(); i++) {
        Verdict verdict = get(asked.get(i));
        assertTrue(verdict.decided(), () -> verdict + ": " + verdict.cause());
        assertEquals(i % 2 == 0, verdict.allowed());
      }
    }
  }

  @Test
  void aSidecarThatTakesSmallerBatchesGetsThem() throws Exception {
    try (var sidecar = Sidecar.start("--max-batch", "100");
        var client = Support.ready(Support.patient(sidecar.address()).build())) {
      Load.prepare(client);
      var asked = new ArrayList<CompletableFuture<Verdict>>();
      for (int i = 0; i < 3_000; i++) {
        asked.add(client.maySendAsync(offer(user(i % 20))));
      }
      // One that is malformed beside them must not be taken for a batch that is too large.
      var malformed = client.maySendAsync(Question.of(user(0), BUSINESS, "newsletter"));
      for (int i = 0; i < asked.size(); i++) {
        assertTrue(get(asked.get(i)).decided());
        assertEquals(i % 2 == 0, get(asked.get(i)).allowed());
      }
      assertTrue(get(malformed).invalid());
      assertEquals("category", get(malformed).field());
    }
  }

  @Test
  void allKindsOfAddressesWork(@TempDir Path folder) {
    String name = "@consentd-test-" + UUID.randomUUID();
    try (var sidecar = Sidecar.start();
        var abstractSidecar = Sidecar.start("--unix", name)) {
      for (String address :
          List.of(
              sidecar.address(),
              sidecar.address().replace("127.0.0.1", "localhost"),
              sidecar.unixAddress(),
              "unix:" + name)) {
        try (var client = Support.ready(Support.patient(address).build())) {
          assertTrue(client.maySend(offer(user(0))).decided(), address);
        }
      }
    }
    String path = folder.resolve("an odd é%20?#name.sock").toString();
    try (var sidecar = Sidecar.start("--unix", path);
        var client = Support.ready(Support.patient("unix:" + path).build())) {
      assertTrue(client.maySend(offer(user(0))).decided());
      assertNotNull(sidecar.address());
    }
  }

  @ParameterizedTest
  @ValueSource(
      strings = {
        "",
        "localhost",
        ":50051",
        "localhost:",
        "localhost:0",
        "localhost:port",
        "http://localhost:50051",
        "a b:1",
        "unix:",
        "unix:@",
        "127.0.0.1:50051/path"
      })
  void whatIsNoAddressIsRefused(String address) {
    var error = assertThrows(IllegalArgumentException.class, () -> ConsentClient.create(address));
    assertTrue(error.getMessage().contains("HOST:PORT"), error.getMessage());
  }

  @Test
  void noProxyOfTheEnvironmentIsUsed() {
    // Otherwise this test proves nothing.
    assertNotNull(System.getenv("http_proxy"));
    assertNotNull(System.getenv("GRPC_PROXY_EXP"));
    assertNotNull(System.getProperty("https.proxyHost"));
    try (var sidecar = Sidecar.start();
        var client = Support.ready(Support.patient(sidecar.address()).build())) {
      assertTrue(client.maySend(offer(user(0))).decided());
    }
  }
}
