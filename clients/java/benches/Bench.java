import com.google.gson.JsonParser;
import com.sun.management.OperatingSystemMXBean;
import dev.consentd.client.ConsentClient;
import dev.consentd.client.Question;
import dev.consentd.v1.CanSendRequest;
import dev.consentd.v1.ConsentServiceGrpc;
import dev.consentd.v1.StreamCanSendRequest;
import dev.consentd.v1.StreamCanSendResponse;
import io.grpc.CallOptions;
import io.grpc.ClientCall;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import java.lang.management.ManagementFactory;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Predicate;

/** Measures what a check costs its sender. See the script "bench" beside this folder. */
final class Bench {
  private static final Duration DEADLINE = Duration.ofSeconds(1);
  private static final long WARM_UP_NANOS =
      TimeUnit.SECONDS.toNanos(Long.getLong("warm.up.seconds", 1));

  private Bench() {}

  public static void main(String[] arguments) throws Exception {
    String address = arguments[0];
    String mode = arguments[1];
    int callers = Integer.parseInt(arguments[2]);
    long nanos = (long) (Double.parseDouble(arguments[3]) * 1e9);
    List<CanSendRequest> questions = questions(Path.of(arguments[4]));
    switch (mode) {
      case "naive" -> naive(address, questions, callers, nanos);
      case "client" -> client(address, questions, callers, nanos);
      case "stream" -> stream(address, questions, callers, nanos);
      default ->
          throw new IllegalArgumentException("the mode is naive, client or stream, not " + mode);
    }
  }

  private static List<CanSendRequest> questions(Path file) throws Exception {
    var questions = new ArrayList<CanSendRequest>();
    for (var one : JsonParser.parseString(Files.readString(file)).getAsJsonArray()) {
      var fields = one.getAsJsonObject();
      questions.add(
          CanSendRequest.newBuilder()
              .setUserId(fields.get("userId").getAsString())
              .setBusinessId(fields.get("businessId").getAsString())
              .setCategory(fields.get("category").getAsString())
              .build());
    }
    return questions;
  }

  private static ManagedChannel channel(String address) {
    var builder = Grpc.newChannelBuilder(address, InsecureChannelCredentials.create());
    if (address.startsWith("unix:")) {
      builder.overrideAuthority("localhost");
    }
    return builder.build();
  }

  /** The generated stub, as a program without this client would use it. */
  private static void naive(String address, List<CanSendRequest> questions, int callers, long nanos)
      throws Exception {
    var channel = channel(address);
    var stub = ConsentServiceGrpc.newBlockingStub(channel);
    measure(
        questions,
        callers,
        nanos,
        question -> {
          try {
            stub.withDeadlineAfter(DEADLINE).canSend(question);
            return true;
          } catch (StatusRuntimeException e) {
            return false;
          }
        });
    channel.shutdownNow();
  }

  private static void client(
      String address, List<CanSendRequest> questions, int callers, long nanos) throws Exception {
    try (var client = ConsentClient.builder().address(address).deadline(DEADLINE).build()) {
      client.ready(Duration.ofSeconds(10));
      measure(
          questions,
          callers,
          nanos,
          question ->
              client
                  .maySend(
                      Question.of(
                          question.getUserId(), question.getBusinessId(), question.getCategory()))
                  .decided());
    }
  }

  /** One call for all callers, a message a check: what could be underneath in place of batches. */
  private static void stream(
      String address, List<CanSendRequest> questions, int callers, long nanos) throws Exception {
    var waiting = new ConcurrentHashMap<Long, CompletableFuture<Boolean>>();
    var channel = channel(address);
    var options = CallOptions.DEFAULT.withExecutor(Runnable::run);
    var call = channel.newCall(ConsentServiceGrpc.getStreamCanSendMethod(), options);
    call.start(
        new ClientCall.Listener<>() {
          @Override
          public void onMessage(StreamCanSendResponse answer) {
            waiting.remove(answer.getSequence()).complete(answer.getResult().hasResponse());
            call.request(1);
          }
        },
        new Metadata());
    call.request(callers);
    var sequence = new AtomicLong();
    measure(
        questions,
        callers,
        nanos,
        question -> {
          var answered = new CompletableFuture<Boolean>();
          long number = sequence.incrementAndGet();
          waiting.put(number, answered);
          var message =
              StreamCanSendRequest.newBuilder().setSequence(number).setRequest(question).build();
          synchronized (call) {
            call.sendMessage(message);
          }
          return answered.join();
        });
    channel.shutdownNow();
  }

  private static void measure(
      List<CanSendRequest> questions, int callers, long nanos, Predicate<CanSendRequest> check)
      throws InterruptedException {
    long begin = System.nanoTime() + WARM_UP_NANOS;
    long end = begin + nanos;
    var all = new ArrayList<Caller>();
    for (int i = 0; i < callers; i++) {
      var caller = new Caller(questions, i * 97 % questions.size(), check, begin, end);
      all.add(caller);
      caller.start();
    }
    var process = (OperatingSystemMXBean) ManagementFactory.getOperatingSystemMXBean();
    sleepUntil(begin);
    long cpuAtBegin = process.getProcessCpuTime();
    sleepUntil(end);
    long cpu = process.getProcessCpuTime() - cpuAtBegin;
    for (var caller : all) {
      caller.join();
    }
    long[] times =
        all.stream()
            .flatMapToLong(caller -> Arrays.stream(caller.times, 0, caller.count))
            .sorted()
            .toArray();
    long errors = all.stream().mapToLong(caller -> caller.errors).sum();
    System.out.printf(
        "{\"checks\":%d,\"errors\":%d,\"cpu_seconds\":%.6f,\"p50_us\":%.1f,\"p99_us\":%.1f}%n",
        times.length,
        errors,
        cpu / 1e9,
        times[times.length / 2] / 1e3,
        times[(int) (times.length * 0.99)] / 1e3);
  }

  private static void sleepUntil(long time) throws InterruptedException {
    for (long left = time - System.nanoTime(); left > 0; left = time - System.nanoTime()) {
      TimeUnit.NANOSECONDS.sleep(left);
    }
  }

  /** Asks one question after the other. */
  private static final class Caller extends Thread {
    private final List<CanSendRequest> questions;
    private final Predicate<CanSendRequest> check;
    private final long begin;
    private final long end;
    private int next;

    long[] times = new long[1 << 16];
    int count;
    long errors;

    Caller(
        List<CanSendRequest> questions,
        int first,
        Predicate<CanSendRequest> check,
        long begin,
        long end) {
      this.questions = questions;
      this.next = first;
      this.check = check;
      this.begin = begin;
      this.end = end;
    }

    @Override
    public void run() {
      for (long before = System.nanoTime(); before < end; ) {
        boolean answered = check.test(questions.get(next));
        next = (next + 1) % questions.size();
        long after = System.nanoTime();
        if (before >= begin && after <= end) {
          if (count == times.length) {
            times = Arrays.copyOf(times, 2 * count);
          }
          times[count++] = after - before;
          errors += answered ? 0 : 1;
        }
        before = after;
      }
    }
  }
}
