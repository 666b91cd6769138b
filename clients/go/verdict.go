package consentd

import (
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/timestamppb"

	"consentd.dev/consentd/consentv1"
)

// Form is how a message is written.
type Form = consentv1.MessageForm

const (
	// AnyForm is the form of a message that is not written yet: the verdict says which forms are
	// allowed.
	AnyForm = consentv1.MessageForm_MESSAGE_FORM_UNSPECIFIED
	// FreeForm is the form of text, media, or an interactive message written by the business.
	FreeForm = consentv1.MessageForm_MESSAGE_FORM_FREE_FORM
	// TemplateForm is the form of a message template that WhatsApp has approved.
	TemplateForm = consentv1.MessageForm_MESSAGE_FORM_TEMPLATE
)

// Template names a message template. The zero value stands for none.
type Template struct {
	// Name is its name as WhatsApp has it, such as "order_shipped".
	Name string
	// Language is its language, such as "en" or "pt_BR".
	Language string
}

// proto is the template as the contract has it, or nil for none.
func (t Template) proto() *consentv1.Template {
	if t == (Template{}) {
		return nil
	}
	return &consentv1.Template{Name: t.Name, Language: t.Language}
}

// Question is what [Client.MaySend] asks.
type Question struct {
	// User is whom the message is for: a phone number in any usual notation, country code first, a
	// business-scoped user id, or an id of your own with a letter in it. At most 160 bytes.
	User string
	// Business is who would send it, by the deployment's own id.
	Business string
	// Category is "CLASS" or "CLASS.TOPIC", such as "utility.order_updates"; the class is marketing,
	// utility, authentication or service.
	Category string
	// Form is how the message is written, if that is known.
	Form Form
	// Template is the template that the message will be, if that is known. The stricter of Category
	// and of what is known of the template decides. It stands for [TemplateForm].
	Template Template
	// MinRevision has the sidecar wait until it knows this revision, which [Client.Record] returned.
	// 0: do not wait.
	MinRevision uint64
	// Timeout is how long this check may take. 0 or less: as long as the client's option says. An
	// earlier deadline of the context counts, a later one does not.
	Timeout time.Duration
}

func (q *Question) request() *consentv1.CanSendRequest {
	request := new(consentv1.CanSendRequest)
	q.fill(request)
	return request
}

func (q *Question) fill(request *consentv1.CanSendRequest) {
	request.UserId = q.User
	request.BusinessId = q.Business
	request.Category = q.Category
	request.Form = q.Form
	request.MinRevision = q.MinRevision
	request.Template = q.Template.proto()
}

// textBytes is how many bytes the texts of the question have.
func (q *Question) textBytes() int {
	return len(q.User) + len(q.Business) + len(q.Category) + len(q.Template.Name) +
		len(q.Template.Language)
}

// malformedField names the first field that is no UTF-8. Protobuf cannot encode such a text: in a
// batch it would fail the other checks with it.
func (q *Question) malformedField() string {
	switch {
	case !utf8.ValidString(q.User):
		return "user_id"
	case !utf8.ValidString(q.Business):
		return "business_id"
	case !utf8.ValidString(q.Category):
		return "category"
	case !utf8.ValidString(q.Template.Name):
		return "template.name"
	case !utf8.ValidString(q.Template.Language):
		return "template.language"
	}
	return ""
}

// Verdict says whether a message may be sent, and why. The zero value denies.
type Verdict struct {
	// Allowed is whether the message may be sent now. Nothing but an answer of the sidecar makes it
	// true. If it is false, and neither Unavailable nor Invalid is true, the sidecar denies.
	Allowed bool
	// Reason is why, or empty where nothing was decided.
	Reason Reason
	// Unavailable: nothing was decided, since there was no sidecar, or an error, an overload, a
	// deadline, or a sidecar that loads its table. Keep the message and ask again later.
	Unavailable bool
	// Invalid: nothing was decided, since the question is malformed. Asking it again is of no use.
	Invalid bool
	// Code is the name of the gRPC code where nothing was decided, such as "UNAVAILABLE",
	// "DEADLINE_EXCEEDED" or "INVALID_ARGUMENT", and else empty.
	Code string
	// Cause is why nothing was decided, in words. It may quote the question's fields.
	Cause string
	// Field is the malformed field, as the contract names it, such as "category".
	Field string
	// FreeFormAllowed is whether a free-form message may be sent.
	FreeFormAllowed bool
	// TemplateAllowed is whether a template may be sent.
	TemplateAllowed bool
	// WindowExpireTime is when the 24-hour customer service window closes, or closed. Zero: the user
	// never wrote.
	WindowExpireTime time.Time
	// RetryTime is when to ask again where time alone will change the answer, and else zero.
	RetryTime time.Time
	// Revision is the revision of the ledger that the answer rests on.
	Revision uint64
	// Staleness is how long ago the sidecar last proved that its table is current.
	Staleness time.Duration
	// CategoryUsed is the category that decided where the question named a template, and else empty.
	CategoryUsed string
}

