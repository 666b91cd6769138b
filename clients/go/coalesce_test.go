package consentd

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"consentd.dev/consentd/consentv1"
)

// slowSidecar answers each request after a delay, and notes when which request came. A user named
// "deny" is denied, every other one allowed. Time is that of a synctest bubble, so that the
// tests say exactly what happens when.
type slowSidecar struct {
	consentv1.ConsentServiceClient // panics where anything else is called
	delay                          time.Duration
	// fail, where it is set, may fail a request with this many questions.
	fail func(attempt, questions int) error

	mu     sync.Mutex
	begun  time.Time
	sent   []sent
	answer func(*consentv1.CanSendRequest) *consentv1.BatchCanSendResult
}

// sent is one request that came.
type sent struct {
	at    time.Duration
	batch int // the number of its questions, or 0 for a CanSend
}

func newSlowSidecar(delay time.Duration) (*slowSidecar, *Client) {
	s := &slowSidecar{delay: delay, begun: time.Now(), answer: func(asked *consentv1.CanSendRequest) *consentv1.BatchCanSendResult {
		answer := &consentv1.CanSendResponse{Allowed: true, Reason: consentv1.Reason_REASON_OPTED_IN}
		if asked.GetUserId() == "deny" {
			answer = &consentv1.CanSendResponse{Reason: consentv1.Reason_REASON_OPTED_OUT_ALL}
		}
		return &consentv1.BatchCanSendResult{Result: &consentv1.BatchCanSendResult_Response{Response: answer}}
	}}
	client := &Client{checks: s, timeout: time.Second, closed: make(chan struct{})}
	client.coalescer = newCoalescer(client)
	return s, client
}

func (s *slowSidecar) receive(ctx context.Context, batch, questions int) error {
	s.mu.Lock()
	s.sent = append(s.sent, sent{time.Since(s.begun), batch})
	attempt := len(s.sent)
	s.mu.Unlock()
	select {
	case <-time.After(s.delay):
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
	if s.fail != nil {
		return s.fail(attempt, questions)
	}
	return nil
}

func (s *slowSidecar) CanSend(
	ctx context.Context, asked *consentv1.CanSendRequest, _ ...grpc.CallOption,
) (*consentv1.CanSendResponse, error) {
	if err := s.receive(ctx, 0, 1); err != nil {
		return nil, err
	}
	return s.answer(asked).GetResponse(), nil
}

func (s *slowSidecar) BatchCanSend(
	ctx context.Context, asked *consentv1.BatchCanSendRequest, _ ...grpc.CallOption,
) (*consentv1.BatchCanSendResponse, error) {
	if err := s.receive(ctx, len(asked.GetRequests()), len(asked.GetRequests())); err != nil {
		return nil, err
	}
	answer := new(consentv1.BatchCanSendResponse)
	for _, one := range asked.GetRequests() {
		if result := s.answer(one); result != nil {
			answer.Results = append(answer.Results, result)
		}
	}
	return answer, nil
}

// requests is what came, once nothing is under way.
func (s *slowSidecar) requests() []sent {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

func question(user string) Question {
	return Question{User: user, Business: "acme", Category: "marketing"}
}

// asked are verdicts that are being waited for.
type asked struct {
	waiting  sync.WaitGroup
	verdicts []Verdict
	took     []time.Duration
}

// ask asks all questions at once, each in a goroutine of its own.
func ask(client *Client, questions ...Question) *asked {
	a := &asked{verdicts: make([]Verdict, len(questions)), took: make([]time.Duration, len(questions))}
	for i, question := range questions {
		a.waiting.Go(func() {
			started := time.Now()
			a.verdicts[i] = client.MaySend(context.Background(), question)
			a.took[i] = time.Since(started)
		})
	}
	synctest.Wait()
	return a
}

func many(count int) []Question {
	questions := make([]Question, count)
	for i := range questions {
		questions[i] = question("someone")
	}
	return questions
}

func expectSent(t *testing.T, s *slowSidecar, expected ...sent) {
	t.Helper()
	got := s.requests()
	if len(got) != len(expected) {
		t.Fatalf("sent %v, expected %v", got, expected)
	}
	for i := range got {
		if got[i] != expected[i] {
			t.Fatalf("sent %v, expected %v", got, expected)
		}
	}
}

func expectAllowed(t *testing.T, a *asked) {
	t.Helper()
	a.waiting.Wait()
	for i, verdict := range a.verdicts {
		if !verdict.Allowed || verdict.Reason != ReasonOptedIn {
			t.Fatalf("check %d: %v: %s", i, verdict, verdict.Cause)
		}
	}
}

func TestACheckGoesAloneWhileNothingIsUnderWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sidecar, client := newSlowSidecar(time.Millisecond)
		for range 3 {
			expectAllowed(t, ask(client, question("someone")))
		}
		expectSent(t, sidecar, sent{0, 0}, sent{time.Millisecond, 0}, sent{2 * time.Millisecond, 0})
	})
}

