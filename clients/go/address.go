package consentd

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
)

// defaultAddress is where a sidecar listens by default.
const defaultAddress = "127.0.0.1:50051"

// maxSocketPath is how many bytes of a path fit into Linux's sockaddr_un, less its final NUL.
const maxSocketPath = 107

// address is where the sidecar is, as [net.Dialer] takes it.
type address struct {
	network, endpoint string
	// authority is the :authority of each HTTP/2 request, and the name that TLS verifies.
	authority string
}

// parseAddress reads HOST:PORT, unix:PATH or unix:@NAME. An empty text stands for CONSENTD_ADDR, or
// for 127.0.0.1:50051 where that is empty, too.
func parseAddress(text string) (address, error) {
	if text == "" {
		text = os.Getenv("CONSENTD_ADDR")
	}
	if text == "" {
		text = defaultAddress
	}
	parsed, err := parseGivenAddress(text)
	if err != nil {
		return address{}, fmt.Errorf("consentd: address %q: %w", text, err)
	}
	return parsed, nil
}

func parseGivenAddress(text string) (address, error) {
	if path, isUnix := strings.CutPrefix(text, "unix:"); isUnix {
		switch {
		case path == "" || path == "@":
			return address{}, errors.New("has no path behind unix:")
		case len(path) > maxSocketPath:
			return address{}, fmt.Errorf("the path is longer than %d bytes", maxSocketPath)
		case strings.ContainsRune(path, 0):
			return address{}, errors.New("has a NUL; an abstract socket is written unix:@NAME")
		}
		// A path is no valid authority, and HTTP/2 servers refuse it.
		return address{network: "unix", endpoint: path, authority: "localhost"}, nil
	}
	host, port, err := net.SplitHostPort(text)
	if err != nil || host == "" || port == "" {
		return address{}, errors.New("is none of HOST:PORT, unix:PATH and unix:@NAME")
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return address{}, fmt.Errorf("%q is no port", port)
	}
	return address{network: "tcp", endpoint: text, authority: text}, nil
}