// String is the verdict in words, for logs: it never has an id of a user.
func (v Verdict) String() string {
	switch {
	case v.Allowed:
		return "allowed: " + string(v.Reason)
	case v.Code != "":
		return "not decided: " + v.Code
	default:
		return "denied: " + string(v.Reason)
	}
}

// Reason is why the sidecar decided as it did: the name of the contract's Reason without its
// prefix. A newer sidecar may have reasons that this package does not know: they are written as
// their number.
type Reason string

// The reasons of today's sidecars. The first four allow.
const (
	ReasonOptedIn           Reason = "OPTED_IN"
	ReasonWindowOpen        Reason = "WINDOW_OPEN"
	ReasonReplyAfterOptOut  Reason = "REPLY_AFTER_OPT_OUT"
	ReasonAllowedWhileStale Reason = "ALLOWED_WHILE_STALE"

	ReasonNoConsent       Reason = "NO_CONSENT"
	ReasonWindowClosed    Reason = "WINDOW_CLOSED"
	ReasonOptedOut        Reason = "OPTED_OUT"
	ReasonOptedOutAll     Reason = "OPTED_OUT_ALL"
	ReasonPlatformStopped Reason = "PLATFORM_STOPPED"
	ReasonConsentExpired  Reason = "CONSENT_EXPIRED"
	ReasonConsentPending  Reason = "CONSENT_PENDING"
	ReasonFrequencyCapped Reason = "FREQUENCY_CAPPED"
	ReasonSuppressed      Reason = "SUPPRESSED"
	ReasonStale           Reason = "STALE"
	ReasonPlatformRefused Reason = "PLATFORM_REFUSED"
	ReasonCountryBlocked  Reason = "COUNTRY_BLOCKED"
)

// reasons has the name of each known reason at its number.
var reasons = func() []Reason {
	var names []Reason
	for number, name := range consentv1.Reason_name {
		for int(number) >= len(names) {
			names = append(names, "")
		}
		names[number] = Reason(strings.TrimPrefix(name, "REASON_"))
	}
	return names
}()

func reasonOf(number consentv1.Reason) Reason {
	if number == consentv1.Reason_REASON_UNSPECIFIED {
		return ""
	}
	if 0 <= number && int(number) < len(reasons) && reasons[number] != "" {
		return reasons[number]
	}
	return Reason(strconv.Itoa(int(number)))
}

// verdictOf is the verdict of an answer. Where the answer has no reason nothing was decided: no
// sidecar sends such an answer.
func verdictOf(answer *consentv1.CanSendResponse) Verdict {
	reason := reasonOf(answer.GetReason())
	if reason == "" {
		return undecided("INTERNAL", "the answer has no reason", "")
	}
	return Verdict{
		Allowed:          answer.GetAllowed(),
		Reason:           reason,
		FreeFormAllowed:  answer.GetFreeFormAllowed(),
		TemplateAllowed:  answer.GetTemplateAllowed(),
		WindowExpireTime: timeOf(answer.GetWindowExpireTime()),
		RetryTime:        timeOf(answer.GetRetryTime()),
		Revision:         answer.GetRevision(),
		Staleness:        answer.GetStaleness().AsDuration(),
		CategoryUsed:     answer.GetCategoryUsed(),
	}
}

// verdictOfResult is the verdict of one result of a batch.
func verdictOfResult(result *consentv1.BatchCanSendResult) Verdict {
	switch result := result.GetResult().(type) {
	case *consentv1.BatchCanSendResult_Response:
		return verdictOf(result.Response)
	case *consentv1.BatchCanSendResult_Error:
		field, message := result.Error.GetField(), result.Error.GetMessage()
		// The message of several faults names each one's field, that of a single one does not.
		if field != "" && !strings.HasPrefix(message, field+": ") {
			message = field + ": " + message
		}
		return undecided(codeName(result.Error.GetCode()), message, field)
	default:
		return undecided("INTERNAL", "the answer is empty", "")
	}
}

// undecided is the verdict where nothing was decided.
func undecided(code, cause, field string) Verdict {
	// A message that is too large (OUT_OF_RANGE) is as malformed tomorrow as it is today.
	isInvalid := code == "INVALID_ARGUMENT" || code == "OUT_OF_RANGE"
	return Verdict{
		Unavailable: !isInvalid,
		Invalid:     isInvalid,
		Code:        code,
		Cause:       cause,
		Field:       field,
	}
}

func timeOf(t *timestamppb.Timestamp) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.AsTime()
}
