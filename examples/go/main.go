// A client of consentd: records, checks with a deadline, and does not send on error.
//
// Usage: client ADDRESS [DEADLINE_MS]; ADDRESS is HOST:PORT, unix:PATH or unix:@NAME.
package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/code"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "example.com/consentd-client/consentv1"
)

const (
	// A check is answered from memory: one that takes longer has gone wrong.
	checkDeadline = 250 * time.Millisecond
	// An event is acknowledged once it is on the disk.
	recordDeadline = 5 * time.Second
)

// connect opens the one channel of a process: it is safe for many goroutines, and connects again
// by itself. Go takes all three forms of address as they are.
func connect(address string) (*grpc.ClientConn, error) {
	again := backoff.DefaultConfig
	again.MaxDelay = time.Second // Else up to two minutes after an outage.
	return grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           again,
			MinConnectTimeout: 5 * time.Second,
		}),
	)
}

// verdict says whether to send, and why.
type verdict struct {
	send bool
	why  string
}

func (v verdict) String() string {
	if v.send {
		return "send: " + v.why
	}
	return "do not send: " + v.why
}

func verdictOf(answer *pb.CanSendResponse) verdict {
	// A newer server may have reasons that this client does not know: Allowed decides.
	return verdict{answer.GetAllowed(), strings.TrimPrefix(answer.GetReason().String(), "REASON_")}
}

// noAnswer: an error, a timeout or no sidecar means: do not send. Keep the message, and ask again.
func noAnswer(err error) verdict {
	return verdict{false, fmt.Sprintf("no answer (%s)", codeOf(err))}
}

// codeOf is the canonical name of an error's code, such as DEADLINE_EXCEEDED.
func codeOf(err error) string {
	return code.Code(status.Code(err)).String()
}

// maySend is to be called right before each send.
func maySend(
	ctx context.Context, checks pb.ConsentServiceClient, question *pb.CanSendRequest,
	deadline time.Duration,
) verdict {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	answer, err := checks.CanSend(ctx, question)
	if err != nil {
		return noAnswer(err)
	}
	return verdictOf(answer)
}

// maySendEach is the same for many at once; a malformed one has its own error and does not stop
// the others. Verdicts stand in the order of the questions.
func maySendEach(
	ctx context.Context, checks pb.ConsentServiceClient, questions []*pb.CanSendRequest,
	deadline time.Duration,
) []verdict {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	verdicts := make([]verdict, len(questions))
	answers, err := checks.BatchCanSend(ctx, &pb.BatchCanSendRequest{Requests: questions})
	if err != nil {
		for i := range verdicts {
			verdicts[i] = noAnswer(err)
		}
		return verdicts
	}
	for i, result := range answers.GetResults() {
		switch result := result.GetResult().(type) {
		case *pb.BatchCanSendResult_Response:
			verdicts[i] = verdictOf(result.Response)
		case *pb.BatchCanSendResult_Error:
			verdicts[i] = verdict{false, result.Error.GetField() + ": " + result.Error.GetMessage()}
		}
	}
	return verdicts
}

// record records an event. After an error call it again: the same request id makes that safe.
func record(
	ctx context.Context, records pb.RecordServiceClient, requestID string, event *pb.ConsentEvent,
) (*pb.RecordEventResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, recordDeadline)
	defer cancel()
	return records.RecordEvent(ctx, &pb.RecordEventRequest{Event: event, RequestId: requestID})
}

// violations says what was wrong with each field, from the details of an INVALID_ARGUMENT.
func violations(err error) []string {
	var found []string
	for _, detail := range status.Convert(err).Details() {
		if bad, ok := detail.(*errdetails.BadRequest); ok {
			for _, one := range bad.GetFieldViolations() {
				found = append(found, one.GetField()+": "+one.GetDescription())
			}
		}
	}
	return found
}

func question(user, category string, minRevision uint64) *pb.CanSendRequest {
	return &pb.CanSendRequest{
		UserId:      user,
		BusinessId:  "acme",
		Category:    category,
		Form:        pb.MessageForm_MESSAGE_FORM_TEMPLATE,
		MinRevision: minRevision,
	}
}

