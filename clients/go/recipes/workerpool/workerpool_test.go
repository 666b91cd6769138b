package workerpool_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"consentd.dev/consentd"
	"consentd.dev/consentd/consentdtest"
	"consentd.dev/consentd/recipes/workerpool"
)

const patience = 60 * time.Second

// outcome notes what came of messages.
type outcome struct {
	mu              sync.Mutex
	sent, withdrawn map[string]int
}

func (o *outcome) count() (sent, withdrawn int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.sent), len(o.withdrawn)
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func message(number int) workerpool.Message {
	return workerpool.Message{
		ID: fmt.Sprint(number),
		Question: consentd.Question{
			User: fmt.Sprintf("user-%d", number), Business: "acme", Category: "marketing",
		},
	}
}

// start makes a pool whose workers wait, before each is sent, until they may go on.
func start(t *testing.T, fake *consentdtest.Fake, workers int, mayGoOn <-chan struct{}) (*workerpool.Pool, *outcome) {
	o := &outcome{sent: map[string]int{}, withdrawn: map[string]int{}}
	pool := workerpool.New(fake.Client(),
		func(_ context.Context, message workerpool.Message) {
			<-mayGoOn
			o.mu.Lock()
			defer o.mu.Unlock()
			o.sent[message.ID]++
		},
		func(message workerpool.Message, _ consentd.Verdict) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.withdrawn[message.ID]++
		})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- pool.Run(ctx, workers, "acme") }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Run: %v", err)
		}
	})
	return pool, o
}

func TestAMessageIsSentOnceOrWithdrawn(t *testing.T) {
	fake := consentdtest.NewFake(t)
	for number := 0; number < 1000; number += 2 {
		fake.Allow(fmt.Sprintf("user-%d", number), "acme", "marketing")
	}
	mayGoOn := make(chan struct{})
	close(mayGoOn)
	pool, outcome := start(t, fake, 8, mayGoOn)
	for number := range 1000 {
		pool.Enqueue(message(number))
	}
	eventually(t, "an end of all messages", func() bool {
		sent, withdrawn := outcome.count()
		return sent == 500 && withdrawn == 500
	})
	for number := range 1000 {
		id, sent := fmt.Sprint(number), number%2 == 0
		if (outcome.sent[id] == 1) != sent || (outcome.withdrawn[id] == 1) == sent {
			t.Errorf("message %d: sent %d times, withdrawn %d times", number, outcome.sent[id], outcome.withdrawn[id])
		}
	}
}

func TestAQueuedMessageIsWithdrawnWhenItsUserOptsOut(t *testing.T) {
	fake := consentdtest.NewFake(t)
	for number := range 10 {
		fake.Allow(fmt.Sprintf("user-%d", number), "acme", "marketing")
	}
	mayGoOn := make(chan struct{}) // The one worker is busy with the first message.
	pool, outcome := start(t, fake, 1, mayGoOn)
	for number := range 10 {
		pool.Enqueue(message(number))
	}
	eventually(t, "a worker that has a message", func() bool { return pool.Len() == 9 })
	fake.Deny("user-5", "acme", "marketing", consentd.ReasonOptedOut)
	// The watch may have begun just now, or long ago: tell it until it has heard.
	eventually(t, "a withdrawal", func() bool {
		fake.Tell(consentd.Change{Kind: consentd.Changed, User: "user-5", Business: "acme", Revision: 1})
		_, withdrawn := outcome.count()
		return withdrawn == 1
	})
	if pool.Len() != 8 || outcome.withdrawn["5"] != 1 {
		t.Errorf("%d messages are queued", pool.Len())
	}
	close(mayGoOn)
	eventually(t, "the others are sent", func() bool {
		sent, _ := outcome.count()
		return sent == 9
	})
}

func TestAMessageIsKeptWhileThereIsNoDecision(t *testing.T) {
	fake := consentdtest.NewFake(t)
	fake.Allow("user-0", "acme", "marketing")
	fake.Fail(codes.ResourceExhausted)
	mayGoOn := make(chan struct{})
	close(mayGoOn)
	pool, outcome := start(t, fake, 2, mayGoOn)
	pool.Enqueue(message(0))
	time.Sleep(50 * time.Millisecond)
	if sent, withdrawn := outcome.count(); sent+withdrawn != 0 {
		t.Fatalf("sent %d, withdrawn %d", sent, withdrawn)
	}
	fake.Fail(codes.OK)
	eventually(t, "it is sent", func() bool {
		sent, _ := outcome.count()
		return sent == 1
	})
}
