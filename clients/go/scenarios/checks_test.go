package scenarios

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"consentd.dev/consentd"
	"consentd.dev/consentd/consentdtest"
)

func TestTenThousandConcurrentChecks(t *testing.T) {
	sidecar, _ := start(t, 100)
	var mu sync.Mutex
	batches, largest := 0, 0
	client := sidecar.Client(consentd.WithObserver(consentd.Observer{Batched: func(size int) {
		mu.Lock()
		defer mu.Unlock()
		batches++
		largest = max(largest, size)
	}}))
	var asked sync.WaitGroup
	for number := range 10000 {
		asked.Go(func() {
			verdict := client.MaySend(t.Context(), marketing(userNumber(number%200)))
			if expected := number%200 < 100; verdict.Allowed != expected || verdict.Code != "" {
				t.Errorf("user %d: %v: %s", number%200, verdict, verdict.Cause)
			}
		})
	}
	asked.Wait()
	if batches == 0 || batches > 5000 || largest > 1000 {
		t.Errorf("%d batches, the largest of %d checks", batches, largest)
	}
}

func TestCancellingOneCallerLeavesTheOthers(t *testing.T) {
	_, client := start(t, 1)
	ctx, cancel := context.WithCancel(t.Context())
	var asked sync.WaitGroup
	for number := range 400 {
		asked.Go(func() {
			for range 20 {
				if number%2 == 0 {
					if verdict := client.MaySend(ctx, marketing(userNumber(0))); verdict.Unavailable && verdict.Code != "CANCELLED" {
						t.Errorf("a caller that may be cancelled: %v: %s", verdict, verdict.Cause)
					}
				} else if verdict := client.MaySend(t.Context(), marketing(userNumber(0))); !verdict.Allowed {
					t.Errorf("a caller that is not cancelled: %v: %s", verdict, verdict.Cause)
				}
			}
		})
	}
	cancel()
	asked.Wait()
	expectUnavailable(t, client.MaySend(ctx, marketing(userNumber(0))), "CANCELLED")
}

func TestASidecarWithSmallerBatches(t *testing.T) {
	_, client := start(t, 1, "--max-batch", "100", "--max-recipients", "100")
	for range 2 {
		var asked sync.WaitGroup
		for range 2000 {
			asked.Go(func() {
				if verdict := client.MaySend(t.Context(), marketing(userNumber(0))); !verdict.Allowed {
					t.Errorf("%v: %s", verdict, verdict.Cause)
				}
			})
		}
		asked.Wait()
	}
	number := 0
	for user, verdict := range client.Filter(t.Context(), users(2500), campaign) {
		if user != userNumber(number) || verdict.Allowed != (number == 0) || verdict.Code != "" {
			t.Fatalf("user %d: %v: %s", number, verdict, verdict.Cause)
		}
		number++
	}
	if number != 2500 {
		t.Errorf("%d users", number)
	}
}

func TestOddTexts(t *testing.T) {
	_, client := start(t, 10)
	megabyte := strings.Repeat("x", 1<<20)
	var asked sync.WaitGroup
	for number := range 200 {
		question := marketing(userNumber(number % 10))
		isOdd := true
		switch number % 20 {
		case 1:
			question.User = megabyte
		case 2:
			question.User = "\xed\xa0\x80" // a lone surrogate
		case 3:
			question.User = "a\x00b"
		case 4:
			question.User = ""
		case 5:
			question.Business = "\xff"
		case 6:
			question.Category = strings.Repeat("marketing.", 10000)
		case 7:
			question.Template = consentd.Template{Name: "\xff", Language: "en"}
		case 8:
			question.Template = consentd.Template{Name: "Name?", Language: "en"}
		case 9:
			question.Form = 77
		case 10:
			question.User = "a\u202eb"
		default:
			isOdd = false
		}
		asked.Go(func() {
			verdict := client.MaySend(t.Context(), question)
			switch {
			case isOdd && (verdict.Allowed || !verdict.Invalid || verdict.Unavailable || verdict.Cause == ""):
				t.Errorf("odd text %d: %v", number%20, verdict)
			case !isOdd && !verdict.Allowed:
				t.Errorf("a question beside odd ones: %v: %s", verdict, verdict.Cause)
			}
		})
	}
	asked.Wait()
	var odd []string
	for range 10 {
		odd = append(odd, megabyte, "\xff", "", "a\x00b", userNumber(0))
	}
	at := 0
	for user, verdict := range client.Filter(t.Context(), each(odd), campaign) {
		if isGood := at%5 == 4; user != odd[at] || verdict.Allowed != isGood || verdict.Invalid == isGood {
			t.Errorf("user %d of the filter: %v: %s", at, verdict, verdict.Cause)
		}
		at++
	}
	if _, err := client.Record(t.Context(), consentd.OptOut("\xff", "acme", "*")); err == nil {
		t.Error("an event whose user is no UTF-8 is recorded")
	}
	if _, err := client.Record(t.Context(), consentd.Event{}); err == nil {
		t.Error("an event that is none is recorded")
	}
}

