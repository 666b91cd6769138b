package consentd

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"consentd.dev/consentd/consentv1"
)

const (
	// A lost connection is opened again after reconnectMin at first, then ever later up to
	// reconnectMax. gRPC's own bound of two minutes would deny long after the sidecar is back.
	reconnectMin = 20 * time.Millisecond
	reconnectMax = time.Second
	// connectTimeout bounds one attempt: a listener that accepts and never answers costs so much.
	connectTimeout = 2 * time.Second
	// A connection that is idle is pinged once in pingEvery, and given up when a ping has no answer
	// for pingTimeout.
	pingEvery   = 30 * time.Second
	pingTimeout = 5 * time.Second
	// maxAnswerBytes bounds an answer. gRPC's own bound of 4 MiB is less than what a batch may come to
	// where each of its results is a long error.
	maxAnswerBytes = 16 << 20
	// The windows of HTTP/2's flow control. Fixed ones spare the pings by which gRPC would measure the
	// connection, and are large enough that an answer needs no further WINDOW_UPDATE.
	streamWindow     = 1 << 20
	connectionWindow = 4 << 20
)

// Client asks one sidecar. A process makes one and shares it: it has one connection, and many
// goroutines may call its methods at once. Make it by [New].
type Client struct {
	connection *grpc.ClientConn
	checks     consentv1.ConsentServiceClient
	records    consentv1.RecordServiceClient
	timeout    time.Duration
	tokenFile  string
	observer   Observer
	coalescer  *coalescer // nil: each check goes by itself
	stop       context.CancelFunc
	closed     <-chan struct{}
}

// New makes a client and begins to connect. It does not wait for the sidecar: [Client.Ready] does.
//
// An error means that an option or the address is malformed, or that a file of [WithTLS] cannot be
// read.
func New(options ...Option) (*Client, error) {
	settings, err := newSettings(options)
	if err != nil {
		return nil, err
	}
	address, err := parseAddress(settings.address)
	if err != nil {
		return nil, err
	}
	connection, err := dial(address, settings)
	if err != nil {
		return nil, fmt.Errorf("consentd: %w", err)
	}
	ctx, stop := context.WithCancel(context.Background())
	client := &Client{
		connection: connection,
		checks:     consentv1.NewConsentServiceClient(connection),
		records:    consentv1.NewRecordServiceClient(connection),
		timeout:    settings.timeout,
		tokenFile:  settings.tokenFile,
		observer:   settings.observer,
		stop:       stop,
		closed:     ctx.Done(),
	}
	if settings.isCoalescing {
		client.coalescer = newCoalescer(client)
	}
	go keepConnected(ctx, connection)
	return client, nil
}

func dial(address address, settings *settings) (*grpc.ClientConn, error) {
	transport := settings.credentials
	if address.network == "unix" {
		transport = insecure.NewCredentials()
	}
	var dialer net.Dialer
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithAuthority(address.authority),
		// The address is given to the operating system as it is: gRPC's own notation would need an
		// escaped path, and would ask the environment's proxy about 127.0.0.1, too.
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, address.network, address.endpoint)
		}),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff: backoff.Config{
				BaseDelay: reconnectMin, Multiplier: 2, Jitter: 0.2, MaxDelay: reconnectMax,
			},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{
			Time: pingEvery, Timeout: pingTimeout, PermitWithoutStream: true,
		}),
		grpc.WithIdleTimeout(0),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connectionWindow),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswerBytes)),
		// What may be repeated is repeated here, where the deadline and the caller are known.
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithUserAgent("consentd-go/" + Version),
	}
	return grpc.NewClient("passthrough:///sidecar", append(options, settings.dialOptions...)...)
}

// keepConnected opens the connection, and again whenever it was lost: gRPC itself would wait for the
// next call, which would then have to wait for the connection.
func keepConnected(ctx context.Context, connection *grpc.ClientConn) {
	for {
		state := connection.GetState()
		if state == connectivity.Idle {
			connection.Connect()
		}
		if state == connectivity.Shutdown || !connection.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// Ready waits until the sidecar is connected and has loaded its table, and so answers checks. It
// returns an error of the context where that comes first: give it one with a deadline.
func (c *Client) Ready(ctx context.Context) error {
	pauses := newPauses()
	for {
		answer, err := c.checks.GetStatus(ctx, &consentv1.GetStatusRequest{}, grpc.WaitForReady(true))
		switch {
		case err == nil && answer.GetPhase() > consentv1.GetStatusResponse_PHASE_LOADING:
			return nil
		case c.isClosed():
			return errClosed()
		case ctx.Err() != nil:
			return errorOf(ctx.Err())
		}
		if err != nil && !isConnectionFailure(err) && !isTryAgain(err) {
			return errorOf(err)
		}
		if !pauses.wait(ctx) {
			return errorOf(ctx.Err())
		}
	}
}

// Close closes the connection. Calls that are under way end, as does whatever is called later: checks
// are denied as unavailable, with the code CANCELLED.
func (c *Client) Close() error {
	c.stop()
	// A second Close is no error.
	_ = c.connection.Close()
	return nil
}

func (c *Client) isClosed() bool {
	select {
	case <-c.closed:
		return true
	default:
		return false
	}
}

func errClosed() error {
	return &Error{Code: "CANCELLED", Cause: "the client is closed"}
}
