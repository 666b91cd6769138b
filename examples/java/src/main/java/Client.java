import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import consent.v1.Consent.ConsentEvent;
import consent.v1.Consent.Evidence;
import consent.v1.Consent.InboundMessage;
import consent.v1.Consent.MessageForm;
import consent.v1.Consent.OptIn;
import consent.v1.Consent.OptInMethod;
import consent.v1.ConsentServiceGrpc;
import consent.v1.ConsentServiceGrpc.ConsentServiceBlockingStub;
import consent.v1.ConsentServiceOuterClass.BatchCanSendRequest;
import consent.v1.ConsentServiceOuterClass.BatchCanSendResult;
import consent.v1.ConsentServiceOuterClass.CanSendRequest;
import consent.v1.ConsentServiceOuterClass.CanSendResponse;
import consent.v1.RecordServiceGrpc;
import consent.v1.RecordServiceGrpc.RecordServiceBlockingStub;
import consent.v1.RecordServiceOuterClass.RecordEventRequest;
import consent.v1.RecordServiceOuterClass.RecordEventResponse;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import java.time.Duration;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.UUID;

/**
 * A client of consentd: records, checks with a deadline, and does not send on error.
 *
 * <p>Usage: Client ADDRESS [DEADLINE_MS]; ADDRESS is HOST:PORT, unix:PATH or unix:@NAME.
 */
public final class Client implements AutoCloseable {
  /** A check is answered from memory: one that takes longer has gone wrong. */
  private static final Duration CHECK_DEADLINE = Duration.ofMillis(250);

  /** An event is acknowledged once it is on the disk. */
  private static final Duration RECORD_DEADLINE = Duration.ofSeconds(5);

  /** The one channel of a process: it is thread-safe, and connects again by itself. */
  private final ManagedChannel channel;

  private final ConsentServiceBlockingStub checks;
  private final RecordServiceBlockingStub records;
  private final Duration deadline;

  public Client(String address, Duration deadline) {
    // An abstract socket's name begins with a zero byte. Channel credentials, unlike usePlaintext(),
    // let gRPC choose the transport by the address, on Linux that of Unix sockets too.
    String target = address.replaceFirst("^unix:@", "unix:%00");
    var builder = Grpc.newChannelBuilder(target, InsecureChannelCredentials.create());
    if (address.startsWith("unix:")) {
      // gRPC would send the socket's path as the authority, which HTTP/2 servers refuse.
      builder.overrideAuthority("localhost");
    }
    this.channel = builder.build();
    this.checks = ConsentServiceGrpc.newBlockingStub(channel);
    this.records = RecordServiceGrpc.newBlockingStub(channel);
    this.deadline = deadline;
  }

  @Override
  public void close() {
    channel.shutdownNow();
  }

  /** Whether to send, and why. */
  public record Verdict(boolean send, String why) {
    static Verdict of(CanSendResponse answer) {
      // A newer server may have reasons that this client does not know: `allowed` decides.
      return new Verdict(answer.getAllowed(), answer.getReason().name().replace("REASON_", ""));
    }

    static Verdict of(BatchCanSendResult result) {
      if (result.hasResponse()) {
        return of(result.getResponse());
      }
      var error = result.getError();
      return new Verdict(false, error.getField() + ": " + error.getMessage());
    }

    @Override
    public String toString() {
      return (send ? "send: " : "do not send: ") + why;
    }
  }

  /** To be called right before each send. */
  public Verdict maySend(CanSendRequest question) {
    return maySend(question, deadline);
  }

  private Verdict maySend(CanSendRequest question, Duration deadline) {
    try {
      return Verdict.of(checks.withDeadlineAfter(deadline).canSend(question));
    } catch (StatusRuntimeException e) {
      return noAnswer(e);
    }
  }

  /** The same for many at once; a malformed one has its own error and does not stop the others. */
  public List<Verdict> maySendEach(List<CanSendRequest> questions) {
    var batch = BatchCanSendRequest.newBuilder().addAllRequests(questions).build();
    try {
      var answers = checks.withDeadlineAfter(deadline).batchCanSend(batch);
      return answers.getResultsList().stream().map(Verdict::of).toList();
    } catch (StatusRuntimeException e) {
      return Collections.nCopies(questions.size(), noAnswer(e));
    }
  }

