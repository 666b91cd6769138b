package dev.consentd.recipes;

import dev.consentd.client.ConsentClient;
import dev.consentd.client.Form;
import dev.consentd.client.Question;
import dev.consentd.client.Verdict;
import org.springframework.stereotype.Component;

/** A bean that sends: it asks right before each message, and keeps what is not decided. */
@Component
public class OfferSender {
  private final ConsentClient consent;
  private final MessageGateway gateway;

  OfferSender(ConsentClient consent, MessageGateway gateway) {
    this.consent = consent;
    this.gateway = gateway;
  }

  /** What became of a message. */
  public enum Outcome {
    /** It was handed over to WhatsApp. */
    SENT,
    /** The user must not get it: drop it. */
    DROPPED,
    /** Nothing was decided: keep it in the queue, and ask again later. */
    POSTPONED
  }

  /** Whatever hands messages over to WhatsApp. */
  public interface MessageGateway {
    void send(String user, String template);
  }

  public Outcome send(String user, String template) {
    Verdict verdict =
        consent.maySend(Question.of(user, "acme", "marketing").withForm(Form.TEMPLATE));
    if (verdict.allowed()) {
      gateway.send(user, template);
      return Outcome.SENT;
    }
    return verdict.unavailable() ? Outcome.POSTPONED : Outcome.DROPPED;
  }
}
