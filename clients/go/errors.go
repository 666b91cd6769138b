package consentd

import (
	"context"
	"errors"
	"strconv"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Error says that nothing was decided, or that an event is not known to be recorded.
type Error struct {
	// Code is the name of the gRPC code, such as "UNAVAILABLE" or "INVALID_ARGUMENT".
	Code string
	// Cause is what happened, in words. Of a malformed question or event it may quote a field.
	Cause string
	// Fields are the malformed fields, as the contract names them, such as "event.opt_in.category".
	// A field with several faults is there once for each.
	Fields []FieldError
}

// FieldError is what is wrong with a field.
type FieldError struct {
	// Field is the field, as the contract names it.
	Field string
	// Description is what is wrong with it, and what would be right.
	Description string
}

// Error is the code and the cause.
func (e *Error) Error() string {
	return "consentd: " + e.Code + ": " + e.Cause
}

// Is has errors.Is(err, context.DeadlineExceeded) hold for a deadline that passed, and
// context.Canceled likewise.
func (e *Error) Is(target error) bool {
	return e.Code == "DEADLINE_EXCEEDED" && target == context.DeadlineExceeded ||
		e.Code == "CANCELLED" && target == context.Canceled
}

// GRPCStatus has status.Code(err) of gRPC return the code.
func (e *Error) GRPCStatus() *status.Status {
	for code, name := range codeNames {
		if name == e.Code {
			return status.New(codes.Code(code), e.Cause)
		}
	}
	return status.New(codes.Unknown, e.Cause)
}

// errorOf is an error of gRPC as this package has it.
func errorOf(err error) *Error {
	if err == nil {
		return nil
	}
	if ours := (*Error)(nil); errors.As(err, &ours) {
		return ours
	}
	failure, ok := status.FromError(err)
	if !ok {
		// An interceptor or this package itself may have the error of a context.
		failure = status.FromContextError(err)
	}
	converted := &Error{Code: codeName(int32(failure.Code())), Cause: failure.Message()}
	for _, detail := range failure.Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			for _, violation := range bad.GetFieldViolations() {
				converted.Fields = append(converted.Fields, FieldError{
					Field:       violation.GetField(),
					Description: violation.GetDescription(),
				})
			}
		}
	}
	return converted
}

// verdictOfError is the verdict where a call failed.
func verdictOfError(err error) Verdict {
	failure := errorOf(err)
	field := ""
	if len(failure.Fields) > 0 {
		field = failure.Fields[0].Field
	}
	return undecided(failure.Code, failure.Cause, field)
}

// isConnectionFailure is whether the connection failed, rather than that the sidecar answered by an
// error. Only then a check is repeated.
func isConnectionFailure(err error) bool {
	failure := status.Convert(err)
	switch failure.Code() {
	case codes.Unavailable:
		// The sidecar's own, such as that it loads its table, always have details, but for those that
		// end a stream with its connection.
		return len(failure.Proto().GetDetails()) == 0
	case codes.Internal, codes.Unknown, codes.Canceled:
		// How grpc-go names a stream that HTTP/2 ended without an answer.
		return strings.HasPrefix(failure.Message(), "stream terminated by RST_STREAM") ||
			strings.HasPrefix(failure.Message(), "server closed the stream without sending trailers")
	default:
		return false
	}
}

// codeNames has the name of each gRPC code at its number, as gRPC's specification spells them.
var codeNames = [...]string{
	"OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
	"ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
	"OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
}

func codeName(code int32) string {
	if code == 0 {
		return "UNKNOWN" // An error whose code is OK is no code.
	}
	if 0 < code && int(code) < len(codeNames) {
		return codeNames[code]
	}
	return strconv.Itoa(int(code))
}

// errNotUTF8 is the error of a field that protobuf cannot encode.
func errNotUTF8(field string) *Error {
	const description = "is not UTF-8"
	return &Error{
		Code:   "INVALID_ARGUMENT",
		Cause:  field + ": " + description,
		Fields: []FieldError{{Field: field, Description: description}},
	}
}
