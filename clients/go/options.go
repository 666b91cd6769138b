package consentd

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// DefaultTimeout is how long a check may take unless an option or the question says otherwise. The
// sidecar answers from memory, within microseconds: a check that takes this long has failed.
const DefaultTimeout = 50 * time.Millisecond

// Option is an option of [New].
type Option func(*settings) error

type settings struct {
	address      string
	timeout      time.Duration
	isCoalescing bool
	tokenFile    string
	credentials  credentials.TransportCredentials
	observer     Observer
	dialOptions  []grpc.DialOption
}

// WithAddress says where the sidecar is: HOST:PORT, unix:PATH, or unix:@NAME for an abstract
// socket. Without it, or where it is empty, the environment's CONSENTD_ADDR says so, and else it is
// 127.0.0.1:50051.
func WithAddress(address string) Option {
	return func(s *settings) error {
		s.address = address
		return nil
	}
}

// WithTimeout says how long a check may take, instead of [DefaultTimeout]. It must be more than 0.
func WithTimeout(timeout time.Duration) Option {
	return func(s *settings) error {
		if timeout <= 0 {
			return fmt.Errorf("consentd: the timeout %s is not more than 0", timeout)
		}
		s.timeout = timeout
		return nil
	}
}

// WithoutCoalescing has each check sent by itself instead of in batches with others. That costs
// more CPU on both sides. Each call then carries its caller's outgoing metadata and trace, which
// a batch of several callers cannot.
func WithoutCoalescing() Option {
	return func(s *settings) error {
		s.isCoalescing = false
		return nil
	}
}

// WithTokenFile names the file of the bearer token that [Client.Record] authenticates by, one of
// those of the sidecar's --record-token-file. The token is the file's first line that is neither
// blank nor begins with #, without the white space around it. The file is read at each call, so that
// a token may be rotated.
func WithTokenFile(path string) Option {
	return func(s *settings) error {
		s.tokenFile = path
		return nil
	}
}

// TLS names the files, in PEM, by which a client connects to a sidecar that serves TLS.
type TLS struct {
	// CAFile has the CA certificates to trust. Empty: the system's.
	CAFile string
	// CertFile and KeyFile have this client's certificate, followed by those of its intermediate CAs,
	// and its key. Both are empty where the sidecar asks for none. They are read again for each
	// connection, so that they may be rotated.
	CertFile, KeyFile string
}

// WithTLS has the client connect by TLS 1.2 or 1.3. The sidecar's certificate must be of the host
// of the address. A Unix socket is never served by TLS, so there this option changes nothing.
//
// [New] returns an error where a file cannot be read.
func WithTLS(files TLS) Option {
	return func(s *settings) error {
		config := &tls.Config{MinVersion: tls.VersionTLS12}
		if files.CAFile != "" {
			pem, err := os.ReadFile(files.CAFile)
			if err != nil {
				return fmt.Errorf("consentd: reading the CA certificates: %w", err)
			}
			config.RootCAs = x509.NewCertPool()
			if !config.RootCAs.AppendCertsFromPEM(pem) {
				return fmt.Errorf("consentd: no CA certificate in %s", files.CAFile)
			}
		}
		if (files.CertFile == "") != (files.KeyFile == "") {
			return errors.New("consentd: a certificate and its key are given together, or neither")
		}
		if files.CertFile != "" {
			load := func() (*tls.Certificate, error) {
				pair, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
				if err != nil {
					return nil, fmt.Errorf("consentd: reading the client's certificate: %w", err)
				}
				return &pair, nil
			}
			if _, err := load(); err != nil {
				return err
			}
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
				return load()
			}
		}
		s.credentials = credentials.NewTLS(config)
		return nil
	}
}

// Observer receives what metrics need. Each function may be nil. Many goroutines call them at once, and
// their callers wait for them, so they must return quickly. They receive no user id.
type Observer struct {
	// Checked receives the outcome of each check.
	Checked func(Outcome)
	// Batched receives the number of checks in each batch that is sent, from 1 to 1,000.
	Batched func(size int)
}

// Outcome is what came of a check.
type Outcome struct {
	// Allowed is whether the message may be sent.
	Allowed bool
	// Reason is why, or empty where nothing was decided.
	Reason Reason
	// Code is the gRPC code, such as DEADLINE_EXCEEDED, where nothing was decided, and else empty.
	Code string
	// Took is how long the caller waited.
	Took time.Duration
}

// WithObserver sets the observer of checks and batches.
func WithObserver(observer Observer) Option {
	return func(s *settings) error {
		s.observer = observer
		return nil
	}
}

// WithDialOptions passes options on to gRPC, such as interceptors, or OpenTelemetry's stats handler.
// They come after the client's own and override them. An interceptor sees BatchCanSend instead of
// CanSend where checks were coalesced, with a context that is no caller's.
func WithDialOptions(options ...grpc.DialOption) Option {
	return func(s *settings) error {
		s.dialOptions = append(s.dialOptions, options...)
		return nil
	}
}

func newSettings(options []Option) (*settings, error) {
	s := &settings{
		timeout:      DefaultTimeout,
		isCoalescing: true,
		credentials:  insecure.NewCredentials(),
	}
	for _, option := range options {
		if err := option(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}
