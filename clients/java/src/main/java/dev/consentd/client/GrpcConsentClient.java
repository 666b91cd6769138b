package dev.consentd.client;

import dev.consentd.v1.ConsentServiceGrpc;
import dev.consentd.v1.GetStatusRequest;
import dev.consentd.v1.GetStatusResponse.Phase;
import dev.consentd.v1.RecordEventRequest;
import dev.consentd.v1.RecordServiceGrpc;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ChannelCredentials;
import io.grpc.ClientInterceptors;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.TlsChannelCredentials;
import io.grpc.stub.ClientCalls;
import io.grpc.stub.MetadataUtils;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Objects;
import java.util.Set;
import java.util.Spliterator;
import java.util.Spliterators;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.Executor;
import java.util.concurrent.RejectedExecutionException;
import java.util.concurrent.ScheduledThreadPoolExecutor;
import java.util.concurrent.TimeUnit;
import java.util.function.Consumer;
import java.util.function.Function;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;

/** The client of a sidecar, by gRPC. */
final class GrpcConsentClient implements ConsentClient {
  static final Failure CLOSED = Failure.of(Status.Code.UNAVAILABLE, "the client is closed");

  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  private static final long FIRST_PAUSE_NANOS = TimeUnit.MILLISECONDS.toNanos(5);
  private static final long MAX_PAUSE_NANOS = TimeUnit.SECONDS.toNanos(1);

  private final ManagedChannel channel;
  private final ScheduledThreadPoolExecutor timer;
  private final CheckQueue checks;
  private final SafeObserver observer;
  private final Executor executor;
  private final long deadlineNanos;
  private final long recordDeadlineNanos;
  private final Path tokenFile;
  private final Set<Watch> watches = ConcurrentHashMap.newKeySet();
  private volatile boolean closed;

  /** Opens when the client is closed, for those who wait. */
  private final CountDownLatch ended = new CountDownLatch(1);

  GrpcConsentClient(Builder options) {
    observer = new SafeObserver(options.observer);
    executor = options.executor;
    deadlineNanos = options.deadlineNanos;
    recordDeadlineNanos = Deadlines.nanos(options.recordDeadline);
    tokenFile = options.tokenFile;
    channel = channel(options);
    timer = new ScheduledThreadPoolExecutor(1, GrpcConsentClient::timerThread);
    timer.setRemoveOnCancelPolicy(true);
    checks = new CheckQueue(channel, timer, options.coalescing, observer);
    Connection.keep(channel, timer);
  }

  private static Thread timerThread(Runnable work) {
    var thread = new Thread(work, "consentd-client-timer");
    thread.setDaemon(true);
    return thread;
  }

  private static ManagedChannel channel(Builder options) {
    Address address =
        Address.parse(options.address == null ? Address.ofEnvironment() : options.address);
    // A sidecar serves no TLS on Unix sockets.
    ChannelCredentials credentials =
        options.tls && !address.isUnix() ? tls(options) : InsecureChannelCredentials.create();
    var builder =
        Grpc.newChannelBuilder(address.target(), credentials)
            // Answers are handled by the thread that reads them: another one would delay them.
            .directExecutor()
            // The client repeats by itself, with the deadlines of the checks in a batch.
            .disableRetry()
            .disableServiceConfigLookUp()
            // gRPC would obey the JVM's https.proxyHost, for this machine too.
            .proxyDetector(server -> null)
            .keepAliveTime(30, TimeUnit.SECONDS)
            .keepAliveTimeout(10, TimeUnit.SECONDS)
            .keepAliveWithoutCalls(true)
            // Never: after half an hour without calls gRPC would end the connection.
            .idleTimeout(Long.MAX_VALUE, TimeUnit.NANOSECONDS)
            .intercept(options.interceptors);
    if (address.isUnix()) {
      // gRPC would send the path, which is no authority.
      builder.overrideAuthority("localhost");
    }
    return builder.build();
  }

  private static ChannelCredentials tls(Builder options) {
    try {
      var credentials = TlsChannelCredentials.newBuilder();
      if (options.caFile != null) {
        credentials.trustManager(options.caFile.toFile());
      }
      if (options.certFile != null) {
        credentials.keyManager(options.certFile.toFile(), options.keyFile.toFile());
      }
      return credentials.build();
    } catch (IOException e) {
      throw new IllegalArgumentException("a file for TLS cannot be read: " + e.getMessage(), e);
    }
  }

  @Override
  public void ready(Duration timeout) {
    repeat(
        Deadlines.nanos(Deadlines.check(timeout)),
        options -> {
          Phase phase =
              ClientCalls.blockingUnaryCall(
                      channel,
                      ConsentServiceGrpc.getGetStatusMethod(),
                      options.withWaitForReady(),
                      GetStatusRequest.getDefaultInstance())
                  .getPhase();
          if (phase == Phase.PHASE_LOADING) {
            throw Status.UNAVAILABLE.withDescription("the table is loading").asRuntimeException();
          }
          return phase;
        });
  }

