package dev.consentd.tests;

import static dev.consentd.tests.Support.BUSINESS;
import static org.junit.jupiter.api.Assertions.assertEquals;

import dev.consentd.client.ConsentClient;
import dev.consentd.client.Event;
import dev.consentd.recipes.ConsentConfiguration;
import dev.consentd.recipes.OfferSender;
import dev.consentd.recipes.OfferSender.MessageGateway;
import dev.consentd.recipes.OfferSender.Outcome;
import dev.consentd.testing.FakeConsentClient;
import dev.consentd.testing.Sidecar;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import org.junit.jupiter.api.Test;
import org.springframework.context.annotation.AnnotationConfigApplicationContext;
import org.springframework.core.env.MapPropertySource;

/** The recipe for Spring, with a sidecar and with the fake client. */
final class SpringTest {
  private final List<String> sent = new ArrayList<>();

  private AnnotationConfigApplicationContext context(Map<String, Object> properties) {
    var context = new AnnotationConfigApplicationContext();
    context
        .getEnvironment()
        .getPropertySources()
        .addFirst(new MapPropertySource("test", properties));
    MessageGateway gateway = (user, template) -> sent.add(user);
    context.registerBean(MessageGateway.class, () -> gateway);
    context.register(OfferSender.class);
    return context;
  }

  @Test
  void theBeanAsksTheSidecar() {
    ConsentClient client;
    String user = Support.user(0);
    try (var sidecar = Sidecar.start();
        var context = context(Map.of("consent.address", sidecar.address()))) {
      context.register(ConsentConfiguration.class);
      context.refresh();
      client = context.getBean(ConsentClient.class);
      var sender = context.getBean(OfferSender.class);
      client.record(Support.optIn(user));
      Support.eventually("it is sent", () -> sender.send(user, "offer") == Outcome.SENT);
      client.record(Event.optOut(user, BUSINESS, "*"));
      Support.eventually("it is dropped", () -> sender.send(user, "offer") == Outcome.DROPPED);
      assertEquals(List.of(user), sent);
      sidecar.kill();
      assertEquals(Outcome.POSTPONED, sender.send(user, "offer"));
    }
    assertEquals("the client is closed", client.maySend(Support.offer(user)).cause());
  }

  @Test
  void theBeanIsTestedWithTheFakeClient() {
    try (var context = context(Map.of())) {
      var consent = new FakeConsentClient().allow("15550123456", "acme", "marketing");
      context.registerBean(ConsentClient.class, () -> consent);
      context.refresh();
      var sender = context.getBean(OfferSender.class);
      assertEquals(Outcome.SENT, sender.send("15550123456", "offer"));
      assertEquals(Outcome.DROPPED, sender.send("15550123457", "offer"));
      consent.unavailable();
      assertEquals(Outcome.POSTPONED, sender.send("15550123456", "offer"));
      assertEquals(List.of("15550123456"), sent);
    }
  }
}
