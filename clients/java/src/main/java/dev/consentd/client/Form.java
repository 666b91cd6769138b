package dev.consentd.client;

import dev.consentd.v1.MessageForm;

/** How a message is written. */
public enum Form {
  /** Not decided yet: the verdict says which forms are allowed. */
  UNSPECIFIED(MessageForm.MESSAGE_FORM_UNSPECIFIED),
  /** Text, media or an interactive message, allowed only in the 24 hours after the user wrote. */
  FREE_FORM(MessageForm.MESSAGE_FORM_FREE_FORM),
  /** A message template that WhatsApp approved. */
  TEMPLATE(MessageForm.MESSAGE_FORM_TEMPLATE);

  private final MessageForm proto;

  Form(MessageForm proto) {
    this.proto = proto;
  }

  MessageForm proto() {
    return proto;
  }
}
