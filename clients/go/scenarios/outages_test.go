package scenarios

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/stats"

	"consentd.dev/consentd"
	"consentd.dev/consentd/consentdtest"
)

// unusedAddress is an address where nobody listens.
func unusedAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	return listener.Addr().String()
}

func TestWithoutASidecarEverythingIsDeniedUntilThereIsOne(t *testing.T) {
	address := unusedAddress(t)
	client, err := consentd.New(consentd.WithAddress(address))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	var asked sync.WaitGroup
	for range 200 {
		asked.Go(func() {
			verdict := client.MaySend(t.Context(), marketing(userNumber(0)))
			if verdict.Allowed || !verdict.Unavailable {
				t.Errorf("%v", verdict)
			}
		})
	}
	asked.Wait()
	expectUnavailable(t, client.MaySend(t.Context(), marketing(userNumber(0))), "UNAVAILABLE", "DEADLINE_EXCEEDED")
	if _, err := client.Check(t.Context(), marketing(userNumber(0))); err == nil {
		t.Error("Check returns no error")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := client.Ready(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Ready: %v", err)
	}
	consentdtest.StartSidecar(t, "--listen", address)
	ctx, cancel = context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := client.Ready(ctx); err != nil {
		t.Fatalf("Ready: %v", err)
	}
	eventually(t, "a decision", func() bool {
		return client.MaySend(t.Context(), marketing(userNumber(0))).Reason == consentd.ReasonNoConsent
	})
}

func TestChecksOfASidecarThatIsKilledInMidBatchAreDenied(t *testing.T) {
	sidecar, _ := start(t, 1)
	client := sidecar.Client(consentd.WithTimeout(2 * time.Second))
	eventually(t, "an answer", func() bool { return client.MaySend(t.Context(), marketing(userNumber(0))).Allowed })
	sidecar.Signal(syscall.SIGSTOP)
	var asked sync.WaitGroup
	var unavailable atomic.Int64
	for range 300 {
		asked.Go(func() {
			verdict := client.MaySend(context.Background(), marketing(userNumber(0)))
			if verdict.Allowed || !verdict.Unavailable {
				t.Errorf("%v", verdict)
			}
			unavailable.Add(1)
		})
	}
	time.Sleep(200 * time.Millisecond) // The batches are on their way.
	sidecar.Kill()
	asked.Wait()
	if unavailable.Load() != 300 {
		t.Errorf("%d of 300 checks came back", unavailable.Load())
	}
}

func TestADrainLosesNoCall(t *testing.T) {
	sidecar, client := start(t, 100)
	for number := 1; number < 100; number += 2 {
		if _, err := client.Record(t.Context(), consentd.OptOut(userNumber(number), "acme", "*")); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		var isDraining atomic.Bool
		var decided, lost atomic.Int64
		ctx, stop := context.WithCancel(context.Background())
		var asked sync.WaitGroup
		for caller := range 32 {
			asked.Go(func() {
				for number := caller; ctx.Err() == nil; number++ {
					isBefore := !isDraining.Load()
					verdict := client.MaySend(context.Background(), marketing(userNumber(number%100)))
					switch {
					case verdict.Allowed && number%2 == 1:
						t.Errorf("allowed although the user opted out")
					case verdict.Code == "":
						decided.Add(1)
					case isBefore:
						lost.Add(1)
						t.Errorf("a call that began before the drain: %v: %s", verdict, verdict.Cause)
					}
				}
			})
		}
		eventually(t, "load", func() bool { return decided.Load() > 500 })
		isDraining.Store(true)
		sidecar.Stop()
		sidecar.Start()
		before := decided.Load()
		eventually(t, "decisions after the restart", func() bool { return decided.Load() > before+500 })
		stop()
		asked.Wait()
	}
}

// connections counts the connections that a client opens.
type connections struct{ opened atomic.Int64 }

func (c *connections) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context   { return ctx }
func (c *connections) HandleRPC(context.Context, stats.RPCStats)                         {}
func (c *connections) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (c *connections) HandleConn(_ context.Context, what stats.ConnStats) {
	if _, ok := what.(*stats.ConnBegin); ok {
		c.opened.Add(1)
	}
}

func TestConnectionsThatEndByTheirAgeLoseNoCall(t *testing.T) {
	sidecar, _ := start(t, 100, "--max-connection-age", "1s")
	for _, options := range [][]consentd.Option{nil, {consentd.WithoutCoalescing()}} {
		var counted connections
		client := sidecar.Client(append(options, consentd.WithDialOptions(grpc.WithStatsHandler(&counted)))...)
		load := ask(client, 100, func(number int, verdict consentd.Verdict) {
			if !verdict.Allowed {
				t.Errorf("user %d: %v: %s", number, verdict, verdict.Cause)
			}
		})
		eventually(t, "three further connections", func() bool { return counted.opened.Load() > 3 })
		load.end()
		if load.count.Load() < 100 {
			t.Errorf("only %d checks", load.count.Load())
		}
	}
}

func TestADeadlineThatPasses(t *testing.T) {
	sidecar, client := start(t, 1)
	late := marketing(userNumber(0))
	late.MinRevision = 1 << 40
	late.Timeout = 100 * time.Millisecond
	started := time.Now()
	expectUnavailable(t, client.MaySend(t.Context(), late), "DEADLINE_EXCEEDED")
	if took := time.Since(started); took < 50*time.Millisecond {
		t.Errorf("given up after %s", took)
	}
	_, err := client.Check(t.Context(), late)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Check: %v", err)
	}
	passed, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	expectUnavailable(t, client.MaySend(passed, marketing(userNumber(0))), "DEADLINE_EXCEEDED")
	hasty := marketing(userNumber(0))
	hasty.Timeout = 1
	for range 100 {
		expectUnavailable(t, client.MaySend(t.Context(), hasty), "DEADLINE_EXCEEDED")
	}
	// The client still works afterwards.
	if verdict := sidecar.Client().MaySend(t.Context(), marketing(userNumber(0))); !verdict.Allowed {
		t.Errorf("%v", verdict)
	}
	if verdict := client.MaySend(t.Context(), marketing(userNumber(0))); !verdict.Allowed {
		t.Errorf("%v", verdict)
	}
}

