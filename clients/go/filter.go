package consentd

import (
	"context"
	"errors"
	"io"
	"iter"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"consentd.dev/consentd/consentv1"
)

const (
	// chunkUsers and chunkBytes bound the users that are sent as one message.
	chunkUsers = 1000
	chunkBytes = 512 << 10
	// chunksUnderWay is how many messages may wait for their answers, and so bounds the memory.
	chunksUnderWay = 4
	// chunkTimeout is how long a chunk may wait for its answer, over all its repetitions.
	chunkTimeout = 5 * time.Second
)

// Campaign is what [Client.Filter] screens users for.
type Campaign struct {
	// Business is who would send the messages.
	Business string
	// Category, Form and Template are as in [Question].
	Category string
	Form     Form
	Template Template
}

// Filter screens the users of a campaign: it gives each user and its verdict, in order, however many
// they are, and keeps at most four chunks of 1,000 of them in memory. A verdict has no more than
// Allowed, Reason, Staleness, CategoryUsed and, where nothing was decided, what says so.
//
// It never ends early. A chunk that has no answer within 5 s, over all repetitions, is Unavailable
// for each of its users; a malformed id is Invalid. What the caller does between two users does not
// count. Once the context ends the rest is Unavailable, with the code of the context's error.
//
// Screening is no check: call [Client.MaySend] right before each send.
func (c *Client) Filter(
	ctx context.Context, users iter.Seq[string], campaign Campaign,
) iter.Seq2[string, Verdict] {
	return func(yield func(string, Verdict) bool) {
		f := &filtering{client: c, ctx: ctx, campaign: campaign, size: chunkUsers}
		defer f.dropStream()
		next := new(chunk)
		for user := range users {
			if next.isFull(f.size) {
				f.chunks = append(f.chunks, next)
				next = new(chunk)
				// A chunk that was halved counts as two.
				for len(f.chunks) >= chunksUnderWay {
					if !f.yieldOldest(yield) {
						return
					}
				}
			}
			next.add(user)
		}
		f.chunks = append(f.chunks, next)
		for len(f.chunks) > 0 {
			if !f.yieldOldest(yield) {
				return
			}
		}
	}
}

// chunk is the users of one message.
type chunk struct {
	users []string
	// asked are those of them that can be sent, and malformed says of each user whether it cannot.
	asked     []string
	malformed []bool
	bytes     int
	isSent    bool // on the stream that is open
	// deadline is when the chunk is given up, by the clock of its filtering. 0: it is not under way.
	deadline time.Duration
}

func (c *chunk) isFull(size int) bool {
	return len(c.users) >= size || c.bytes > chunkBytes-maxCoalescedBytes
}

func (c *chunk) add(user string) {
	isMalformed := len(user) > maxCoalescedBytes || !utf8.ValidString(user)
	c.users = append(c.users, user)
	c.malformed = append(c.malformed, isMalformed)
	if !isMalformed {
		c.asked = append(c.asked, user)
		c.bytes += len(user)
	}
}

// halves are two chunks, which together have the users of this one.
func (c *chunk) halves() []*chunk {
	halves := []*chunk{{deadline: c.deadline}, {deadline: c.deadline}}
	for i, user := range c.users {
		halves[2*i/len(c.users)].add(user)
	}
	return halves
}

// filtering is one call of Filter.
type filtering struct {
	client   *Client
	ctx      context.Context
	campaign Campaign
	size     int      // users of a chunk: fewer once a sidecar refused so many
	chunks   []*chunk // that are under way, the oldest first
	// The stream that is open, or nil, and its context, which cancel ends.
	stream    consentv1.ConsentService_FilterRecipientsClient
	streamCtx context.Context
	cancel    context.CancelFunc
	// waited is how long answers were waited for: the clock by which chunks have their deadlines,
	// which stands still while the caller is at work.
	waited time.Duration
}

// yieldOldest waits for the answer of the oldest chunk and yields its verdicts.
func (f *filtering) yieldOldest(yield func(string, Verdict) bool) bool {
	answer, err := f.answerOldest()
	oldest := f.chunks[0]
	f.chunks = f.chunks[1:]
	next := 0
	for i, user := range oldest.users {
		var verdict Verdict
		switch {
		case oldest.malformed[i]:
			verdict = undecided("INVALID_ARGUMENT", "user_id: is too long, or is not UTF-8", "user_id")
		case err != nil:
			verdict = verdictOfError(err)
		default:
			verdict = screened(answer, answer.GetReasons()[next])
			next++
		}
		if !yield(user, verdict) {
			return false
		}
	}
	return true
}

