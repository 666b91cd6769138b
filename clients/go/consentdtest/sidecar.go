package consentdtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"consentd.dev/consentd"
)

// startTimeout is how long a sidecar may take to answer checks, on a machine that is busy.
const startTimeout = 60 * time.Second

// Sidecar runs the real binary on a ledger in a temporary folder. It can be killed, stopped and
// started again, and keeps its addresses and its ledger then.
type Sidecar struct {
	// Address is HOST:PORT of 127.0.0.1.
	Address string
	// UnixAddress is unix:PATH.
	UnixAddress string
	// Folder has the ledger and the socket, and goes with the test.
	Folder string

	tb      testing.TB
	args    []string
	command *exec.Cmd
	exited  chan struct{}
}

// StartSidecar starts `consentd serve` with these further arguments, waits until it answers checks, and
// ends it with the test. It runs the binary that CONSENTD_BIN names, or else consentd of the path; the
// test fails where there is none. --listen, --unix and --ledger among the arguments replace its own.
func StartSidecar(tb testing.TB, args ...string) *Sidecar {
	tb.Helper()
	// The temporary folder of a test has its name in it, which may be too long for a socket's path.
	folder, err := os.MkdirTemp("", "consentd-")
	if err != nil {
		tb.Fatal(err)
	}
	s := &Sidecar{UnixAddress: "unix:" + filepath.Join(folder, "consentd.sock"), Folder: folder, tb: tb, args: args}
	tb.Cleanup(func() {
		s.Kill()
		_ = os.RemoveAll(folder)
	})
	s.Start()
	return s
}

// Client makes a client of the sidecar, which is closed with the test. A check may take 30 s unless an
// option says otherwise: a test must not fail because its machine is busy.
func (s *Sidecar) Client(options ...consentd.Option) *consentd.Client {
	s.tb.Helper()
	options = append([]consentd.Option{
		consentd.WithAddress(s.Address), consentd.WithTimeout(fakeTimeout),
	}, options...)
	client, err := consentd.New(options...)
	if err != nil {
		s.tb.Fatal(err)
	}
	s.tb.Cleanup(func() { _ = client.Close() })
	return client
}

// Start starts a sidecar that was killed or stopped, and waits until it answers checks.
func (s *Sidecar) Start() {
	s.tb.Helper()
	if err := s.Restart(); err != nil {
		s.tb.Fatal(err)
	}
}

// Restart is Start for goroutines of which a test has several: it returns what went wrong.
func (s *Sidecar) Restart() error {
	binary, err := findBinary()
	if err != nil {
		return err
	}
	arguments := []string{"serve", "--admin", "127.0.0.1:0"}
	if !slices.Contains(s.args, "--unix") {
		arguments = append(arguments, "--unix", strings.TrimPrefix(s.UnixAddress, "unix:"))
	}
	if !slices.Contains(s.args, "--ledger") {
		arguments = append(arguments, "--ledger", "file:"+filepath.Join(s.Folder, "consentd.redb"))
	}
	if !slices.Contains(s.args, "--listen") {
		listen := s.Address
		if listen == "" {
			listen = "127.0.0.1:0"
		}
		arguments = append(arguments, "--listen", listen)
	}
	command := exec.Command(binary, append(arguments, s.args...)...)
	command.Dir = s.Folder
	// Variables such as CONSENTD_LEDGER would set options of the sidecar.
	command.Env = slices.DeleteFunc(os.Environ(), func(variable string) bool {
		return strings.HasPrefix(variable, "CONSENTD_")
	})
	stderr, err := command.StderrPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	said := &log{loaded: make(chan struct{})}
	exited := make(chan struct{})
	go func() {
		said.read(bufio.NewScanner(stderr))
		_ = command.Wait()
		close(exited)
	}()
	s.command, s.exited = command, exited
	select {
	case <-said.loaded:
	case <-exited:
		return fmt.Errorf("consentdtest: the sidecar ended before it answered checks; its log:\n%s", said.text())
	case <-time.After(startTimeout):
		s.Kill()
		return fmt.Errorf("consentdtest: the sidecar answered no check within %s; its log:\n%s", startTimeout, said.text())
	}
	s.Address, _, _ = strings.Cut(said.grpc, ",")
	return nil
}

func findBinary() (string, error) {
	if binary := os.Getenv("CONSENTD_BIN"); binary != "" {
		return filepath.Abs(binary)
	}
	binary, err := exec.LookPath("consentd")
	if err != nil {
		return "", fmt.Errorf("consentdtest: no consentd on the path: install it by "+
			"`cargo install --locked --path .` in its repository, or name it in CONSENTD_BIN (%w)", err)
	}
	return binary, nil
}

// Kill ends the sidecar by SIGKILL, as a crash would, and waits until it is gone.
func (s *Sidecar) Kill() {
	s.end(syscall.SIGKILL)
}

// Stop ends the sidecar by SIGTERM: it finishes the calls that are under way. Stop waits until it is
// gone.
func (s *Sidecar) Stop() {
	s.end(syscall.SIGTERM)
}

func (s *Sidecar) end(signal syscall.Signal) {
	if s.command == nil {
		return
	}
	s.Signal(signal)
	<-s.exited
	s.command = nil
}

// Signal sends a signal to the sidecar, such as SIGSTOP, by which it falls silent until SIGCONT.
func (s *Sidecar) Signal(signal syscall.Signal) {
	// A process that is gone already needs no signal.
	if s.command.Process.Signal(signal) != nil || signal != syscall.SIGSTOP {
		return
	}
	// The signal is sent before it is delivered: a thread may go on for a moment, and still answer.
	for deadline := time.Now().Add(startTimeout); !isStopped(s.command.Process.Pid); {
		if time.Now().After(deadline) {
			panic("consentdtest: the sidecar does not stop")
		}
		time.Sleep(time.Millisecond)
	}
}

// isStopped says whether each thread of a process is in the state T; true where the system has no
// /proc to ask.
func isStopped(pid int) bool {
	folder := fmt.Sprintf("/proc/%d/task", pid)
	threads, err := os.ReadDir(folder)
	if err != nil {
		return true
	}
	for _, thread := range threads {
		stat, err := os.ReadFile(filepath.Join(folder, thread.Name(), "stat"))
		// The state comes after the program's name, which is in brackets and may contain any.
		if err != nil || !bytes.HasPrefix(stat[bytes.LastIndexByte(stat, ')')+1:], []byte(" T")) {
			return false
		}
	}
	return true
}

// log reads what a sidecar logs.
type log struct {
	loaded chan struct{} // closed once the sidecar answers checks
	grpc   string        // where it listens

	mu    sync.Mutex
	lines []string
}

func (l *log) read(lines *bufio.Scanner) {
	lines.Buffer(nil, 1<<20)
	hasLoaded := false
	for lines.Scan() {
		l.mu.Lock()
		if len(l.lines) < 1000 {
			l.lines = append(l.lines, lines.Text())
		}
		l.mu.Unlock()
		var line struct{ Message, GRPC string }
		_ = json.Unmarshal(lines.Bytes(), &line) // Other lines than JSON say nothing here.
		if line.Message == "listening" {
			l.grpc = line.GRPC
		}
		if line.Message == "the table holds the ledger" && !hasLoaded {
			hasLoaded = true
			close(l.loaded)
		}
	}
}

func (l *log) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}
