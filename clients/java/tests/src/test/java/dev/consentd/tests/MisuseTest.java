package dev.consentd.tests;

import static dev.consentd.tests.Support.BUSINESS;
import static dev.consentd.tests.Support.PATIENCE;
import static dev.consentd.tests.Support.eventually;
import static dev.consentd.tests.Support.offer;
import static dev.consentd.tests.Support.optIn;
import static dev.consentd.tests.Support.user;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.consentd.client.Campaign;
import dev.consentd.client.ConsentClient;
import dev.consentd.client.ConsentException;
import dev.consentd.client.Event;
import dev.consentd.client.Question;
import dev.consentd.client.Screened;
import dev.consentd.client.Template;
import dev.consentd.client.Verdict;
import dev.consentd.testing.Sidecar;
import io.grpc.Status;
import java.io.File;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.Test;

/** What the contract does not foresee. */
final class MisuseTest {
  private static Sidecar sidecar;
  private static ConsentClient client;

  @BeforeAll
  static void start() {
    sidecar = Sidecar.start();
    client = Support.ready(Support.patient(sidecar.address()).build());
    client.record(optIn(user(0)));
    client.record(optIn("ab?"));
  }

  @AfterAll
  static void stop() {
    client.close();
    sidecar.close();
  }

  private static List<String> oddUsers() {
    return Arrays.asList(
        null,
        "",
        "ab\uD800",
        "\uDC00ab",
        "ab\0",
        "\0",
        " ",
        "\n",
        "\u202Eab",
        "😀",
        "x".repeat(1 << 20));
  }

  @Test
  void oddUsersAreInvalidAndHarmNoOther() throws Exception {
    // protobuf would write "ab?" for the one with half of a surrogate pair.
    assertTrue(client.maySend("ab?", BUSINESS, "marketing").allowed());
    for (String odd : oddUsers()) {
      var asked = new ArrayList<CompletableFuture<Verdict>>();
      for (int i = 0; i < 40; i++) {
        asked.add(client.maySendAsync(offer(i == 20 ? odd : user(0))));
      }
      for (int i = 0; i < 40; i++) {
        Verdict verdict = asked.get(i).get(PATIENCE.toSeconds(), TimeUnit.SECONDS);
        assertEquals(i != 20, verdict.allowed(), verdict::cause);
        if (i == 20 && !verdict.decided()) {
          assertTrue(verdict.invalid(), verdict::cause);
        }
      }
    }
    assertTrue(client.maySend(user(0), null, "marketing").invalid());
    assertEquals("category", client.maySend(user(0), BUSINESS, null).field());
    assertTrue(client.maySend(user(0), BUSINESS, "\uD800").invalid());
  }

  @Test
  void oddUsersOfACampaignAreInvalidAndHarmNoOther() {
    var users = new ArrayList<String>();
    for (String odd : oddUsers()) {
      users.add(user(0));
      users.add(odd);
    }
    users.add(user(0));
    List<Screened> screened = client.filter(users, Campaign.of(BUSINESS, "marketing")).toList();
    assertEquals(users, screened.stream().map(Screened::user).toList());
    for (int i = 0; i < screened.size(); i++) {
      assertEquals(i % 2 == 0, screened.get(i).verdict().allowed());
    }
  }

  @Test
  void anEventOfHalfASurrogatePairIsRefused() {
    for (var event :
        List.of(Event.optOut("ab\uD800", BUSINESS, "*"), Event.optOut(user(0), "\uD800", "*"))) {
      var error = assertThrows(ConsentException.class, () -> client.record(event));
      assertEquals(Status.Code.INVALID_ARGUMENT, error.code());
    }
    assertThrows(NullPointerException.class, () -> Event.optOut(null, BUSINESS, "*"));
  }

  @Test
  void noTextIsSentThatIsNotUnicode() {
    for (var odd : List.of(new Template("ab\uD800", "en"), new Template("ab", "\uDC00"))) {
      assertTrue(client.maySend(offer(user(0)).withTemplate(odd)).field().startsWith("template."));
      var campaign = Campaign.of(BUSINESS, "marketing").withTemplate(odd);
      assertInvalid("template.", campaign);
      var event = Event.templateCategory(odd, BUSINESS, "marketing");
      assertRefused("event.user_id", event);
    }
    assertInvalid("business_id", Campaign.of("\uD800", "marketing"));
    assertInvalid("category", Campaign.of(BUSINESS, "marketing.\uD800"));
    assertRefused("event.link.other_user_id", Event.link(user(0), BUSINESS, "ab\uD800", false));
    assertRefused("event.inbound_message.text", Event.inboundMessage(user(0), BUSINESS, "\uD83D"));
    assertRefused("event.opt_out.scope", Event.optOut(user(0), BUSINESS, "marketing.\uD800"));
    assertThrows(IllegalArgumentException.class, () -> client.watch("ab\uD800", change -> {}));
    var event = Event.suppression(user(0), BUSINESS, false);
    assertRefused("request_id", event.withRequestId("\uDC00"));
    var evidence = optIn(user(0)).proto().getOptIn().getEvidence().toBuilder();
    evidence.setReference("\uD800");
    assertRefused(
        "event.opt_in.evidence.reference",
        Event.optIn(user(0), BUSINESS, "marketing", evidence.build()));
  }

