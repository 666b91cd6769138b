package dev.consentd.client;

import com.google.protobuf.Timestamp;
import dev.consentd.v1.ConsentEvent;
import dev.consentd.v1.DeliveryFailure;
import dev.consentd.v1.Evidence;
import dev.consentd.v1.InboundMessage;
import dev.consentd.v1.Link;
import dev.consentd.v1.OptIn;
import dev.consentd.v1.OptOut;
import dev.consentd.v1.PlatformPreference;
import dev.consentd.v1.Suppression;
import dev.consentd.v1.TemplateCategory;
import dev.consentd.v1.TemplateRestriction;
import java.time.Instant;
import java.util.Objects;
import java.util.UUID;

/**
 * One thing that happened between a user and a business. Immutable; each {@code with…} returns a
 * changed copy.
 *
 * <p>Each event has a request id, random unless one is set. Recording an event object a second time
 * therefore changes nothing; making a second object records a second event.
 */
public final class Event {
  private final ConsentEvent event;
  private final String requestId;

  private Event(ConsentEvent event, String requestId) {
    this.event = event;
    this.requestId = requestId;
  }

  /**
   * Makes an event of the contract's message, in which every field can be set.
   *
   * @param event the message
   * @return the event
   */
  public static Event of(ConsentEvent event) {
    return new Event(Objects.requireNonNull(event, "event"), UUID.randomUUID().toString());
  }

  private static ConsentEvent.Builder between(String user, String business) {
    return ConsentEvent.newBuilder().setUserId(user).setBusinessId(business);
  }

  /**
   * The user agreed to a category.
   *
   * @param user the user, as in {@link Question#of}
   * @param business the business, by your deployment's own id
   * @param category a class such as {@code marketing}, perhaps with a topic: {@code
   *     marketing.offers}
   * @param evidence what proves it; its statement must name the business, and WhatsApp
   * @return the event
   */
  public static Event optIn(String user, String business, String category, Evidence evidence) {
    return optIn(
        user, business, OptIn.newBuilder().setCategory(category).setEvidence(evidence).build());
  }

  /**
   * The user agreed to a category, with what the contract's message has besides: an expiry, or that
   * a confirmation is awaited.
   *
   * @param user the user, as in {@link Question#of}
   * @param business the business, by your deployment's own id
   * @param optIn the opt-in
   * @return the event
   */
  public static Event optIn(String user, String business, OptIn optIn) {
    return of(between(user, business).setOptIn(optIn).build());
  }

  /**
   * The user withdrew from a scope.
   *
   * @param user the user, as in {@link Question#of}
   * @param business the business, by your deployment's own id
   * @param scope {@code *} for everything, a class such as {@code marketing}, or a class and a
   *     topic
   * @return the event
   */
  public static Event optOut(String user, String business, String scope) {
    return of(between(user, business).setOptOut(OptOut.newBuilder().setScope(scope)).build());
  }

  /**
   * The user wrote to the business, which opens the window of 24 hours, or opts out where it says
   * so.
   *
   * @param user the user, as in {@link Question#of}
   * @param business the business, by your deployment's own id
   * @param text what the user wrote, or the empty string; read for keywords, and never stored
   * @return the event
   */
  public static Event inboundMessage(String user, String business, String text) {
    var message = InboundMessage.newBuilder().setText(text);
    return of(between(user, business).setInboundMessage(message).build());
  }

  /**
   * The user stopped the business's marketing inside WhatsApp, or resumed it.
   *
   * @param user the user, as in {@link Question#of}
   * @param business the business, by your deployment's own id
   * @param stopped whether it is stopped now
   * @param phoneNumberId Meta's id of the business's number at which that was done, or the empty
   *     string
   * @return the event
   */
  public static Event platformPreference(
      String user, String business, boolean stopped, String phoneNumberId) {
    var preference =
        PlatformPreference.newBuilder()
            .setMarketingStopped(stopped)
            .setPhoneNumberId(phoneNumberId);
    return of(between(user, business).setPlatformPreference(preference).build());
  }

  /**
   * WhatsApp refused a message that was sent to the user.
   *
   * @param user the user, as in {@link Question#of}
   * @param business the business, by your deployment's own id
   * @param code WhatsApp's error code, such as 131049
   * @param phoneNumberId Meta's id of the business's number that sent it, or the empty string
   * @return the event
   */
  public static Event deliveryFailure(
      String user, String business, int code, String phoneNumberId) {
    var failure = DeliveryFailure.newBuilder().setCode(code).setPhoneNumberId(phoneNumberId);
    return of(between(user, business).setDeliveryFailure(failure).build());
  }

  /**
   * The user must not be contacted, or may be again.
   *
   * @param user the user, as in {@link Question#of}
   * @param business the business, by your deployment's own id
   * @param suppressed whether the user must not be contacted
   * @return the event
   */
  public static Event suppression(String user, String business, boolean suppressed) {
    var suppression = Suppression.newBuilder().setSuppressed(suppressed);
    return of(between(user, business).setSuppression(suppression).build());
  }

  /**
   * Two ids are of one person: what denies under one denies under both.
   *
   * @param user the person's id
   * @param business the business, by your deployment's own id
   * @param otherUser the person's other id
   * @param moved whether the person left the first id for the other, such as by a new number
   * @return the event
   */
  public static Event link(String user, String business, String otherUser, boolean moved) {
    var link = Link.newBuilder().setOtherUserId(otherUser).setMoved(moved);
    return of(between(user, business).setLink(link).build());
  }

  /**
   * WhatsApp has a template in this category from now on.
   *
   * @param template the template
   * @param business the business, by your deployment's own id
   * @param category {@code marketing}, {@code utility} or {@code authentication}
   * @return the event
   */
  public static Event templateCategory(Template template, String business, String category) {
    String id = "template:" + template.name() + ":" + template.language();
    var now = TemplateCategory.newBuilder().setCategory(category);
    return of(between(id, business).setTemplateCategory(now).build());
  }

  /**
   * WhatsApp counts all utility templates of the business as marketing, or no longer.
   *
   * @param business the business, by your deployment's own id
   * @param restricted whether it does
   * @return the event
   */
  public static Event templateRestriction(String business, boolean restricted) {
    var restriction = TemplateRestriction.newBuilder().setRestricted(restricted);
    return of(between("template:*", business).setTemplateRestriction(restriction).build());
  }

  /**
   * Says when it happened, in place of when it is recorded.
   *
   * @param time the time, at most five minutes ahead of the ledger's clock
   * @return the changed copy
   */
  public Event withTime(Instant time) {
    var timestamp =
        Timestamp.newBuilder().setSeconds(time.getEpochSecond()).setNanos(time.getNano());
    return new Event(event.toBuilder().setEventTime(timestamp).build(), requestId);
  }

  /**
   * Sets the id by which the sidecar knows a repeated event, such as the id of the webhook that
   * brought it. A user's latest 8 are remembered.
   *
   * @param requestId the id
   * @return the changed copy
   */
  public Event withRequestId(String requestId) {
    return new Event(event, Objects.requireNonNull(requestId, "requestId"));
  }

  /**
   * The event as the contract has it.
   *
   * @return the message
   */
  public ConsentEvent proto() {
    return event;
  }

  /**
   * The id by which the sidecar knows a repeated event.
   *
   * @return the id
   */
  public String requestId() {
    return requestId;
  }
}
