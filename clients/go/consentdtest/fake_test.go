package consentdtest_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"

	"consentd.dev/consentd"
	"consentd.dev/consentd/consentdtest"
)

func question(user, category string) consentd.Question {
	return consentd.Question{User: user, Business: "acme", Category: category}
}

func TestAFakeAnswersByItsRules(t *testing.T) {
	fake := consentdtest.NewFake(t)
	client := fake.Client()
	fake.Allow("a", "acme", "marketing")
	fake.Deny("a", "acme", "marketing.offers", consentd.ReasonOptedOut)
	for _, one := range []struct {
		user, category string
		allowed        bool
		reason         consentd.Reason
	}{
		{"a", "marketing", true, consentd.ReasonOptedIn},
		{"a", "marketing.news", true, consentd.ReasonOptedIn},
		{"a", "marketing.offers", false, consentd.ReasonOptedOut},
		{"a", "utility", false, consentd.ReasonNoConsent},
		{"b", "marketing", false, consentd.ReasonNoConsent},
	} {
		verdict := client.MaySend(t.Context(), question(one.user, one.category))
		if verdict.Allowed != one.allowed || verdict.Reason != one.reason {
			t.Errorf("%s %s: %v", one.user, one.category, verdict)
		}
	}
	var allowed []bool
	campaign := consentd.Campaign{Business: "acme", Category: "marketing"}
	for _, verdict := range client.Filter(t.Context(), slices.Values([]string{"a", "b"}), campaign) {
		allowed = append(allowed, verdict.Allowed)
	}
	if !slices.Equal(allowed, []bool{true, false}) {
		t.Errorf("the filter: %v", allowed)
	}
}

func TestAFakeFailsWhenItIsTold(t *testing.T) {
	fake := consentdtest.NewFake(t)
	fake.Allow("a", "acme", "marketing")
	fake.Fail(codes.ResourceExhausted)
	verdict, err := fake.Client().Check(t.Context(), question("a", "marketing"))
	if verdict.Allowed || !verdict.Unavailable || err == nil {
		t.Errorf("%v, %v", verdict, err)
	}
	fake.Fail(codes.OK)
	if verdict := fake.Client().MaySend(t.Context(), question("a", "marketing")); !verdict.Allowed {
		t.Errorf("%v", verdict)
	}
}

func TestAFakeNotesEvents(t *testing.T) {
	fake := consentdtest.NewFake(t)
	for _, event := range []consentd.Event{
		consentd.OptOut("a", "acme", "*"),
		consentd.InboundMessage("b", "acme", "hello").WithRequestID("message-1"),
	} {
		if recorded, err := fake.Client().Record(t.Context(), event); err != nil || !recorded.Applied {
			t.Errorf("%v, %v", recorded, err)
		}
	}
	events := fake.Events()
	if len(events) != 2 || events[0].What.GetOptOut().GetScope() != "*" || len(events[0].RequestID) != 36 ||
		events[1].What.GetUserId() != "b" || events[1].RequestID != "message-1" {
		t.Errorf("%v", events)
	}
}

func TestAFakeTellsChanges(t *testing.T) {
	fake := consentdtest.NewFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	told := make(chan consentd.Change)
	ended := make(chan error)
	go func() { ended <- fake.Client().Watch(ctx, "acme", func(change consentd.Change) { told <- change }) }()
	expect := func(expected consentd.Change) {
		t.Helper()
		select {
		case change := <-told:
			if change != expected {
				t.Errorf("%v, expected %v", change, expected)
			}
		case <-time.After(time.Minute):
			t.Fatalf("nothing is told, expected %v", expected)
		}
	}
	expect(consentd.Change{Kind: consentd.Reset})
	changed := consentd.Change{Kind: consentd.Changed, User: "a", Business: "acme", Revision: 7}
	template := consentd.Change{
		Kind: consentd.TemplateChanged, Business: "acme", Template: consentd.Template{Name: "offer", Language: "en"},
	}
	fake.Tell(consentd.Change{Kind: consentd.Changed, User: "a", Business: "other"})
	for _, change := range []consentd.Change{changed, template, {Kind: consentd.Reset}, changed} {
		fake.Tell(change)
		expect(change)
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}
