package dev.consentd.client;

import dev.consentd.v1.CanSendRequest;
import io.grpc.Status;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.Future;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.atomic.AtomicReference;
import java.util.concurrent.locks.LockSupport;
import java.util.function.Consumer;

/** A check whose caller waits for the verdict, which is set once. */
abstract class PendingCheck {
  final CanSendRequest request;

  /** When the answer is due, by {@link System#nanoTime()}. */
  final long deadline;

  /** How often it was asked again. Written by whoever has the answer to its call, one at a time. */
  int repetitions;

  /** How the latest try failed, or null. */
  volatile Failure failure;

  private final AtomicReference<Verdict> verdict = new AtomicReference<>();

  PendingCheck(CanSendRequest request, long deadline) {
    this.request = request;
    this.deadline = deadline;
  }

  final Verdict verdict() {
    return verdict.get();
  }

  final boolean isDone() {
    return verdict.get() != null;
  }

  final void finish(Verdict result) {
    if (verdict.compareAndSet(null, result)) {
      tell(result);
    }
  }

  final void expire() {
    Failure last = failure;
    String cause = "no answer within the deadline";
    if (last != null) {
      cause += "; before: " + last.code() + ": " + last.cause();
    }
    finish(Verdict.undecided(Status.Code.DEADLINE_EXCEEDED, cause, ""));
  }

  /** Tells whoever waits. It is called by a thread of the network, and therefore must not block. */
  abstract void tell(Verdict result);

  /** A check whose caller's thread waits. */
  static final class Blocking extends PendingCheck {
    private final Thread caller = Thread.currentThread();

    Blocking(CanSendRequest request, long deadline) {
      super(request, deadline);
    }

    @Override
    void tell(Verdict result) {
      LockSupport.unpark(caller);
    }

    Verdict await() {
      boolean interrupted = false;
      while (!isDone()) {
        long left = deadline - System.nanoTime();
        if (left <= 0) {
          expire();
        } else if (Thread.interrupted()) {
          interrupted = true;
          finish(Verdict.undecided(Status.Code.CANCELLED, "the thread was interrupted", ""));
        } else {
          LockSupport.parkNanos(this, left);
        }
      }
      if (interrupted) {
        Thread.currentThread().interrupt();
      }
      return verdict();
    }
  }

  /** A check whose caller has a future. */
  static final class Asynchronous extends PendingCheck {
    final CompletableFuture<Verdict> future = new CompletableFuture<>();
    private final Executor executor;
    private final Consumer<Verdict> onVerdict;
    private volatile Future<?> expiry;

    Asynchronous(
        CanSendRequest request, long deadline, Executor executor, Consumer<Verdict> onVerdict) {
      super(request, deadline);
      this.executor = executor;
      this.onVerdict = onVerdict;
    }

    void expireBy(Future<?> expiry) {
      this.expiry = expiry;
      if (isDone()) {
        expiry.cancel(false);
      }
    }

    @Override
    void tell(Verdict result) {
      Future<?> expiry = this.expiry;
      if (expiry != null) {
        expiry.cancel(false);
      }
      onVerdict.accept(result);
      try {
        // What depends on the future may block, which a thread of the network must not.
        future.completeAsync(() -> result, executor);
      } catch (RejectedExecutionException e) {
        future.complete(result);
      }
    }
  }
}
