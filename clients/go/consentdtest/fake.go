// Package consentdtest has what the tests of a sender need: a [Fake] that answers as a test says, and
// a [Sidecar], which is the real binary on a ledger of its own.
package consentdtest

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"

	"consentd.dev/consentd"
	"consentd.dev/consentd/consentv1"
)

// fakeTimeout is how long a check of a fake's client may take: a test must not fail because its machine
// is busy.
const fakeTimeout = 30 * time.Second

// Fake stands in for a sidecar. It answers by the rules that a test states, and denies all else as
// NO_CONSENT. Its client is a real one, which reaches the fake within the process: no socket is used.
type Fake struct {
	client *consentd.Client
	server *grpc.Server

	mu       sync.Mutex
	rules    map[rule]consentv1.Reason
	failure  error
	events   []consentd.Event
	watchers map[chan *consentv1.WatchConsentsResponse]struct{}
}

type rule struct{ user, business, category string }

// NewFake makes a fake, which ends with the test. Options are those of its client; unless one says
// otherwise a check may take 30 s.
func NewFake(tb testing.TB, options ...consentd.Option) *Fake {
	tb.Helper()
	f := &Fake{
		server:   grpc.NewServer(),
		rules:    map[rule]consentv1.Reason{},
		watchers: map[chan *consentv1.WatchConsentsResponse]struct{}{},
	}
	consentv1.RegisterConsentServiceServer(f.server, &fakeConsent{fake: f})
	consentv1.RegisterRecordServiceServer(f.server, &fakeRecord{fake: f})
	listener := bufconn.Listen(1 << 20)
	go func() { _ = f.server.Serve(listener) }()
	tb.Cleanup(f.server.Stop)
	options = append([]consentd.Option{
		consentd.WithTimeout(fakeTimeout),
		consentd.WithDialOptions(grpc.WithContextDialer(
			func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) },
		)),
	}, options...)
	client, err := consentd.New(options...)
	if err != nil {
		tb.Fatal(err)
	}
	f.client = client
	tb.Cleanup(func() { _ = client.Close() })
	return f
}

// Client is a client whose sidecar is the fake.
func (f *Fake) Client() *consentd.Client {
	return f.client
}

// Allow has messages of a category allowed, as OPTED_IN. A class, such as "marketing", stands for all
// its topics that have no rule of their own. All forms are allowed.
func (f *Fake) Allow(user, business, category string) {
	f.set(rule{user, business, category}, consentv1.Reason_REASON_OPTED_IN)
}

// Deny has messages of a category denied for a reason, such as [consentd.ReasonOptedOutAll]. A reason
// that allows, or that is unknown, is a mistake of the test and panics.
func (f *Fake) Deny(user, business, category string, reason consentd.Reason) {
	number := consentv1.Reason(consentv1.Reason_value["REASON_"+string(reason)])
	if number < consentv1.Reason_REASON_NO_CONSENT {
		panic("consentdtest: " + string(reason) + " is no reason that denies")
	}
	f.set(rule{user, business, category}, number)
}

func (f *Fake) set(rule rule, reason consentv1.Reason) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules[rule] = reason
}

// Fail has every check and recording end with this code from now on, such as codes.ResourceExhausted.
// codes.OK has them answered again.
func (f *Fake) Fail(code codes.Code) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failure = status.Error(code, "the test has the sidecar fail")
}

// Events are the events that were recorded, in order. They change no answer.
func (f *Fake) Events() []consentd.Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]consentd.Event(nil), f.events...)
}

