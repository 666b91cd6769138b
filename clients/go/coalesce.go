package consentd

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"consentd.dev/consentd/consentv1"
)

const (
	// maxBatch is the most checks of a batch: as many as a sidecar takes by default.
	maxBatch = 1000
	// maxBatchBytes is the most bytes of a batch's texts. A sidecar takes 2 MiB with all else that
	// is in a message.
	maxBatchBytes = 1 << 20
	// gatherTime is how long checks are gathered at most, from the first of them.
	gatherTime = time.Millisecond
)

// coalescer makes batches of concurrent checks. A check that comes while nothing is under way is sent
// at once, by its own goroutine. One that comes while something is under way is gathered, and goes
// with the others as soon as anything is answered, or enough are gathered, or gatherTime is over.
type coalescer struct {
	client *Client
	calls  sync.Pool // of *gatheredCall

	mu       sync.Mutex
	underWay int // requests that are sent and not answered
	gathered []*gatheredCall
	bytes    int // of the texts of gathered
	limit    int // checks of a batch: less than maxBatch once a sidecar refused so many
	timer    *time.Timer
}

// gatheredCall is a check that waits for the answer of its batch.
type gatheredCall struct {
	question Question
	deadline time.Time
	verdict  Verdict
	// The caller and the batch agree by it on who was first: the caller's deadline or the answer.
	state atomic.Int32
	done  chan struct{} // has room for the one value that says that verdict is there
	timer *time.Timer   // of the caller's deadline
}

// The states of a gatheredCall.
const (
	waiting int32 = iota
	answered
	abandoned
)

func newCoalescer(client *Client) *coalescer {
	c := &coalescer{client: client, limit: maxBatch}
	c.calls.New = func() any {
		timer := time.NewTimer(time.Hour)
		timer.Stop()
		return &gatheredCall{done: make(chan struct{}, 1), timer: timer}
	}
	c.timer = time.AfterFunc(time.Hour, c.flush)
	c.timer.Stop()
	return c
}

// ask asks a question, alone or in a batch.
func (c *coalescer) ask(ctx context.Context, question *Question, deadline time.Time) Verdict {
	c.mu.Lock()
	if c.underWay == 0 && len(c.gathered) == 0 {
		c.underWay++
		c.mu.Unlock()
		// Deferred, so that a panic of an interceptor leaves no request that is under way for ever.
		defer c.finished()
		return c.client.askAlone(ctx, question, deadline)
	}
	call := c.calls.Get().(*gatheredCall)
	call.question, call.deadline = *question, deadline
	call.state.Store(waiting)
	c.gathered = append(c.gathered, call)
	c.bytes += question.textBytes()
	switch {
	case len(c.gathered) >= c.limit || c.bytes > maxBatchBytes-maxCoalescedBytes:
		c.sendGathered()
	case len(c.gathered) == 1:
		c.timer.Reset(gatherTime)
	}
	c.mu.Unlock()
	return c.wait(ctx, call)
}

// wait waits for the answer of a gathered call, for its deadline, or for the end of the context.
func (c *coalescer) wait(ctx context.Context, call *gatheredCall) Verdict {
	call.timer.Reset(time.Until(call.deadline))
	var given error
	select {
	case <-call.done:
	case <-ctx.Done():
		given = ctx.Err()
	case <-call.timer.C:
		given = context.DeadlineExceeded
	}
	call.timer.Stop()
	if given != nil {
		if call.state.CompareAndSwap(waiting, abandoned) {
			return verdictOfError(given) // The batch still refers to the call: it is not used again.
		}
		<-call.done
	}
	verdict := call.verdict
	c.calls.Put(call)
	return verdict
}

// flush sends what is gathered.
func (c *coalescer) flush() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sendGathered()
}

// finished notes that a request was answered, and sends what was gathered meanwhile.
func (c *coalescer) finished() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.underWay--
	c.sendGathered()
}