func TestChecksAreGatheredUntilAnAnswerArrives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sidecar, client := newSlowSidecar(500 * time.Microsecond)
		first := ask(client, question("someone"))
		time.Sleep(100 * time.Microsecond)
		others := ask(client, many(5)...)
		expectAllowed(t, first)
		expectAllowed(t, others)
		expectSent(t, sidecar, sent{0, 0}, sent{500 * time.Microsecond, 5})
	})
}

func TestChecksAreGatheredForAMillisecondAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sidecar, client := newSlowSidecar(10 * time.Millisecond)
		first := ask(client, question("someone"))
		time.Sleep(100 * time.Microsecond)
		second := ask(client, question("someone"))
		time.Sleep(900 * time.Microsecond)
		third := ask(client, question("someone"))
		for _, one := range []*asked{first, second, third} {
			expectAllowed(t, one)
		}
		expectSent(t, sidecar, sent{0, 0}, sent{1100 * time.Microsecond, 2})
	})
}

func TestABatchHasAThousandChecksAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sidecar, client := newSlowSidecar(10 * time.Millisecond)
		expectAllowed(t, ask(client, many(2501)...))
		expectSent(t, sidecar,
			sent{0, 0}, sent{0, 1000}, sent{0, 1000}, sent{time.Millisecond, 500})
	})
}

func TestABatchIsSentBeforeItHasTooManyBytes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sidecar, client := newSlowSidecar(10 * time.Millisecond)
		questions := many(1000)
		for i := range questions {
			questions[i].User = strings.Repeat("x", 4000)
		}
		expectAllowed(t, ask(client, questions...))
		for _, one := range sidecar.requests() {
			if one.batch*4000 > maxBatchBytes {
				t.Fatalf("a batch of %d questions of 4,000 bytes", one.batch)
			}
		}
	})
}

func TestEachCheckHasItsOwnAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, client := newSlowSidecar(time.Millisecond)
		all := ask(client, question("someone"), question("deny"), question("someone"), question("deny"))
		all.waiting.Wait()
		for i, verdict := range all.verdicts {
			if verdict.Allowed != (i%2 == 0) || verdict.Unavailable {
				t.Errorf("check %d: %v", i, verdict)
			}
		}
	})
}

func TestALateCheckIsDeniedAtItsOwnDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, client := newSlowSidecar(20 * time.Millisecond)
		hasty := question("someone")
		hasty.Timeout = 5 * time.Millisecond
		all := ask(client, question("someone"), hasty, question("someone"))
		all.waiting.Wait()
		late := all.verdicts[1]
		if late.Allowed || !late.Unavailable || late.Code != "DEADLINE_EXCEEDED" {
			t.Errorf("the late check: %v", late)
		}
		if all.took[1] != hasty.Timeout {
			t.Errorf("the late check took %s", all.took[1])
		}
		for _, i := range []int{0, 2} {
			if !all.verdicts[i].Allowed {
				t.Errorf("check %d: %v", i, all.verdicts[i])
			}
		}
	})
}

