package dev.consentd.client;

import static org.junit.jupiter.api.Assertions.assertEquals;

import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.MethodDescriptor;
import java.util.List;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import org.junit.jupiter.api.Test;

/** What no test from outside the package can bring about at will. */
final class CheckQueueTest {
  /** A channel whose calls are never answered. */
  private static final Channel SILENT =
      new Channel() {
        @Override
        public <Q, A> ClientCall<Q, A> newCall(MethodDescriptor<Q, A> method, CallOptions options) {
          return new ClientCall<>() {
            @Override
            public void start(Listener<A> listener, Metadata headers) {}

            @Override
            public void request(int messages) {}

            @Override
            public void cancel(String message, Throwable cause) {}

            @Override
            public void halfClose() {}

            @Override
            public void sendMessage(Q message) {}
          };
        }

        @Override
        public String authority() {
          return "silent";
        }
      };

  private static PendingCheck check() {
    var question = Question.of("447700000000", "acme", "marketing");
    return new PendingCheck.Blocking(question.proto(), System.nanoTime() + 60_000_000_000L);
  }

  @Test
  void nothingIsAddedToABatchThatIsTaken() {
    var timer = new ScheduledThreadPoolExecutor(1);
    try {
      var queue = new CheckQueue(SILENT, timer, true, new SafeObserver(null));
      // The monitor keeps the timer from taking what the test takes.
      synchronized (queue) {
        queue.submit(check()); // It is under way, so that the next ones are gathered.
        var none = queue.takeGathered();
        var second = check();
        queue.submit(second);
        // A list that still grows after it was taken would send this check twice.
        assertEquals(List.of(), none);
        var one = queue.takeGathered();
        queue.submit(check());
        assertEquals(List.of(second), one);
      }
    } finally {
      timer.shutdownNow();
    }
  }
}
