package consentd

import (
	"context"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"consentd.dev/consentd/consentv1"
)

// silenceTimeout is how long a watch may hear nothing: a sidecar whose table is proven to be current
// says something every 2 s at least.
const silenceTimeout = 10 * time.Second

// ChangeKind is what a [Change] means.
type ChangeKind string

const (
	// Changed: the state of User at Business changed. Ask again before sending to that user.
	Changed ChangeKind = "changed"
	// TemplateChanged: the category of Template, or of all templates of Business where Template is
	// none, changed. Ask again before sending what is queued by it.
	TemplateChanged ChangeKind = "template_changed"
	// Reset: something may have been missed. Ask again about everything that is queued. A watch
	// begins with one, and each new connection does.
	Reset ChangeKind = "reset"
	// Silent: nothing was heard for 10 s, even since the watch was to begin, or the connection is lost.
	// Trust nothing that is queued until the next Reset.
	Silent ChangeKind = "silent"
)

// Change is what [Client.Watch] tells.
type Change struct {
	// Kind is what happened.
	Kind ChangeKind
	// User is whose state changed, in the notation that was written to the ledger. Of Changed alone.
	User string
	// Business is whose user or template changed. Of Changed and TemplateChanged.
	Business string
	// Template is the template that changed, or none for all of the business. Of TemplateChanged.
	Template Template
	// Revision is the revision of the ledger that changed it. Of Changed and TemplateChanged.
	Revision uint64
}

// Watch tells onChange what to withdraw from a queue, of one business, or of all where business is
// empty. It calls onChange from its own goroutine, one change after the other, until the context
// ends, and then returns the context's error. It connects again by itself, for as long as it takes.
//
// It returns an [*Error] at once where watching again is of no use: the business is malformed, or
// this client may not watch here. Nothing that is queued is to be trusted after Watch has returned.
//
// What time alone changes, such as an opt-in that expires, is not told, and nothing here replaces
// the check right before each send.
func (c *Client) Watch(ctx context.Context, business string, onChange func(Change)) error {
	if !utf8.ValidString(business) {
		return errNotUTF8("business_id") // To encode it would fail, again and again.
	}
	w := &watching{client: c, business: business, onChange: onChange, due: time.Now().Add(silenceTimeout)}
	pauses := newPauses()
	for {
		heard, err := w.follow(ctx)
		if ctx.Err() != nil {
			return ctx.Err() // The caller knows: nothing is told any more.
		}
		w.distrust()
		switch {
		case c.isClosed():
			return errClosed()
		case isFinal(err):
			return errorOf(err)
		case heard:
			pauses = newPauses()
		}
		if !pauses.wait(ctx) {
			return ctx.Err()
		}
	}
}

// isFinal is whether watching again would fail likewise.
func isFinal(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.PermissionDenied, codes.Unauthenticated, codes.Unimplemented:
		return true
	default:
		return false
	}
}

// watching is one call of Watch.
type watching struct {
	client   *Client
	business string
	onChange func(Change)
	// isTrusted is whether a Reset was told, and no Silent since.
	isTrusted bool
	// due is when Silent is told, as long as nothing was told before. From then on it is zero, and Silent
	// is told only after a Reset.
	due time.Time
}

// follow tells what one stream says until the stream ends. It returns whether it heard anything, and why
// the stream ended.
func (w *watching) follow(ctx context.Context) (heard bool, _ error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	request := &consentv1.WatchConsentsRequest{BusinessId: w.business}
	messages := make(chan *consentv1.WatchConsentsResponse)
	ended := make(chan error, 1)
	go func() {
		// Opening the stream waits for the connection, which may take longer than a silence.
		stream, err := w.client.checks.WatchConsents(ctx, request)
		if err != nil {
			ended <- err
			return
		}
		for {
			message, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case messages <- message:
			case <-ctx.Done():
				return
			}
		}
	}()
	wait := silenceTimeout
	if !w.due.IsZero() {
		wait = time.Until(w.due)
	}
	silence := time.NewTimer(wait)
	defer silence.Stop()
	for {
		select {
		case message := <-messages:
			heard = true
			w.tell(message)
			silence.Reset(silenceTimeout)
		case <-silence.C:
			// The stream is kept: gRPC's pings find out whether its connection is dead. A sidecar that
			// cannot prove that its table is current is silent, too, and goes on when it can.
			w.distrust()
		case err := <-ended:
			return heard, err
		case <-ctx.Done():
			return heard, ctx.Err()
		}
	}
}

// distrust tells Silent, once until the next Reset. A watch that did not begin yet tells it once it is due.
func (w *watching) distrust() {
	isDue := !w.due.IsZero() && !time.Now().Before(w.due)
	if w.isTrusted || isDue {
		w.isTrusted, w.due = false, time.Time{}
		w.onChange(Change{Kind: Silent})
	}
}

// tell tells a message. The first one of a stream, and the first one after a silence, tells that what
// came before may have been missed. So does one of a kind that a newer sidecar has and this package
// does not know.
func (w *watching) tell(message *consentv1.WatchConsentsResponse) {
	isReset := false
	switch message.GetWhat().(type) {
	case *consentv1.WatchConsentsResponse_Changed_, *consentv1.WatchConsentsResponse_TemplateChanged_,
		*consentv1.WatchConsentsResponse_Checkpoint_:
	default:
		isReset = true
	}
	if isReset || !w.isTrusted {
		w.isTrusted, w.due = true, time.Time{}
		w.onChange(Change{Kind: Reset})
	}
	switch what := message.GetWhat().(type) {
	case *consentv1.WatchConsentsResponse_Changed_:
		w.onChange(Change{
			Kind:     Changed,
			User:     what.Changed.GetUserId(),
			Business: what.Changed.GetBusinessId(),
			Revision: what.Changed.GetRevision(),
		})
	case *consentv1.WatchConsentsResponse_TemplateChanged_:
		w.onChange(Change{
			Kind:     TemplateChanged,
			Business: what.TemplateChanged.GetBusinessId(),
			Template: Template{
				Name:     what.TemplateChanged.GetTemplate().GetName(),
				Language: what.TemplateChanged.GetTemplate().GetLanguage(),
			},
			Revision: what.TemplateChanged.GetRevision(),
		})
	}
}
