package dev.consentd.client;

import java.util.Objects;
import java.util.Optional;

/** What users are screened for. Immutable; each {@code with…} returns a changed copy. */
public final class Campaign {
  private final String business;
  private final String category;
  private final Form form;
  private final Template template;

  private Campaign(String business, String category, Form form, Template template) {
    this.business = Objects.requireNonNull(business, "business");
    this.category = Objects.requireNonNull(category, "category");
    this.form = Objects.requireNonNull(form, "form");
    this.template = template;
  }

  /**
   * Makes a campaign whose form is not decided yet.
   *
   * @param business who would send, by your deployment's own id
   * @param category as in {@link Question#of}
   * @return the campaign
   */
  public static Campaign of(String business, String category) {
    return new Campaign(business, category, Form.UNSPECIFIED, null);
  }

  /**
   * Names the form of the messages.
   *
   * @param form the form
   * @return the changed copy
   */
  public Campaign withForm(Form form) {
    return new Campaign(business, category, form, template);
  }

  /**
   * Names the template of the messages.
   *
   * @param template the template
   * @return the changed copy
   */
  public Campaign withTemplate(Template template) {
    return new Campaign(business, category, form, Objects.requireNonNull(template, "template"));
  }

  /**
   * Who would send.
   *
   * @return the business
   */
  public String business() {
    return business;
  }

  /**
   * What the messages are about.
   *
   * @return the category
   */
  public String category() {
    return category;
  }

  /**
   * The form of the messages.
   *
   * @return the form
   */
  public Form form() {
    return form;
  }

  /**
   * The template of the messages.
   *
   * @return the template, if one was named
   */
  public Optional<Template> template() {
    return Optional.ofNullable(template);
  }

  /** Returns what makes it unfit to be sent at all, or null. */
  Failure malformed() {
    String field =
        !Text.isSendable(business)
            ? "business_id"
            : !Text.isSendable(category)
                ? "category"
                : template == null ? null : template.unsendableField();
    return field == null ? null : Failure.unsendable(field);
  }
}