  @Override
  public Verdict maySend(Question question) {
    long since = System.nanoTime();
    Verdict verdict = refused(question);
    if (verdict == null) {
      var check =
          new PendingCheck.Blocking(
              question.proto(), since + question.deadlineNanos(deadlineNanos));
      checks.submit(check);
      verdict = check.await();
    }
    observer.checked(verdict, since);
    return verdict;
  }

  @Override
  public CompletableFuture<Verdict> maySendAsync(Question question) {
    long since = System.nanoTime();
    Verdict refused = refused(question);
    if (refused != null) {
      observer.checked(refused, since);
      return CompletableFuture.completedFuture(refused);
    }
    long nanos = question.deadlineNanos(deadlineNanos);
    var check =
        new PendingCheck.Asynchronous(
            question.proto(), since + nanos, executor, verdict -> observer.checked(verdict, since));
    try {
      check.expireBy(timer.schedule(check::expire, nanos, TimeUnit.NANOSECONDS));
    } catch (RejectedExecutionException e) {
      check.finish(CLOSED.verdict());
    }
    checks.submit(check);
    return check.future;
  }

  /** Returns the verdict on what cannot be asked, or null. */
  private Verdict refused(Question question) {
    return closed ? CLOSED.verdict() : question.malformed();
  }

  @Override
  public Stream<Screened> filter(Iterable<String> users, Campaign campaign) {
    var screening = new Screening(channel, users.iterator(), campaign, ended);
    int characteristics = Spliterator.ORDERED | Spliterator.NONNULL | Spliterator.IMMUTABLE;
    return StreamSupport.stream(
            Spliterators.spliteratorUnknownSize(screening, characteristics), false)
        .onClose(screening::close);
  }

  @Override
  public Watch watch(String business, Consumer<? super Change> onChange) {
    Objects.requireNonNull(business, "business");
    Objects.requireNonNull(onChange, "onChange");
    if (!Text.isSendable(business)) {
      throw new IllegalArgumentException("business: " + Text.UNSENDABLE);
    }
    var watch = new GrpcWatch(channel, business, onChange, watches::remove);
    watches.add(watch);
    watch.start();
    if (closed) {
      watch.close();
    }
    return watch;
  }

  @Override
  public Recorded record(Event event) {
    var request =
        RecordEventRequest.newBuilder()
            .setEvent(event.proto())
            .setRequestId(event.requestId())
            .build();
    String unsendable = Text.unsendableField(request, "");
    if (unsendable != null) {
      throw new ConsentException(Failure.unsendable(unsendable));
    }
    Channel authorized =
        ClientInterceptors.intercept(
            channel, MetadataUtils.newAttachHeadersInterceptor(authorization()));
    var response =
        repeat(
            recordDeadlineNanos,
            options ->
                ClientCalls.blockingUnaryCall(
                    authorized, RecordServiceGrpc.getRecordEventMethod(), options, request));
    return new Recorded(
        response.getRevision(),
        response.getApplied(),
        response.getOptedOutScope(),
        response.getOptedInCategory(),
        response.getMatchedKeyword(),
        response.getKeywordLocale());
  }

  private Metadata authorization() {
    var headers = new Metadata();
    if (tokenFile != null) {
      headers.put(AUTHORIZATION, "Bearer " + token());
    }
    return headers;
  }

  /** Reads the token as the sidecar reads its own file of them, of which it is the first. */
  private String token() {
    String text;
    try {
      text = Files.readString(tokenFile);
    } catch (IOException e) {
      String cause = "the token file cannot be read: " + e.getMessage();
      throw new ConsentException(Status.Code.UNAUTHENTICATED, cause, "");
    }
    return text.lines()
        .map(String::strip)
        .filter(line -> !line.isEmpty() && !line.startsWith("#"))
        .findFirst()
        .orElseThrow(
            () ->
                new ConsentException(
                    Status.Code.UNAUTHENTICATED, "there is no token in " + tokenFile, ""));
  }

  /** Makes a call, and makes it again while its failure may pass and its time allows. */
  private <A> A repeat(long nanos, Function<CallOptions, A> call) {
    long end = System.nanoTime() + nanos;
    long pause = FIRST_PAUSE_NANOS;
    for (; ; ) {
      long left = Math.max(0, end - System.nanoTime());
      try {
        return call.apply(CallOptions.DEFAULT.withDeadlineAfter(left, TimeUnit.NANOSECONDS));
      } catch (StatusRuntimeException e) {
        Failure failure = closed ? CLOSED : Failure.of(e);
        if (closed || !failure.mayPass() || end - System.nanoTime() <= pause) {
          throw new ConsentException(failure);
        }
      }
      try {
        TimeUnit.NANOSECONDS.sleep(pause);
      } catch (InterruptedException e) {
        Thread.currentThread().interrupt();
        throw new ConsentException(Status.Code.CANCELLED, "the thread was interrupted", "");
      }
      pause = Math.min(2 * pause, MAX_PAUSE_NANOS);
    }
  }

  @Override
  public void close() {
    closed = true;
    ended.countDown();
    watches.forEach(Watch::close);
    checks.close();
    channel.shutdownNow();
    // What is left in it is run: checks to be repeated, which learn that the client is closed.
    timer.shutdown();
  }
}
