package scenarios

import (
	"context"
	"errors"
	"iter"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"consentd.dev/consentd"
	"consentd.dev/consentd/consentdtest"
	"consentd.dev/consentd/consentv1"
)

var campaign = consentd.Campaign{Business: "acme", Category: "marketing", Form: consentd.TemplateForm}

// users are the ids of users from 0 on, made one by one.
func users(count int) iter.Seq[string] {
	return func(yield func(string) bool) {
		for number := range count {
			if !yield(userNumber(number)) {
				return
			}
		}
	}
}

func each(list []string) iter.Seq[string] {
	return slices.Values(list)
}

// expectFiltered fails unless a filter of 100,000 users gives each one its verdict, in order: allowed for
// those below known.
func expectFiltered(t *testing.T, client *consentd.Client, known int, at func(number int)) {
	t.Helper()
	number := 0
	for user, verdict := range client.Filter(t.Context(), users(100000), campaign) {
		if user != userNumber(number) {
			t.Fatalf("user %d has another's place", number)
		}
		if verdict.Allowed != (number < known) || verdict.Code != "" {
			t.Fatalf("user %d: %v: %s", number, verdict, verdict.Cause)
		}
		at(number)
		number++
	}
	if number != 100000 {
		t.Fatalf("%d verdicts", number)
	}
}

func TestAFilterOf100000UsersHasBoundedMemory(t *testing.T) {
	_, client := start(t, 50)
	heap := func() uint64 {
		runtime.GC()
		var stats runtime.MemStats
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	before, most := heap(), uint64(0)
	expectFiltered(t, client, 50, func(number int) {
		if number%10000 == 9999 {
			most = max(most, heap())
		}
	})
	// All users' ids alone would be 3 MB, and their verdicts 20 MB.
	if most > before+3<<20 {
		t.Errorf("the heap grew by %d bytes", most-before)
	}
}

func TestAFilterGoesOnAfterARestart(t *testing.T) {
	sidecar, client := start(t, 50)
	// What is under way fails. A restart takes the caller's time, which does not count, since it may take
	// longer on a busy machine than users are waited for.
	expectFiltered(t, client, 50, func(number int) {
		switch number {
		case 20500:
			sidecar.Kill()
			sidecar.Start()
		case 60500:
			sidecar.Stop()
			sidecar.Start()
		}
	})
}

func TestAFilterWithoutASidecarNeverEndsEarly(t *testing.T) {
	for _, address := range []string{unusedAddress(t), silentServer(t)} {
		client, err := consentd.New(consentd.WithAddress(address))
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		started := time.Now()
		for _, verdict := range client.Filter(t.Context(), users(2500), campaign) {
			expectUnavailable(t, verdict, "UNAVAILABLE", "DEADLINE_EXCEEDED")
			count++
		}
		if count != 2500 {
			t.Errorf("%d verdicts", count)
		}
		if took := time.Since(started); took < 4*time.Second {
			t.Errorf("given up after %s", took)
		}
		// Who has cancelled waits no longer.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		for _, verdict := range client.Filter(ctx, users(2), campaign) {
			expectUnavailable(t, verdict, "CANCELLED")
		}
		_ = client.Close()
	}
}

func TestAFilterOfAMalformedCampaign(t *testing.T) {
	_, client := start(t, 1)
	for field, malformed := range map[string]consentd.Campaign{
		"category":    {Business: "acme", Category: "newsletter"},
		"business_id": {Business: "\xff", Category: "marketing"},
	} {
		count := 0
		for _, verdict := range client.Filter(t.Context(), users(1500), malformed) {
			if verdict.Allowed || !verdict.Invalid || verdict.Field != field {
				t.Fatalf("%s: %v: %s", field, verdict, verdict.Cause)
			}
			count++
		}
		if count != 1500 {
			t.Errorf("%d verdicts", count)
		}
	}
	// Who stops early has no goroutine or stream left; see TestAThousandClientsLeaveNothingBehind.
	for range client.Filter(t.Context(), users(1500), campaign) {
		break
	}
	for range client.Filter(t.Context(), users(0), campaign) {
		t.Error("a verdict on nobody")
	}
}

