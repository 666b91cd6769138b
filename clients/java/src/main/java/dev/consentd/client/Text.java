package dev.consentd.client;

/** What protobuf can carry as a string. */
final class Text {
  static final String UNSENDABLE = "must be text: it is null, or half of a surrogate pair";

  private Text() {}

  /**
   * Tells whether a string reaches the sidecar as it is. protobuf writes a question mark in place
   * of an unpaired surrogate, and thereby would ask about another user.
   */
  static boolean isSendable(String text) {
    if (text == null) {
      return false;
    }
    for (int i = 0; i < text.length(); i++) {
      char unit = text.charAt(i);
      if (Character.isSurrogate(unit)) {
        boolean pair =
            Character.isHighSurrogate(unit)
                && i + 1 < text.length()
                && Character.isLowSurrogate(text.charAt(i + 1));
        if (!pair) {
          return false;
        }
        i++;
      }
    }
    return true;
  }
}
