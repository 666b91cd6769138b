package dev.consentd.tests;

import static dev.consentd.tests.Support.BUSINESS;
import static dev.consentd.tests.Support.offer;
import static dev.consentd.tests.Support.user;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.consentd.client.Campaign;
import dev.consentd.client.Change;
import dev.consentd.client.ConsentException;
import dev.consentd.client.Verdict;
import dev.consentd.testing.FakeConsentClient;
import dev.consentd.v1.Reason;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import org.junit.jupiter.api.Test;

/** The fake client for the tests of senders. */
final class FakeClientTest {
  private final FakeConsentClient fake = new FakeConsentClient();

  @Test
  void whatNoRuleAllowsIsDenied() {
    fake.ready(Duration.ofSeconds(1));
    fake.allow(user(0), BUSINESS, "marketing");
    assertTrue(fake.maySend(offer(user(0))).allowed());
    assertEquals("OPTED_IN", fake.check(offer(user(0))).reason());
    for (Verdict verdict :
        List.of(
            fake.maySend(user(1), BUSINESS, "marketing"),
            fake.maySend(user(0), "other", "marketing"),
            fake.maySend(user(0), BUSINESS, "utility"),
            fake.maySendAsync(offer(user(1))).join())) {
      assertFalse(verdict.allowed());
      assertEquals("NO_CONSENT", verdict.reason());
    }
  }

  @Test
  void theLatestRuleCounts() {
    fake.allow(user(0), BUSINESS, "marketing")
        .deny(user(0), BUSINESS, "marketing", Reason.REASON_OPTED_OUT);
    assertEquals("OPTED_OUT", fake.maySend(offer(user(0))).reason());
    fake.unavailable();
    assertTrue(fake.maySend(offer(user(0))).unavailable());
    var error = assertThrows(ConsentException.class, () -> fake.check(offer(user(0))));
    assertEquals(Status.Code.UNAVAILABLE, error.code());
    fake.answer(question -> true, FakeConsentClient.allowed(Reason.REASON_WINDOW_OPEN));
    assertTrue(fake.maySend(offer(user(0))).allowed());
  }

  @Test
  void aCampaignIsScreenedByTheSameRules() {
    fake.allow(user(1), BUSINESS, "marketing");
    var allowed =
        fake.filter(List.of(user(0), user(1)), Campaign.of(BUSINESS, "marketing"))
            .map(one -> one.verdict().allowed())
            .toList();
    assertEquals(List.of(false, true), allowed);
  }

  @Test
  void changesAreToldToTheirWatches() {
    var changes = new ArrayList<Change>();
    var changed = new Change.Changed(user(0), BUSINESS, 1);
    try (var watch = fake.watch(BUSINESS, changes::add)) {
      fake.tell(changed);
      fake.tell(new Change.Changed(user(0), "other", 2));
      watch.close();
      fake.tell(changed);
    }
    assertEquals(List.of(new Change.Reset(), changed), changes);
  }

  @Test
  void eventsAreKept() {
    var event = Support.optIn(user(0));
    assertTrue(fake.record(event).applied());
    assertEquals(List.of(event), fake.recorded());
  }
}
