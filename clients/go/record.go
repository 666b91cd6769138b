package consentd

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"strings"
	"time"

	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"consentd.dev/consentd/consentv1"
)

// recordTimeout bounds a recording, over all its repetitions. An event is acknowledged once it is on the
// disk.
const recordTimeout = 5 * time.Second

// Event is what [Client.Record] records. Functions such as [OptOut] make one; what they have no
// argument for is set in What.
type Event struct {
	// What is the event as the contract has it.
	What *consentv1.ConsentEvent
	// RequestID makes it safe to record the event again: an id that is recorded already changes
	// nothing. Empty: a random one for each call of Record.
	RequestID string
}

// At is the event with the time when it happened. Without one it is the ledger's time of recording.
func (e Event) At(t time.Time) Event {
	e.What = proto.CloneOf(e.What)
	e.What.EventTime = timestamppb.New(t)
	return e
}

// WithRequestID is the event with a request id, such as the id of the message that told of it, so
// that another process, or the same after a crash, may record it again.
func (e Event) WithRequestID(id string) Event {
	e.RequestID = id
	return e
}

// OptIn is an agreement to a category, such as "marketing" or "utility.order_updates". The evidence must
// have a method, and words of agreement that name WhatsApp and the business.
func OptIn(user, business, category string, evidence *consentv1.Evidence) Event {
	event := &consentv1.OptIn{Category: category, Evidence: evidence}
	return newEvent(user, business, &consentv1.ConsentEvent{What: &consentv1.ConsentEvent_OptIn{OptIn: event}})
}

// OptOut is a withdrawal from a scope: a category, a class, or "*" for everything.
func OptOut(user, business, scope string) Event {
	event := &consentv1.OptOut{Scope: scope}
	return newEvent(user, business, &consentv1.ConsentEvent{What: &consentv1.ConsentEvent_OptOut{OptOut: event}})
}

// InboundMessage is a message, or with an empty text a call, from the user to the business. The text
// is read for keywords such as STOP, and never stored.
func InboundMessage(user, business, text string) Event {
	event := &consentv1.InboundMessage{Text: text}
	return newEvent(user, business, &consentv1.ConsentEvent{
		What: &consentv1.ConsentEvent_InboundMessage{InboundMessage: event},
	})
}

// PlatformPreference is that the user stopped the business's marketing inside WhatsApp, or resumed it,
// at the business's number with Meta's id phoneNumberID; empty: which number is unknown.
func PlatformPreference(user, business string, isStopped bool, phoneNumberID string) Event {
	event := &consentv1.PlatformPreference{MarketingStopped: isStopped, PhoneNumberId: phoneNumberID}
	return newEvent(user, business, &consentv1.ConsentEvent{
		What: &consentv1.ConsentEvent_PlatformPreference{PlatformPreference: event},
	})
}

// DeliveryFailure is that WhatsApp refused a message to the user with this error code, such as 131049.
// phoneNumberID is Meta's id of the number that sent it; empty: unknown.
func DeliveryFailure(user, business string, code int32, phoneNumberID string) Event {
	event := &consentv1.DeliveryFailure{Code: code, PhoneNumberId: phoneNumberID}
	return newEvent(user, business, &consentv1.ConsentEvent{
		What: &consentv1.ConsentEvent_DeliveryFailure{DeliveryFailure: event},
	})
}

// Suppression is that the user must not be contacted, or may be again.
func Suppression(user, business string, isSuppressed bool) Event {
	event := &consentv1.Suppression{Suppressed: isSuppressed}
	return newEvent(user, business, &consentv1.ConsentEvent{
		What: &consentv1.ConsentEvent_Suppression{Suppression: event},
	})
}

// Link is that otherUser is another id of the user, to which the person moved where isMoved is true.
// What denies under either id denies under both.
func Link(user, business, otherUser string, isMoved bool) Event {
	event := &consentv1.Link{OtherUserId: otherUser, Moved: isMoved}
	return newEvent(user, business, &consentv1.ConsentEvent{What: &consentv1.ConsentEvent_Link{Link: event}})
}

// TemplateCategory is that WhatsApp has a template in this class from now on: marketing, utility or
// authentication.
func TemplateCategory(template Template, business, class string) Event {
	event := &consentv1.TemplateCategory{Category: class}
	name := "template:" + template.Name + ":" + template.Language
	return newEvent(name, business, &consentv1.ConsentEvent{
		What: &consentv1.ConsentEvent_TemplateCategory{TemplateCategory: event},
	})
}