  private static void assertInvalid(String field, Campaign campaign) {
    List<String> users = List.of(user(0), user(1));
    List<Screened> screened = client.filter(users, campaign).toList();
    assertEquals(users, screened.stream().map(Screened::user).toList());
    for (var one : screened) {
      assertTrue(one.verdict().invalid());
      assertTrue(one.verdict().field().startsWith(field), () -> one.verdict().field());
    }
  }

  private static void assertRefused(String field, Event event) {
    var error = assertThrows(ConsentException.class, () -> client.record(event));
    assertEquals(Status.Code.INVALID_ARGUMENT, error.code());
    assertEquals(field, error.field());
  }

  @Test
  void anEndlessDeadlineIsTaken() {
    var endless = offer(user(0)).withDeadline(Duration.ofSeconds(Long.MAX_VALUE));
    assertTrue(client.maySend(endless).allowed());
    assertThrows(IllegalArgumentException.class, () -> offer(user(0)).withDeadline(Duration.ZERO));
    assertThrows(
        IllegalArgumentException.class,
        () -> ConsentClient.builder().deadline(Duration.ofSeconds(-1)));
  }

  @Test
  void closingAnswersWhatIsUnderWay() throws Exception {
    try (var other = Sidecar.start()) {
      var closing = Support.ready(Support.patient(other.address()).build());
      other.pause();
      var asked = new ArrayList<CompletableFuture<Verdict>>();
      for (int i = 0; i < 3_000; i++) {
        asked.add(closing.maySendAsync(offer(user(i))));
      }
      var blocking = CompletableFuture.supplyAsync(() -> closing.maySend(offer(user(0))));
      var watch = closing.watch("", change -> {});
      Support.pause(Duration.ofMillis(100));
      closing.close();
      asked.add(blocking);
      for (var one : asked) {
        Verdict verdict = one.get(PATIENCE.toSeconds(), TimeUnit.SECONDS);
        assertTrue(verdict.unavailable());
        assertEquals("the client is closed", verdict.cause());
      }
      closing.close();
      watch.close();
      assertTrue(closing.maySend(offer(user(0))).unavailable());
      assertTrue(closing.maySendAsync(offer(user(0))).get().unavailable());
      assertThrows(ConsentException.class, () -> closing.record(optIn(user(0))));
      assertThrows(ConsentException.class, () -> closing.ready(PATIENCE));
      assertTrue(
          closing
              .filter(List.of(user(0)), Campaign.of(BUSINESS, "marketing"))
              .noneMatch(one -> one.verdict().decided()));
      closing.watch("", change -> {}).close();
      eventually("its threads end", () -> threads("consentd-watch") == 0);
    }
  }

  @Test
  void checksThatAreRepeatedEndWithTheClient() throws Exception {
    var nowhere = Support.patient("127.0.0.1:9").build();
    var asked = nowhere.maySendAsync(offer(user(0)));
    var blocking = CompletableFuture.supplyAsync(() -> nowhere.maySend(offer(user(0))));
    Support.pause(Duration.ofMillis(300));
    nowhere.close();
    assertTrue(asked.get(PATIENCE.toSeconds() / 2, TimeUnit.SECONDS).unavailable());
    assertTrue(blocking.get(PATIENCE.toSeconds() / 2, TimeUnit.SECONDS).unavailable());
  }

  @Test
  void aThousandClientsLeaveNothingBehind() {
    makeAndClose(50);
    eventually("timers end", () -> threads("consentd-client-timer") <= 1);
    int threads = Thread.activeCount();
    long files = openFiles();
    makeAndClose(1_000);
    eventually(
        "threads and sockets end",
        () -> Thread.activeCount() <= threads + 5 && openFiles() <= files + 10);
  }

  private static void makeAndClose(int count) {
    for (int i = 0; i < count; i++) {
      try (var one = Support.patient(sidecar.address()).build()) {
        if (i % 10 == 0) {
          assertTrue(one.maySend(offer(user(0))).allowed());
        }
      }
    }
  }

  private static long threads(String name) {
    return Thread.getAllStackTraces().keySet().stream()
        .filter(thread -> thread.getName().equals(name))
        .count();
  }

  private static long openFiles() {
    return new File("/proc/self/fd").list().length;
  }

  @Test
  void aQuestionOfSeveralMegabytesIsUndecided() {
    Verdict verdict = client.maySend(Question.of("x".repeat(5 << 20), BUSINESS, "marketing"));
    assertFalse(verdict.allowed());
    assertFalse(verdict.decided());
    assertTrue(client.maySend(offer(user(0))).allowed());
  }
}
