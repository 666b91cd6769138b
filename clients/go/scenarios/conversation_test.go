package scenarios

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"consentd.dev/consentd"
	"consentd.dev/consentd/consentdtest"
	"consentd.dev/consentd/consentv1"
)

// conversation is clients/conversation.json, whose top says how it is read.
type conversation struct {
	Serve    []string
	Business string
	Cases    []conversationCase
}

type conversationCase struct {
	Name             string
	CountryIsBlocked bool `json:"country_is_blocked"`
	Steps            []step
}

type step struct {
	Record    json.RawMessage
	Check     *checkStep
	User      *string
	At        *int64
	RequestID string `json:"request_id"`
	Expect    map[string]any
}

type checkStep struct {
	Category, Form string
	User, Business *string
	Template       *consentd.Template
}

func TestTheSharedConversation(t *testing.T) {
	file, err := os.ReadFile(repositoryFile(t, "clients/conversation.json"))
	if err != nil {
		t.Fatal(err)
	}
	var shared conversation
	if err := json.Unmarshal(file, &shared); err != nil {
		t.Fatal(err)
	}
	if len(shared.Cases) < 10 {
		t.Fatalf("the conversation has %d cases", len(shared.Cases))
	}
	// The package's sidecar brings its own listeners and its own ledger.
	own := map[string]bool{"--listen": true, "--admin": true, "--unix": true, "--ledger": true}
	var args []string
	for i := 0; i+1 < len(shared.Serve); i += 2 {
		if !own[shared.Serve[i]] {
			args = append(args, shared.Serve[i], shared.Serve[i+1])
		}
	}
	sidecar := consentdtest.StartSidecar(t, args...)
	for round, options := range [][]consentd.Option{
		nil,
		{consentd.WithoutCoalescing()},
		{consentd.WithAddress(sidecar.UnixAddress)},
	} {
		var largest atomic.Int64
		client := sidecar.Client(append(options, consentd.WithObserver(consentd.Observer{
			Batched: func(size int) { largest.Store(max(largest.Load(), int64(size))) },
		}))...)
		// The cases go one after the other: their checks meet others in batches only where others are.
		others := ask(client, 100, func(number int, verdict consentd.Verdict) {
			if verdict.Reason != consentd.ReasonNoConsent {
				t.Errorf("user %d, of whom nothing is known: %v", number, verdict)
			}
		})
		for number, one := range shared.Cases {
			t.Run(fmt.Sprintf("%d/%s", round, one.Name), func(t *testing.T) {
				id := 100000 + 1000*round + number
				user := fmt.Sprintf("4477009%d", id)
				if one.CountryIsBlocked {
					user = fmt.Sprintf("1555%d0", id)
				}
				c := &conversing{
					client: client, business: shared.Business, user: user, id: fmt.Sprint(id),
				}
				for i, step := range one.Steps {
					if err := c.take(t, step); err != nil {
						t.Errorf("step %d: %v", i, err)
					}
				}
			})
		}
		others.end()
		if isCoalescing := round != 1; (largest.Load() > 1) != isCoalescing {
			t.Errorf("round %d: the largest batch had %d checks", round, largest.Load())
		}
	}
}

// conversing is one case.
type conversing struct {
	client             *consentd.Client
	business, user, id string
	revision           uint64
}

func (c *conversing) fill(text string) string {
	return strings.NewReplacer(
		"{user}", c.user, "{n}", c.id,
		"{now-1h}", time.Now().Add(-time.Hour).UTC().Format(time.RFC3339),
	).Replace(text)
}

func (c *conversing) take(t *testing.T, step step) error {
	if step.Record != nil {
		return c.record(t, step)
	}
	question := consentd.Question{
		User:        c.user,
		Business:    c.business,
		Category:    step.Check.Category,
		Form:        consentd.Form(consentv1.MessageForm_value["MESSAGE_FORM_"+step.Check.Form]),
		MinRevision: c.revision,
	}
	if step.Check.User != nil {
		question.User = c.fill(*step.Check.User)
	}
	if step.Check.Business != nil {
		question.Business = *step.Check.Business
	}
	if step.Check.Template != nil {
		question.Template = consentd.Template{
			Name: c.fill(step.Check.Template.Name), Language: step.Check.Template.Language,
		}
		question.MinRevision = 0
	}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		verdict := c.client.MaySend(t.Context(), question)
		err := compare(step.Expect, map[string]any{
			"allowed": verdict.Allowed, "reason": string(verdict.Reason), "invalid": verdict.Invalid,
			"code": verdict.Code, "field": verdict.Field, "cause_contains": verdict.Cause,
		})
		if err == nil {
			return c.checkAgrees(t, question, verdict)
		}
		if step.Check.Template == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// checkAgrees is whether Check says what MaySend said.
func (c *conversing) checkAgrees(t *testing.T, question consentd.Question, said consentd.Verdict) error {
	verdict, err := c.client.Check(t.Context(), question)
	if verdict.Allowed != said.Allowed || verdict.Reason != said.Reason {
		return fmt.Errorf("MaySend said %v and Check says %v", said, verdict)
	}
	failure := (*consentd.Error)(nil)
	switch {
	case said.Code == "" && err != nil:
		return fmt.Errorf("Check: %w", err)
	case said.Code != "" && (!errors.As(err, &failure) || failure.Code != said.Code):
		return fmt.Errorf("MaySend said %v and the error of Check is %v", said, err)
	}
	return nil
}

func (c *conversing) record(t *testing.T, step step) error {
	event := new(consentv1.ConsentEvent)
	if err := protojson.Unmarshal([]byte(c.fill(string(step.Record))), event); err != nil {
		return err
	}
	event.UserId, event.BusinessId = c.user, c.business
	if step.User != nil {
		event.UserId = c.fill(*step.User)
	}
	recording := consentd.Event{What: event, RequestID: c.fill(step.RequestID)}
	if step.At != nil {
		recording = recording.At(time.Now().Add(time.Duration(*step.At) * time.Millisecond))
	}
	// The ledger's clock counts milliseconds, and of two events at the same one a denial prevails: a
	// suppression and its lifting must not fall into one.
	time.Sleep(2 * time.Millisecond)
	recorded, err := c.client.Record(t.Context(), recording)
	got := map[string]any{
		"applied": recorded.Applied, "opted_out_scope": recorded.OptedOutScope,
		"matched_keyword": recorded.MatchedKeyword,
	}
	if failure := (*consentd.Error)(nil); errors.As(err, &failure) {
		got["error"] = failure.Code
		fields := []any{}
		for _, field := range failure.Fields {
			if len(fields) == 0 || fields[len(fields)-1] != field.Field {
				fields = append(fields, field.Field)
			}
		}
		got["fields"] = fields
	}
	if _, isExpected := step.Expect["error"]; err != nil && !isExpected {
		return err
	}
	c.revision = max(c.revision, recorded.Revision)
	return compare(step.Expect, got)
}

func compare(expected, got map[string]any) error {
	for name, value := range expected {
		actual, isKnown := got[name]
		switch {
		case !isKnown:
			return fmt.Errorf("%s is missing", name)
		case name == "cause_contains":
			if !strings.Contains(actual.(string), value.(string)) {
				return fmt.Errorf("the cause has no %q", value)
			}
		case fmt.Sprint(actual) != fmt.Sprint(value):
			return fmt.Errorf("%s is %v, expected %v", name, actual, value)
		}
	}
	return nil
}
