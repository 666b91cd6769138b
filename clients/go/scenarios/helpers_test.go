package scenarios

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"consentd.dev/consentd"
	"consentd.dev/consentd/consentdtest"
	"consentd.dev/consentd/consentv1"
)

// patience is how long a test waits for what must happen, on a machine that is busy.
const patience = 60 * time.Second

// repositoryFile is the path of a file of consentd's repository.
func repositoryFile(t *testing.T, name string) string {
	t.Helper()
	root := os.Getenv("CONSENTD_REPOSITORY")
	if root == "" {
		root = "../../.."
	}
	return filepath.Join(root, name)
}

func evidence() *consentv1.Evidence {
	return &consentv1.Evidence{
		Method:       consentv1.OptInMethod_OPT_IN_METHOD_WEBSITE,
		Statement:    "Yes, send me offers from Acme on WhatsApp",
		BusinessName: "Acme",
		Locale:       "en",
	}
}

// userNumber makes an id of a test's user. Failures name users by their number alone.
func userNumber(number int) string {
	return fmt.Sprintf("user-%06d", number)
}

func marketing(user string) consentd.Question {
	return consentd.Question{
		User: user, Business: "acme", Category: "marketing", Form: consentd.TemplateForm,
	}
}

// optIn records that users from 0 on agreed to marketing.
func optIn(t *testing.T, client *consentd.Client, users int) {
	t.Helper()
	inParallel(users, func(number int) {
		_, err := client.Record(t.Context(), consentd.OptIn(userNumber(number), "acme", "marketing", evidence()))
		if err != nil {
			t.Errorf("recording the opt-in of user %d: %v", number, err)
		}
	})
}

// inParallel calls for each number below count, with 64 goroutines.
func inParallel(count int, call func(number int)) {
	var next atomic.Int64
	var finished sync.WaitGroup
	for range min(count, 64) {
		finished.Go(func() {
			for number := int(next.Add(1)) - 1; number < count; number = int(next.Add(1)) - 1 {
				call(number)
			}
		})
	}
	finished.Wait()
}

// eventually waits until something holds.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// expectUnavailable fails unless a verdict denies, as unavailable, with one of these codes.
func expectUnavailable(t *testing.T, verdict consentd.Verdict, codes ...string) {
	t.Helper()
	if verdict.Allowed || !verdict.Unavailable || verdict.Invalid || verdict.Reason != "" {
		t.Fatalf("%v: %s", verdict, verdict.Cause)
	}
	for _, code := range codes {
		if verdict.Code == code {
			return
		}
	}
	t.Fatalf("%v, expected %v: %s", verdict, codes, verdict.Cause)
}

// silentServer accepts connections and never answers.
func silentServer(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		var accepted []net.Conn // kept open
		for {
			connection, err := listener.Accept()
			if err != nil {
				for _, one := range accepted {
					_ = one.Close()
				}
				return
			}
			accepted = append(accepted, connection)
		}
	}()
	return listener.Addr().String()
}

// asking has 16 goroutines check users from 0 on, over and over, until it is stopped.
type asking struct {
	stop     context.CancelFunc
	finished sync.WaitGroup
	count    atomic.Int64
}

func ask(client *consentd.Client, users int, judge func(number int, verdict consentd.Verdict)) *asking {
	ctx, stop := context.WithCancel(context.Background())
	a := &asking{stop: stop}
	for caller := range 16 {
		a.finished.Go(func() {
			for number := caller % users; ctx.Err() == nil; number = (number + 1) % users {
				judge(number, client.MaySend(context.Background(), marketing(userNumber(number))))
				a.count.Add(1)
			}
		})
	}
	return a
}

func (a *asking) end() {
	a.stop()
	a.finished.Wait()
}

// start starts a sidecar, and a client that has users who agreed to marketing.
func start(t *testing.T, users int, args ...string) (*consentdtest.Sidecar, *consentd.Client) {
	t.Helper()
	sidecar := consentdtest.StartSidecar(t, args...)
	client := sidecar.Client()
	optIn(t, client, users)
	return sidecar, client
}

// binary is the path of consentd.
func binary(t *testing.T) string {
	t.Helper()
	if named := os.Getenv("CONSENTD_BIN"); named != "" {
		return named
	}
	found, err := exec.LookPath("consentd")
	if err != nil {
		t.Fatal("no consentd on the path, and none in CONSENTD_BIN")
	}
	return found
}
