package dev.consentd.client;

import io.grpc.ConnectivityState;
import io.grpc.ManagedChannel;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledExecutorService;
import java.util.concurrent.ThreadLocalRandom;
import java.util.concurrent.TimeUnit;

/**
 * Keeps a channel connected. gRPC for Java by itself connects with the first call, and waits a
 * second after a first failure, and up to two minutes after later ones, which cannot be set.
 */
final class Connection {
  private static final long FIRST_PAUSE_MILLIS = 20;
  private static final long MAX_PAUSE_MILLIS = 1_000;

  private final ManagedChannel channel;
  private final ScheduledExecutorService timer;

  // Guarded by this object's monitor.
  private long pause = FIRST_PAUSE_MILLIS;
  private boolean timerIsSet;

  private Connection(ManagedChannel channel, ScheduledExecutorService timer) {
    this.channel = channel;
    this.timer = timer;
  }

  static void keep(ManagedChannel channel, ScheduledExecutorService timer) {
    var connection = new Connection(channel, timer);
    connection.onState(channel.getState(true));
  }

  private void onState(ConnectivityState state) {
    switch (state) {
      // A connection that ended gracefully leaves the channel idle. The pause is for a server that
      // ends every connection at once.
      case IDLE, TRANSIENT_FAILURE -> connectLater();
      case READY -> restorePause();
      case SHUTDOWN -> {
        return;
      }
      default -> {}
    }
    channel.notifyWhenStateChanged(state, () -> onState(channel.getState(false)));
  }

  private synchronized void restorePause() {
    pause = FIRST_PAUSE_MILLIS;
  }

  private synchronized void connectLater() {
    if (timerIsSet) {
      return;
    }
    // Jitter: the clients of a sidecar that restarts do not all come at once.
    long millis = (long) (pause * ThreadLocalRandom.current().nextDouble(0.8, 1.2));
    pause = Math.min(2 * pause, MAX_PAUSE_MILLIS);
    try {
      timer.schedule(this::connect, millis, TimeUnit.MILLISECONDS);
      timerIsSet = true;
    } catch (RejectedExecutionException e) {
      // The client was closed.
    }
  }

  private void connect() {
    synchronized (this) {
      timerIsSet = false;
    }
    // gRPC stays in TRANSIENT_FAILURE while it fails again and again, and reports no change.
    if (channel.getState(true) == ConnectivityState.TRANSIENT_FAILURE) {
      channel.resetConnectBackoff();
      connectLater();
    }
  }
}
