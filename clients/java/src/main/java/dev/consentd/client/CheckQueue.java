package dev.consentd.client;

import dev.consentd.v1.BatchCanSendRequest;
import dev.consentd.v1.BatchCanSendResponse;
import dev.consentd.v1.CanSendResponse;
import dev.consentd.v1.ConsentServiceGrpc;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Context;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.stream.Collectors;

/**
 * Sends checks: coalesced into batches, and again where the connection failed.
 *
 * <p>Underneath are batches and not a stream: with 64 threads that ask, they cost about the same.
 *
 * <p>The coalescing rule: a check that comes while no call is under way is sent at once. One that
 * comes while a call is under way is gathered, and goes with the others as soon as an answer
 * arrives, when a batch is full, or a millisecond after the first of them was gathered.
 */
final class CheckQueue {
  /** The most checks of a batch, unless the sidecar takes fewer. */
  private static final int MAX_BATCH = 1_000;

  /** The most bytes of a batch: half of what a sidecar takes. */
  private static final int MAX_BATCH_BYTES = 1 << 20;

  /** A check with more bytes than this goes by itself: no well-formed one has as many. */
  private static final int MAX_COALESCED_BYTES = 4 << 10;

  private static final long MAX_GATHERING_NANOS = TimeUnit.MILLISECONDS.toNanos(1);

  private static final long FIRST_PAUSE_NANOS = TimeUnit.MILLISECONDS.toNanos(5);
  private static final long MAX_PAUSE_NANOS = TimeUnit.SECONDS.toNanos(1);

  private final Channel channel;
  private final ScheduledExecutorService timer;
  private final boolean coalescing;
  private final SafeObserver observer;

  // The rest is guarded by this queue's monitor, which is never held while gRPC is called.
  private List<PendingCheck> gathered = new ArrayList<>();
  private int gatheredBytes;
  private long gatheredSince;
  private boolean timerIsSet;
  private int underWay;
  private int maxBatch = MAX_BATCH;
  private boolean closed;

  CheckQueue(
      Channel channel, ScheduledExecutorService timer, boolean coalescing, SafeObserver observer) {
    this.channel = channel;
    this.timer = timer;
    this.coalescing = coalescing;
    this.observer = observer;
  }

  void submit(PendingCheck check) {
    // A check with a revision waits in the sidecar, where it must not delay the others of a batch.
    if (!coalescing
        || check.request.getMinRevision() != 0
        || check.request.getSerializedSize() > MAX_COALESCED_BYTES) {
      send(List.of(check), false);
      return;
    }
    List<PendingCheck> ready = List.of();
    synchronized (this) {
      if (closed) {
        check.finish(GrpcConsentClient.CLOSED.verdict());
      } else if (underWay == 0 && gathered.isEmpty()) {
        underWay = 1;
        ready = List.of(check);
      } else {
        if (gathered.isEmpty()) {
          gatheredSince = System.nanoTime();
          setTimer(MAX_GATHERING_NANOS);
        }
        gathered.add(check);
        gatheredBytes += check.request.getSerializedSize();
        if (gathered.size() >= maxBatch || gatheredBytes >= MAX_BATCH_BYTES) {
          ready = takeGathered();
        }
      }
    }
    if (!ready.isEmpty()) {
      send(ready, true);
    }
  }

  /** Ends all repetition, and what is gathered. Calls under way end with the channel. */
  void close() {
    List<PendingCheck> left;
    synchronized (this) {
      closed = true;
      left = takeGathered();
    }
    left.forEach(check -> check.finish(GrpcConsentClient.CLOSED.verdict()));
  }

  /**
   * Returns what is gathered, which counts as under way from then on, in a list that nothing is
   * added to any more. The caller holds the monitor.
   */
  List<PendingCheck> takeGathered() {
    if (gathered.isEmpty()) {
      return List.of();
    }
    List<PendingCheck> taken = gathered;
    gathered = new ArrayList<>(taken.size());
    gatheredBytes = 0;
    underWay++;
    return taken;
  }

  /**
   * Has the timer go off once. It is set again by itself rather than ended with each batch: that is
   * once a millisecond at the most, however many batches there are.
   */
  private void setTimer(long nanos) {
    if (!timerIsSet) {
      try {
        timer.schedule(this::onTimer, nanos, TimeUnit.NANOSECONDS);
        timerIsSet = true;
      } catch (RejectedExecutionException e) {
        // The client was closed, and ends all checks.
      }
    }
  }

  private void onTimer() {
    List<PendingCheck> ready;
    synchronized (this) {
      timerIsSet = false;
      if (gathered.isEmpty()) {
        return;
      }
      long left = gatheredSince + MAX_GATHERING_NANOS - System.nanoTime();
      if (left > 0) {
        setTimer(left);
        return;
      }
      ready = takeGathered();
    }
    send(ready, true);
  }

  private void onAnswer() {
    List<PendingCheck> ready;
    synchronized (this) {
      underWay--;
      ready = takeGathered();
    }
    if (!ready.isEmpty()) {
      send(ready, true);
    }
  }

  private void send(List<PendingCheck> checks, boolean counted) {
    long deadline = checks.get(0).deadline;
    if (checks.size() == 1) {
      var request = checks.get(0).request;
      var calls = new Single(checks, counted);
      call(ConsentServiceGrpc.getCanSendMethod(), request, deadline, calls);
      return;
    }
    var batch = BatchCanSendRequest.newBuilder();
    for (PendingCheck check : checks) {
      batch.addRequests(check.request);
      if (check.deadline - deadline > 0) {
        deadline = check.deadline;
      }
    }
    observer.batched(checks.size());
    var calls = new Batch(checks, counted);
    call(ConsentServiceGrpc.getBatchCanSendMethod(), batch.build(), deadline, calls);
  }

