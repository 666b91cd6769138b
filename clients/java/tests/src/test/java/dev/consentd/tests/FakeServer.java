package dev.consentd.tests;

import com.google.protobuf.Any;
import com.google.rpc.BadRequest;
import dev.consentd.v1.BatchCanSendRequest;
import dev.consentd.v1.BatchCanSendResponse;
import dev.consentd.v1.BatchCanSendResult;
import dev.consentd.v1.CanSendRequest;
import dev.consentd.v1.CanSendResponse;
import dev.consentd.v1.ConsentServiceGrpc;
import dev.consentd.v1.Reason;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Server;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.StreamObserver;
import java.io.IOException;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.atomic.AtomicInteger;

/**
 * A server whose answers are given when a test says so. It allows who has an even last character,
 * and so tells whether an answer is that of another question.
 */
final class FakeServer extends ConsentServiceGrpc.ConsentServiceImplBase implements AutoCloseable {
  /** The sizes of all calls, in the order of their arrival; 0 for one that is no batch. */
  final List<Integer> sizes = Collections.synchronizedList(new ArrayList<>());

  /** How many checks came in all. */
  final AtomicInteger checks = new AtomicInteger();

  private final BlockingQueue<Runnable> held = new LinkedBlockingQueue<>();
  private final Server server;
  private volatile boolean holding;
  private volatile String refusedField = "";
  private volatile int mostRequests = Integer.MAX_VALUE;
  private volatile boolean lacking;

  FakeServer() throws IOException {
    server =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .addService(this)
            .build()
            .start();
  }

  String address() {
    return "127.0.0.1:" + server.getPort();
  }

  /** Keeps answers back from now on. */
  void hold() {
    holding = true;
  }

  /** Refuses larger batches than this from now on, because of a field. */
  void refuse(String field, int most) {
    refusedField = field;
    mostRequests = most;
  }

  /** Leaves one result out of each batch's answer from now on. */
  void lackOneResult() {
    lacking = true;
  }

  /** Waits for a call that is kept back and answers it. */
  void answerOne() throws InterruptedException {
    held.take().run();
  }

  /** Answers what was kept back, and whatever comes from now on. */
  void release() {
    holding = false;
    for (Runnable answer = held.poll(); answer != null; answer = held.poll()) {
      answer.run();
    }
  }

  private void answer(int size, Runnable answer) {
    sizes.add(size);
    checks.addAndGet(Math.max(size, 1));
    held.add(answer);
    if (!holding) {
      release();
    }
  }

  static boolean isAllowed(String user) {
    return (user.charAt(user.length() - 1) & 1) == 0;
  }

  private static CanSendResponse decide(CanSendRequest request) {
    boolean allowed = isAllowed(request.getUserId());
    return CanSendResponse.newBuilder()
        .setAllowed(allowed)
        .setReason(allowed ? Reason.REASON_OPTED_IN : Reason.REASON_OPTED_OUT)
        .build();
  }

  @Override
  public void canSend(CanSendRequest request, StreamObserver<CanSendResponse> observer) {
    answer(
        0,
        () -> {
          switch (request.getCategory()) {
            case "fail.overload" ->
                observer.onError(
                    Status.RESOURCE_EXHAUSTED.withDescription("too much").asRuntimeException());
            case "fail.no-reason" -> {
              observer.onNext(CanSendResponse.newBuilder().setAllowed(true).build());
              observer.onCompleted();
            }
            case "fail.new-reason" -> {
              observer.onNext(
                  CanSendResponse.newBuilder().setAllowed(true).setReasonValue(8).build());
              observer.onCompleted();
            }
            default -> {
              observer.onNext(decide(request));
              observer.onCompleted();
            }
          }
        });
  }

  @Override
  public void batchCanSend(
      BatchCanSendRequest batch, StreamObserver<BatchCanSendResponse> observer) {
    answer(
        batch.getRequestsCount(),
        () -> {
          if (batch.getRequestsCount() > mostRequests) {
            observer.onError(invalid(refusedField));
            return;
          }
          var results = BatchCanSendResponse.newBuilder();
          for (CanSendRequest request : batch.getRequestsList()) {
            results.addResults(BatchCanSendResult.newBuilder().setResponse(decide(request)));
          }
          if (lacking) {
            results.removeResults(0);
          }
          observer.onNext(results.build());
          observer.onCompleted();
        });
  }

  /** Returns the error of a malformed field, as the sidecar has it. */
  static StatusRuntimeException invalid(String field) {
    var violation =
        BadRequest.FieldViolation.newBuilder().setField(field).setDescription("of a test");
    return StatusProto.toStatusRuntimeException(
        com.google.rpc.Status.newBuilder()
            .setCode(Status.Code.INVALID_ARGUMENT.value())
            .setMessage(field + ": of a test")
            .addDetails(Any.pack(BadRequest.newBuilder().addFieldViolations(violation).build()))
            .build());
  }

  @Override
  public void close() {
    server.shutdownNow();
  }
}
