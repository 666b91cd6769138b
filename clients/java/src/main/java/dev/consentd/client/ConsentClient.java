package dev.consentd.client;

import io.grpc.ClientInterceptor;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Objects;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.Executor;
import java.util.concurrent.ForkJoinPool;
import java.util.function.Consumer;
import java.util.stream.Stream;

/**
 * A client of one sidecar. A process makes one, shares it between all threads, and closes it at its
 * end:
 *
 * <pre>{@code
 * try (ConsentClient consent = ConsentClient.create()) {
 *   consent.ready(Duration.ofSeconds(10));
 *   if (consent.maySend("+1 555 012 3456", "acme", "marketing").allowed()) {
 *     // Send the message now.
 *   }
 * }
 * }</pre>
 *
 * <p>No answer means <em>do not send</em>: {@link #maySend(Question) maySend} has a verdict
 * whatever happens, by a deadline, and only an answer of the sidecar allows. In tests use {@link
 * dev.consentd.testing.FakeConsentClient} in its place.
 */
public interface ConsentClient extends AutoCloseable {

  /**
   * Makes a client of the sidecar at {@code CONSENTD_ADDR}, else at {@code 127.0.0.1:50051}.
   *
   * @return the client, which connects in the background
   * @throws IllegalArgumentException if {@code CONSENTD_ADDR} is no address
   */
  static ConsentClient create() {
    return builder().build();
  }

  /**
   * Makes a client of the sidecar at an address.
   *
   * @param address {@code HOST:PORT}, {@code unix:PATH}, or {@code unix:@NAME} for an abstract
   *     socket; Unix sockets are for Linux
   * @return the client, which connects in the background
   * @throws IllegalArgumentException if that is no address
   */
  static ConsentClient create(String address) {
    return builder().address(address).build();
  }

  /**
   * Begins to make a client with options.
   *
   * @return a builder with the defaults
   */
  static Builder builder() {
    return new Builder();
  }

  /**
   * Waits until the sidecar is connected and has loaded its table. Without it the first checks
   * after the start may be {@linkplain Verdict#unavailable() unavailable}: connecting takes a cold
   * JVM longer than a check may take.
   *
   * @param timeout how long to wait at most
   * @throws ConsentException if the sidecar is not ready by then; the client may be used all the
   *     same
   */
  void ready(Duration timeout);

  /**
   * Asks whether a message may be sent, right before it is sent.
   *
   * @param question what to ask
   * @return the verdict, by the deadline: 50 ms unless the client or the question says otherwise.
   *     It is {@code CANCELLED} where the thread is interrupted, which it then stays.
   */
  Verdict maySend(Question question);

  /**
   * Asks whether a message may be sent whose form is not decided yet.
   *
   * @param user as in {@link Question#of}
   * @param business as in {@link Question#of}
   * @param category as in {@link Question#of}
   * @return the verdict, as of {@link #maySend(Question)}
   */
  default Verdict maySend(String user, String business, String category) {
    return maySend(Question.of(user, business, category));
  }

  /**
   * Asks whether a message may be sent, and does not wait. To cancel the future is possible and
   * delays no other check.
   *
   * @param question what to ask
   * @return the verdict to come, which never fails. What depends on it is run by the client's
   *     {@link Builder#executor executor}.
   */
  CompletableFuture<Verdict> maySendAsync(Question question);

  /**
   * Asks like {@link #maySend(Question)}, for who wants an error where nothing was decided. {@link
   * Verdict#orThrow} does the same for {@link #maySendAsync}.
   *
   * @param question what to ask
   * @return what the sidecar decided: allowed or denied
   * @throws ConsentException if nothing was decided
   */
  default Verdict check(Question question) {
    return maySend(question).orThrow();
  }

  /**
   * Screens the users of a campaign, with bounded memory: users are read as verdicts are taken, and
   * at most four chunks of 1,000 are under way. Screening is no check: ask {@link
   * #maySend(Question) maySend} again right before each send.
   *
   * @param users whom to screen; read by the thread that takes the verdicts
   * @param campaign what for
   * @return one verdict for each user, in order, each with {@code allowed}, a reason, the staleness
   *     and the category used alone. Users whose chunk has no answer for 5 seconds are {@linkplain
   *     Verdict#unavailable() unavailable}. Close the stream where it is not read to its end. An
   *     interrupt ends the wait for a chunk.
   */
  Stream<Screened> filter(Iterable<String> users, Campaign campaign);

  /**
   * Tells what to withdraw from a queue of messages, until it is closed. It begins with a {@link
   * Change.Reset}, or with a {@link Change.Silent} where it cannot begin for 10 seconds, and
   * connects again by itself. Where that is of no use, such as where this client may not watch, its
   * last change is a {@link Change.Silent} that {@linkplain Change.Silent#isFinal() is final}.
   *
   * @param business the business, or the empty string for all
   * @param onChange is told each change, one at a time, by a thread of the watch's own. If it
   *     throws, the watch tells {@link Change.Silent} and begins anew with a {@link Change.Reset}.
   * @return the watch, to be closed
   * @throws IllegalArgumentException if the business holds half of a surrogate pair, in whose place
   *     another business would be watched
   */
  Watch watch(String business, Consumer<? super Change> onChange);