func TestAStaleTableDenies(t *testing.T) {
	redis, err := exec.LookPath("redis-server")
	if err != nil {
		t.Fatal("no redis-server: apt-get install redis-server")
	}
	folder := t.TempDir()
	socket := unusedAddress(t)
	port := socket[strings.LastIndex(socket, ":")+1:]
	server := exec.Command(redis, "--port", port, "--bind", "127.0.0.1", "--appendonly", "yes",
		"--appendfsync", "always", "--maxmemory-policy", "noeviction", "--dir", folder)
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
	}()
	eventually(t, "Redis listens", func() bool {
		connection, err := net.Dial("tcp", socket)
		if err == nil {
			_ = connection.Close()
		}
		return err == nil
	})
	record := unusedAddress(t)
	ledger := "redis://127.0.0.1:" + port
	if output, err := exec.Command(binary(t), "init", "--ledger", ledger).CombinedOutput(); err != nil {
		t.Fatalf("consentd init: %v: %s", err, output)
	}
	sidecar := consentdtest.StartSidecar(t, "--ledger", ledger, "--max-staleness", "1s", "--record", record)
	client := sidecar.Client()
	optIn(t, sidecar.Client(consentd.WithAddress(record)), 1)
	// Where the sidecar does not come to read the ledger for a second, it says STALE meanwhile.
	eventually(t, "an allowed check", func() bool {
		return client.MaySend(t.Context(), marketing(userNumber(0))).Allowed
	})
	_ = server.Process.Kill()
	eventually(t, "a denial as STALE", func() bool {
		verdict := client.MaySend(t.Context(), marketing(userNumber(0)))
		if verdict.Unavailable {
			t.Fatalf("%v: %s", verdict, verdict.Cause)
		}
		return !verdict.Allowed && verdict.Reason == consentd.ReasonStale && verdict.Staleness > time.Second
	})
}

func TestAllTransports(t *testing.T) {
	name := filepath.Base(t.TempDir()) + filepath.Base(filepath.Dir(t.TempDir()))
	abstract := "@consentd-test-" + name
	path := filepath.Join(t.TempDir(), "a socket %41?#.sock")
	for _, unix := range []string{abstract, path} {
		sidecar, _ := start(t, 1, "--unix", unix)
		for _, address := range []string{sidecar.Address, "unix:" + unix} {
			client := sidecar.Client(consentd.WithAddress(address))
			if verdict := client.MaySend(t.Context(), marketing(userNumber(0))); !verdict.Allowed {
				t.Errorf("%s: %v: %s", address, verdict, verdict.Cause)
			}
		}
		t.Setenv("CONSENTD_ADDR", "unix:"+unix)
		client := sidecar.Client(consentd.WithAddress(""))
		if verdict := client.MaySend(t.Context(), marketing(userNumber(0))); !verdict.Allowed {
			t.Errorf("CONSENTD_ADDR: %v: %s", verdict, verdict.Cause)
		}
	}
}

func TestClosingWhileCallsAreUnderWay(t *testing.T) {
	sidecar, _ := start(t, 1)
	for range 20 {
		client := sidecar.Client()
		var asked sync.WaitGroup
		for range 100 {
			asked.Go(func() {
				for range 10 {
					verdict := client.MaySend(context.Background(), marketing(userNumber(0)))
					if !verdict.Allowed && (!verdict.Unavailable || verdict.Code != "CANCELLED") {
						t.Errorf("%v: %s", verdict, verdict.Cause)
					}
				}
			})
		}
		asked.Go(func() {
			if err := client.Watch(context.Background(), "acme", func(consentd.Change) {}); err == nil {
				t.Error("Watch returns no error")
			}
		})
		if err := client.Close(); err != nil {
			t.Error(err)
		}
		asked.Wait()
		expectUnavailable(t, client.MaySend(t.Context(), marketing(userNumber(0))), "CANCELLED")
		if _, err := client.Record(t.Context(), consentd.OptOut(userNumber(0), "other", "*")); err == nil {
			t.Error("a closed client records")
		}
		for _, verdict := range client.Filter(t.Context(), users(3), campaign) {
			expectUnavailable(t, verdict, "CANCELLED")
		}
		if err := client.Close(); err != nil {
			t.Errorf("closed twice: %v", err)
		}
	}
}

func TestAThousandClientsLeaveNothingBehind(t *testing.T) {
	sidecar := consentdtest.StartSidecar(t)
	once := func() {
		client, err := consentd.New(consentd.WithAddress(sidecar.Address), consentd.WithTimeout(patience))
		if err != nil {
			t.Fatal(err)
		}
		if verdict := client.MaySend(t.Context(), marketing(userNumber(0))); verdict.Reason != consentd.ReasonNoConsent {
			t.Fatalf("%v: %s", verdict, verdict.Cause)
		}
		if err := client.Close(); err != nil {
			t.Fatal(err)
		}
	}
	once()
	files := func() int {
		open, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(open)
	}
	goroutines, opened := runtime.NumGoroutine(), files()
	for range 1000 {
		once()
	}
	eventually(t, "the end of all goroutines and connections", func() bool {
		return runtime.NumGoroutine() <= goroutines+5 && files() <= opened+5
	})
}