// TemplateRestriction is that WhatsApp counts all utility templates of the business as marketing, or no
// longer.
func TemplateRestriction(business string, isRestricted bool) Event {
	event := &consentv1.TemplateRestriction{Restricted: isRestricted}
	return newEvent("template:*", business, &consentv1.ConsentEvent{
		What: &consentv1.ConsentEvent_TemplateRestriction{TemplateRestriction: event},
	})
}

func newEvent(user, business string, event *consentv1.ConsentEvent) Event {
	event.UserId, event.BusinessId = user, business
	return Event{What: event}
}

// Recorded is what the ledger made of an event.
type Recorded struct {
	// Revision is the ledger's revision after the event. As [Question.MinRevision] it has any sidecar
	// of that ledger answer no earlier than it knows of the event.
	Revision uint64
	// Applied is false where the event changed nothing, since it is older than what the ledger knows.
	Applied bool
	// OptedOutScope and OptedInCategory are what a keyword in an inbound text opted out of, or in to,
	// so that it can be confirmed to the user. Empty: none.
	OptedOutScope, OptedInCategory string
	// MatchedKeyword is that keyword, as the list of keywords has it.
	MatchedKeyword string
	// KeywordLocale is the BCP 47 tag of the keyword's language. Empty where several have it.
	KeywordLocale string
}

// Record records an event durably: when it returns without an error, the sidecar's answers include
// it. It is repeated for up to 5 s, with the same request id, while the sidecar is not there or says
// that it is to be tried again.
//
// An [*Error] means that the event is not known to be recorded. An opt-out that is lost is a message
// that must not be sent: unless the code is INVALID_ARGUMENT, keep the event with its RequestID and
// record it again.
func (c *Client) Record(ctx context.Context, event Event) (Recorded, error) {
	if c.isClosed() {
		return Recorded{}, errClosed()
	}
	ctx, cancel := context.WithTimeout(ctx, recordTimeout)
	defer cancel()
	if event.RequestID == "" {
		event.RequestID = newUUID()
	}
	request := &consentv1.RecordEventRequest{Event: event.What, RequestId: event.RequestID}
	if _, err := proto.Marshal(request); err != nil {
		return Recorded{}, &Error{Code: "INVALID_ARGUMENT", Cause: "event: a text is not UTF-8"}
	}
	isWorthAnother := func(err error) bool { return isConnectionFailure(err) || isTryAgain(err) }
	var answer *consentv1.RecordEventResponse
	err := c.repeat(ctx, isWorthAnother, func() error {
		authorized, err := c.authorize(ctx)
		if err != nil {
			return err
		}
		answer, err = c.records.RecordEvent(authorized, request)
		return err
	})
	if err != nil {
		return Recorded{}, errorOf(err)
	}
	return Recorded{
		Revision:        answer.GetRevision(),
		Applied:         answer.GetApplied(),
		OptedOutScope:   answer.GetOptedOutScope(),
		OptedInCategory: answer.GetOptedInCategory(),
		MatchedKeyword:  answer.GetMatchedKeyword(),
		KeywordLocale:   answer.GetKeywordLocale(),
	}, nil
}

// authorize adds the bearer token to the metadata of a call, where there is one.
func (c *Client) authorize(ctx context.Context) (context.Context, error) {
	if c.tokenFile == "" {
		return ctx, nil
	}
	file, err := os.ReadFile(c.tokenFile)
	if err != nil {
		return nil, &Error{Code: "UNAUTHENTICATED", Cause: "reading the token: " + err.Error()}
	}
	token := firstToken(string(file))
	if token == "" {
		return nil, &Error{Code: "UNAUTHENTICATED", Cause: "there is no token in " + c.tokenFile}
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token), nil
}

// firstToken is the first token of a token file, which is read as the sidecar reads its own: a token is
// a line without the white space around it, and blank lines and those that begin with # are none.
func firstToken(file string) string {
	for line := range strings.SplitSeq(file, "\n") {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return line
		}
	}
	return ""
}

// newUUID is a random UUID (RFC 9562, version 4).
func newUUID() string {
	var id [16]byte
	_, _ = rand.Read(id[:]) // It never fails: see its documentation.
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
}
