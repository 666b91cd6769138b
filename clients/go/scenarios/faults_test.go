package scenarios

import (
	"context"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"consentd.dev/consentd"
	"consentd.dev/consentd/consentdtest"
)

// TestNothingIsAllowedAfterAnAcknowledgedOptOut checks the first promise of consentd, over whatever may
// happen to a sidecar: it is killed, stopped, drained and started again at random, while users are checked
// and opt out.
func TestNothingIsAllowedAfterAnAcknowledgedOptOut(t *testing.T) {
	duration := 20 * time.Second
	if text := os.Getenv("FAULT_SECONDS"); text != "" {
		seconds, err := strconv.ParseFloat(text, 64)
		if err != nil {
			t.Fatalf("FAULT_SECONDS: %v", err)
		}
		duration = time.Duration(seconds * float64(time.Second))
	}
	const (
		people  = 100000 // more than can opt out meanwhile
		window  = 64     // users that are checked at a time
		callers = 32
	)
	sidecar := consentdtest.StartSidecar(t)
	// Several clients, since what one has learned of a fault must not hide what another does.
	clients := []*consentd.Client{
		sidecar.Client(consentd.WithTimeout(consentd.DefaultTimeout)),
		sidecar.Client(consentd.WithTimeout(consentd.DefaultTimeout), consentd.WithAddress(sidecar.UnixAddress)),
		sidecar.Client(consentd.WithTimeout(consentd.DefaultTimeout), consentd.WithoutCoalescing()),
		sidecar.Client(consentd.WithTimeout(time.Second)),
	}
	var (
		// hasOptedOut is set once the opt-out of the user was acknowledged.
		hasOptedOut = make([]atomic.Bool, people)
		first       atomic.Int64 // the first user that has not opted out
		allowed     atomic.Int64
		denied      atomic.Int64
		unavailable atomic.Int64
		optOuts     atomic.Int64
		faults      = map[string]int{}
		running     sync.WaitGroup
	)
	ctx, stop := context.WithTimeout(context.Background(), duration)
	defer stop()
	recordUntilAcknowledged := func(client *consentd.Client, event consentd.Event, number int) bool {
		for ctx.Err() == nil {
			_, err := client.Record(ctx, event.WithRequestID(strconv.Itoa(number)))
			if err == nil {
				return true
			}
			if code := err.(*consentd.Error).Code; code == "INVALID_ARGUMENT" {
				t.Errorf("recording an event of user %d: %v", number, err)
				return false
			}
		}
		return false
	}
	// People agree, are checked for a while, and then opt out.
	for worker := range 4 {
		running.Go(func() {
			client := clients[worker]
			for number := worker; number < people && ctx.Err() == nil; number += 4 {
				agreed := consentd.OptIn(userNumber(number), "acme", "marketing", evidence())
				if !recordUntilAcknowledged(client, agreed, 2*number) {
					return
				}
				time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
				if !recordUntilAcknowledged(client, consentd.OptOut(userNumber(number), "acme", "*"), 2*number+1) {
					return
				}
				hasOptedOut[number].Store(true)
				optOuts.Add(1)
				first.Store(int64(max(0, number-window/2)))
			}
		})
	}
	for caller := range callers {
		running.Go(func() {
			client := clients[caller%len(clients)]
			for ctx.Err() == nil {
				number := int(first.Load()) + rand.IntN(window)
				wasOut := hasOptedOut[number].Load()
				verdict := client.MaySend(context.Background(), marketing(userNumber(number)))
				switch {
				case verdict.Allowed && wasOut:
					t.Errorf("allowed although user %d had opted out", number)
				case verdict.Allowed:
					allowed.Add(1)
				case verdict.Unavailable:
					unavailable.Add(1)
				default:
					denied.Add(1)
				}
			}
		})
	}
	pause := func(most time.Duration) {
		select {
		case <-time.After(time.Duration(rand.Int64N(int64(most)))):
		case <-ctx.Done():
		}
	}
	for ctx.Err() == nil {
		pause(time.Second)
		switch rand.IntN(3) {
		case 0:
			faults["kill"]++
			sidecar.Kill()
			pause(300 * time.Millisecond)
			sidecar.Start()
		case 1:
			faults["stop"]++
			sidecar.Signal(syscall.SIGSTOP)
			pause(700 * time.Millisecond)
			sidecar.Signal(syscall.SIGCONT)
		case 2:
			faults["drain"]++
			sidecar.Stop()
			sidecar.Start()
		}
	}
	running.Wait()
	t.Logf("%d allowed, %d denied, %d unavailable, %d opt-outs, %v",
		allowed.Load(), denied.Load(), unavailable.Load(), optOuts.Load(), faults)
	// Without them the test has shown nothing.
	if allowed.Load() == 0 || denied.Load() == 0 || unavailable.Load() == 0 || optOuts.Load() < 10 {
		t.Error("too little happened")
	}
	// What was acknowledged is still known.
	client := sidecar.Client()
	for number := range hasOptedOut {
		if !hasOptedOut[number].Load() {
			continue
		}
		verdict := client.MaySend(t.Context(), marketing(userNumber(number)))
		if verdict.Allowed || verdict.Reason != consentd.ReasonOptedOutAll {
			t.Fatalf("user %d has opted out: %v: %s", number, verdict, verdict.Cause)
		}
	}
}