func optIn(user, category, statement string) *pb.ConsentEvent {
	return &pb.ConsentEvent{UserId: user, BusinessId: "acme", What: &pb.ConsentEvent_OptIn{
		OptIn: &pb.OptIn{Category: category, Evidence: &pb.Evidence{
			Method:       pb.OptInMethod_OPT_IN_METHOD_WEBSITE,
			Statement:    statement,
			BusinessName: "Acme",
			Locale:       "en",
		}},
	}}
}

func inbound(user, text string) *pb.ConsentEvent {
	return &pb.ConsentEvent{UserId: user, BusinessId: "acme", What: &pb.ConsentEvent_InboundMessage{
		InboundMessage: &pb.InboundMessage{Text: text},
	}}
}

func converse(ctx context.Context, address string, deadline time.Duration) error {
	channel, err := connect(address)
	if err != nil {
		return err
	}
	defer channel.Close()
	checks, records := pb.NewConsentServiceClient(channel), pb.NewRecordServiceClient(channel)
	user := "example-" + randomID() // A phone number in any notation, or an id of your own.

	agreed := optIn(user, "marketing", "Yes, send me offers from Acme on WhatsApp")
	recorded, err := record(ctx, records, "signup-"+user, agreed)
	if err != nil {
		return fmt.Errorf("recording an opt-in: %w", err)
	}
	fmt.Println("opt-in recorded")
	// Whichever sidecar is asked, it answers once it knows of what was just recorded.
	offer := question(user, "marketing", recorded.GetRevision())
	fmt.Println("marketing:", maySend(ctx, checks, offer, deadline))

	recorded, err = record(ctx, records, "message-"+user, inbound(user, "STOP"))
	if err != nil {
		return fmt.Errorf("recording a message: %w", err)
	}
	fmt.Println("STOP recorded: opted out of", recorded.GetOptedOutScope())
	offer = question(user, "marketing", recorded.GetRevision())
	fmt.Println("marketing:", maySend(ctx, checks, offer, deadline))

	var questions []*pb.CanSendRequest
	for _, category := range []string{"marketing", "newsletter", "utility.order_updates"} {
		questions = append(questions, question(user, category, 0))
	}
	for i, one := range maySendEach(ctx, checks, questions, deadline) {
		fmt.Printf("in a batch, %s: %s\n", questions[i].GetCategory(), one)
	}

	_, err = record(ctx, records, "second-"+user, optIn(user, "newsletter", "Yes, send me offers"))
	if err != nil {
		fmt.Println("opt-in refused:", codeOf(err))
		for _, violation := range violations(err) {
			fmt.Println(" ", violation)
		}
	}

	notYet := question(user, "marketing", recorded.GetRevision()+1_000_000)
	fmt.Println("not known in time:", maySend(ctx, checks, notYet, 50*time.Millisecond))

	nowhere := "127.0.0.1:1"
	if strings.HasPrefix(address, "unix:") {
		nowhere = address + ".nobody"
	}
	nobody, err := connect(nowhere)
	if err != nil {
		return err
	}
	defer nobody.Close()
	offer = question(user, "marketing", 0)
	fmt.Println("no sidecar:", maySend(ctx, pb.NewConsentServiceClient(nobody), offer, deadline))
	return nil
}

func randomID() string {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		log.Fatal(err)
	}
	return hex.EncodeToString(id)
}

func main() {
	log.SetFlags(0)
	deadline := checkDeadline
	switch len(os.Args) {
	case 2:
	case 3:
		milliseconds, err := strconv.Atoi(os.Args[2])
		if err != nil {
			log.Fatal(err)
		}
		deadline = time.Duration(milliseconds) * time.Millisecond
	default:
		log.Fatal("usage: client ADDRESS [DEADLINE_MS]")
	}
	if err := converse(context.Background(), os.Args[1], deadline); err != nil {
		log.Fatal(err)
	}
}
