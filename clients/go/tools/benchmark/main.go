// Command benchmark measures what a check costs the process that asks. `clients/go/bench` runs it.
//
// Usage: benchmark ADDRESS MODE CALLERS SECONDS QUESTIONS
//
// QUESTIONS is a file that `consentd bench requests` wrote. MODE is
//
//	naive   the generated stub, one CanSend for each check
//	client  MaySend of package consentd, with its default options
//	alone   the same without coalescing
//	stream  a pipelined StreamCanSend, which is what package consentd could use underneath
//
// each with a timeout of 1 s. CALLERS goroutines ask one question after the other. After a second of
// warming up it measures for SECONDS, and prints one line of JSON.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"runtime/pprof"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protojson"

	"consentd.dev/consentd"
	"consentd.dev/consentd/consentv1"
)

const timeout = time.Second

// asker asks the question of this number, and says whether it was decided.
type asker func(ctx context.Context, number int) bool

func main() {
	log.SetFlags(0)
	if len(os.Args) != 6 {
		log.Fatal("usage: benchmark ADDRESS MODE CALLERS SECONDS QUESTIONS")
	}
	address, mode := os.Args[1], os.Args[2]
	callers, err := strconv.Atoi(os.Args[3])
	if err != nil || callers < 1 {
		log.Fatal("CALLERS must be a number from 1 on")
	}
	seconds, err := strconv.ParseFloat(os.Args[4], 64)
	if err != nil || seconds <= 0 {
		log.Fatal("SECONDS must be a number that is more than 0")
	}
	questions, err := readQuestions(os.Args[5])
	if err != nil {
		log.Fatal(err)
	}
	ask, err := newAsker(address, mode, questions)
	if err != nil {
		log.Fatal(err)
	}
	duration := time.Duration(seconds * float64(time.Second))
	if err := json.NewEncoder(os.Stdout).Encode(measure(ask, callers, duration, len(questions))); err != nil {
		log.Fatal(err)
	}
}

func readQuestions(path string) ([]*consentv1.CanSendRequest, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var all []json.RawMessage
	if err := json.Unmarshal(file, &all); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s: no questions", path)
	}
	questions := make([]*consentv1.CanSendRequest, len(all))
	for i, one := range all {
		questions[i] = new(consentv1.CanSendRequest)
		if err := protojson.Unmarshal(one, questions[i]); err != nil {
			return nil, fmt.Errorf("%s: question %d: %w", path, i, err)
		}
	}
	return questions, nil
}

func newAsker(address, mode string, questions []*consentv1.CanSendRequest) (asker, error) {
	switch mode {
	case "naive":
		stub, err := newStub(address)
		return func(ctx context.Context, number int) bool {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			answer, err := stub.CanSend(ctx, questions[number])
			return err == nil && answer.GetReason() != consentv1.Reason_REASON_UNSPECIFIED
		}, err
	case "client", "alone":
		options := []consentd.Option{consentd.WithAddress(address), consentd.WithTimeout(timeout)}
		if mode == "alone" {
			options = append(options, consentd.WithoutCoalescing())
		}
		client, err := consentd.New(options...)
		asked := make([]consentd.Question, len(questions))
		for i, question := range questions {
			asked[i] = consentd.Question{
				User:     question.GetUserId(),
				Business: question.GetBusinessId(),
				Category: question.GetCategory(),
				Form:     question.GetForm(),
			}
		}
		return func(ctx context.Context, number int) bool {
			return client.MaySend(ctx, asked[number]).Code == ""
		}, err
	case "stream":
		stub, err := newStub(address)
		if err != nil {
			return nil, err
		}
		return streamAsker(stub, questions)
	default:
		return nil, fmt.Errorf("no mode %q", mode)
	}
}

func newStub(address string) (consentv1.ConsentServiceClient, error) {
	connection, err := grpc.NewClient(address,
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithNoProxy())
	if err != nil {
		return nil, err
	}
	return consentv1.NewConsentServiceClient(connection), nil
}

// streamAsker has all callers share one stream.
func streamAsker(
	stub consentv1.ConsentServiceClient, questions []*consentv1.CanSendRequest,
) (asker, error) {
	stream, err := stub.StreamCanSend(context.Background())
	if err != nil {
		return nil, err
	}
	var (
		mu       sync.Mutex
		sequence uint64
		waiting  = map[uint64]chan *consentv1.BatchCanSendResult{}
	)
	go func() {
		for {
			answer, err := stream.Recv()
			if err != nil {
				return
			}
			mu.Lock()
			caller := waiting[answer.GetSequence()]
			delete(waiting, answer.GetSequence())
			mu.Unlock()
			caller <- answer.GetResult()
		}
	}()
	return func(ctx context.Context, number int) bool {
		answered := make(chan *consentv1.BatchCanSendResult, 1)
		mu.Lock()
		sequence++
		waiting[sequence] = answered
		err := stream.Send(&consentv1.StreamCanSendRequest{Sequence: sequence, Request: questions[number]})
		mu.Unlock()
		if err != nil {
			return false
		}
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		select {
		case result := <-answered:
			return result.GetResponse().GetReason() != consentv1.Reason_REASON_UNSPECIFIED
		case <-timer.C:
			return false
		}
	}, nil
}

// measured is the line that is printed.
type measured struct {
	Checks     int     `json:"checks"`
	Errors     int     `json:"errors"`
	CPUSeconds float64 `json:"cpu_seconds"`
	P50        float64 `json:"p50_us"`
	P99        float64 `json:"p99_us"`
}

func measure(ask asker, callers int, duration time.Duration, questions int) measured {
	var (
		isMeasuring, isOver atomic.Bool
		next                atomic.Int64
		errors              atomic.Int64
		finished            sync.WaitGroup
		times               = make([][]time.Duration, callers)
	)
	for caller := range callers {
		finished.Add(1)
		go func() {
			defer finished.Done()
			for !isOver.Load() {
				started := time.Now()
				isDecided := ask(context.Background(), int(next.Add(1))%questions)
				if !isMeasuring.Load() {
					continue
				}
				times[caller] = append(times[caller], time.Since(started))
				if !isDecided {
					errors.Add(1)
				}
			}
		}()
	}
	time.Sleep(time.Second)
	if path := os.Getenv("CPU_PROFILE"); path != "" {
		file, err := os.Create(path)
		if err != nil {
			log.Fatal(err)
		}
		if err := pprof.StartCPUProfile(file); err != nil {
			log.Fatal(err)
		}
		defer pprof.StopCPUProfile()
	}
	before := cpuTime()
	isMeasuring.Store(true)
	time.Sleep(duration)
	isOver.Store(true)
	spent := cpuTime() - before
	finished.Wait()
	all := slices.Concat(times...)
	if len(all) == 0 {
		log.Fatal("no check was answered within the time")
	}
	slices.Sort(all)
	return measured{
		Checks:     len(all),
		Errors:     int(errors.Load()),
		CPUSeconds: spent.Seconds(),
		P50:        microseconds(all[len(all)/2]),
		P99:        microseconds(all[len(all)*99/100]),
	}
}

// cpuTime is the CPU time, of user and of system, that this process has spent.
func cpuTime() time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		log.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

func microseconds(d time.Duration) float64 {
	return float64(d.Nanoseconds()) / 1000
}