func TestASilentServer(t *testing.T) {
	client, err := consentd.New(consentd.WithAddress(silentServer(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	started := time.Now()
	var asked sync.WaitGroup
	for range 50 {
		asked.Go(func() {
			verdict := client.MaySend(t.Context(), marketing(userNumber(0)))
			if verdict.Allowed || verdict.Code != "DEADLINE_EXCEEDED" {
				t.Errorf("%v", verdict)
			}
		})
	}
	asked.Wait()
	if took := time.Since(started); took < consentd.DefaultTimeout || took > patience {
		t.Errorf("took %s", took)
	}
}

func TestASidecarThatStopsAnsweringIsNotWaitedFor(t *testing.T) {
	sidecar, _ := start(t, 1)
	client := sidecar.Client(consentd.WithTimeout(200 * time.Millisecond))
	eventually(t, "an answer", func() bool { return client.MaySend(t.Context(), marketing(userNumber(0))).Allowed })
	sidecar.Signal(syscall.SIGSTOP)
	eventually(t, "no answer", func() bool { return client.MaySend(t.Context(), marketing(userNumber(0))).Unavailable })
	for range 5 {
		expectUnavailable(t, client.MaySend(t.Context(), marketing(userNumber(0))), "DEADLINE_EXCEEDED")
	}
	sidecar.Signal(syscall.SIGCONT)
	eventually(t, "an answer", func() bool { return client.MaySend(t.Context(), marketing(userNumber(0))).Allowed })
}
