package consentd

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	firstPause = 5 * time.Millisecond
	// Where there is more time than a check has, pauses grow no longer than this.
	lastPause = 250 * time.Millisecond
)

// pauses are those between two repetitions: each is twice as long as the one before.
type pauses struct {
	next time.Duration
}

func newPauses() pauses {
	return pauses{next: firstPause}
}

// fits is whether the next pause ends before the deadline.
func (p *pauses) fits(deadline time.Time) bool {
	return time.Now().Add(p.next).Before(deadline)
}

// wait waits for the next pause, or until the context ends, and then returns false.
func (p *pauses) wait(ctx context.Context) bool {
	timer := time.NewTimer(p.next)
	defer timer.Stop()
	p.next = min(2*p.next, lastPause)
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// repeat calls until the call succeeds, fails for good, or the context's deadline leaves no time for
// another try. A context without a deadline is repeated under until it ends.
func (c *Client) repeat(ctx context.Context, isWorthAnother func(error) bool, call func() error) error {
	pauses := newPauses()
	for {
		err := call()
		if err == nil || ctx.Err() != nil || c.isClosed() || !isWorthAnother(err) {
			return err
		}
		if deadline, ok := ctx.Deadline(); ok && !pauses.fits(deadline) || !pauses.wait(ctx) {
			return err
		}
	}
}

// isTryAgain is whether the sidecar itself says that a call may succeed later.
func isTryAgain(err error) bool {
	switch status.Code(err) {
	case codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return true
	default:
		return false
	}
}
