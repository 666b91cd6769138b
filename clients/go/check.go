package consentd

import (
	"context"
	"time"

	"consentd.dev/consentd/consentv1"
)

// maxCoalescedBytes is the largest question that goes in a batch with others. A larger one, which is
// surely malformed, must not use up the bytes that a batch may have.
const maxCoalescedBytes = 4 << 10

// MaySend asks whether a message may be sent now. Call it right before each send. It returns within
// the timeout, and whatever goes wrong denies; see [Verdict].
//
// A check changes nothing, so it is repeated, as long as its timeout allows, where the connection
// fails. The context's deadline and its cancellation are obeyed, and end no other check.
func (c *Client) MaySend(ctx context.Context, question Question) Verdict {
	started := time.Now()
	verdict := c.ask(ctx, &question, started)
	if c.observer.Checked != nil {
		c.observer.Checked(Outcome{
			Allowed: verdict.Allowed,
			Reason:  verdict.Reason,
			Code:    verdict.Code,
			Took:    time.Since(started),
		})
	}
	return verdict
}

// Check asks as [Client.MaySend] does, and returns an [*Error] where the sidecar did not decide:
// the verdict then denies. A denial is no error.
func (c *Client) Check(ctx context.Context, question Question) (Verdict, error) {
	verdict := c.MaySend(ctx, question)
	if verdict.Code == "" {
		return verdict, nil
	}
	failure := &Error{Code: verdict.Code, Cause: verdict.Cause}
	if verdict.Field != "" {
		failure.Fields = []FieldError{{Field: verdict.Field, Description: verdict.Cause}}
	}
	return verdict, failure
}

func (c *Client) ask(ctx context.Context, question *Question, started time.Time) Verdict {
	if field := question.malformedField(); field != "" {
		return undecided("INVALID_ARGUMENT", field+": is not UTF-8", field)
	}
	timeout := question.Timeout
	if timeout <= 0 {
		timeout = c.timeout
	}
	deadline := started.Add(timeout)
	if earlier, ok := ctx.Deadline(); ok && earlier.Before(deadline) {
		deadline = earlier
	}
	// A question with a revision may wait in the sidecar, and the others of its batch with it.
	if c.coalescer == nil || question.MinRevision != 0 || question.textBytes() > maxCoalescedBytes {
		return c.askAlone(ctx, question, deadline)
	}
	return c.coalescer.ask(ctx, question, deadline)
}

// askAlone asks by CanSend.
func (c *Client) askAlone(ctx context.Context, question *Question, deadline time.Time) Verdict {
	if c.isClosed() {
		return verdictOfError(errClosed())
	}
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	request := question.request()
	var answer *consentv1.CanSendResponse
	err := c.repeat(ctx, isConnectionFailure, func() (err error) {
		answer, err = c.checks.CanSend(ctx, request)
		return err
	})
	if err != nil {
		return verdictOfError(err)
	}
	return verdictOf(answer)
}
