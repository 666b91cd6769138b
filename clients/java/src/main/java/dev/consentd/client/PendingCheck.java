package dev.consentd.client;

import dev.consentd.v1.BatchCanSendResult;
import dev.consentd.v1.CanSendRequest;
import io.grpc.Status;
import java.util.ArrayList;
import java.util.List;
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

  /**
   * Finishes the checks of a batch. Of the threads that wait only the first is woken here, and each
   * wakes two more. The network's thread, if it woke all of them, would be preempted by almost
   * each: that is 1.8 switches between threads a check, in place of 1.3, and they are most of what
   * a check costs.
   */
  static void finish(List<PendingCheck> checks, List<BatchCanSendResult> results) {
    // A thread that sees its verdict must also see which threads to wake, so these are set first.
    var blocking = new ArrayList<Blocking>(checks.size());
    for (PendingCheck check : checks) {
      if (check instanceof Blocking waiting) {
        if (!blocking.isEmpty()) {
          blocking.get((blocking.size() - 1) / 2).wakesToo(waiting);
        }
        blocking.add(waiting);
      }
    }
    // From the last to the first, so that whoever is woken has its verdict: a caller whose deadline has
    // passed wakes those after it at once, and they would go back to sleep until their own deadline.
    for (int i = checks.size() - 1; i >= 0; i--) {
      PendingCheck check = checks.get(i);
      Verdict result = Verdict.of(results.get(i));
      if (!(check instanceof Blocking waiting)) {
        check.finish(result);
      } else if (!check.verdict.compareAndSet(null, result)) {
        waiting.wakeOthers(); // Its thread has its verdict since before, and may be gone.
      }
    }
    if (!blocking.isEmpty()) {
      LockSupport.unpark(blocking.get(0).caller);
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
    private Thread firstToWake;
    private Thread secondToWake;

    Blocking(CanSendRequest request, long deadline) {
      super(request, deadline);
    }

    @Override
    void tell(Verdict result) {
      LockSupport.unpark(caller);
    }

    void wakesToo(Blocking other) {
      if (firstToWake == null) {
        firstToWake = other.caller;
      } else {
        secondToWake = other.caller;
      }
    }

    /**
     * Wakes those that depend on it. To wake a thread that waits for something else does no harm.
     */
    void wakeOthers() {
      LockSupport.unpark(firstToWake);
      LockSupport.unpark(secondToWake);
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
      wakeOthers();
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
