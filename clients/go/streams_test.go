package consentd

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"consentd.dev/consentd/consentv1"
)

// scriptedSidecar answers streams, and recordings, as a test says.
type scriptedSidecar struct {
	consentv1.ConsentServiceClient // panics where anything else is called
	consentv1.RecordServiceClient
	// watch is what a watch of this attempt, from 1 on, hears next: it is called again and again.
	watch  func(ctx context.Context, attempt int) (*consentv1.WatchConsentsResponse, error)
	filter func(attempt int, asked *consentv1.FilterRecipientsRequest) (*consentv1.FilterRecipientsResponse, error)
	record func(attempt int) error

	attempts int
}

func newScriptedSidecar() (*scriptedSidecar, *Client) {
	s := new(scriptedSidecar)
	return s, &Client{checks: s, records: s, timeout: time.Second, closed: make(chan struct{})}
}

type scriptedWatch struct {
	grpc.ClientStream
	next func() (*consentv1.WatchConsentsResponse, error)
}

func (w *scriptedWatch) Recv() (*consentv1.WatchConsentsResponse, error) { return w.next() }

func (s *scriptedSidecar) WatchConsents(
	ctx context.Context, _ *consentv1.WatchConsentsRequest, _ ...grpc.CallOption,
) (grpc.ServerStreamingClient[consentv1.WatchConsentsResponse], error) {
	s.attempts++
	attempt := s.attempts
	return &scriptedWatch{next: func() (*consentv1.WatchConsentsResponse, error) { return s.watch(ctx, attempt) }}, nil
}

type scriptedFilter struct {
	grpc.ClientStream
	sidecar *scriptedSidecar
	attempt int
	asked   []*consentv1.FilterRecipientsRequest
}

func (f *scriptedFilter) Send(asked *consentv1.FilterRecipientsRequest) error {
	f.asked = append(f.asked, asked)
	return nil
}

func (f *scriptedFilter) Recv() (*consentv1.FilterRecipientsResponse, error) {
	asked := f.asked[0]
	f.asked = f.asked[1:]
	return f.sidecar.filter(f.attempt, asked)
}

func (s *scriptedSidecar) FilterRecipients(
	context.Context, ...grpc.CallOption,
) (grpc.BidiStreamingClient[consentv1.FilterRecipientsRequest, consentv1.FilterRecipientsResponse], error) {
	s.attempts++
	return &scriptedFilter{sidecar: s, attempt: s.attempts}, nil
}

func (s *scriptedSidecar) RecordEvent(
	context.Context, *consentv1.RecordEventRequest, ...grpc.CallOption,
) (*consentv1.RecordEventResponse, error) {
	s.attempts++
	return &consentv1.RecordEventResponse{Applied: true}, s.record(s.attempts)
}

func TestAWatchTellsAnUnknownKindOfMessageAsReset(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, client := newScriptedSidecar()
		checkpoint := &consentv1.WatchConsentsResponse{
			What: &consentv1.WatchConsentsResponse_Checkpoint_{Checkpoint: &consentv1.WatchConsentsResponse_Checkpoint{}},
		}
		heard := []*consentv1.WatchConsentsResponse{{}, {}, checkpoint, {}}
		s.watch = func(context.Context, int) (*consentv1.WatchConsentsResponse, error) {
			if len(heard) == 0 {
				return nil, status.Error(codes.PermissionDenied, "no more")
			}
			next := heard[0]
			heard = heard[1:]
			return next, nil
		}
		var told []ChangeKind
		err := client.Watch(t.Context(), "acme", func(change Change) { told = append(told, change.Kind) })
		if failure := (*Error)(nil); !errors.As(err, &failure) || failure.Code != "PERMISSION_DENIED" {
			t.Errorf("the watch ended: %v", err)
		}
		if !slices.Equal(told, []ChangeKind{Reset, Reset, Reset, Silent}) {
			t.Errorf("told: %v", told)
		}
	})
}

func TestAWatchThatCannotBeginTellsSilentOnce(t *testing.T) {
	for name, fail := range map[string]func(ctx context.Context) error{
		"refused": func(context.Context) error { return status.Error(codes.Unavailable, "nobody is there") },
		"ignored": func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, client := newScriptedSidecar()
				s.watch = func(ctx context.Context, _ int) (*consentv1.WatchConsentsResponse, error) {
					return nil, fail(ctx)
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				begun := time.Now()
				var told []time.Duration
				err := client.Watch(ctx, "acme", func(change Change) {
					if change.Kind != Silent {
						t.Errorf("told: %v", change)
					}
					told = append(told, time.Since(begun))
				})
				if !errors.Is(err, context.DeadlineExceeded) {
					t.Errorf("the watch ended: %v", err)
				}
				if len(told) != 1 || told[0] < silenceTimeout || told[0] > silenceTimeout+time.Second {
					t.Errorf("Silent is told after %v", told)
				}
			})
		})
	}
}

