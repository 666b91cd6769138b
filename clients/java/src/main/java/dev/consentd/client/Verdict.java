package dev.consentd.client;

import com.google.protobuf.Timestamp;
import dev.consentd.v1.BatchCanSendResult;
import dev.consentd.v1.CanSendResponse;
import dev.consentd.v1.ItemError;
import dev.consentd.v1.Reason;
import io.grpc.Status;
import java.time.Duration;
import java.time.Instant;
import java.util.Objects;
import java.util.Optional;

/**
 * Whether a message may be sent now, and why. Send only if it is {@link #allowed()}.
 *
 * <p>A verdict is one of four: allowed, denied ({@link #decided()} and not allowed), {@link
 * #unavailable()}, or {@link #invalid()}.
 */
public final class Verdict {
  private final CanSendResponse response;
  private final Status.Code code;
  private final String cause;
  private final String field;

  private Verdict(CanSendResponse response, Status.Code code, String cause, String field) {
    this.response = response;
    this.code = code;
    this.cause = cause;
    this.field = field;
  }

  /**
   * Returns what an answer of the sidecar says. An answer without a reason, which no sidecar gives,
   * decides nothing.
   *
   * @param response the answer
   * @return the verdict
   */
  public static Verdict of(CanSendResponse response) {
    return response.getReasonValue() == 0
        ? undecided(Status.Code.INTERNAL, "the answer has no reason", "")
        : new Verdict(response, Status.Code.OK, "", "");
  }

  /**
   * Returns the verdict where nothing was decided.
   *
   * @param code why; {@code INVALID_ARGUMENT} makes the verdict {@linkplain #invalid() invalid},
   *     any other {@linkplain #unavailable() unavailable}
   * @param cause why, in words
   * @param field the malformed field, or the empty string
   * @return the verdict
   * @throws IllegalArgumentException if the code is {@code OK}
   */
  public static Verdict undecided(Status.Code code, String cause, String field) {
    if (code == Status.Code.OK) {
      throw new IllegalArgumentException("OK is no reason for a missing decision");
    }
    return new Verdict(
        CanSendResponse.getDefaultInstance(),
        code,
        Objects.requireNonNull(cause, "cause"),
        Objects.requireNonNull(field, "field"));
  }

  static Verdict of(BatchCanSendResult result) {
    return switch (result.getResultCase()) {
      case RESPONSE -> of(result.getResponse());
      case ERROR -> of(result.getError());
      case RESULT_NOT_SET -> undecided(Status.Code.INTERNAL, "the answer is empty", "");
    };
  }

  private static Verdict of(ItemError error) {
    Status.Code code = Status.fromCodeValue(error.getCode()).getCode();
    if (code == Status.Code.OK) {
      code = Status.Code.UNKNOWN;
    }
    String field = error.getField();
    return undecided(
        code, field.isEmpty() ? error.getMessage() : field + ": " + error.getMessage(), field);
  }

  static Verdict invalid(String field, String description) {
    return undecided(Status.Code.INVALID_ARGUMENT, field + ": " + description, field);
  }

  /**
   * Whether the message may be sent now: the one thing to look at before sending.
   *
   * @return true only if the sidecar answered that it may
   */
  public boolean allowed() {
    return decided() && response.getAllowed();
  }

  /**
   * Whether the sidecar decided: the verdict then has a {@link #reason()}, else a {@link #code()}.
   *
   * @return true if the message is allowed or denied
   */
  public boolean decided() {
    return code == Status.Code.OK;
  }

  /**
   * Whether nothing was decided for a reason that may pass: no sidecar, an overload, a deadline.
   * Keep the message, and ask again later.
   *
   * @return true if it makes sense to ask again
   */
  public boolean unavailable() {
    return !decided() && !invalid();
  }

  /**
   * Whether nothing was decided because the question is malformed, or too large. Asking it again is
   * of no use.
   *
   * @return true if the question must be mended
   */
  public boolean invalid() {
    return code == Status.Code.INVALID_ARGUMENT || code == Status.Code.OUT_OF_RANGE;
  }

  /**
   * Why the message is allowed or denied.
   *
   * @return a reason of the contract without its prefix, such as {@code OPTED_IN}, or the number of
   *     a reason that this version does not know; the empty string where nothing was decided
   */
  public String reason() {
    if (!decided()) {
      return "";
    }
    Reason reason = response.getReason();
    return reason == Reason.UNRECOGNIZED
        ? Integer.toString(response.getReasonValue())
        : reason.name().substring("REASON_".length());
  }

  /**
   * Why nothing was decided.
   *
   * @return gRPC's code, such as {@code UNAVAILABLE}, {@code DEADLINE_EXCEEDED} or {@code
   *     INVALID_ARGUMENT}; {@code OK} where the sidecar decided
   */
  public Status.Code code() {
    return code;
  }

  /**
   * Why nothing was decided, in words for a developer. It may quote what is malformed.
   *
   * @return the cause; the empty string where the sidecar decided
   */
  public String cause() {
    return cause;
  }

  /**
   * Which field of the question is malformed, by its name in the contract.
   *
   * @return the field, such as {@code category}; the empty string where none is known to be
   */
  public String field() {
    return field;
  }

  /**
   * Whether a free-form message may be sent.
   *
   * @return true if it may
   */
  public boolean freeFormAllowed() {
    return response.getFreeFormAllowed();
  }

  /**
   * Whether a template may be sent.
   *
   * @return true if it may
   */
  public boolean templateAllowed() {
    return response.getTemplateAllowed();
  }

  /**
   * When the 24 hours after the user's last message end, or ended.
   *
   * @return the time, or empty where the user never wrote
   */
  public Optional<Instant> windowExpireTime() {
    return response.hasWindowExpireTime()
        ? Optional.of(instant(response.getWindowExpireTime()))
        : Optional.empty();
  }

  /**
   * When to ask again.
   *
   * @return the time, or empty where time alone does not change the verdict
   */
  public Optional<Instant> retryTime() {
    return response.hasRetryTime()
        ? Optional.of(instant(response.getRetryTime()))
        : Optional.empty();
  }

  /**
   * Which revision of the ledger the verdict rests on.
   *
   * @return the revision of the user's partition; 0 where nothing is known of it
   */
  public long revision() {
    return response.getRevision();
  }

  /**
   * How long ago the sidecar last proved that it is current.
   *
   * @return the time
   */
  public Duration staleness() {
    var staleness = response.getStaleness();
    return Duration.ofSeconds(staleness.getSeconds(), staleness.getNanos());
  }

  /**
   * Which category decided, where the question named a template.
   *
   * @return the category asked for, or the stricter one that the template is known to be of; the
   *     empty string where no template was named
   */
  public String categoryUsed() {
    return response.getCategoryUsed();
  }

  /**
   * Returns this verdict if the sidecar decided.
   *
   * @return this
   * @throws ConsentException if nothing was decided
   */
  public Verdict orThrow() {
    if (decided()) {
      return this;
    }
    throw new ConsentException(code, cause, field);
  }

  /** Returns what happened: {@code allowed: OPTED_IN}, {@code denied: NO_CONSENT}, or the code. */
  @Override
  public String toString() {
    return decided() ? (allowed() ? "allowed: " : "denied: ") + reason() : "undecided: " + code;
  }

  private static Instant instant(Timestamp time) {
    return Instant.ofEpochSecond(time.getSeconds(), time.getNanos());
  }
}