  private <Q, A> void call(
      MethodDescriptor<Q, A> method, Q request, long deadline, Call<A> listener) {
    long left = Math.max(0, deadline - System.nanoTime());
    // The batch is not the caller's alone: the end of the caller's context, such as that of a call
    // that it serves, must not end it.
    Context previous = Context.ROOT.attach();
    try {
      ClientCall<Q, A> call =
          channel.newCall(
              method, CallOptions.DEFAULT.withDeadlineAfter(left, TimeUnit.NANOSECONDS));
      call.start(listener, new Metadata());
      call.sendMessage(request);
      call.halfClose();
      call.request(2); // As gRPC's own stubs do: a second answer would be an error.
    } catch (Throwable e) {
      // Of an interceptor, for example. An error, too, must end the call: the checks of others are
      // in it, and it counts as under way.
      listener.onClose(Status.fromThrowable(e), new Metadata());
    } finally {
      Context.ROOT.detach(previous);
    }
  }

  private synchronized void halveMaxBatch(int refused) {
    maxBatch = Math.min(maxBatch, refused / 2);
  }

  private synchronized boolean isClosed() {
    return closed;
  }

  /** One call under way, and the checks that it answers. */
  private abstract class Call<A> extends ClientCall.Listener<A> {
    final List<PendingCheck> checks;
    private final boolean counted;
    private final AtomicBoolean ended = new AtomicBoolean();
    private A answer;

    Call(List<PendingCheck> checks, boolean counted) {
      this.checks = checks;
      this.counted = counted;
    }

    @Override
    public final void onMessage(A message) {
      answer = message;
    }

    @Override
    public final void onClose(Status status, Metadata trailers) {
      if (ended.getAndSet(true)) {
        return; // An interceptor threw, and the call ended besides.
      }
      if (counted) {
        onAnswer(); // First: the next batch is under way while the callers of this one wake up.
      }
      if (status.isOk() && answer != null) {
        onAnswered(answer);
      } else {
        onFailure(
            status.isOk()
                ? Failure.of(Status.Code.INTERNAL, "the answer is empty")
                : Failure.of(status, trailers));
      }
    }

    abstract void onAnswered(A answer);

    void onFailure(Failure failure) {
      if (isClosed()) {
        checks.forEach(check -> check.finish(GrpcConsentClient.CLOSED.verdict()));
      } else if (failure.isOfConnection()) {
        repeat(failure);
      } else if (failure.code() == Status.Code.DEADLINE_EXCEEDED && !failure.answered()) {
        checks.forEach(PendingCheck::expire);
      } else {
        checks.forEach(check -> check.finish(failure.verdict()));
      }
    }

    private static long pause(PendingCheck check) {
      return Math.min(FIRST_PAUSE_NANOS << Math.min(check.repetitions, 10), MAX_PAUSE_NANOS);
    }

    private void repeat(Failure failure) {
      long now = System.nanoTime();
      var byPause =
          checks.stream()
              .filter(check -> !check.isDone())
              .collect(Collectors.groupingBy(Call::pause));
      byPause.forEach(
          (pause, same) -> {
            var inTime = new ArrayList<PendingCheck>(same.size());
            for (PendingCheck check : same) {
              check.failure = failure;
              if (check.deadline - now > pause) {
                check.repetitions++;
                inTime.add(check);
              } else {
                check.finish(failure.verdict());
              }
            }
            try {
              timer.schedule(
                  () -> inTime.forEach(CheckQueue.this::submit), pause, TimeUnit.NANOSECONDS);
            } catch (RejectedExecutionException e) {
              inTime.forEach(check -> check.finish(GrpcConsentClient.CLOSED.verdict()));
            }
          });
    }
  }

  private final class Single extends Call<CanSendResponse> {
    Single(List<PendingCheck> checks, boolean counted) {
      super(checks, counted);
    }

    @Override
    void onAnswered(CanSendResponse answer) {
      checks.get(0).finish(Verdict.of(answer));
    }
  }

  private final class Batch extends Call<BatchCanSendResponse> {
    Batch(List<PendingCheck> checks, boolean counted) {
      super(checks, counted);
    }

    @Override
    void onAnswered(BatchCanSendResponse answer) {
      if (answer.getResultsCount() != checks.size()) {
        // Answers are matched to questions by their order: nothing can be said about any of them.
        String cause = checks.size() + " questions have " + answer.getResultsCount() + " answers";
        Verdict none = Failure.of(Status.Code.INTERNAL, cause).verdict();
        checks.forEach(check -> check.finish(none));
        return;
      }
      PendingCheck.finish(checks, answer.getResultsList());
    }

    @Override
    void onFailure(Failure failure) {
      // At last each check is asked by itself, and has an answer of its own.
      if (failure.code() == Status.Code.INVALID_ARGUMENT && !isClosed()) {
        if (failure.isOf("requests")) {
          halveMaxBatch(checks.size()); // The sidecar takes smaller batches (--max-batch).
        }
        int half = checks.size() / 2;
        send(checks.subList(0, half), false);
        send(checks.subList(half, checks.size()), false);
      } else {
        super.onFailure(failure);
      }
    }
  }
}
