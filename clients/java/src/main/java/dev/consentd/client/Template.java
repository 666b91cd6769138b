package dev.consentd.client;

/**
 * A message template.
 *
 * @param name its name as WhatsApp has it: 1 to 512 of {@code a-z}, {@code 0-9} and {@code _}
 * @param language its language, such as {@code en} or {@code pt_BR}
 */
public record Template(String name, String language) {

  /** Returns which field is not sendable, or null. */
  String unsendableField() {
    return Text.unsendableField(proto(), "template.");
  }

  /**
   * Returns the contract's message; null becomes empty, which the sidecar refuses with a reason.
   */
  dev.consentd.v1.Template proto() {
    return dev.consentd.v1.Template.newBuilder()
        .setName(name == null ? "" : name)
        .setLanguage(language == null ? "" : language)
        .build();
  }
}
