// Package workerpool is a recipe: a pool of workers that sends queued WhatsApp messages, checks each
// one right before it is sent, and withdraws what was queued and must not be sent any more.
//
// It is made to be copied and changed. What it shows:
//
//   - A worker sends after [consentd.Client.MaySend] allowed it and at no other time.
//   - A message that is denied is withdrawn, one about which nothing was decided is kept and asked about
//     again later.
//   - A watch asks again about queued messages as soon as their users change their minds, so that a
//     queue that is shown to people, or counted, has no message in it that will not be sent. It is an
//     addition to the check before sending, and no substitute.
package workerpool

import (
	"context"
	"slices"
	"sync"
	"time"

	"consentd.dev/consentd"
)

// retryAfter is how long a message is kept about which nothing was decided.
const retryAfter = 500 * time.Millisecond

// Message is a message to send.
type Message struct {
	// ID names the message in the queue.
	ID string
	// Question is what is asked before it is sent.
	Question consentd.Question
	// Text is what is sent.
	Text string
}

// Pool is a queue, and the workers that send what is in it.
type Pool struct {
	client *consentd.Client
	// send sends a message. What it does about its own failures is its own business.
	send func(context.Context, Message)
	// withdrawn is called with each message that left the queue because it must not be sent.
	withdrawn func(Message, consentd.Verdict)

	mu     sync.Mutex
	queue  []Message
	wakeUp chan struct{} // has a value while the queue may have a message that nobody looked at
}

// New makes a pool, which does nothing before Run.
func New(
	client *consentd.Client,
	send func(context.Context, Message),
	withdrawn func(Message, consentd.Verdict),
) *Pool {
	return &Pool{client: client, send: send, withdrawn: withdrawn, wakeUp: make(chan struct{}, 1)}
}

// Enqueue adds a message.
func (p *Pool) Enqueue(message Message) {
	p.mu.Lock()
	p.queue = append(p.queue, message)
	p.mu.Unlock()
	signal(p.wakeUp)
}

// Len is how many messages are queued.
func (p *Pool) Len() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue)
}

// Run sends with this many workers, and withdraws for one business, until the context ends or watching
// is of no use. What is in the queue then stays there.
func (p *Pool) Run(ctx context.Context, workers int, business string) error {
	ctx, stop := context.WithCancelCause(ctx)
	changed := make(chan struct{}, 1)
	var running sync.WaitGroup
	running.Go(func() {
		stop(p.client.Watch(ctx, business, func(change consentd.Change) {
			// While the watch is silent, workers still ask before they send.
			if change.Kind != consentd.Silent {
				signal(changed)
			}
		}))
	})
	running.Go(func() { p.reconsider(ctx, changed) })
	for range workers {
		running.Go(func() { p.work(ctx) })
	}
	running.Wait()
	return context.Cause(ctx)
}

// work sends one message after the other.
func (p *Pool) work(ctx context.Context) {
	for ctx.Err() == nil {
		message, ok := p.take()
		if !ok {
			select {
			case <-p.wakeUp:
			case <-ctx.Done():
			}
			continue
		}
		switch verdict := p.client.MaySend(ctx, message.Question); {
		case verdict.Allowed:
			p.send(ctx, message)
		case verdict.Unavailable:
			p.Enqueue(message)
			// The sidecar is not there, or has too much to do: it gets some time.
			sleep(ctx, retryAfter)
		default:
			p.withdrawn(message, verdict)
		}
	}
}

// take takes the oldest message, and wakes another worker where there are more.
func (p *Pool) take() (Message, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		return Message{}, false
	}
	message := p.queue[0]
	p.queue = p.queue[1:]
	if len(p.queue) > 0 {
		signal(p.wakeUp)
	}
	return message, true
}

// signal leaves a value in a channel that has room for one, unless one is there already.
func signal(channel chan<- struct{}) {
	select {
	case channel <- struct{}{}:
	default:
	}
}

// reconsider asks again about all that is queued, whenever something changed. A change names a user as
// it was recorded, perhaps in another notation of the same number, so that ids cannot be compared. Changes
// that come while it asks have it ask once more, however many they are.
func (p *Pool) reconsider(ctx context.Context, changed <-chan struct{}) {
	for {
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
		p.mu.Lock()
		queued := slices.Clone(p.queue)
		p.mu.Unlock()
		for some := range slices.Chunk(queued, 1000) {
			var asked sync.WaitGroup
			for _, message := range some {
				asked.Go(func() {
					verdict := p.client.MaySend(ctx, message.Question)
					if !verdict.Allowed && !verdict.Unavailable && p.remove(message.ID) {
						p.withdrawn(message, verdict)
					}
				})
			}
			asked.Wait()
		}
	}
}

// remove removes a message from the queue, unless a worker has taken it.
func (p *Pool) remove(id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, message := range p.queue {
		if message.ID == id {
			p.queue = append(p.queue[:i:i], p.queue[i+1:]...)
			return true
		}
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
