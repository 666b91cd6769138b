package dev.consentd.tests;

import static dev.consentd.tests.Support.BUSINESS;
import static dev.consentd.tests.Support.PATIENCE;
import static dev.consentd.tests.Support.eventually;
import static dev.consentd.tests.Support.user;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;
import static org.junit.jupiter.api.Assertions.assertThrows;
import static org.junit.jupiter.api.Assertions.assertTrue;

import dev.consentd.client.CheckObserver;
import dev.consentd.client.ConsentClient;
import dev.consentd.client.ConsentException;
import dev.consentd.client.Question;
import dev.consentd.client.Verdict;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.ClientInterceptor;
import io.grpc.Context;
import io.grpc.MethodDescriptor;
import io.grpc.Status;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentLinkedQueue;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import org.junit.jupiter.api.AfterEach;
import org.junit.jupiter.api.BeforeEach;
import org.junit.jupiter.api.Test;

/** How checks become batches, against a server that answers when it is told to. */
final class CoalescingTest {
  private FakeServer server;
  private ConsentClient client;

  @BeforeEach
  void start() throws Exception {
    server = new FakeServer();
    client = Support.patient(server.address()).build();
    assertTrue(client.maySend(question(0)).allowed());
    server.sizes.clear();
    server.checks.set(0);
  }

  @AfterEach
  void stop() {
    client.close();
    server.close();
  }

  private static Question question(int number) {
    return Question.of(user(number), BUSINESS, "marketing");
  }

  private List<CompletableFuture<Verdict>> ask(int from, int to) {
    var asked = new ArrayList<CompletableFuture<Verdict>>();
    for (int i = from; i < to; i++) {
      asked.add(client.maySendAsync(question(i)));
    }
    return asked;
  }

  private static void assertAnswered(int from, List<CompletableFuture<Verdict>> asked)
      throws Exception {
    for (int i = 0; i < asked.size(); i++) {
      Verdict verdict = asked.get(i).get(PATIENCE.toSeconds(), TimeUnit.SECONDS);
      assertTrue(verdict.decided());
      assertEquals((from + i) % 2 == 0, verdict.allowed(), "the answer is another question's");
    }
  }

  @Test
  void oneThatFindsNothingUnderWayIsSentAtOnceByItself() {
    for (int i = 0; i < 5; i++) {
      assertEquals(i % 2 == 0, client.maySend(question(i)).allowed());
    }
    assertEquals(List.of(0, 0, 0, 0, 0), server.sizes);
  }

  @Test
  void whatComesMeanwhileGoesTogetherAfterAMillisecond() throws Exception {
    server.hold();
    var asked = ask(0, 51);
    // Nothing was answered, so it is the millisecond that sends the other 50. On a busy machine it
    // may be over before all of them are asked.
    eventually("all were sent", () -> sum() == 51);
    // The server's threads may take the second call up before the first.
    assertTrue(server.sizes.contains(0), () -> "calls: " + server.sizes);
    assertTrue(server.sizes.size() < 20, () -> "calls: " + server.sizes);
    server.release();
    assertAnswered(0, asked);
  }

  private int sum() {
    return server.checks.get();
  }

  @Test
  void aThousandAreABatchAndNoMore() throws Exception {
    server.hold();
    var asked = ask(0, 5_000);
    eventually("all were sent", () -> sum() == 5_000);
    assertTrue(server.sizes.stream().allMatch(size -> size <= 1_000), () -> "" + server.sizes);
    assertTrue(server.sizes.size() < 1_000, () -> "calls: " + server.sizes.size());
    server.release();
    assertAnswered(0, asked);
  }

  @Test
  void aBatchThatIsRefusedIsHalvedAndItsSizeIsNotKept() throws Exception {
    server.refuse("requests[3].user_id", 100);
    assertAnswered(0, ask(0, 2_000));
    server.sizes.clear();
    server.checks.set(0);
    server.refuse("", Integer.MAX_VALUE);
    server.hold();
    var asked = ask(0, 5_000);
    eventually("all were sent", () -> sum() == 5_000);
    server.release();
    assertAnswered(0, asked);
    assertTrue(server.sizes.stream().anyMatch(size -> size > 100), () -> "" + server.sizes);
  }

  @Test
  void theSizeThatASidecarTakesIsKept() throws Exception {
    server.refuse("requests", 100);
    assertAnswered(0, ask(0, 2_000));
    server.sizes.clear();
    assertAnswered(0, ask(0, 2_000));
    assertTrue(server.sizes.stream().allMatch(size -> size <= 100), () -> "" + server.sizes);
  }

