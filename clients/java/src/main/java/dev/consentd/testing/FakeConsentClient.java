package dev.consentd.testing;

import dev.consentd.client.Campaign;
import dev.consentd.client.Change;
import dev.consentd.client.ConsentClient;
import dev.consentd.client.ConsentException;
import dev.consentd.client.Event;
import dev.consentd.client.Question;
import dev.consentd.client.Recorded;
import dev.consentd.client.Screened;
import dev.consentd.client.Verdict;
import dev.consentd.client.Watch;
import dev.consentd.v1.CanSendResponse;
import dev.consentd.v1.Reason;
import io.grpc.Status;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.CopyOnWriteArrayList;
import java.util.concurrent.atomic.AtomicLong;
import java.util.function.Consumer;
import java.util.function.Predicate;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;

/**
 * A client that answers by the rules that a test states, and denies all else as {@code NO_CONSENT}.
 * Of several rules that match, the one stated last counts. May be used by several threads.
 *
 * <pre>{@code
 * var consent = new FakeConsentClient().allow("15550123456", "acme", "marketing");
 * sender.sendOffers(consent);
 * }</pre>
 */
public final class FakeConsentClient implements ConsentClient {
  private final List<Rule> rules = new CopyOnWriteArrayList<>();
  private final List<Event> recorded = new CopyOnWriteArrayList<>();
  private final Map<Watch, Listener> watches = new ConcurrentHashMap<>();
  private final AtomicLong revision = new AtomicLong();

  private record Rule(Predicate<Question> matches, Verdict verdict) {}

  private record Listener(String business, Consumer<? super Change> onChange) {}

  /** Makes a client without rules: it denies everything. */
  public FakeConsentClient() {}

  /**
   * Allows messages of exactly this category to a user, as {@code OPTED_IN}.
   *
   * @param user the user, exactly as it will be asked about
   * @param business the business
   * @param category the category
   * @return this
   */
  public FakeConsentClient allow(String user, String business, String category) {
    return answer(about(user, business, category), allowed(Reason.REASON_OPTED_IN));
  }

  /**
   * Denies messages of exactly this category to a user.
   *
   * @param user the user, exactly as it will be asked about
   * @param business the business
   * @param category the category
   * @param reason why, such as {@link Reason#REASON_OPTED_OUT}
   * @return this
   */
  public FakeConsentClient deny(String user, String business, String category, Reason reason) {
    return answer(about(user, business, category), denied(reason));
  }

  /**
   * Answers nothing from now on, as if there were no sidecar: every verdict is unavailable until a
   * rule is added.
   *
   * @return this
   */
  public FakeConsentClient unavailable() {
    return answer(
        question -> true, Verdict.undecided(Status.Code.UNAVAILABLE, "there is no sidecar", ""));
  }

  /**
   * Answers the questions that a predicate takes.
   *
   * @param matches which questions
   * @param verdict the answer, such as {@link #allowed}, {@link #denied} or {@link
   *     Verdict#undecided}
   * @return this
   */
  public FakeConsentClient answer(Predicate<Question> matches, Verdict verdict) {
    rules.add(0, new Rule(matches, verdict));
    return this;
  }

  /**
   * Makes a verdict that allows.
   *
   * @param reason why, such as {@link Reason#REASON_WINDOW_OPEN}
   * @return the verdict
   */
  public static Verdict allowed(Reason reason) {
    return Verdict.of(CanSendResponse.newBuilder().setAllowed(true).setReason(reason).build());
  }

  /**
   * Makes a verdict that denies.
   *
   * @param reason why, such as {@link Reason#REASON_STALE}
   * @return the verdict
   */
  public static Verdict denied(Reason reason) {
    return Verdict.of(CanSendResponse.newBuilder().setReason(reason).build());
  }

  private static Predicate<Question> about(String user, String business, String category) {
    return question ->
        user.equals(question.user())
            && business.equals(question.business())
            && category.equals(question.category());
  }

  /**
   * Returns the events that were recorded. They do not change the answers.
   *
   * @return the events, oldest first
   */
  public List<Event> recorded() {
    return List.copyOf(recorded);
  }

  /**
   * Tells a change to the watches that are open, in this thread: {@link Change.Changed} and {@link
   * Change.TemplateChanged} to those of its business and of all, others to every one.
   *
   * @param change the change
   */
  public void tell(Change change) {
    Optional<String> business =
        change instanceof Change.Changed changed
            ? Optional.of(changed.business())
            : change instanceof Change.TemplateChanged changed
                ? Optional.of(changed.business())
                : Optional.empty();
    for (Listener listener : watches.values()) {
      if (business.isEmpty()
          || listener.business().isEmpty()
          || listener.business().equals(business.get())) {
        listener.onChange().accept(change);
      }
    }
  }

  /** Returns at once. */
  @Override
  public void ready(Duration timeout) {}

  @Override
  public Verdict maySend(Question question) {
    return rules.stream()
        .filter(rule -> rule.matches().test(question))
        .findFirst()
        .map(Rule::verdict)
        .orElseGet(() -> denied(Reason.REASON_NO_CONSENT));
  }

  @Override
  public CompletableFuture<Verdict> maySendAsync(Question question) {
    return CompletableFuture.completedFuture(maySend(question));
  }

  @Override
  public Stream<Screened> filter(Iterable<String> users, Campaign campaign) {
    return StreamSupport.stream(users.spliterator(), false)
        .map(
            user -> {
              var question = Question.of(user, campaign.business(), campaign.category());
              question = question.withForm(campaign.form());
              if (campaign.template().isPresent()) {
                question = question.withTemplate(campaign.template().get());
              }
              return new Screened(user, maySend(question));
            });
  }

  /** Tells a reset at once, in this thread, and then what {@link #tell} is given. */
  @Override
  public Watch watch(String business, Consumer<? super Change> onChange) {
    var watch =
        new Watch() {
          @Override
          public void close() {
            watches.remove(this);
          }
        };
    onChange.accept(new Change.Reset());
    watches.put(watch, new Listener(business, onChange));
    return watch;
  }

  /**
   * Keeps the event for {@link #recorded()}.
   *
   * @throws ConsentException never
   */
  @Override
  public Recorded record(Event event) {
    recorded.add(event);
    return new Recorded(revision.incrementAndGet(), true, "", "", "", "");
  }

  /** Ends all watches. */
  @Override
  public void close() {
    watches.clear();
  }
}
