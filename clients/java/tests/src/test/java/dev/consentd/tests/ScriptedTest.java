package dev.consentd.tests;

import static dev.consentd.tests.Support.BUSINESS;
import static dev.consentd.tests.Support.PATIENCE;
import static dev.consentd.tests.Support.user;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertInstanceOf;
import static org.junit.jupiter.api.Assertions.assertNotNull;
import static org.junit.jupiter.api.Assertions.assertNull;
import static org.junit.jupiter.api.Assertions.assertTrue;

import com.google.protobuf.Duration;
import dev.consentd.client.Campaign;
import dev.consentd.client.Change;
import dev.consentd.client.ConsentClient;
import dev.consentd.client.Event;
import dev.consentd.client.Screened;
import dev.consentd.v1.ConsentServiceGrpc;
import dev.consentd.v1.FilterRecipientsRequest;
import dev.consentd.v1.FilterRecipientsResponse;
import dev.consentd.v1.RecordEventRequest;
import dev.consentd.v1.RecordEventResponse;
import dev.consentd.v1.RecordServiceGrpc;
import dev.consentd.v1.WatchConsentsRequest;
import dev.consentd.v1.WatchConsentsResponse;
import io.grpc.Grpc;
import io.grpc.InsecureServerCredentials;
import io.grpc.Metadata;
import io.grpc.Server;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.function.Function;
import java.util.stream.IntStream;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.EnumSource;

/** Screening, watching and recording at a server that says what no sidecar of today does. */
final class ScriptedTest {
  private final AtomicInteger calls = new AtomicInteger();
  private final LinkedBlockingQueue<StreamObserver<WatchConsentsResponse>> watchers =
      new LinkedBlockingQueue<>();
  private volatile Function<FilterRecipientsRequest, FilterRecipientsResponse> screen;
  private volatile Status.Code failing = Status.Code.ABORTED;
  private volatile int failures;
  private Server server;
  private ConsentClient client;

  @BeforeEach
  void start() throws Exception {
    server =
        Grpc.newServerBuilderForPort(0, InsecureServerCredentials.create())
            .addService(new Checks())
            .addService(new Records())
            .build()
            .start();
    client = Support.patient("127.0.0.1:" + server.getPort()).build();
  }

  @AfterEach
  void stop() {
    client.close();
    server.shutdownNow();
  }

  /** Returns an error of the server's own, which has trailers, or null once there were enough. */
  private StatusRuntimeException failure() {
    if (calls.incrementAndGet() > failures) {
      return null;
    }
    var trailers = new Metadata();
    trailers.put(Metadata.Key.of("of-the-sidecar", Metadata.ASCII_STRING_MARSHALLER), "yes");
    return failing.toStatus().withDescription("again").asRuntimeException(trailers);
  }

  private final class Checks extends ConsentServiceGrpc.ConsentServiceImplBase {
    @Override
    public void watchConsents(
        WatchConsentsRequest request, StreamObserver<WatchConsentsResponse> observer) {
      watchers.add(observer);
    }

    @Override
    public StreamObserver<FilterRecipientsRequest> filterRecipients(
        StreamObserver<FilterRecipientsResponse> observer) {
      return new StreamObserver<>() {
        private boolean ended;

        @Override
        public void onNext(FilterRecipientsRequest request) {
          if (ended) {
            return;
          }
          try {
            StatusRuntimeException failure = failure();
            if (failure != null) {
              throw failure;
            }
            observer.onNext(screen.apply(request));
          } catch (StatusRuntimeException e) {
            ended = true;
            observer.onError(e);
          }
        }

        @Override
        public void onError(Throwable error) {}

        @Override
        public void onCompleted() {}
      };
    }
  }

  private final class Records extends RecordServiceGrpc.RecordServiceImplBase {
    @Override
    public void recordEvent(
        RecordEventRequest request, StreamObserver<RecordEventResponse> observer) {
      StatusRuntimeException failure = failure();
      if (failure != null) {
        observer.onError(failure);
        return;
      }
      observer.onNext(RecordEventResponse.newBuilder().setApplied(true).build());
      observer.onCompleted();
    }
  }

  private List<Screened> filter(int users) {
    List<String> asked = IntStream.range(0, users).mapToObj(Support::user).toList();
    List<Screened> screened = client.filter(asked, Campaign.of(BUSINESS, "marketing")).toList();
    assertEquals(asked, screened.stream().map(Screened::user).toList());
    return screened;
  }

  private static FilterRecipientsResponse allAllowed(FilterRecipientsRequest request) {
    var response = FilterRecipientsResponse.newBuilder();
    request.getUserIdsList().forEach(user -> response.addReasonsValue(1));
    return response.build();
  }