  @Test
  void anAnswerThatLacksAResultAllowsNobody() throws Exception {
    server.hold();
    server.lackOneResult();
    var asked = ask(0, 21);
    eventually("all were sent", () -> sum() == 21);
    server.release();
    int lacking = 0;
    for (var one : asked) {
      Verdict verdict = one.get(PATIENCE.toSeconds(), TimeUnit.SECONDS);
      if (!verdict.decided()) {
        lacking++;
        assertEquals(Status.Code.INTERNAL, verdict.code());
        assertTrue(verdict.unavailable());
      }
    }
    assertEquals(server.sizes.stream().mapToInt(size -> size).sum(), lacking);
    assertTrue(lacking > 0);
    assertEquals(21, sum());
  }

  @Test
  void batchesHaveLessThanTheirMostBytes() throws Exception {
    server.hold();
    var asked = new ArrayList<CompletableFuture<Verdict>>();
    String padding = "x".repeat(4_000);
    for (int i = 0; i < 1_001; i++) {
      asked.add(client.maySendAsync(Question.of(padding + user(i), BUSINESS, "marketing")));
    }
    eventually("all were sent", () -> sum() == 1_001);
    int most = server.sizes.stream().mapToInt(size -> size * 4_050).max().orElseThrow();
    assertTrue(most < 2 << 20, () -> "bytes: " + most);
    server.release();
    assertAnswered(0, asked);
  }

  @Test
  void oneWithARevisionOrTooLargeGoesByItself() throws Exception {
    server.hold();
    var asked = ask(0, 1);
    asked.add(client.maySendAsync(question(1).withMinRevision(7)));
    String large = "x".repeat(5_000) + user(2);
    asked.add(client.maySendAsync(Question.of(large, BUSINESS, "marketing")));
    eventually("all were sent", () -> sum() == 3);
    assertEquals(List.of(0, 0, 0), server.sizes);
    server.release();
    assertAnswered(0, asked);
  }

  @Test
  void oneThatIsCancelledCostsNoOther() throws Exception {
    server.hold();
    var asked = ask(0, 20);
    for (int i = 1; i < 20; i += 2) {
      assertTrue(asked.get(i).cancel(true));
    }
    server.release();
    for (int i = 0; i < 20; i += 2) {
      assertTrue(asked.get(i).get(PATIENCE.toSeconds(), TimeUnit.SECONDS).allowed());
    }
    assertTrue(asked.get(1).isCancelled());
  }

  @Test
  void oneWhoseThreadIsInterruptedCostsNoOther() throws Exception {
    server.hold();
    var asked = ask(0, 3);
    var verdict = new AtomicReference<Verdict>();
    var staysInterrupted = new AtomicReference<Boolean>();
    var thread =
        new Thread(
            () -> {
              verdict.set(client.maySend(question(4)));
              staysInterrupted.set(Thread.currentThread().isInterrupted());
            });
    thread.start();
    thread.interrupt();
    thread.join();
    assertEquals(Status.Code.CANCELLED, verdict.get().code());
    assertTrue(verdict.get().unavailable());
    assertTrue(staysInterrupted.get());
    server.release();
    assertAnswered(0, asked);
  }

  @Test
  void theEndOfTheContextOfACallerCostsNoOther() throws Exception {
    server.hold();
    var first = ask(0, 1);
    // The caller that fills the batch, and so sends it, serves a call that is over.
    var context = Context.current().withCancellation();
    context.cancel(null);
    var asked = new ArrayList<CompletableFuture<Verdict>>();
    context.run(() -> asked.addAll(ask(1, 1_001)));
    server.release();
    assertAnswered(0, first);
    assertAnswered(1, asked);
  }

  @Test
  void eachHasItsOwnDeadline() throws Exception {
    server.hold();
    var patient = ask(0, 2);
    var hasty = client.maySendAsync(question(2).withDeadline(Duration.ofMillis(20)));
    Verdict late = hasty.get(PATIENCE.toSeconds(), TimeUnit.SECONDS);
    assertEquals(Status.Code.DEADLINE_EXCEEDED, late.code());
    assertTrue(late.unavailable());
    assertFalse(late.allowed());
    Verdict lateToo = client.maySend(question(4).withDeadline(Duration.ofMillis(20)));
    assertEquals(Status.Code.DEADLINE_EXCEEDED, lateToo.code());
    assertFalse(patient.get(1).isDone());
    server.release();
    assertAnswered(0, patient);
  }

