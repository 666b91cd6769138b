package dev.consentd.client;

import dev.consentd.v1.CanSendResponse;
import dev.consentd.v1.ConsentServiceGrpc;
import dev.consentd.v1.FilterRecipientsRequest;
import dev.consentd.v1.FilterRecipientsResponse;
import io.grpc.CallOptions;
import io.grpc.Channel;
import io.grpc.ClientCall;
import io.grpc.Metadata;
import io.grpc.Status;
import java.util.ArrayDeque;
import java.util.ArrayList;
import java.util.Collections;
import java.util.Iterator;
import java.util.List;
import java.util.NoSuchElementException;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

/**
 * The verdicts on a campaign's users. The thread that takes them does all the work; the network's
 * threads only put answers into the queue of a call.
 */
final class Screening implements Iterator<Screened>, AutoCloseable {
  private static final int MAX_CHUNKS = 4;
  private static final int MAX_CHUNK = 1_000;

  /** An id with more characters than this is malformed whatever it says: 160 bytes are allowed. */
  private static final int MAX_ID = 1_000;

  private static final long DEADLINE_NANOS = TimeUnit.SECONDS.toNanos(5);
  private static final long FIRST_PAUSE_NANOS = TimeUnit.MILLISECONDS.toNanos(5);
  private static final long MAX_PAUSE_NANOS = TimeUnit.SECONDS.toNanos(1);

  private final Channel channel;
  private final Iterator<String> users;
  private final Campaign campaign;

  /** Why nothing can be asked about the campaign, or null. */
  private final Failure malformed;

  private final CountDownLatch clientEnded;
  private final ArrayDeque<Chunk> underWay = new ArrayDeque<>();
  private Iterator<Screened> screened = Collections.emptyIterator();
  private int maxChunk = MAX_CHUNK;

  /** The call on which the chunks under way are asked, or null. */
  private Call call;

  /** Makes one that goes on until the client has ended. */
  Screening(
      Channel channel, Iterator<String> users, Campaign campaign, CountDownLatch clientEnded) {
    this.channel = channel;
    this.users = users;
    this.campaign = campaign;
    this.malformed = campaign.malformed();
    this.clientEnded = clientEnded;
  }

  @Override
  public boolean hasNext() {
    while (!screened.hasNext()) {
      askMore();
      if (underWay.isEmpty()) {
        close();
        return false;
      }
      List<Verdict> verdicts = verdictsOnFirst();
      screened = underWay.remove().screened(verdicts);
    }
    return true;
  }

  @Override
  public Screened next() {
    if (!hasNext()) {
      throw new NoSuchElementException();
    }
    return screened.next();
  }

  @Override
  public void close() {
    if (call != null) {
      call.cancel();
      call = null;
    }
  }

  private void askMore() {
    while (underWay.size() < MAX_CHUNKS && users.hasNext()) {
      var chunk = new Chunk(users, maxChunk);
      underWay.add(chunk);
      if (call != null) {
        call.ask(chunk);
      }
    }
  }

  /** Waits for the verdicts on the first chunk, and asks again where a call ends without them. */
  private List<Verdict> verdictsOnFirst() {
    Chunk first = underWay.element();
    long pause = FIRST_PAUSE_NANOS;
    try {
      if (call != null && call.answers.peek() instanceof Failure) {
        // It ended before anybody waited, perhaps long ago: the time starts again.
        underWay.forEach(Chunk::restartTime);
      }
      for (; ; ) {
        if (clientEnded.getCount() == 0) {
          return none(GrpcConsentClient.CLOSED);
        }
        if (malformed != null) {
          return none(malformed);
        }
        if (call == null) {
          call = new Call();
          underWay.forEach(call::ask);
        }
        long left = first.deadline - System.nanoTime();
        Object answer = call.answers.poll(Math.max(0, left), TimeUnit.NANOSECONDS);
        if (answer instanceof FilterRecipientsResponse response) {
          if (response.getReasonsCount() == first.users.size()) {
            return response.getReasonsValueList().stream()
                .map(reason -> verdict(response, reason))
                .toList();
          }
          return none(Failure.of(Status.Code.INTERNAL, "an answer is not as long as its question"));
        }
        if (answer == null) {
          return none(Failure.of(Status.Code.DEADLINE_EXCEEDED, "no answer for 5 seconds"));
        }
        call = null;
        if (clientEnded.getCount() == 0) {
          return none(GrpcConsentClient.CLOSED); // It ended the call, too.
        }
        Failure failure = (Failure) answer;
        if (failure.isOf("user_ids") && first.users.size() > 1) {
          halveChunks(first.users.size());
          first = underWay.element();
          continue;
        }
        if (!failure.mayPass() || first.deadline - System.nanoTime() <= pause) {
          return none(failure);
        }
        clientEnded.await(pause, TimeUnit.NANOSECONDS);
        pause = Math.min(2 * pause, MAX_PAUSE_NANOS);
      }
    } catch (InterruptedException e) {
      Thread.currentThread().interrupt();
      return none(Failure.of(Status.Code.CANCELLED, "the thread was interrupted"));
    }
  }

