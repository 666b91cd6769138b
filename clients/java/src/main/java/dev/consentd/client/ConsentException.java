package dev.consentd.client;

import io.grpc.Status;
import java.util.List;

/** What the caller asked for did not happen, or is not known to have happened. */
public final class ConsentException extends RuntimeException {
  private static final long serialVersionUID = 1;

  /** The code. */
  private final Status.Code code;

  private final transient List<FieldViolation> violations;

  ConsentException(Failure failure) {
    super(failure.code() + ": " + failure.cause());
    this.code = failure.code();
    this.violations = failure.violations();
  }

  ConsentException(Status.Code code, String cause, String field) {
    super(code + ": " + cause);
    this.code = code;
    this.violations = field.isEmpty() ? List.of() : List.of(new FieldViolation(field, cause));
  }

  /**
   * Why, by gRPC's code: {@code UNAVAILABLE}, {@code DEADLINE_EXCEEDED}, {@code INVALID_ARGUMENT}.
   *
   * @return the code; never {@code OK}
   */
  public Status.Code code() {
    return code;
  }

  /**
   * Which field is malformed: the first of the {@link #violations()}.
   *
   * @return the field, such as {@code event.opt_in.category}; the empty string where none is named
   */
  public String field() {
    return violations().isEmpty() ? "" : violations().get(0).field();
  }

  /**
   * What is malformed, field by field.
   *
   * @return the fields; empty for all codes but {@code INVALID_ARGUMENT}, and after serialization
   */
  public List<FieldViolation> violations() {
    return violations == null ? List.of() : violations;
  }

  /**
   * A malformed field.
   *
   * @param field its name, such as {@code event.opt_in.category}
   * @param description what is wrong with it, and what would be right
   */
  public record FieldViolation(String field, String description) {}
}
