package dev.consentd.client;

import dev.consentd.v1.ConsentServiceGrpc;
import dev.consentd.v1.WatchConsentsRequest;
import dev.consentd.v1.WatchConsentsResponse;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.Status;
import java.util.Optional;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;

/** A watch of the sidecar. Its thread tells all changes, and waits for the next. */
final class GrpcWatch implements Watch {
  private static final System.Logger LOGGER = System.getLogger("dev.consentd.client");

  private static final long MAX_SILENCE_SECONDS = 10;
  private static final long FIRST_PAUSE_MILLIS = 20;
  private static final long MAX_PAUSE_MILLIS = 1_000;

  private final Channel channel;
  private final String business;
  private final Consumer<? super Change> onChange;
  private final Runnable onClose;
  private final Thread thread;
  private volatile boolean closed;

  /**
   * Whether a reset is due before any other change, since what was told before is not to be
   * trusted.
   */
  private boolean isSilent = true;

  /** Whether anything was told. */
  private boolean hasTold;

  /** When silence is told where nothing was told before, by {@link System#nanoTime()}. */
  private final long firstSilence =
      System.nanoTime() + TimeUnit.SECONDS.toNanos(MAX_SILENCE_SECONDS);

  GrpcWatch(
      Channel channel,
      String business,
      Consumer<? super Change> onChange,
      Consumer<Watch> onClose) {
    this.channel = channel;
    this.business = business;
    this.onChange = onChange;
    this.onClose = () -> onClose.accept(this);
    this.thread = new Thread(this::run, "consentd-watch");
    this.thread.setDaemon(true);
  }

  GrpcWatch start() {
    thread.start();
    return this;
  }

  @Override
  public void close() {
    closed = true;
    thread.interrupt();
    onClose.run();
  }

  private void run() {
    long pause = FIRST_PAUSE_MILLIS;
    try {
      while (!closed) {
        Failure failure = watchOnce();
        if (!isSilent) {
          pause = FIRST_PAUSE_MILLIS; // This call did begin.
        }
        var silent = new Change.Silent(failure.code(), failure.cause());
        if (silent.isFinal()) {
          end(silent);
          return;
        }
        tellSilence(silent);
        Thread.sleep((long) (pause * ThreadLocalRandom.current().nextDouble(0.8, 1.2)));
        pause = Math.min(2 * pause, MAX_PAUSE_MILLIS);
      }
    } catch (InterruptedException e) {
      // Closed.
    }
  }

  /** Watches until the call ends. Nothing may end the watch itself, which somebody relies on. */
  private Failure watchOnce() throws InterruptedException {
    Call call = null;
    try {
      call = new Call();
      return tellUntilEnd(call);
    } catch (RuntimeException | Error e) {
      return thrown(e);
    } finally {
      if (call != null) {
        call.cancel();
      }
    }
  }

  private static Failure thrown(Throwable e) {
    // The name alone: the message may have a user's id.
    String name = e.getClass().getName();
    LOGGER.log(System.Logger.Level.WARNING, "A watch begins anew after {0}", name);
    return Failure.of(Status.Code.ABORTED, "what is told the changes threw " + name);
  }

  private Failure tellUntilEnd(Call call) throws InterruptedException {
    for (; ; ) {
      long patience =
          hasTold
              ? TimeUnit.SECONDS.toNanos(MAX_SILENCE_SECONDS)
              : Math.max(0, firstSilence - System.nanoTime());
      Object next = call.messages.poll(patience, TimeUnit.NANOSECONDS);
      if (next instanceof Failure failure) {
        return failure;
      }
      if (next instanceof WatchConsentsResponse message) {
        tell(message);
        call.requestOne();
      } else {
        tellSilence(
            new Change.Silent(
                Status.Code.DEADLINE_EXCEEDED,
                "nothing was heard for " + MAX_SILENCE_SECONDS + " seconds"));
      }
    }
  }

  private void tell(WatchConsentsResponse message) {
    // The first message of a call counts as a reset, and so does the first after a silence.
    // A newer sidecar may have other kinds of messages: what they change is not known.
    boolean isUnknown = message.getWhatCase() == WatchConsentsResponse.WhatCase.WHAT_NOT_SET;
    if (isSilent || message.hasReset() || isUnknown) {
      isSilent = false;
      tell(new Change.Reset());
    }
    switch (message.getWhatCase()) {
      case CHANGED -> {
        var changed = message.getChanged();
        tell(
            new Change.Changed(
                changed.getUserId(), changed.getBusinessId(), changed.getRevision()));
      }
      case TEMPLATE_CHANGED -> {
        var changed = message.getTemplateChanged();
        Optional<Template> template = Optional.empty();
        if (changed.hasTemplate()) {
          var named = changed.getTemplate();
          template = Optional.of(new Template(named.getName(), named.getLanguage()));
        }
        tell(new Change.TemplateChanged(template, changed.getBusinessId(), changed.getRevision()));
      }
      default -> {}
    }
  }

  /** Tells silence once until the next reset, and where nothing was told yet, once it is due. */
  private void tellSilence(Change.Silent silent) {
    if (!isSilent || !hasTold && System.nanoTime() - firstSilence >= 0) {
      isSilent = true;
      tellSafely(silent);
    }
  }

  /** Ends the watch because of what no further try will mend, such as that it is not allowed. */
  private void end(Change.Silent silent) {
    if (!closed) {
      LOGGER.log(
          System.Logger.Level.ERROR, "A watch ends: {0}: {1}", silent.code(), silent.cause());
    }
    tellSafely(silent);
    closed = true;
    onClose.run();
  }

  private void tellSafely(Change.Silent silent) {
    try {
      tell(silent);
    } catch (RuntimeException | Error e) {
      thrown(e);
    }
  }

  private void tell(Change change) {
    hasTold = true;
    if (!closed) {
      onChange.accept(change);
    }
  }

  /** A call, and its messages; what it ended with is the last. */
  private final class Call extends ClientCall.Listener<WatchConsentsResponse> {
    final BlockingQueue<Object> messages = new LinkedBlockingQueue<>();
    private final ClientCall<WatchConsentsRequest, WatchConsentsResponse> call =
        channel.newCall(ConsentServiceGrpc.getWatchConsentsMethod(), CallOptions.DEFAULT);

    Call() {
      call.start(this, new Metadata());
      call.request(1);
      call.sendMessage(WatchConsentsRequest.newBuilder().setBusinessId(business).build());
      call.halfClose();
    }

    void requestOne() {
      call.request(1);
    }

    void cancel() {
      call.cancel("the watch ended", null);
    }

    @Override
    public void onMessage(WatchConsentsResponse message) {
      messages.add(message);
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      Status error = status.isOk() ? Status.UNAVAILABLE.withDescription("the call ended") : status;
      messages.add(Failure.of(error, trailers));
    }
  }
}
