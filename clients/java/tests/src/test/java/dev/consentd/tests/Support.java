package dev.consentd.tests;

import static org.junit.jupiter.api.Assertions.fail;

import dev.consentd.client.ConsentClient;
import dev.consentd.client.Event;
import dev.consentd.client.Form;
import dev.consentd.client.Question;
import dev.consentd.v1.Evidence;
import dev.consentd.v1.OptInMethod;
import java.io.IOException;
import java.nio.file.Path;
import java.time.Duration;
import java.util.List;
import java.util.function.BooleanSupplier;

/** What several tests need. */
final class Support {
  /** How long what must happen may take on a machine that is busy with other things. */
  static final Duration PATIENCE = Duration.ofSeconds(60);

  static final String BUSINESS = "acme";

  private Support() {}

  /** The root of the repository that the package is part of. */
  static Path repository() {
    return Path.of(required("consentd.repository"));
  }

  static String required(String property) {
    String value = System.getProperty(property);
    if (value == null) {
      throw new IllegalStateException("run clients/java/test, which sets " + property);
    }
    return value;
  }

  /** The binary that {@link dev.consentd.testing.Sidecar} runs. */
  static String binary() {
    String named = System.getenv("CONSENTD_BIN");
    return named == null || named.isEmpty() ? "consentd" : named;
  }

  /** A client whose checks never miss their deadline because the machine is busy. */
  static ConsentClient.Builder patient(String address) {
    return ConsentClient.builder().address(address).deadline(PATIENCE).recordDeadline(PATIENCE);
  }

  static ConsentClient ready(ConsentClient client) {
    client.ready(PATIENCE);
    return client;
  }

  static String user(int number) {
    return String.format("44770%07d", number);
  }

  static Question offer(String user) {
    return Question.of(user, BUSINESS, "marketing").withForm(Form.TEMPLATE);
  }

  static Event optIn(String user) {
    var evidence =
        Evidence.newBuilder()
            .setMethod(OptInMethod.OPT_IN_METHOD_WEBSITE)
            .setStatement("Yes, send me offers from Acme on WhatsApp")
            .setBusinessName("Acme")
            .setLocale("en")
            .build();
    return Event.optIn(user, BUSINESS, "marketing", evidence);
  }

  static void eventually(String what, BooleanSupplier condition) {
    long end = System.nanoTime() + PATIENCE.toNanos();
    while (!condition.getAsBoolean()) {
      if (System.nanoTime() > end) {
        fail("it did not come about that " + what);
      }
      pause(Duration.ofMillis(10));
    }
  }

  static void pause(Duration time) {
    try {
      Thread.sleep(time.toMillis());
    } catch (InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }

  /** Runs a command and fails with what it said unless it succeeds. */
  static String run(Path folder, String... command) {
    try {
      var process =
          new ProcessBuilder(List.of(command))
              .directory(folder.toFile())
              .redirectErrorStream(true)
              .start();
      String said = new String(process.getInputStream().readAllBytes());
      if (process.waitFor() != 0) {
        fail(String.join(" ", command) + ": " + said);
      }
      return said;
    } catch (IOException e) {
      throw new IllegalStateException(
          command[0] + " cannot be run: apt-get install " + command[0], e);
    } catch (InterruptedException e) {
      throw new IllegalStateException(e);
    }
  }
}