// sendGathered sends what is gathered, if anything is. The lock is held.
func (c *coalescer) sendGathered() {
	if len(c.gathered) == 0 {
		return
	}
	calls := c.gathered
	c.gathered, c.bytes = nil, 0
	c.timer.Stop()
	c.underWay++
	go c.send(calls)
}

// send gives each call its answer.
func (c *coalescer) send(calls []*gatheredCall) {
	defer c.finished()
	limit := c.currentLimit()
	for len(calls) > limit {
		c.askTogether(calls[:limit])
		calls = calls[limit:]
	}
	c.askTogether(calls)
	// The callers that were just answered may ask again at once. They run before the next batch is
	// sent, and so become part of it: with 64 callers on one core that costs a third less CPU.
	runtime.Gosched()
}

// askTogether asks by BatchCanSend. Where the sidecar refuses the batch as a whole, its halves are
// asked, so that at last each question has its own answer.
func (c *coalescer) askTogether(calls []*gatheredCall) {
	calls, latest := stillWaiting(calls)
	if len(calls) == 0 {
		return
	}
	ctx, cancel := context.WithDeadline(context.Background(), latest)
	defer cancel()
	answer, err := c.batchCanSend(ctx, calls)
	switch failure := errorOf(err); {
	case err == nil && len(answer.GetResults()) == len(calls):
		for i, result := range answer.GetResults() {
			call := calls[i]
			call.answer(verdictOfResult(result))
		}
	case err == nil:
		// Answers are matched to questions by their order: nothing can be said about any of them.
		answerAll(calls, undecided("INTERNAL", "the batch has not one result for each question", ""))
	case len(calls) > 1 && undecided(failure.Code, "", "").Invalid:
		half := len(calls) / 2
		if len(failure.Fields) > 0 && failure.Fields[0].Field == "requests" {
			c.lowerLimit(half)
		}
		c.askTogether(calls[:half])
		c.askTogether(calls[half:])
	default:
		answerAll(calls, verdictOfError(failure))
	}
}

// batchCanSend asks for one batch, and again where the connection fails.
func (c *coalescer) batchCanSend(
	ctx context.Context, calls []*gatheredCall,
) (answer *consentv1.BatchCanSendResponse, err error) {
	// One allocation for all questions, instead of one for each.
	questions := make([]consentv1.CanSendRequest, len(calls))
	request := &consentv1.BatchCanSendRequest{Requests: make([]*consentv1.CanSendRequest, len(calls))}
	for i, call := range calls {
		call.question.fill(&questions[i])
		request.Requests[i] = &questions[i]
	}
	if batched := c.client.observer.Batched; batched != nil {
		batched(len(calls))
	}
	err = c.client.repeat(ctx, isConnectionFailure, func() (err error) {
		answer, err = c.client.checks.BatchCanSend(ctx, request)
		return err
	})
	return answer, err
}

// stillWaiting leaves out the calls whose callers wait no longer, and returns the latest deadline of
// the rest.
func stillWaiting(calls []*gatheredCall) (rest []*gatheredCall, latest time.Time) {
	rest = calls[:0]
	for _, call := range calls {
		if call.state.Load() == waiting {
			rest = append(rest, call)
			if call.deadline.After(latest) {
				latest = call.deadline
			}
		}
	}
	return rest, latest
}

func answerAll(calls []*gatheredCall, verdict Verdict) {
	for _, call := range calls {
		call.answer(verdict)
	}
}

// answer gives the caller its verdict, unless the caller waits no longer.
func (call *gatheredCall) answer(verdict Verdict) {
	// Written before the state says so: the caller reads it only behind a value of done.
	call.verdict = verdict
	if call.state.CompareAndSwap(waiting, answered) {
		call.done <- struct{}{}
	}
}

func (c *coalescer) currentLimit() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.limit
}

func (c *coalescer) lowerLimit(limit int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.limit = min(c.limit, limit)
}
