package dev.consentd.tests;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.util.JsonFormat;
import com.google.protobuf.util.Timestamps;
import dev.consentd.client.ConsentClient;
import dev.consentd.client.ConsentException;
import dev.consentd.client.ConsentException.FieldViolation;
import dev.consentd.client.Event;
import dev.consentd.client.Form;
import dev.consentd.client.Question;
import dev.consentd.client.Recorded;
import dev.consentd.client.Template;
import dev.consentd.client.Verdict;
import dev.consentd.testing.Sidecar;
import dev.consentd.v1.ConsentEvent;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.time.Instant;
import java.util.ArrayList;
import java.util.List;
import java.util.Optional;
import org.junit.jupiter.api.AfterAll;
import org.junit.jupiter.api.BeforeAll;
import org.junit.jupiter.api.DynamicTest;
import org.junit.jupiter.api.TestFactory;

/** The conversation that all of consentd's clients pass. */
final class ConversationTest {
  private static JsonObject conversation;
  private static Sidecar sidecar;
  private static ConsentClient coalescing;
  private static ConsentClient plain;

  @BeforeAll
  static void start() throws Exception {
    Path file = Support.repository().resolve("clients/conversation.json");
    conversation = JsonParser.parseString(Files.readString(file)).getAsJsonObject();
    var arguments = new ArrayList<String>();
    JsonArray serve = conversation.getAsJsonArray("serve");
    for (int i = 0; i < serve.size(); i += 2) {
      String name = serve.get(i).getAsString();
      // The sidecar for tests has these by itself.
      if (!List.of("--listen", "--admin", "--unix", "--ledger").contains(name)) {
        arguments.add(name);
        arguments.add(serve.get(i + 1).getAsString());
      }
    }
    sidecar = Sidecar.start(arguments.toArray(String[]::new));
    coalescing = Support.ready(Support.patient(sidecar.address()).build());
    plain = Support.ready(Support.patient(sidecar.unixAddress()).coalescing(false).build());
  }

  @AfterAll
  static void stop() {
    coalescing.close();
    plain.close();
    sidecar.close();
  }

  @TestFactory
  List<DynamicTest> cases() {
    var tests = new ArrayList<DynamicTest>();
    for (int round = 0; round < 2; round++) {
      boolean coalesced = round == 0;
      JsonArray cases = conversation.getAsJsonArray("cases");
      for (int i = 0; i < cases.size(); i++) {
        JsonObject one = cases.get(i).getAsJsonObject();
        String number = String.format("%06d", 100_000 + 1_000 * round + i);
        String name = one.get("name").getAsString();
        tests.add(
            DynamicTest.dynamicTest(
                name + (coalesced ? ", coalescing" : ", each by itself"),
                () -> new Case(coalesced ? coalescing : plain, one, number).run()));
      }
    }
    return tests;
  }

  private static final class Case {
    private final ConsentClient client;
    private final JsonObject description;
    private final String number;
    private long revision;

    Case(ConsentClient client, JsonObject description, String number) {
      this.client = client;
      this.description = description;
      this.number = number;
    }

    void run() throws Exception {
      for (JsonElement element : description.getAsJsonArray("steps")) {
        JsonObject step = element.getAsJsonObject();
        if (step.has("record")) {
          record(step);
        } else {
          check(step);
        }
      }
    }

    private String user() {
      return description.has("country_is_blocked") ? "1555" + number + "0" : "4477009" + number;
    }

    private String fill(String text) {
      return text.replace("{user}", user())
          .replace("{n}", number)
          .replace("{now-1h}", Instant.now().minusSeconds(3_600).toString());
    }

    private void record(JsonObject step) throws Exception {
      var message = ConsentEvent.newBuilder();
      JsonFormat.parser().merge(fill(step.get("record").toString()), message);
      message
          .setUserId(step.has("user") ? fill(step.get("user").getAsString()) : user())
          .setBusinessId(conversation.get("business").getAsString());
      // The ledger's clock counts milliseconds, and of two events in the same one the denial stands,
      // whichever came first: what a case says in order must not be recorded in one.
      Support.pause(Duration.ofMillis(5));
      if (step.has("at")) {
        message.setEventTime(
            Timestamps.fromMillis(System.currentTimeMillis() + step.get("at").getAsLong()));
      }
      Event event = Event.of(message.build());
      if (step.has("request_id")) {
        event = event.withRequestId(fill(step.get("request_id").getAsString()));
      }
      JsonObject expected = step.has("expect") ? step.getAsJsonObject("expect") : new JsonObject();
      if (expected.has("error")) {
        Event refused = event;
        var error = assertThrows(ConsentException.class, () -> client.record(refused));
        assertEquals(expected.get("error").getAsString(), error.code().name());
        for (JsonElement field : expected.getAsJsonArray("fields")) {
          List<String> named = error.violations().stream().map(FieldViolation::field).toList();
          assertTrue(named.contains(field.getAsString()), () -> "fields named: " + named);
        }
        return;
      }
      Recorded recorded = client.record(event);
      revision = recorded.revision();
      for (String name : expected.keySet()) {
        Object found =
            switch (name) {
              case "applied" -> recorded.applied();
              case "opted_out_scope" -> recorded.optedOutScope();
              case "matched_keyword" -> recorded.matchedKeyword();
              default -> throw new AssertionError("no such field of an answer: " + name);
            };
        assertEquals(expected.get(name).getAsString(), found.toString(), name);
      }
    }

    private void check(JsonObject step) {
      JsonObject asked = step.getAsJsonObject("check");
      String user = asked.has("user") ? asked.get("user").getAsString() : user();
      JsonElement business =
          asked.has("business") ? asked.get("business") : conversation.get("business");
      var question = Question.of(user, business.getAsString(), asked.get("category").getAsString());
      if (asked.has("form")) {
        question = question.withForm(Form.valueOf(asked.get("form").getAsString()));
      }
      JsonObject expected = step.getAsJsonObject("expect");
      if (!asked.has("template")) {
        Verdict verdict = client.maySend(question.withMinRevision(revision));
        assertEquals(Optional.empty(), difference(verdict, expected));
        // Without a revision the check is coalesced; this sidecar has what it recorded itself.
        assertEquals(Optional.empty(), difference(client.maySend(question), expected));
        return;
      }
      JsonObject template = asked.getAsJsonObject("template");
      Question withTemplate =
          question.withTemplate(
              new Template(
                  fill(template.get("name").getAsString()),
                  template.get("language").getAsString()));
      Support.eventually(
          "the template's category counts",
          () -> difference(client.maySend(withTemplate), expected).isEmpty());
    }

    /** Says which field of the verdict is not as expected. */
    private static Optional<String> difference(Verdict verdict, JsonObject expected) {
      for (String name : expected.keySet()) {
        String wanted = expected.get(name).getAsString();
        if (name.equals("cause_contains")) {
          if (!verdict.cause().contains(wanted)) {
            return Optional.of("the cause is " + verdict.cause());
          }
          continue;
        }
        Object found =
            switch (name) {
              case "allowed" -> verdict.allowed();
              case "invalid" -> verdict.invalid();
              case "reason" -> verdict.reason();
              case "code" -> verdict.code();
              case "field" -> verdict.field();
              default -> throw new AssertionError("no such field of a verdict: " + name);
            };
        if (!wanted.equals(found.toString())) {
          return Optional.of(name + " is " + found + " in " + verdict + ": " + verdict.cause());
        }
      }
      return Optional.empty();
    }
  }
}
