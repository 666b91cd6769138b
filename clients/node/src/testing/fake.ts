import type { CheckOptions, ConsentClient, ReadyOptions, Recorded, RecordOptions } from '../client';
import type { Screened } from '../filter';
import { ConsentEvent } from '../gen/consent/v1/consent';
import { requestOf, type Message, type Question } from '../question';
import { ConsentError, failure } from '../status';
import { denied, undecided, type ReasonName, type Verdict } from '../verdict';
import type { Change, ChangeListener } from '../watch';

/** Which questions a rule answers: those with all that it names. */
export type Rule = Partial<Pick<Question, 'user' | 'business' | 'category' | 'form' | 'template'>>;

/** What a rule answers. */
export type Answer = Partial<Omit<Verdict, 'allowed' | 'reason' | 'unavailable' | 'invalid'>>;

const CANCELLED = failure('CANCELLED', 'the caller cancelled the call');

/**
 * A client that answers by rules, and denies all else as `NO_CONSENT`. The rule that was stated last wins.
 * It refuses malformed strings as the real one does, and knows nothing of categories or of the ledger's rules.
 */
export class FakeClient implements ConsentClient {
  /** The questions of all checks, in order. */
  readonly asked: Question[] = [];
  /** The events that were recorded, in order. */
  readonly recorded: ConsentEvent[] = [];
  private readonly rules: { rule: Rule; verdict: Verdict }[] = [];
  private readonly listeners = new Set<{ business: string; tell: ChangeListener }>();
  private readonly answers = new Map<string, Recorded>();
  private recordError: ConsentError | undefined;

  /** Allows what the rule names. */
  allow(rule: Rule = {}, reason: ReasonName = 'OPTED_IN', answer: Answer = {}): this {
    return this.state(rule, { ...denied(reason), ...answer, allowed: true });
  }

  /** Denies what the rule names. */
  deny(rule: Rule = {}, reason: ReasonName = 'OPTED_OUT_ALL', answer: Answer = {}): this {
    return this.state(rule, { ...denied(reason), ...answer });
  }

  /** Gives no answer to what the rule names. */
  unavailable(rule: Rule = {}, code = 'UNAVAILABLE', cause = 'no sidecar'): this {
    return this.state(rule, undecided(failure(code, cause)));
  }

  /** Refuses to record from now on, or, without a code, takes events again. */
  failRecording(code?: string, cause = 'the ledger failed'): this {
    this.recordError = code === undefined ? undefined : new ConsentError({ ...failure(code, cause) });
    return this;
  }

  /** Tells the watches of its business, or all of them, of a change. */
  change(change: Change): void {
    for (const { business, tell } of [...this.listeners]) {
      if (!('business' in change) || !business || change.business === business) tell(change);
    }
  }

  async ready(options: ReadyOptions = {}): Promise<void> {
    if (options.signal?.aborted) throw new ConsentError(CANCELLED);
  }

  async maySend(question: Question, options?: CheckOptions): Promise<boolean> {
    return (await this.verdict(question, options)).allowed;
  }

  async verdict(question: Question, options?: CheckOptions): Promise<Verdict> {
    const request = requestOf(question);
    if ('code' in request) return undecided(request);
    this.asked.push(question);
    if (options?.signal?.aborted) return undecided(CANCELLED);
    return this.answerTo(question);
  }

  async check(question: Question, options?: CheckOptions): Promise<Verdict> {
    const verdict = await this.verdict(question, options);
    const { code, cause, violations } = verdict;
    if (code) throw new ConsentError({ code, details: cause, violations });
    return verdict;
  }

  async *filter(
    users: Iterable<string> | AsyncIterable<string>,
    message: Message,
    options: { signal?: AbortSignal | undefined } = {},
  ): AsyncGenerator<Screened, void, undefined> {
    for await (const user of users) {
      const request = requestOf({ ...message, user });
      if ('code' in request) yield { user, verdict: undecided(request) };
      else if (options.signal?.aborted) yield { user, verdict: undecided(CANCELLED) };
      else yield { user, verdict: this.answerTo({ ...message, user }) };
    }
  }

  watch(business: string, onChange: ChangeListener): { close(): void } {
    const listener = { business, tell: onChange };
    this.listeners.add(listener);
    queueMicrotask(() => {
      if (this.listeners.has(listener)) onChange({ type: 'reset' });
    });
    return { close: () => void this.listeners.delete(listener) };
  }

  async record(event: ConsentEvent, options: RecordOptions = {}): Promise<Recorded> {
    if (options.signal?.aborted) throw new ConsentError(CANCELLED);
    if (this.recordError) throw this.recordError;
    const before = options.requestId === undefined ? undefined : this.answers.get(options.requestId);
    if (before) return before;
    this.recorded.push(event);
    const answer: Recorded = {
      revision: BigInt(this.recorded.length),
      applied: true,
      optedOutScope: '',
      optedInCategory: '',
      matchedKeyword: '',
      keywordLocale: '',
    };
    if (options.requestId !== undefined) this.answers.set(options.requestId, answer);
    return answer;
  }

  close(): void {
    this.listeners.clear();
  }

  private state(rule: Rule, verdict: Verdict): this {
    this.rules.unshift({ rule, verdict });
    return this;
  }

  private answerTo(question: Question): Verdict {
    return this.rules.find(({ rule }) => names(rule, question))?.verdict ?? denied('NO_CONSENT');
  }
}

function names(rule: Rule, question: Question): boolean {
  const { template, ...plain } = rule;
  return (
    Object.entries(plain).every(
      ([key, value]) => value === undefined || question[key as keyof Question] === value,
    ) &&
    (!template ||
      (template.name === question.template?.name &&
        template.language === question.template?.language))
  );
}