// Tell has all watches of the client hear a change: Changed, TemplateChanged or Reset. Watches of
// another business hear nothing.
func (f *Fake) Tell(change consentd.Change) {
	message := new(consentv1.WatchConsentsResponse)
	switch change.Kind {
	case consentd.Changed:
		message.What = &consentv1.WatchConsentsResponse_Changed_{
			Changed: &consentv1.WatchConsentsResponse_Changed{
				UserId: change.User, BusinessId: change.Business, Revision: change.Revision,
			},
		}
	case consentd.TemplateChanged:
		told := &consentv1.WatchConsentsResponse_TemplateChanged{
			BusinessId: change.Business, Revision: change.Revision,
		}
		if change.Template != (consentd.Template{}) {
			told.Template = &consentv1.Template{Name: change.Template.Name, Language: change.Template.Language}
		}
		message.What = &consentv1.WatchConsentsResponse_TemplateChanged_{TemplateChanged: told}
	case consentd.Reset:
		message.What = &consentv1.WatchConsentsResponse_Reset_{Reset_: &consentv1.WatchConsentsResponse_Reset{}}
	default:
		panic("consentdtest: a sidecar does not tell " + string(change.Kind))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for watcher := range f.watchers {
		watcher <- message
	}
}

// answer is the answer to a check.
func (f *Fake) answer(asked *consentv1.CanSendRequest) (*consentv1.CanSendResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.failure != nil {
		return nil, f.failure
	}
	class, _, _ := strings.Cut(asked.GetCategory(), ".")
	reason, ok := f.rules[rule{asked.GetUserId(), asked.GetBusinessId(), asked.GetCategory()}]
	if !ok {
		reason, ok = f.rules[rule{asked.GetUserId(), asked.GetBusinessId(), class}]
	}
	if !ok {
		reason = consentv1.Reason_REASON_NO_CONSENT
	}
	isAllowed := reason < consentv1.Reason_REASON_NO_CONSENT
	return &consentv1.CanSendResponse{
		Allowed: isAllowed, Reason: reason, FreeFormAllowed: isAllowed, TemplateAllowed: isAllowed,
	}, nil
}

// fakeConsent is the read side of a fake.
type fakeConsent struct {
	consentv1.UnimplementedConsentServiceServer
	fake *Fake
}

func (s *fakeConsent) CanSend(
	_ context.Context, asked *consentv1.CanSendRequest,
) (*consentv1.CanSendResponse, error) {
	return s.fake.answer(asked)
}

func (s *fakeConsent) BatchCanSend(
	_ context.Context, asked *consentv1.BatchCanSendRequest,
) (*consentv1.BatchCanSendResponse, error) {
	answer := new(consentv1.BatchCanSendResponse)
	for _, question := range asked.GetRequests() {
		one, err := s.fake.answer(question)
		if err != nil {
			return nil, err
		}
		answer.Results = append(answer.Results, &consentv1.BatchCanSendResult{
			Result: &consentv1.BatchCanSendResult_Response{Response: one},
		})
	}
	return answer, nil
}

func (s *fakeConsent) FilterRecipients(stream consentv1.ConsentService_FilterRecipientsServer) error {
	var business, category string
	for {
		asked, err := stream.Recv()
		if err != nil {
			return nil // The client has no more users.
		}
		if asked.GetBusinessId() != "" {
			business = asked.GetBusinessId()
		}
		if asked.GetCategory() != "" {
			category = asked.GetCategory()
		}
		answer := new(consentv1.FilterRecipientsResponse)
		for _, user := range asked.GetUserIds() {
			one, err := s.fake.answer(&consentv1.CanSendRequest{
				UserId: user, BusinessId: business, Category: category,
			})
			if err != nil {
				return err
			}
			answer.Reasons = append(answer.Reasons, one.GetReason())
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}

func (s *fakeConsent) GetStatus(
	context.Context, *consentv1.GetStatusRequest,
) (*consentv1.GetStatusResponse, error) {
	return &consentv1.GetStatusResponse{
		Phase: consentv1.GetStatusResponse_PHASE_LIVE, Version: consentd.Version,
	}, nil
}

func (s *fakeConsent) WatchConsents(
	asked *consentv1.WatchConsentsRequest, stream consentv1.ConsentService_WatchConsentsServer,
) error {
	checkpoint := &consentv1.WatchConsentsResponse{
		What: &consentv1.WatchConsentsResponse_Checkpoint_{
			Checkpoint: &consentv1.WatchConsentsResponse_Checkpoint{PartitionRevisions: []uint64{0}},
		},
	}
	told := make(chan *consentv1.WatchConsentsResponse, 1024)
	s.fake.mu.Lock()
	s.fake.watchers[told] = struct{}{}
	s.fake.mu.Unlock()
	defer func() {
		s.fake.mu.Lock()
		delete(s.fake.watchers, told)
		s.fake.mu.Unlock()
	}()
	heartbeat := time.NewTicker(time.Second)
	defer heartbeat.Stop()
	next := checkpoint
	for {
		if !concerns(asked.GetBusinessId(), next) {
			next = checkpoint
		}
		if err := stream.Send(next); err != nil {
			return err
		}
		select {
		case next = <-told:
		case <-heartbeat.C:
			next = checkpoint
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// concerns is whether a watch of this business, or of all if it is empty, is told a message.
func concerns(business string, message *consentv1.WatchConsentsResponse) bool {
	about := message.GetChanged().GetBusinessId() + message.GetTemplateChanged().GetBusinessId()
	return business == "" || about == "" || about == business
}

// fakeRecord is the write side of a fake.
type fakeRecord struct {
	consentv1.UnimplementedRecordServiceServer
	fake *Fake
}

func (s *fakeRecord) RecordEvent(
	_ context.Context, asked *consentv1.RecordEventRequest,
) (*consentv1.RecordEventResponse, error) {
	s.fake.mu.Lock()
	defer s.fake.mu.Unlock()
	if s.fake.failure != nil {
		return nil, s.fake.failure
	}
	s.fake.events = append(s.fake.events, consentd.Event{
		What: proto.CloneOf(asked.GetEvent()), RequestID: asked.GetRequestId(),
	})
	return &consentv1.RecordEventResponse{Revision: uint64(len(s.fake.events)), Applied: true}, nil
}
