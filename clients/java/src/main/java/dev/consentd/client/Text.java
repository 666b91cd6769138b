package dev.consentd.client;

import com.google.protobuf.Message;
import java.util.List;

/** What protobuf can carry as a string. */
final class Text {
  static final String UNSENDABLE = "must be text: it is null, or half of a surrogate pair";

  private Text() {}

  /** Returns the first field of a message, whole path, that is not sendable; or null. */
  static String unsendableField(Message message, String path) {
    for (var entry : message.getAllFields().entrySet()) {
      String field = path + entry.getKey().getName();
      List<?> values = entry.getValue() instanceof List<?> list ? list : List.of(entry.getValue());
      for (Object value : values) {
        if (value instanceof String text && !isSendable(text)) {
          return field;
        }
        if (value instanceof Message inner) {
          String found = unsendableField(inner, field + ".");
          if (found != null) {
            return found;
          }
        }
      }
    }
    return null;
  }

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
