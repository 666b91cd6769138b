package dev.consentd.client;

import dev.consentd.v1.CanSendRequest;
import java.time.Duration;
import java.util.Objects;
import java.util.Optional;

/**
 * Asks whether a message may be sent. Immutable; each {@code with…} returns a changed copy.
 *
 * <p>What is malformed here, null included, makes the verdict {@linkplain Verdict#invalid()
 * invalid}.
 */
public final class Question {
  private final String user;
  private final String business;
  private final String category;
  private final Form form;
  private final Template template;
  private final long minRevision;
  private final Duration deadline;

  private Question(
      String user,
      String business,
      String category,
      Form form,
      Template template,
      long minRevision,
      Duration deadline) {
    this.user = user;
    this.business = business;
    this.category = category;
    this.form = form;
    this.template = template;
    this.minRevision = minRevision;
    this.deadline = deadline;
  }

  /**
   * Asks about a message whose form is not decided yet.
   *
   * @param user who would get the message: a phone number in any usual notation, country code
   *     first, a business-scoped user id, or an id of your own with a letter in it; 160 bytes at
   *     most
   * @param business who would send it, by your deployment's own id
   * @param category {@code marketing}, {@code utility}, {@code authentication} or {@code service},
   *     perhaps with a topic: {@code utility.order_updates}
   * @return the question
   */
  public static Question of(String user, String business, String category) {
    return new Question(user, business, category, Form.UNSPECIFIED, null, 0, null);
  }

  /**
   * Names the form that the message will have.
   *
   * @param form the form
   * @return the changed copy
   */
  public Question withForm(Form form) {
    Objects.requireNonNull(form, "form");
    return new Question(user, business, category, form, template, minRevision, deadline);
  }

  /**
   * Names the template that the message will be. The stricter of the category and of what the
   * sidecar knows of the template decides.
   *
   * @param template the template
   * @return the changed copy
   */
  public Question withTemplate(Template template) {
    Objects.requireNonNull(template, "template");
    return new Question(user, business, category, form, template, minRevision, deadline);
  }

  /**
   * Makes the sidecar wait, up to the deadline, until it knows of an event that was just recorded.
   *
   * @param minRevision the {@link Recorded#revision()} of that event; 0 waits for nothing
   * @return the changed copy
   */
  public Question withMinRevision(long minRevision) {
    return new Question(user, business, category, form, template, minRevision, deadline);
  }

  /**
   * Sets how long an answer may take, in place of the client's own deadline.
   *
   * @param deadline the time, more than zero
   * @return the changed copy
   * @throws IllegalArgumentException if it is not more than zero
   */
  public Question withDeadline(Duration deadline) {
    return new Question(
        user, business, category, form, template, minRevision, Deadlines.check(deadline));
  }

  /**
   * Who would get the message.
   *
   * @return the user
   */
  public String user() {
    return user;
  }

  /**
   * Who would send it.
   *
   * @return the business
   */
  public String business() {
    return business;
  }

  /**
   * What the message is about.
   *
   * @return the category
   */
  public String category() {
    return category;
  }

  /**
   * The form that it will have.
   *
   * @return the form
   */
  public Form form() {
    return form;
  }

  /**
   * The template that it will be.
   *
   * @return the template, if one was named
   */
  public Optional<Template> template() {
    return Optional.ofNullable(template);
  }

  /**
   * The revision that the sidecar waits for.
   *
   * @return the revision, or 0
   */
  public long minRevision() {
    return minRevision;
  }

  /**
   * How long an answer may take.
   *
   * @return the time, or empty where the client's own counts
   */
  public Optional<Duration> deadline() {
    return Optional.ofNullable(deadline);
  }

  /** Returns what makes it unfit to be sent at all, or null. */
  Verdict malformed() {
    String field =
        !Text.isSendable(user)
            ? "user_id"
            : !Text.isSendable(business)
                ? "business_id"
                : !Text.isSendable(category)
                    ? "category"
                    : template == null ? null : template.unsendableField();
    return field == null ? null : Verdict.invalid(field, Text.UNSENDABLE);
  }

  long deadlineNanos(long otherwise) {
    return deadline == null ? otherwise : Deadlines.nanos(deadline);
  }

  CanSendRequest proto() {
    var request =
        CanSendRequest.newBuilder()
            .setUserId(user)
            .setBusinessId(business)
            .setCategory(category)
            .setForm(form.proto())
            .setMinRevision(minRevision);
    if (template != null) {
      request.setTemplate(template.proto());
    }
    return request.build();
  }
}