  /** Asks by smaller messages: the sidecar takes fewer users in one than that. */
  private void halveChunks(int refused) {
    maxChunk = Math.min(maxChunk, refused / 2);
    var refusedUsers = underWay.stream().flatMap(chunk -> chunk.users.stream()).toList().iterator();
    underWay.clear();
    while (refusedUsers.hasNext()) {
      underWay.add(new Chunk(refusedUsers, maxChunk));
    }
  }

  /** Returns the same verdict for each user of the first chunk, whose answer is not waited for. */
  private List<Verdict> none(Failure failure) {
    close();
    return Collections.nCopies(underWay.element().users.size(), failure.verdict());
  }

  private static Verdict verdict(FilterRecipientsResponse response, int reason) {
    if (reason == 0) {
      return Verdict.invalid("user_id", "is malformed; ask about this user alone to learn why");
    }
    var decided =
        CanSendResponse.newBuilder()
            // The contract has it that these reasons allow, and that no other ever will.
            .setAllowed(1 <= reason && reason <= 9)
            .setReasonValue(reason)
            .setCategoryUsed(response.getCategoryUsed());
    if (response.hasStaleness()) {
      decided.setStaleness(response.getStaleness());
    }
    return Verdict.of(decided.build());
  }

  /** Users that are asked about by one message. */
  private static final class Chunk {
    final List<String> users = new ArrayList<>();
    long deadline;

    Chunk(Iterator<String> from, int size) {
      while (users.size() < size && from.hasNext()) {
        users.add(from.next());
      }
      restartTime();
    }

    void restartTime() {
      deadline = System.nanoTime() + DEADLINE_NANOS;
    }

    Iterator<Screened> screened(List<Verdict> verdicts) {
      var verdict = verdicts.iterator();
      return users.stream().map(user -> new Screened(user, verdict.next())).iterator();
    }
  }

  /** A call, and its answers in the order of the chunks asked; what it failed with is the last. */
  private final class Call extends ClientCall.Listener<FilterRecipientsResponse> {
    final BlockingQueue<Object> answers = new LinkedBlockingQueue<>();
    private final ClientCall<FilterRecipientsRequest, FilterRecipientsResponse> call =
        channel.newCall(ConsentServiceGrpc.getFilterRecipientsMethod(), CallOptions.DEFAULT);

    Call() {
      call.start(this, new Metadata());
      call.request(MAX_CHUNKS);
    }

    void ask(Chunk chunk) {
      var request =
          FilterRecipientsRequest.newBuilder()
              .setBusinessId(campaign.business())
              .setCategory(campaign.category())
              .setForm(campaign.form().proto());
      campaign.template().ifPresent(template -> request.setTemplate(template.proto()));
      for (String user : chunk.users) {
        // The empty id is malformed, too, and does no harm to the others of the chunk.
        boolean sendable = Text.isSendable(user) && user.length() <= MAX_ID;
        request.addUserIds(sendable ? user : "");
      }
      call.sendMessage(request.build());
    }

    void cancel() {
      call.cancel("the screening ended", null);
    }

    @Override
    public void onMessage(FilterRecipientsResponse response) {
      answers.add(response);
      call.request(1);
    }

    @Override
    public void onClose(Status status, Metadata trailers) {
      // The sidecar ends no call that it was not asked to end, but with an error.
      Status error = status.isOk() ? Status.UNAVAILABLE.withDescription("the call ended") : status;
      answers.add(Failure.of(error, trailers));
    }
  }
}