  @Test
  void theReasonsOneToNineAllowAndNoOther() {
    var reasons = List.of(-1, 0, 1, 9, 10, 99, Integer.MIN_VALUE);
    screen =
        request ->
            FilterRecipientsResponse.newBuilder()
                .addAllReasonsValue(reasons)
                .setStaleness(Duration.newBuilder().setSeconds(2))
                .setCategoryUsed("marketing")
                .build();
    List<Screened> screened = filter(reasons.size());
    for (int i = 0; i < reasons.size(); i++) {
      var verdict = screened.get(i).verdict();
      int reason = reasons.get(i);
      assertEquals(1 <= reason && reason <= 9, verdict.allowed(), () -> "reason " + reason);
      assertEquals(reason == 0, verdict.invalid());
      assertEquals(reason != 0, verdict.decided());
      if (verdict.decided()) {
        assertEquals(2, verdict.staleness().toSeconds());
        assertEquals("marketing", verdict.categoryUsed());
      }
    }
  }

  @Test
  void anAnswerOfAnotherLengthAllowsNobody() {
    screen = request -> FilterRecipientsResponse.newBuilder().addReasonsValue(1).build();
    for (var one : filter(2)) {
      assertTrue(one.verdict().unavailable());
      assertEquals(Status.Code.INTERNAL, one.verdict().code());
    }
  }

  @Test
  void chunksAreHalvedDownToOneUser() {
    var refused = new AtomicInteger();
    screen =
        request -> {
          if (request.getUserIdsCount() > 1) {
            refused.incrementAndGet();
            throw FakeServer.invalid("user_ids");
          }
          return allAllowed(request);
        };
    assertTrue(filter(2_000).stream().allMatch(one -> one.verdict().allowed()));
    assertTrue(refused.get() <= 10, () -> "refused: " + refused);
  }

  @ParameterizedTest
  @EnumSource(
      value = Status.Code.class,
      names = {"UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED"})
  void whatMayPassIsRepeated(Status.Code code) {
    failing = code;
    failures = 3;
    screen = ScriptedTest::allAllowed;
    assertTrue(filter(2).stream().allMatch(one -> one.verdict().allowed()));
    assertEquals(4, calls.getAndSet(0));
    assertTrue(client.record(Event.optOut(user(0), BUSINESS, "*")).applied());
    assertEquals(4, calls.get());
  }

  @Test
  void anUnknownKindOfChangeIsAReset() throws Exception {
    var told = new LinkedBlockingQueue<Change>();
    try (var watch = client.watch(BUSINESS, told::add)) {
      var observer = watchers.poll(PATIENCE.toSeconds(), TimeUnit.SECONDS);
      assertNotNull(observer);
      var checkpoint =
          WatchConsentsResponse.newBuilder()
              .setCheckpoint(WatchConsentsResponse.Checkpoint.getDefaultInstance())
              .build();
      var unknown = WatchConsentsResponse.getDefaultInstance();
      for (var message : List.of(checkpoint, unknown, checkpoint, unknown)) {
        observer.onNext(message);
      }
      observer.onError(Status.PERMISSION_DENIED.withDescription("not here").asRuntimeException());
      var all = new ArrayList<Change>();
      for (int i = 0; i < 4; i++) {
        all.add(told.poll(PATIENCE.toSeconds(), TimeUnit.SECONDS));
      }
      var last = new Change.Silent(Status.Code.PERMISSION_DENIED, "not here");
      var reset = new Change.Reset();
      assertEquals(List.of(reset, reset, reset, last), all);
      assertTrue(last.isFinal());
      assertNull(watchers.poll(300, TimeUnit.MILLISECONDS), "it began anew");
      assertNotNull(watch);
    }
  }

  @Test
  void oneThatCannotBeginTellsSilenceOnceAfterTenSeconds() throws Exception {
    var ignored = new LinkedBlockingQueue<Change>();
    var refused = new LinkedBlockingQueue<Change>();
    // Read before the watches begin: this thread may be held up after that.
    long before = System.nanoTime();
    try (var nobody = Support.patient("127.0.0.1:9").build();
        var first = client.watch(BUSINESS, ignored::add);
        var second = nobody.watch(BUSINESS, refused::add)) {
      for (var told : List.of(ignored, refused)) {
        Change change = told.poll(PATIENCE.toSeconds(), TimeUnit.SECONDS);
        var silent = assertInstanceOf(Change.Silent.class, change);
        assertTrue(!silent.isFinal(), silent::toString);
      }
      assertTrue(System.nanoTime() - before >= TimeUnit.SECONDS.toNanos(9));
      Support.pause(java.time.Duration.ofSeconds(3));
      assertNull(refused.peek());
      assertNull(ignored.peek());
      assertNotNull(first);
      assertNotNull(second);
    }
  }
}
