package dev.consentd.recipes;

import dev.consentd.client.ConsentClient;
import java.time.Duration;
import org.springframework.beans.factory.annotation.Value;
import org.springframework.context.annotation.Bean;
import org.springframework.context.annotation.Configuration;

/**
 * One client for the application, which Spring closes at its end.
 *
 * <p>In Spring Boot set {@code consent.address} in {@code application.properties}.
 */
@Configuration
public class ConsentConfiguration {

  @Bean // Its close() is called by itself, as that of every AutoCloseable bean.
  ConsentClient consentClient(@Value("${consent.address:127.0.0.1:50051}") String address) {
    ConsentClient client = ConsentClient.create(address);
    try {
      // The application takes no work before the first check can be answered. Where it has to start
      // without a sidecar, leave this out: checks are unavailable then, and nothing is sent.
      client.ready(Duration.ofSeconds(30));
      return client;
    } catch (RuntimeException e) {
      client.close();
      throw e;
    }
  }
}
