package dev.consentd.client;

import io.grpc.Status;
import java.util.Optional;

/** What a watch tells about queued messages. */
public sealed interface Change {
  /**
   * The state of a user changed: ask again before sending to that user.
   *
   * @param user the user, as it was written to the ledger
   * @param business the business
   * @param revision the revision of the user's partition that changed it
   */
  record Changed(String user, String business, long revision) implements Change {}

  /**
   * The category of a template changed: ask again before sending it.
   *
   * @param template the template, or empty for all of the business
   * @param business the business
   * @param revision the revision of the template's partition that changed it
   */
  record TemplateChanged(Optional<Template> template, String business, long revision)
      implements Change {}

  /** Something may have been missed: ask again about all that is queued. */
  record Reset() implements Change {}

  /**
   * Nothing was heard for 10 seconds, the connection is lost, or the watch is refused: send nothing
   * that is queued until the next {@link Reset}.
   *
   * @param code gRPC's code, {@code DEADLINE_EXCEEDED} for mere silence
   * @param cause why, in words
   */
  record Silent(Status.Code code, String cause) implements Change {
    /**
     * Whether the watch has ended by an error, since to begin it again would fail likewise: it
     * tells nothing more. The error is logged, too.
     *
     * @return true if the code is {@code UNIMPLEMENTED}, {@code PERMISSION_DENIED}, {@code
     *     UNAUTHENTICATED} or {@code INVALID_ARGUMENT}
     */
    public boolean isFinal() {
      return switch (code) {
        case UNIMPLEMENTED, PERMISSION_DENIED, UNAUTHENTICATED, INVALID_ARGUMENT -> true;
        default -> false;
      };
    }
  }
}