  @Test
  void theDefaultDeadlineIsShort() {
    server.hold();
    try (var hasty = ConsentClient.create(server.address())) {
      long before = System.nanoTime();
      Verdict verdict = hasty.maySend(question(0));
      long millis = TimeUnit.NANOSECONDS.toMillis(System.nanoTime() - before);
      assertEquals(Status.Code.DEADLINE_EXCEEDED, verdict.code());
      assertTrue(millis >= 49, () -> "after " + millis + " ms");
    }
  }

  @Test
  void withoutCoalescingEachGoesByItself() throws Exception {
    try (var plain = Support.patient(server.address()).coalescing(false).build()) {
      server.hold();
      var asked = new ArrayList<CompletableFuture<Verdict>>();
      for (int i = 0; i < 50; i++) {
        asked.add(plain.maySendAsync(question(i)));
      }
      eventually("all were sent", () -> sum() == 50);
      assertEquals(50, server.sizes.size());
      server.release();
      assertAnswered(0, asked);
    }
  }

  @Test
  void whatDependsOnAVerdictMayBlock() throws Exception {
    var nested = client.maySendAsync(question(0)).thenApply(verdict -> client.maySend(question(1)));
    assertFalse(nested.get(PATIENCE.toSeconds(), TimeUnit.SECONDS).allowed());
  }

  @Test
  void anAnswerWithoutAReasonAllowsNothing() {
    Verdict verdict = client.maySend(Question.of(user(0), BUSINESS, "fail.no-reason"));
    assertFalse(verdict.allowed());
    assertTrue(verdict.unavailable());
    assertEquals(Status.Code.INTERNAL, verdict.code());
  }

  @Test
  void aReasonOfANewerSidecarAllows() {
    Verdict verdict = client.maySend(Question.of(user(0), BUSINESS, "fail.new-reason"));
    assertTrue(verdict.allowed());
    assertEquals("8", verdict.reason());
  }

  @Test
  void anAnswerOfTheSidecarIsNotAskedForAgain() {
    Question overload = Question.of(user(0), BUSINESS, "fail.overload");
    Verdict verdict = client.maySend(overload);
    assertEquals(Status.Code.RESOURCE_EXHAUSTED, verdict.code());
    assertEquals("too much", verdict.cause());
    assertTrue(verdict.unavailable());
    assertEquals(1, server.sizes.size());
    var error = assertThrows(ConsentException.class, () -> client.check(overload));
    assertEquals(Status.Code.RESOURCE_EXHAUSTED, error.code());
  }

  @Test
  void anObserverIsToldAndCannotHarm() throws Exception {
    var outcomes = new ConcurrentLinkedQueue<String>();
    var batched = new AtomicInteger();
    var observer =
        new CheckObserver() {
          @Override
          public void checked(String outcome, long nanos) {
            outcomes.add(outcome + (nanos > 0));
            throw new IllegalStateException("of an observer");
          }

          @Override
          public void batched(int size) {
            batched.addAndGet(size);
            throw new AssertionError("of an observer");
          }
        };
    try (var watched = Support.patient(server.address()).observer(observer).build()) {
      assertTrue(watched.maySend(question(0)).allowed());
      assertFalse(watched.maySend(question(1)).allowed());
      assertTrue(watched.maySend(null, BUSINESS, "marketing").invalid());
      assertEquals(
          List.of("allowedtrue", "OPTED_OUTtrue", "INVALID_ARGUMENTtrue"), List.copyOf(outcomes));
      server.hold();
      var asked = new ArrayList<CompletableFuture<Verdict>>();
      for (int i = 0; i < 1_001; i++) {
        asked.add(watched.maySendAsync(question(i)));
      }
      eventually("all were sent", () -> sum() == 1_001 + 2);
      server.release();
      assertAnswered(0, asked);
      assertEquals(
          server.sizes.stream().filter(size -> size > 1).mapToInt(size -> size).sum(),
          batched.get());
    }
  }

  @Test
  void anInterceptorIsPassedOnAndItsFailureIsAVerdict() {
    var calls = new AtomicInteger();
    ClientInterceptor failing =
        new ClientInterceptor() {
          @Override
          public <Q, A> ClientCall<Q, A> interceptCall(
              MethodDescriptor<Q, A> method, CallOptions options, Channel next) {
            if (calls.incrementAndGet() == 2) {
              throw new AssertionError("of an interceptor");
            }
            return next.newCall(method, options);
          }
        };
    try (var intercepted =
        ConsentClient.builder()
            .address(server.address())
            .deadline(PATIENCE)
            .intercept(failing)
            .build()) {
      assertTrue(intercepted.maySend(question(0)).allowed());
      // The second try fails inside the process as UNKNOWN, which is repeated: nothing was sent.
      assertTrue(intercepted.maySend(question(2)).allowed());
      assertEquals(3, calls.get());
    }
  }
}