  /**
   * Records an event, and returns once it is durable and this sidecar enforces it. It is repeated
   * while its deadline of 5 seconds allows, which its request id makes safe. After an exception the
   * event may or may not be recorded: record <em>the same</em> {@link Event} again.
   *
   * @param event what happened
   * @return what the sidecar made of it
   * @throws ConsentException if the event is not known to be recorded; {@code INVALID_ARGUMENT} if
   *     it is malformed, and never will be
   */
  Recorded record(Event event);

  /** Ends the connection, all calls and all watches. What is asked from then on is unavailable. */
  @Override
  void close();

  /** Makes clients. */
  final class Builder {
    String address;
    long deadlineNanos = Deadlines.nanos(Duration.ofMillis(50));
    Duration recordDeadline = Duration.ofSeconds(5);
    boolean coalescing = true;
    boolean tls;
    Path caFile;
    Path certFile;
    Path keyFile;
    Path tokenFile;
    CheckObserver observer;
    Executor executor = ForkJoinPool.commonPool();
    final List<ClientInterceptor> interceptors = new ArrayList<>();

    private Builder() {}

    /**
     * Sets where the sidecar is. Default: {@code CONSENTD_ADDR}, else {@code 127.0.0.1:50051}.
     *
     * @param address {@code HOST:PORT}, {@code unix:PATH}, or {@code unix:@NAME} for an abstract
     *     socket
     * @return this
     */
    public Builder address(String address) {
      this.address = Objects.requireNonNull(address, "address");
      return this;
    }

    /**
     * Sets how long the answer to a check may take. Default: 50 ms.
     *
     * @param deadline the time, more than zero
     * @return this
     * @throws IllegalArgumentException if it is not more than zero
     */
    public Builder deadline(Duration deadline) {
      this.deadlineNanos = Deadlines.nanos(Deadlines.check(deadline));
      return this;
    }

    /**
     * Sets how long recording an event may take, repetitions included. Default: 5 seconds.
     *
     * @param deadline the time, more than zero
     * @return this
     * @throws IllegalArgumentException if it is not more than zero
     */
    public Builder recordDeadline(Duration deadline) {
      this.recordDeadline = Deadlines.check(deadline);
      return this;
    }

    /**
     * Sets whether concurrent checks become batches. Default: they do.
     *
     * @param coalescing false to send each check by itself
     * @return this
     */
    public Builder coalescing(boolean coalescing) {
      this.coalescing = coalescing;
      return this;
    }

    /**
     * Connects by TLS, with the system's CA certificates unless {@link #caFile} names others. A
     * Unix socket is connected to without TLS all the same.
     *
     * @return this
     */
    public Builder tls() {
      this.tls = true;
      return this;
    }

    /**
     * Connects by TLS, and trusts these CA certificates instead of the system's. The sidecar's
     * certificate must be of the address's host. The file is read once.
     *
     * @param file certificates in PEM form
     * @return this
     */
    public Builder caFile(Path file) {
      this.caFile = Objects.requireNonNull(file, "file");
      return tls();
    }

    /**
     * Connects by TLS, with a certificate of this client's own. The files are read once.
     *
     * @param certFile the certificate and those between it and its CA, in PEM form
     * @param keyFile its private key, in PEM form and PKCS #8 ({@code BEGIN PRIVATE KEY})
     * @return this
     */
    public Builder certificate(Path certFile, Path keyFile) {
      this.certFile = Objects.requireNonNull(certFile, "certFile");
      this.keyFile = Objects.requireNonNull(keyFile, "keyFile");
      return tls();
    }

    /**
     * Sends a bearer token with the events that are recorded.
     *
     * @param file its first line that is neither blank nor begins with {@code #}, without the white
     *     space around it, is the token; read again for each event, so that it can be replaced
     * @return this
     */
    public Builder tokenFile(Path file) {
      this.tokenFile = Objects.requireNonNull(file, "file");
      return this;
    }

    /**
     * Sets the observer of checks and batches, such as for metrics.
     *
     * @param observer the observer
     * @return this
     */
    public Builder observer(CheckObserver observer) {
      this.observer = Objects.requireNonNull(observer, "observer");
      return this;
    }

    /**
     * Adds an interceptor of gRPC's, such as OpenTelemetry's. A batch is one call. Threads of the
     * network run it, so it must not block.
     *
     * @param interceptor the interceptor; the one added last is run first
     * @return this
     */
    public Builder intercept(ClientInterceptor interceptor) {
      this.interceptors.add(Objects.requireNonNull(interceptor, "interceptor"));
      return this;
    }

    /**
     * Sets what runs the functions that depend on the futures of {@link
     * ConsentClient#maySendAsync}. Default: {@link ForkJoinPool#commonPool()}.
     *
     * @param executor the executor, which stays the caller's to end
     * @return this
     */
    public Builder executor(Executor executor) {
      this.executor = Objects.requireNonNull(executor, "executor");
      return this;
    }

    /**
     * Makes the client, which connects in the background.
     *
     * @return the client
     * @throws IllegalArgumentException if the address is not valid, or a file cannot be read or used
     */
    public ConsentClient build() {
      return new GrpcConsentClient(this);
    }
  }
}