  /** An error, a timeout or no sidecar means: do not send. Keep the message, and ask again. */
  private Verdict noAnswer(StatusRuntimeException e) {
    channel.resetConnectBackoff(); // Else up to two minutes go by after an outage.
    return new Verdict(false, "no answer (" + e.getStatus().getCode() + ")");
  }

  /** Records an event. After an error call it again: the same request id makes that safe. */
  public RecordEventResponse record(String requestId, ConsentEvent event) {
    var request = RecordEventRequest.newBuilder().setEvent(event).setRequestId(requestId).build();
    return records.withDeadlineAfter(RECORD_DEADLINE).recordEvent(request);
  }

  /** What was wrong with each field, from the details of an INVALID_ARGUMENT. */
  static List<String> violations(StatusRuntimeException e) throws InvalidProtocolBufferException {
    var found = new ArrayList<String>();
    for (Any detail : StatusProto.fromThrowable(e).getDetailsList()) {
      if (detail.is(BadRequest.class)) {
        for (var one : detail.unpack(BadRequest.class).getFieldViolationsList()) {
          found.add(one.getField() + ": " + one.getDescription());
        }
      }
    }
    return found;
  }

  private static CanSendRequest question(String user, String category, long minRevision) {
    return CanSendRequest.newBuilder()
        .setUserId(user)
        .setBusinessId("acme")
        .setCategory(category)
        .setForm(MessageForm.MESSAGE_FORM_TEMPLATE)
        .setMinRevision(minRevision)
        .build();
  }

  private static ConsentEvent optIn(String user, String category, String statement) {
    var evidence =
        Evidence.newBuilder()
            .setMethod(OptInMethod.OPT_IN_METHOD_WEBSITE)
            .setStatement(statement)
            .setBusinessName("Acme")
            .setLocale("en");
    var given = OptIn.newBuilder().setCategory(category).setEvidence(evidence);
    return ConsentEvent.newBuilder().setUserId(user).setBusinessId("acme").setOptIn(given).build();
  }

  private static ConsentEvent inbound(String user, String text) {
    var said = InboundMessage.newBuilder().setText(text);
    return ConsentEvent.newBuilder()
        .setUserId(user)
        .setBusinessId("acme")
        .setInboundMessage(said)
        .build();
  }

  private void converse() throws InvalidProtocolBufferException {
    String user = "example-" + UUID.randomUUID(); // A phone number in any notation, or your own id.

    var agreed = optIn(user, "marketing", "Yes, send me offers from Acme on WhatsApp");
    var recorded = record("signup-" + user, agreed);
    System.out.println("opt-in recorded");
    // Whichever sidecar is asked, it answers once it knows of what was just recorded.
    var offer = question(user, "marketing", recorded.getRevision());
    System.out.println("marketing: " + maySend(offer));

    recorded = record("message-" + user, inbound(user, "STOP"));
    System.out.println("STOP recorded: opted out of " + recorded.getOptedOutScope());
    offer = question(user, "marketing", recorded.getRevision());
    System.out.println("marketing: " + maySend(offer));

    var categories = List.of("marketing", "newsletter", "utility.order_updates");
    var verdicts = maySendEach(categories.stream().map(name -> question(user, name, 0)).toList());
    for (int i = 0; i < verdicts.size(); i++) {
      System.out.println("in a batch, " + categories.get(i) + ": " + verdicts.get(i));
    }

    try {
      record("second-" + user, optIn(user, "newsletter", "Yes, send me offers"));
    } catch (StatusRuntimeException e) {
      System.out.println("opt-in refused: " + e.getStatus().getCode());
      violations(e).forEach(violation -> System.out.println("  " + violation));
    }

    var notYet = question(user, "marketing", recorded.getRevision() + 1_000_000);
    System.out.println("not known in time: " + maySend(notYet, Duration.ofMillis(50)));
  }

  public static void main(String[] args) throws InvalidProtocolBufferException {
    if (args.length < 1 || args.length > 2) {
      System.err.println("usage: Client ADDRESS [DEADLINE_MS]");
      System.exit(2);
    }
    String address = args[0];
    var deadline = args.length == 2 ? Duration.ofMillis(Long.parseLong(args[1])) : CHECK_DEADLINE;
    try (var client = new Client(address, deadline)) {
      client.converse();
    }
    String nowhere = address.startsWith("unix:") ? address + ".nobody" : "127.0.0.1:1";
    try (var client = new Client(nowhere, deadline)) {
      System.out.println("no sidecar: " + client.maySend(question("example", "marketing", 0)));
    }
  }
}
