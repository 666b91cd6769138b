package dev.consentd.client;

import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import dev.consentd.client.ConsentException.FieldViolation;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.util.ArrayList;
import java.util.List;

/**
 * How a call failed.
 *
 * @param answered whether the sidecar itself said so, rather than the connection's end
 */
record Failure(Status.Code code, String cause, List<FieldViolation> violations, boolean answered) {

  static Failure of(Status status, Metadata trailers) {
    // Only the sidecar sends trailers: gRPC makes empty ones up for a call that it ends by itself.
    boolean answered = trailers != null && !trailers.keys().isEmpty();
    return new Failure(status.getCode(), cause(status), violations(status, trailers), answered);
  }

  /** Returns what gRPC says, such as "io exception", and why, such as "Connection refused". */
  private static String cause(Status status) {
    // gRPC adds a second line, about its own inside.
    String said = status.getDescription() == null ? "" : status.getDescription().split("\n")[0];
    for (Throwable cause = status.getCause(); cause != null; cause = cause.getCause()) {
      String message = cause.getMessage();
      if (message != null && !said.contains(message)) {
        said += (said.isEmpty() ? "" : ": ") + message;
      }
    }
    return said;
  }

  static Failure of(StatusRuntimeException e) {
    return of(e.getStatus(), e.getTrailers());
  }

  /** Returns that of what was not sent, because a field is no text. */
  static Failure unsendable(String field) {
    var violation = new FieldViolation(field, Text.UNSENDABLE);
    String cause = field + ": " + Text.UNSENDABLE;
    return new Failure(Status.Code.INVALID_ARGUMENT, cause, List.of(violation), false);
  }

  static Failure of(Status.Code code, String cause) {
    return new Failure(code, cause, List.of(), false);
  }

  /** Tells whether the connection failed, so that what changes nothing can be asked again. */
  boolean isOfConnection() {
    return !answered
        && switch (code) {
          case UNAVAILABLE, CANCELLED, INTERNAL, UNKNOWN -> true;
          default -> false;
        };
  }

  /**
   * Tells whether a call that is safe to repeat may succeed later, on its own or another
   * connection.
   */
  boolean mayPass() {
    return isOfConnection()
        || switch (code) {
          case UNAVAILABLE, ABORTED, RESOURCE_EXHAUSTED -> true;
          default -> false;
        };
  }

  /** Tells whether a field is malformed. */
  boolean isOf(String field) {
    return violations.stream().anyMatch(violation -> violation.field().equals(field));
  }

  Verdict verdict() {
    return Verdict.undecided(code, cause, violations.isEmpty() ? "" : violations.get(0).field());
  }

  private static List<FieldViolation> violations(Status status, Metadata trailers) {
    if (status.getCode() != Status.Code.INVALID_ARGUMENT) {
      return List.of();
    }
    var found = new ArrayList<FieldViolation>();
    try {
      for (Any detail : StatusProto.fromStatusAndTrailers(status, trailers).getDetailsList()) {
        if (detail.is(BadRequest.class)) {
          for (var one : detail.unpack(BadRequest.class).getFieldViolationsList()) {
            found.add(new FieldViolation(one.getField(), one.getDescription()));
          }
        }
      }
    } catch (InvalidProtocolBufferException | IllegalArgumentException e) {
      return List.of(); // Details are an addition: the cause has all in words.
    }
    return List.copyOf(found);
  }
}