func TestACancelledCheckLeavesTheOthersOfItsBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sidecar, client := newSlowSidecar(20 * time.Millisecond)
		first := ask(client, question("someone"))
		ctx, cancel := context.WithCancel(context.Background())
		var cancelled Verdict
		var waiting sync.WaitGroup
		waiting.Go(func() { cancelled = client.MaySend(ctx, question("someone")) })
		others := ask(client, many(3)...)
		time.Sleep(5 * time.Millisecond)
		cancel()
		waiting.Wait()
		if cancelled.Allowed || cancelled.Code != "CANCELLED" || !cancelled.Unavailable {
			t.Errorf("the cancelled check: %v", cancelled)
		}
		expectAllowed(t, first)
		expectAllowed(t, others)
		// One whose caller left before the batch was sent is not asked.
		first = ask(client, question("someone"))
		ctx, cancel = context.WithCancel(context.Background())
		waiting.Go(func() { cancelled = client.MaySend(ctx, question("someone")) })
		synctest.Wait()
		cancel()
		waiting.Wait()
		expectAllowed(t, first)
		if got := sidecar.requests(); len(got) != 3 {
			t.Errorf("sent %v", got)
		}
	})
}

func TestWhatMustGoByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sidecar, client := newSlowSidecar(5 * time.Millisecond)
		waits, large, noUTF8 := question("someone"), question(strings.Repeat("x", 5000)), question("a\xffb")
		waits.MinRevision = 1
		all := ask(client, question("someone"), waits, large, noUTF8)
		all.waiting.Wait()
		for i := range 3 {
			if !all.verdicts[i].Allowed {
				t.Errorf("check %d: %v", i, all.verdicts[i])
			}
		}
		refused := all.verdicts[3]
		if refused.Allowed || !refused.Invalid || refused.Unavailable || refused.Field != "user_id" {
			t.Errorf("text that is no UTF-8: %v", refused)
		}
		expectSent(t, sidecar, sent{0, 0}, sent{0, 0}, sent{0, 0})
	})
}

func TestWithoutCoalescingEachGoesByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sidecar, client := newSlowSidecar(5 * time.Millisecond)
		client.coalescer = nil
		expectAllowed(t, ask(client, many(3)...))
		expectSent(t, sidecar, sent{0, 0}, sent{0, 0}, sent{0, 0})
	})
}

func refusal(field string) error {
	refused, err := status.New(codes.InvalidArgument, field+": too many").WithDetails(&errdetails.BadRequest{
		FieldViolations: []*errdetails.BadRequest_FieldViolation{{Field: field, Description: "too many"}},
	})
	if err != nil {
		panic(err)
	}
	return refused.Err()
}

func TestASidecarThatTakesSmallerBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sidecar, client := newSlowSidecar(time.Millisecond)
		sidecar.fail = func(_, questions int) error {
			if questions > 100 {
				return refusal("requests")
			}
			return nil
		}
		expectAllowed(t, ask(client, many(1001)...))
		before := len(sidecar.requests())
		expectAllowed(t, ask(client, many(1001)...))
		for _, one := range sidecar.requests()[before:] {
			if one.batch > 100 {
				t.Errorf("a batch of %d, although the sidecar refused more than 100", one.batch)
			}
		}
	})
}

func TestAQuestionThatFailsItsBatchFailsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sidecar, client := newSlowSidecar(time.Millisecond)
		var poisoned int // the place of the question that no batch may have
		sidecar.fail = func(attempt, questions int) error {
			if attempt == 2 {
				poisoned = questions
			}
			if questions > 1 && poisoned > 0 {
				return refusal("something")
			}
			return nil
		}
		expectAllowed(t, ask(client, many(9)...))
		sidecar.fail = nil
		before := len(sidecar.requests())
		expectAllowed(t, ask(client, many(9)...))
		if got := sidecar.requests()[before:]; len(got) != 2 || got[1].batch != 8 {
			t.Errorf("the size of batches was lowered: %v", got)
		}
	})
}

func TestAnAnswerThatLacksAResultAllowsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sidecar, client := newSlowSidecar(time.Millisecond)
		answer := sidecar.answer
		sidecar.answer = func(asked *consentv1.CanSendRequest) *consentv1.BatchCanSendResult {
			if asked.GetUserId() == "nobody" {
				return nil
			}
			return answer(asked)
		}
		first := ask(client, question("someone"))
		batch := ask(client, question("someone"), question("nobody"), question("someone"))
		expectAllowed(t, first)
		batch.waiting.Wait()
		for i, verdict := range batch.verdicts {
			if verdict.Allowed || verdict.Code != "INTERNAL" || !verdict.Unavailable {
				t.Errorf("check %d: %v", i, verdict)
			}
		}
	})
}

func TestConnectionFailuresAreRepeated(t *testing.T) {
	for _, isCoalescing := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			sidecar, client := newSlowSidecar(0)
			if !isCoalescing {
				client.coalescer = nil
			}
			sidecar.fail = func(attempt, _ int) error {
				if attempt < 4 {
					return status.Error(codes.Unavailable, "connection refused")
				}
				return nil
			}
			expectAllowed(t, ask(client, question("someone")))
			ms := time.Millisecond
			expectSent(t, sidecar, sent{0, 0}, sent{5 * ms, 0}, sent{15 * ms, 0}, sent{35 * ms, 0})
		})
	}
}

func TestRepetitionsDoNotOutliveTheDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sidecar, client := newSlowSidecar(0)
		client.timeout = DefaultTimeout
		sidecar.fail = func(int, int) error { return status.Error(codes.Unavailable, "connection refused") }
		all := ask(client, question("someone"), question("someone"))
		all.waiting.Wait()
		for i, verdict := range all.verdicts {
			if verdict.Allowed || !verdict.Unavailable || verdict.Code != "UNAVAILABLE" {
				t.Errorf("check %d: %v", i, verdict)
			}
			if all.took[i] > DefaultTimeout {
				t.Errorf("check %d took %s", i, all.took[i])
			}
		}
	})
}

func TestAnswersOfTheSidecarAreNotRepeated(t *testing.T) {
	loading, err := status.New(codes.Unavailable, "loading").WithDetails(&errdetails.ErrorInfo{Reason: "NOT_READY"})
	if err != nil {
		t.Fatal(err)
	}
	for _, failure := range []error{
		loading.Err(),
		status.Error(codes.ResourceExhausted, "too many calls at once"),
		status.Error(codes.Internal, "a fault"),
	} {
		synctest.Test(t, func(t *testing.T) {
			sidecar, client := newSlowSidecar(0)
			sidecar.fail = func(int, int) error { return failure }
			all := ask(client, question("someone"))
			all.waiting.Wait()
			if verdict := all.verdicts[0]; verdict.Allowed || !verdict.Unavailable {
				t.Errorf("%v: %v", failure, verdict)
			}
			expectSent(t, sidecar, sent{0, 0})
		})
	}
}

func TestTheObserverIsToldOfChecksAndBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, client := newSlowSidecar(time.Millisecond)
		var mu sync.Mutex
		outcomes, batches := map[string]int{}, []int{}
		client.observer = Observer{
			Checked: func(outcome Outcome) {
				mu.Lock()
				defer mu.Unlock()
				outcomes[string(outcome.Reason)+outcome.Code]++
				if outcome.Took != time.Millisecond && outcome.Took != 2*time.Millisecond {
					t.Errorf("took %s", outcome.Took)
				}
			},
			Batched: func(size int) {
				mu.Lock()
				defer mu.Unlock()
				batches = append(batches, size)
			},
		}
		all := ask(client, question("someone"), question("deny"), question("deny"))
		all.waiting.Wait()
		if outcomes["OPTED_IN"] != 1 || outcomes["OPTED_OUT_ALL"] != 2 || len(outcomes) != 2 {
			t.Errorf("outcomes: %v", outcomes)
		}
		if len(batches) != 1 || batches[0] != 2 {
			t.Errorf("batches: %v", batches)
		}
	})
}