// screened is the verdict on one user of an answer.
func screened(answer *consentv1.FilterRecipientsResponse, reason consentv1.Reason) Verdict {
	if reason == consentv1.Reason_REASON_UNSPECIFIED {
		return undecided("INVALID_ARGUMENT", "user_id: is malformed; a check says why", "user_id")
	}
	return Verdict{
		// The contract has it that these reasons allow, and that no other ever will.
		Allowed:      1 <= reason && reason <= 9,
		Reason:       reasonOf(reason),
		Staleness:    answer.GetStaleness().AsDuration(),
		CategoryUsed: answer.GetCategoryUsed(),
	}
}

// answerOldest waits for the answer of the oldest chunk, whose reasons are as many as the users that
// the chunk asked for.
func (f *filtering) answerOldest() (*consentv1.FilterRecipientsResponse, error) {
	if field := f.malformedField(); field != "" {
		return nil, errNotUTF8(field)
	}
	started, before := time.Now(), f.waited
	defer func() { f.waited = before + time.Since(started) }()
	pauses := newPauses()
	for {
		f.waited = before + time.Since(started)
		if len(f.chunks[0].asked) == 0 {
			return &consentv1.FilterRecipientsResponse{}, nil
		}
		answer, err := f.tryOldest()
		if err == nil {
			return answer, nil
		}
		f.dropStream()
		oldest := f.chunks[0]
		if failure := errorOf(err); len(failure.Fields) > 0 &&
			failure.Fields[0].Field == "user_ids" && len(oldest.users) > 1 {
			// The sidecar takes fewer users in a message (--max-recipients).
			f.size = min(f.size, len(oldest.users)/2)
			f.chunks = append(oldest.halves(), f.chunks[1:]...)
			continue
		}
		left := oldest.deadline - before - time.Since(started)
		if !isConnectionFailure(err) && !isTryAgain(err) || left < pauses.next || !pauses.wait(f.ctx) {
			return nil, err
		}
	}
}

func (f *filtering) malformedField() string {
	question := Question{
		Business: f.campaign.Business, Category: f.campaign.Category, Template: f.campaign.Template,
	}
	return question.malformedField()
}

// tryOldest asks for the answer of the oldest chunk, until the chunk's deadline.
func (f *filtering) tryOldest() (*consentv1.FilterRecipientsResponse, error) {
	switch {
	case f.client.isClosed():
		return nil, errClosed()
	case f.ctx.Err() != nil:
		return nil, f.ctx.Err()
	}
	for _, chunk := range f.chunks {
		if chunk.deadline == 0 {
			chunk.deadline = f.waited + chunkTimeout
		}
	}
	oldest := f.chunks[0]
	if f.cancel == nil {
		f.streamCtx, f.cancel = context.WithCancel(f.ctx)
	}
	// Nothing but a cancellation ends a stream whose sidecar is silent.
	timer := time.AfterFunc(oldest.deadline-f.waited, f.cancel)
	answer, err := f.exchange()
	isInTime := timer.Stop()
	switch {
	case err != nil && !isInTime && f.ctx.Err() == nil:
		return nil, context.DeadlineExceeded
	case err != nil:
		return nil, err
	case len(answer.GetReasons()) != len(oldest.asked):
		// Verdicts are matched to users by their order: nothing can be said about any of them.
		return nil, &Error{Code: "INTERNAL", Cause: "the answer has not one reason for each user"}
	case !isInTime:
		f.dropStream() // It was cancelled just behind this answer.
	}
	return answer, nil
}

// exchange opens a stream where there is none, sends what is not sent yet, and receives one answer.
func (f *filtering) exchange() (*consentv1.FilterRecipientsResponse, error) {
	if f.stream == nil {
		stream, err := f.client.checks.FilterRecipients(f.streamCtx)
		if err != nil {
			return nil, err
		}
		f.stream = stream
	}
	for _, chunk := range f.chunks {
		if chunk.isSent || len(chunk.asked) == 0 {
			continue
		}
		chunk.isSent = true
		// The receive that follows reports an error of sending.
		_ = f.stream.Send(&consentv1.FilterRecipientsRequest{
			BusinessId: f.campaign.Business,
			Category:   f.campaign.Category,
			Form:       f.campaign.Form,
			Template:   f.campaign.Template.proto(),
			UserIds:    chunk.asked,
		})
	}
	answer, err := f.stream.Recv()
	if errors.Is(err, io.EOF) {
		// The sidecar ended the stream, as it does when it drains: another one may answer.
		return nil, status.Error(codes.Unavailable, "the stream ended without an answer")
	}
	return answer, err
}

// dropStream ends the stream that is open. What it did not answer is sent on the next.
func (f *filtering) dropStream() {
	if f.cancel != nil {
		f.cancel()
	}
	f.stream, f.streamCtx, f.cancel = nil, nil, nil
	for _, chunk := range f.chunks {
		chunk.isSent = false
	}
}