// watcher notes what a watch tells.
type watcher struct {
	mu   sync.Mutex
	told []consentd.Change
}

func watch(t *testing.T, client *consentd.Client, business string) *watcher {
	w := new(watcher)
	ctx, cancel := context.WithCancel(context.Background())
	var ended sync.WaitGroup
	ended.Go(func() {
		err := client.Watch(ctx, business, func(change consentd.Change) {
			w.mu.Lock()
			defer w.mu.Unlock()
			// A sidecar that has just loaded its table may send a second reset: all may have changed.
			if last := len(w.told) - 1; last < 0 || change.Kind != consentd.Reset || w.told[last].Kind != consentd.Reset {
				w.told = append(w.told, change)
			}
		})
		if err != context.Canceled {
			t.Errorf("the watch ended: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		ended.Wait()
	})
	return w
}

// kinds are the kinds of what was told, each once where it was told several times in a row.
func (w *watcher) kinds() []consentd.ChangeKind {
	w.mu.Lock()
	defer w.mu.Unlock()
	var kinds []consentd.ChangeKind
	for _, change := range w.told {
		kinds = append(kinds, change.Kind)
	}
	return slices.Compact(kinds)
}

// at is what was told at this place.
func (w *watcher) at(place int) consentd.Change {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.told[place]
}

func (w *watcher) expect(t *testing.T, kinds ...consentd.ChangeKind) {
	t.Helper()
	defer func() {
		if told := w.kinds(); !slices.Equal(told, kinds) {
			t.Logf("told: %v, expected: %v", told, kinds)
		}
	}()
	eventually(t, "what the watch tells", func() bool { return slices.Equal(w.kinds(), kinds) })
}

func TestAWatchTellsChangesSilencesAndResets(t *testing.T) {
	sidecar, client := start(t, 1)
	const (
		reset, changed, silent = consentd.Reset, consentd.Changed, consentd.Silent
		template               = consentd.TemplateChanged
	)
	w := watch(t, client, "acme")
	w.expect(t, reset)
	record := func(event consentd.Event) {
		t.Helper()
		if _, err := client.Record(t.Context(), event); err != nil {
			t.Fatal(err)
		}
	}
	record(consentd.OptOut(userNumber(0), "other", "*")) // It is not told: another business's.
	record(consentd.OptOut(userNumber(0), "acme", "*"))
	w.expect(t, reset, changed)
	if told := w.at(1); told.User != userNumber(0) || told.Business != "acme" || told.Revision == 0 {
		t.Error("the change is not that of the user")
	}
	record(consentd.TemplateCategory(consentd.Template{Name: "offer", Language: "en"}, "acme", "marketing"))
	w.expect(t, reset, changed, template)
	if told := w.at(2); told.Template.Name != "offer" || told.Template.Language != "en" || told.Business != "acme" {
		t.Errorf("the template is told as %v", told.Template)
	}
	// A restart, of whatever kind, ends what is known, and begins again.
	sidecar.Kill()
	w.expect(t, reset, changed, template, silent)
	sidecar.Start()
	w.expect(t, reset, changed, template, silent, reset)
	sidecar.Stop()
	w.expect(t, reset, changed, template, silent, reset, silent)
	sidecar.Start()
	w.expect(t, reset, changed, template, silent, reset, silent, reset)
	// A sidecar that says nothing is found out, and told once.
	sidecar.Signal(syscall.SIGSTOP)
	w.expect(t, reset, changed, template, silent, reset, silent, reset, silent)
	sidecar.Signal(syscall.SIGCONT)
	w.expect(t, reset, changed, template, silent, reset, silent, reset, silent, reset)
	record(consentd.InboundMessage(userNumber(0), "acme", "hello"))
	w.expect(t, reset, changed, template, silent, reset, silent, reset, silent, reset, changed)
}

func TestAWatchWhoseConnectionsEndByTheirAgeMissesNothing(t *testing.T) {
	_, client := start(t, 0, "--max-connection-age", "1s")
	w := watch(t, client, "acme")
	w.expect(t, consentd.Reset)
	eventually(t, "three resets", func() bool { return len(w.kinds()) >= 5 })
	for i, kind := range w.kinds() {
		if expected := []consentd.ChangeKind{consentd.Reset, consentd.Silent}[i%2]; kind != expected {
			t.Fatalf("told: %v", w.kinds())
		}
	}
}

func TestAWatchOfABusinessThatIsNoUTF8Returns(t *testing.T) {
	_, client := start(t, 0)
	err := client.Watch(t.Context(), "\xff", func(consentd.Change) { t.Error("something is told") })
	if failure := (*consentd.Error)(nil); !errors.As(err, &failure) || failure.Code != "INVALID_ARGUMENT" {
		t.Errorf("%v", err)
	}
}

func TestAWatchThatIsOfNoUseReturns(t *testing.T) {
	_, client := start(t, 0, "--max-watchers", "0")
	err := client.Watch(t.Context(), "acme", func(consentd.Change) { t.Error("something is told") })
	if err == nil || err.(*consentd.Error).Code != "UNIMPLEMENTED" {
		t.Errorf("%v", err)
	}
}

// eventsOf counts the events that the ledger has of a user.
func eventsOf(t *testing.T, address string, number int) int {
	t.Helper()
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = connection.Close() }()
	request := &consentv1.ListEventsRequest{UserId: userNumber(number), BusinessId: "acme"}
	stream, err := consentv1.NewRecordServiceClient(connection).ListEvents(t.Context(), request, grpc.WaitForReady(true))
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for {
		listed, err := stream.Recv()
		if err != nil {
			t.Fatalf("listing the events of user %d: %v", number, err)
		}
		if listed.GetChain() != nil {
			return count
		}
		count++
	}
}

func TestAnEventIsRecordedOnceOverRestarts(t *testing.T) {
	sidecar := consentdtest.StartSidecar(t)
	client := sidecar.Client()
	var recorded [400]atomic.Bool
	var finished atomic.Int64
	var recording sync.WaitGroup
	recording.Go(func() {
		inParallel(len(recorded), func(number int) {
			event := consentd.OptIn(userNumber(number), "acme", "marketing", evidence())
			// An event that is not known to be recorded is recorded again with its request id.
			event = event.WithRequestID("signup-" + userNumber(number))
			for range 20 {
				if _, err := client.Record(context.Background(), event); err == nil {
					recorded[number].Store(true)
					break
				}
			}
			finished.Add(1)
		})
	})
	for restarts := 1; restarts <= 3; restarts++ {
		eventually(t, "recordings", func() bool { return finished.Load() > int64(restarts*50) })
		sidecar.Kill()
		time.Sleep(100 * time.Millisecond)
		sidecar.Start()
	}
	recording.Wait()
	for number := range recorded {
		if !recorded[number].Load() {
			t.Fatalf("the event of user %d was not recorded", number)
		}
		if count := eventsOf(t, sidecar.Address, number); count != 1 {
			t.Errorf("user %d has %d events", number, count)
		}
	}
}

func TestARecordingWithoutASidecarIsAnError(t *testing.T) {
	client, err := consentd.New(consentd.WithAddress(unusedAddress(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	started := time.Now()
	if _, err := client.Record(t.Context(), consentd.OptOut(userNumber(0), "acme", "*")); err == nil {
		t.Fatal("recorded nowhere")
	} else if code := err.(*consentd.Error).Code; code != "UNAVAILABLE" && code != "DEADLINE_EXCEEDED" {
		t.Errorf("%v", err) // The latter where the last attempt was under way at the deadline.
	}
	if took := time.Since(started); took < 4*time.Second {
		t.Errorf("given up after %s", took)
	}
}
