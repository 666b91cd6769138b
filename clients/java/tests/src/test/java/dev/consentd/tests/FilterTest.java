package dev.consentd.tests;

import static dev.consentd.tests.Support.BUSINESS;
import static dev.consentd.tests.Support.PATIENCE;
import static dev.consentd.tests.Support.user;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.consentd.client.Campaign;
import dev.consentd.client.ConsentClient;
import dev.consentd.client.Event;
import dev.consentd.client.Form;
import dev.consentd.client.Screened;
import dev.consentd.client.Template;
import dev.consentd.testing.Sidecar;
import io.grpc.Status;
import java.net.ServerSocket;
import java.time.Duration;
import java.util.Iterator;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** Campaigns. */
final class FilterTest {
  private static final int USERS = 100_000;
  private static final Campaign CAMPAIGN =
      Campaign.of(BUSINESS, "marketing").withForm(Form.TEMPLATE);

  private static Sidecar sidecar;
  private static ConsentClient client;

  @BeforeAll
  static void start() {
    sidecar = Sidecar.start();
    client = Support.ready(Support.patient(sidecar.address()).build());
    for (int i = 0; i < USERS; i += 10_000) {
      client.record(Support.optIn(user(i)));
    }
  }

  @AfterAll
  static void stop() {
    client.close();
    sidecar.close();
  }

  /** Users that are made when they are read, and counted. */
  private static final class Users implements Iterable<String> {
    int read;

    @Override
    public Iterator<String> iterator() {
      return IntStream.range(0, USERS)
          .mapToObj(
              number -> {
                read++;
                return user(number);
              })
          .iterator();
    }
  }

  private static void assertIsVerdictOn(int number, Screened one) {
    assertEquals(user(number), one.user());
    assertTrue(one.verdict().decided(), () -> one.verdict() + ": " + one.verdict().cause());
    assertEquals(number % 10_000 == 0, one.verdict().allowed());
    assertEquals(number % 10_000 == 0 ? "OPTED_IN" : "NO_CONSENT", one.verdict().reason());
  }

  @Test
  void aHundredThousandUsersTakeBoundedMemory() {
    var users = new Users();
    try (var screened = client.filter(users, CAMPAIGN)) {
      int taken = 0;
      for (var one = screened.iterator(); one.hasNext(); taken++) {
        assertIsVerdictOn(taken, one.next());
        int ahead = users.read - taken;
        assertTrue(ahead <= 5_000, () -> "users read ahead: " + ahead);
      }
      assertEquals(USERS, taken);
    }
  }

  @Test
  void aRestartInTheMiddleLosesNoUser() {
    try (var screened = client.filter(new Users(), CAMPAIGN)) {
      int taken = 0;
      for (var one = screened.iterator(); one.hasNext(); taken++) {
        assertIsVerdictOn(taken, one.next());
        if (taken == 30_500 || taken == 60_001) {
          sidecar.kill();
          sidecar.restart();
        }
      }
      assertEquals(USERS, taken);
    }
  }

  @Test
  void aConsumerThatRestsForLongerThanAnAnswerMayTakeLosesNoUser() {
    List<String> users = IntStream.range(0, 6_000).mapToObj(Support::user).toList();
    try (var screened = client.filter(users, CAMPAIGN)) {
      var one = screened.iterator();
      for (int taken = 0; one.hasNext(); taken++) {
        assertIsVerdictOn(taken, one.next());
        if (taken == 10) {
          sidecar.kill(); // What is under way fails while nobody waits for it.
          Support.pause(Duration.ofSeconds(6));
          sidecar.restart();
        }
      }
    }
  }

  @Test
  void whatHasNoAnswerForFiveSecondsIsUnavailable() throws Exception {
    try (var silent = new ServerSocket(0);
        var hopeless = ConsentClient.create("127.0.0.1:" + silent.getLocalPort())) {
      List<String> users = IntStream.range(0, 3_500).mapToObj(Support::user).toList();
      List<Screened> screened = hopeless.filter(users, CAMPAIGN).toList();
      assertEquals(users, screened.stream().map(Screened::user).toList());
      for (var one : screened) {
        assertTrue(one.verdict().unavailable());
        assertEquals(Status.Code.DEADLINE_EXCEEDED, one.verdict().code());
      }
    }
  }

  @Test
  void aMalformedCampaignIsInvalidForEachUser() {
    List<String> users = IntStream.range(0, 6_500).mapToObj(Support::user).toList();
    List<Screened> screened = client.filter(users, Campaign.of(BUSINESS, "newsletter")).toList();
    assertEquals(users.size(), screened.size());
    for (var one : screened) {
      assertTrue(one.verdict().invalid());
      assertEquals("category", one.verdict().field());
    }
  }

  @Test
  void aSidecarThatTakesSmallerMessagesGetsThem() {
    try (var small = Sidecar.start("--max-recipients", "300");
        var other = Support.ready(Support.patient(small.address()).build())) {
      List<String> users = IntStream.range(0, 6_500).mapToObj(Support::user).toList();
      List<Screened> screened = other.filter(users, CAMPAIGN).toList();
      assertEquals(users, screened.stream().map(Screened::user).toList());
      for (var one : screened) {
        assertTrue(one.verdict().decided(), () -> one.verdict() + ": " + one.verdict().cause());
      }
    }
  }

  @Test
  void aTemplateThatWhatsAppMovedDecides() {
    var template = new Template("moved", "en");
    client.record(Event.templateCategory(template, BUSINESS, "marketing"));
    var utility = Campaign.of(BUSINESS, "utility");
    client.record(
        Event.optIn(
            user(5), BUSINESS, "utility", Support.optIn(user(5)).proto().getOptIn().getEvidence()));
    Support.eventually(
        "the template's category counts",
        () ->
            client
                .filter(List.of(user(5)), utility.withTemplate(template))
                .noneMatch(one -> one.verdict().allowed()));
    assertTrue(client.filter(List.of(user(5)), utility).allMatch(one -> one.verdict().allowed()));
  }

  @Test
  void theClientsEndEndsItWithoutAWait() throws Exception {
    List<String> users = IntStream.range(0, 20_000).mapToObj(Support::user).toList();
    try (var silent = new ServerSocket(0)) {
      for (String address : List.of("127.0.0.1:" + silent.getLocalPort(), "127.0.0.1:9")) {
        var closing = ConsentClient.create(address);
        var asked =
            CompletableFuture.supplyAsync(() -> closing.filter(users, CAMPAIGN).toList());
        Support.pause(Duration.ofMillis(500));
        closing.close();
        // A chunk that was waited for would be DEADLINE_EXCEEDED after 5 s.
        List<Screened> screened = asked.get(PATIENCE.toSeconds(), TimeUnit.SECONDS);
        assertEquals(users, screened.stream().map(Screened::user).toList());
        for (var one : screened) {
          assertTrue(one.verdict().unavailable());
          assertEquals("the client is closed", one.verdict().cause());
        }
      }
    }
  }

  @Test
  void noUsersHaveNoVerdicts() {
    assertFalse(client.filter(List.of(), CAMPAIGN).iterator().hasNext());
  }

  @Test
  void anInterruptEndsTheWait() throws Exception {
    try (var silent = new ServerSocket(0);
        var hopeless = ConsentClient.create("127.0.0.1:" + silent.getLocalPort())) {
      Thread.currentThread().interrupt();
      List<Screened> screened = hopeless.filter(List.of(user(0)), CAMPAIGN).toList();
      assertTrue(Thread.interrupted());
      assertEquals(Status.Code.CANCELLED, screened.get(0).verdict().code());
    }
  }
}
