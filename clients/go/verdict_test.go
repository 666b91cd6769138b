package consentd

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"consentd.dev/consentd/consentv1"
)

func TestOnlyAnAnswerWithAllowedAndAReasonAllows(t *testing.T) {
	for _, one := range []struct {
		answer  *consentv1.CanSendResponse
		allowed bool
		reason  Reason
	}{
		{&consentv1.CanSendResponse{Allowed: true, Reason: 1}, true, ReasonOptedIn},
		{&consentv1.CanSendResponse{Allowed: false, Reason: 1}, false, ReasonOptedIn},
		{&consentv1.CanSendResponse{Allowed: true, Reason: 0}, false, ""},
		{&consentv1.CanSendResponse{Allowed: true, Reason: 7}, true, "7"},
		{&consentv1.CanSendResponse{Allowed: true, Reason: 1000}, true, "1000"},
		{&consentv1.CanSendResponse{Allowed: false, Reason: -1}, false, "-1"},
		{&consentv1.CanSendResponse{}, false, ""},
		{nil, false, ""},
	} {
		verdict := verdictOf(one.answer)
		if verdict.Allowed != one.allowed || verdict.Reason != one.reason {
			t.Errorf("%v: %+v", one.answer, verdict)
		}
		if isUndecided := one.reason == ""; verdict.Unavailable != isUndecided {
			t.Errorf("%v: unavailable is %v", one.answer, verdict.Unavailable)
		}
	}
	if (Verdict{}).Allowed {
		t.Error("the zero value allows")
	}
}

func TestResultsOfABatch(t *testing.T) {
	fault := func(code int32, field, message string) *consentv1.BatchCanSendResult {
		return &consentv1.BatchCanSendResult{Result: &consentv1.BatchCanSendResult_Error{
			Error: &consentv1.ItemError{Code: code, Field: field, Message: message},
		}}
	}
	for _, one := range []struct {
		result   *consentv1.BatchCanSendResult
		expected Verdict
	}{
		{fault(3, "category", "unknown"), Verdict{Invalid: true, Code: "INVALID_ARGUMENT", Field: "category", Cause: "category: unknown"}},
		{fault(3, "user_id", "user_id: a; category: b"), Verdict{Invalid: true, Code: "INVALID_ARGUMENT", Field: "user_id", Cause: "user_id: a; category: b"}},
		{fault(14, "", "loading"), Verdict{Unavailable: true, Code: "UNAVAILABLE", Cause: "loading"}},
		{fault(0, "", "odd"), Verdict{Unavailable: true, Code: "UNKNOWN", Cause: "odd"}},
		{fault(99, "", "odd"), Verdict{Unavailable: true, Code: "99", Cause: "odd"}},
		{&consentv1.BatchCanSendResult{}, Verdict{Unavailable: true, Code: "INTERNAL", Cause: "the answer is empty"}},
		{nil, Verdict{Unavailable: true, Code: "INTERNAL", Cause: "the answer is empty"}},
	} {
		if got := verdictOfResult(one.result); got != one.expected {
			t.Errorf("%v: %+v", one.result, got)
		}
	}
}

func TestEveryReasonHasAConstant(t *testing.T) {
	constants := map[Reason]bool{}
	for _, reason := range []Reason{
		ReasonOptedIn, ReasonWindowOpen, ReasonReplyAfterOptOut, ReasonAllowedWhileStale, ReasonNoConsent,
		ReasonWindowClosed, ReasonOptedOut, ReasonOptedOutAll, ReasonPlatformStopped, ReasonConsentExpired,
		ReasonConsentPending, ReasonFrequencyCapped, ReasonSuppressed, ReasonStale, ReasonPlatformRefused,
		ReasonCountryBlocked,
	} {
		constants[reason] = true
	}
	for number := range consentv1.Reason_name {
		if reason := reasonOf(consentv1.Reason(number)); number != 0 && !constants[reason] {
			t.Errorf("%s has no constant", reason)
		}
	}
}

func TestAnErrorIsWhatGoExpects(t *testing.T) {
	late := errorOf(status.Error(codes.DeadlineExceeded, "late"))
	if !errors.Is(late, context.DeadlineExceeded) || errors.Is(late, context.Canceled) {
		t.Error("a deadline is no context.DeadlineExceeded")
	}
	if !errors.Is(errorOf(context.Canceled), context.Canceled) {
		t.Error("a cancellation is no context.Canceled")
	}
	if status.Code(late) != codes.DeadlineExceeded {
		t.Errorf("gRPC sees %v", status.Code(late))
	}
}

func TestAddresses(t *testing.T) {
	t.Setenv("CONSENTD_ADDR", "")
	for text, expected := range map[string]address{
		"":                      {"tcp", "127.0.0.1:50051", "127.0.0.1:50051"},
		"localhost:1":           {"tcp", "localhost:1", "localhost:1"},
		"[::1]:50051":           {"tcp", "[::1]:50051", "[::1]:50051"},
		"unix:/run/c d%?#.sock": {"unix", "/run/c d%?#.sock", "localhost"},
		"unix:relative.sock":    {"unix", "relative.sock", "localhost"},
		"unix:@consentd":        {"unix", "@consentd", "localhost"},
	} {
		if got, err := parseAddress(text); err != nil || got != expected {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	long := "unix:/"
	for len(long) <= len("unix:")+maxSocketPath {
		long += "x"
	}
	for _, text := range []string{
		"unix:", "unix:@", "localhost", ":50051", "localhost:", "localhost:port", "127.0.0.1:70000",
		"http://localhost:1", "unix:/a\x00b", long,
	} {
		if got, err := parseAddress(text); err == nil {
			t.Errorf("%q is taken as %v", text, got)
		}
	}
	t.Setenv("CONSENTD_ADDR", "unix:@elsewhere")
	if got, err := parseAddress(""); err != nil || got.endpoint != "@elsewhere" {
		t.Errorf("CONSENTD_ADDR: %v, %v", got, err)
	}
}