// allowed answers that each user who is asked about is allowed.
func allowed(asked *consentv1.FilterRecipientsRequest) *consentv1.FilterRecipientsResponse {
	reasons := slices.Repeat([]consentv1.Reason{consentv1.Reason_REASON_OPTED_IN}, len(asked.GetUserIds()))
	return &consentv1.FilterRecipientsResponse{Reasons: reasons}
}

func TestAFilterRepeatsWhatMayPass(t *testing.T) {
	for name, failure := range map[string]error{
		"aborted":    status.Error(codes.Aborted, "again"),
		"overloaded": status.Error(codes.ResourceExhausted, "too much"),
		"loading":    status.Error(codes.Unavailable, "loading"),
		"ended":      io.EOF,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, client := newScriptedSidecar()
				s.filter = func(
					attempt int, asked *consentv1.FilterRecipientsRequest,
				) (*consentv1.FilterRecipientsResponse, error) {
					if attempt <= 3 {
						return nil, failure
					}
					return allowed(asked), nil
				}
				for _, verdict := range client.Filter(t.Context(), slices.Values([]string{"a", "b"}), Campaign{}) {
					if !verdict.Allowed {
						t.Errorf("%v: %s", verdict, verdict.Cause)
					}
				}
			})
		})
	}
}

func TestAFilterHalvesChunksDownToOneUserAndKeepsTheSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, client := newScriptedSidecar()
		refused := 0
		s.filter = func(
			_ int, asked *consentv1.FilterRecipientsRequest,
		) (*consentv1.FilterRecipientsResponse, error) {
			if len(asked.GetUserIds()) > 1 {
				refused++
				return nil, refusal("user_ids")
			}
			return allowed(asked), nil
		}
		count := 0
		for _, verdict := range client.Filter(t.Context(), slices.Values(make([]string, 6000)), Campaign{}) {
			if !verdict.Allowed {
				t.Fatalf("%v: %s", verdict, verdict.Cause)
			}
			count++
		}
		// Those chunks alone are refused that were made before the size was known.
		if count != 6000 || refused > 5*1000 {
			t.Errorf("%d verdicts after %d refusals", count, refused)
		}
	})
}

func TestOnlyTheReasonsOneToNineAllowInAFilter(t *testing.T) {
	for reason, isAllowed := range map[consentv1.Reason]bool{-1: false, 0: false, 1: true, 9: true, 10: false, 99: false} {
		verdict := screened(&consentv1.FilterRecipientsResponse{}, reason)
		if verdict.Allowed != isAllowed || verdict.Invalid != (reason == 0) {
			t.Errorf("%d: %v", reason, verdict)
		}
	}
}

func TestARecordingIsRepeated(t *testing.T) {
	for _, code := range []codes.Code{codes.Unavailable, codes.Aborted, codes.ResourceExhausted} {
		synctest.Test(t, func(t *testing.T) {
			s, client := newScriptedSidecar()
			s.record = func(attempt int) error {
				if attempt <= 3 {
					return status.Error(code, "again")
				}
				return nil
			}
			if _, err := client.Record(t.Context(), OptOut("user", "acme", "*")); err != nil || s.attempts != 4 {
				t.Errorf("%v after %d attempts", err, s.attempts)
			}
		})
	}
}

func TestTheTokenIsTheFirstLineThatIsNoComment(t *testing.T) {
	for file, token := range map[string]string{
		"one":                                  "one",
		"# of 2026\r\n\r\n \t one \r\ntwo\r\n": "one",
		"\n  # indented\n\none\n# last\n":      "one",
		"":                                     "",
		"# nothing\n \n":                       "",
	} {
		path := filepath.Join(t.TempDir(), "token")
		if err := os.WriteFile(path, []byte(file), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := firstToken(file); got != token {
			t.Errorf("%q: %q", file, got)
		}
		_, err := (&Client{tokenFile: path}).authorize(t.Context())
		failure := (*Error)(nil)
		if isError := errors.As(err, &failure) && failure.Code == "UNAUTHENTICATED"; isError != (token == "") {
			t.Errorf("%q: %v", file, err)
		}
	}
}
