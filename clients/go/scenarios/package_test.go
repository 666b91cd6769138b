package scenarios

import (
	"encoding/pem"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"consentd.dev/consentd"
	"consentd.dev/consentd/consentdtest"
)

func readRepositoryFile(t *testing.T, name string) string {
	t.Helper()
	file, err := os.ReadFile(repositoryFile(t, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(file)
}

func TestTheVersionIsThatOfTheSidecar(t *testing.T) {
	cargo := readRepositoryFile(t, "Cargo.toml")
	_, workspace, _ := strings.Cut(cargo, "[workspace.package]")
	version := regexp.MustCompile(`(?m)^version = "(.*)"$`).FindStringSubmatch(workspace)
	if version == nil || version[1] != consentd.Version {
		t.Errorf("the package is %s, and the root Cargo.toml has %v", consentd.Version, version)
	}
	readme := readRepositoryFile(t, "clients/go/README.md")
	if !strings.Contains(readme, "consentd.dev/consentd@v"+consentd.Version) {
		t.Error("README.md installs another version")
	}
}

// TestTheExampleOfTheReadme builds and runs the program of README.md, in this project.
func TestTheExampleOfTheReadme(t *testing.T) {
	_, rest, _ := strings.Cut(readRepositoryFile(t, "clients/go/README.md"), "```go\n")
	example, _, isThere := strings.Cut(rest, "```\n")
	if !isThere {
		t.Fatal("README.md has no example")
	}
	// Inside the folder of the tests, so that it is built by their go.mod.
	folder, err := os.MkdirTemp(".", "example-")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = os.RemoveAll(folder) }()
	if err := os.WriteFile(filepath.Join(folder, "main.go"), []byte(example), 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "example")
	if output, err := exec.Command("go", "build", "-o", program, "./"+folder).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	run := func(address string) string {
		command := exec.Command(program)
		command.Env = append(os.Environ(), "CONSENTD_ADDR="+address)
		output, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, output)
		}
		return string(output)
	}
	sidecar := consentdtest.StartSidecar(t)
	// The example has the default timeout, which a busy machine may exceed.
	eventually(t, "what README.md says", func() bool {
		return run(sidecar.Address) == "false denied: NO_CONSENT\n"
	})
	eventually(t, "what README.md says without a sidecar", func() bool {
		return run(unusedAddress(t)) == "false not decided: UNAVAILABLE\n"
	})
}

// TestNoProxyIsUsed runs a part of itself as a process with a proxy in its environment, since Go reads that
// once.
func TestNoProxyIsUsed(t *testing.T) {
	if address := os.Getenv("ADDRESS_BESIDE_A_PROXY"); address != "" {
		isThere := !strings.HasPrefix(address, "192.0.2.")
		timeout := 3 * time.Second // That is all the time that a proxy would have to be asked.
		if isThere {
			timeout = patience
		}
		client, err := consentd.New(consentd.WithAddress(address), consentd.WithTimeout(timeout))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		verdict := client.MaySend(t.Context(), marketing(userNumber(0)))
		if isThere != (verdict.Reason == consentd.ReasonNoConsent) {
			t.Errorf("%v: %s", verdict, verdict.Cause)
		}
		return
	}
	proxy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = proxy.Close() }()
	var asked atomic.Int64
	go func() {
		for {
			connection, err := proxy.Accept()
			if err != nil {
				return
			}
			asked.Add(1)
			_ = connection.Close()
		}
	}()
	sidecar := consentdtest.StartSidecar(t)
	// The last one is reserved for documentation (RFC 5737): nobody is there, and Go itself would use
	// a proxy for it, which it does not for loopback.
	for _, address := range []string{sidecar.Address, sidecar.UnixAddress, "192.0.2.1:50051"} {
		command := exec.Command(os.Args[0], "-test.run=^TestNoProxyIsUsed$")
		command.Env = append(os.Environ(), "ADDRESS_BESIDE_A_PROXY="+address)
		for _, name := range []string{"http_proxy", "https_proxy", "grpc_proxy", "all_proxy"} {
			value := "=http://" + proxy.Addr().String()
			command.Env = append(command.Env, name+value, strings.ToUpper(name)+value)
		}
		if output, err := command.CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", address, err, output)
		}
	}
	if asked.Load() != 0 {
		t.Errorf("the proxy was asked %d times", asked.Load())
	}
}

// openssl runs openssl in a folder.
func openssl(t *testing.T, folder string, arguments ...string) {
	t.Helper()
	command := exec.Command("openssl", arguments...)
	command.Dir = folder
	if output, err := command.CombinedOutput(); err != nil {
		t.Fatalf("openssl (apt-get install openssl): %v: %s", err, output)
	}
}

// authority makes a CA in a folder, and certificates of it for localhost.
func authority(t *testing.T, names ...string) string {
	t.Helper()
	folder := t.TempDir()
	extension := "subjectAltName=DNS:localhost,IP:127.0.0.1\n"
	if err := os.WriteFile(filepath.Join(folder, "names"), []byte(extension), 0o600); err != nil {
		t.Fatal(err)
	}
	newKey := []string{"req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"}
	openssl(t, folder, append(newKey, "-x509", "-days", "2", "-subj", "/CN=test-ca", "-keyout", "ca.key", "-out", "ca.crt")...)
	for _, name := range names {
		openssl(t, folder, append(newKey, "-subj", "/CN="+name, "-keyout", name+".key", "-out", name+".csr")...)
		openssl(t, folder, "x509", "-req", "-in", name+".csr", "-CA", "ca.crt", "-CAkey", "ca.key",
			"-CAcreateserial", "-days", "2", "-out", name+".crt", "-extfile", "names")
	}
	return folder
}

func TestTLSWithAClientCertificate(t *testing.T) {
	folder, other := authority(t, "server", "client"), authority(t, "client")
	file := func(name string) string { return filepath.Join(folder, name) }
	sidecar := consentdtest.StartSidecar(t,
		"--tls-cert-file", file("server.crt"), "--tls-key-file", file("server.key"),
		"--tls-client-ca-file", file("ca.crt"), "--tls-listeners", "listen")
	files := consentd.TLS{CAFile: file("ca.crt"), CertFile: file("client.crt"), KeyFile: file("client.key")}
	good := sidecar.Client(consentd.WithTLS(files))
	optIn(t, good, 1)
	if verdict := good.MaySend(t.Context(), marketing(userNumber(0))); !verdict.Allowed {
		t.Errorf("%v: %s", verdict, verdict.Cause)
	}
	// A Unix socket has no TLS, whatever the options say.
	unix := sidecar.Client(consentd.WithTLS(files), consentd.WithAddress(sidecar.UnixAddress))
	if verdict := unix.MaySend(t.Context(), marketing(userNumber(0))); !verdict.Allowed {
		t.Errorf("%v: %s", verdict, verdict.Cause)
	}
	short := consentd.WithTimeout(2 * time.Second)
	for what, option := range map[string]consentd.Option{
		"another CA":             consentd.WithTLS(consentd.TLS{CAFile: filepath.Join(other, "ca.crt"), CertFile: files.CertFile, KeyFile: files.KeyFile}),
		"no certificate":         consentd.WithTLS(consentd.TLS{CAFile: files.CAFile}),
		"a stranger":             consentd.WithTLS(consentd.TLS{CAFile: files.CAFile, CertFile: filepath.Join(other, "client.crt"), KeyFile: filepath.Join(other, "client.key")}),
		"no TLS":                 short,
		"the system's CAs alone": consentd.WithTLS(consentd.TLS{}),
	} {
		verdict := sidecar.Client(option, short).MaySend(t.Context(), marketing(userNumber(0)))
		if verdict.Allowed || !verdict.Unavailable {
			t.Errorf("%s: %v", what, verdict)
		}
	}
	if err := os.WriteFile(file("empty.crt"), pem.EncodeToMemory(&pem.Block{Type: "NOTHING"}), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, files := range []consentd.TLS{
		{CAFile: file("missing")}, {CAFile: file("empty.crt")}, {CertFile: files.CertFile},
		{CertFile: files.CertFile, KeyFile: filepath.Join(other, "client.key")},
	} {
		if _, err := consentd.New(consentd.WithTLS(files)); err == nil {
			t.Errorf("%v is taken", files)
		}
	}
}

func TestRecordingWithAToken(t *testing.T) {
	tokens := filepath.Join(t.TempDir(), "tokens")
	write := func(token string) {
		t.Helper()
		if err := os.WriteFile(tokens, []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	const token = "0123456789abcdef0123456789abcdef"
	write(token)
	sidecar := consentdtest.StartSidecar(t, "--record-token-file", tokens)
	event := consentd.OptOut(userNumber(0), "acme", "*")
	if _, err := sidecar.Client().Record(t.Context(), event); err == nil || err.(*consentd.Error).Code != "UNAUTHENTICATED" {
		t.Errorf("without a token: %v", err)
	}
	own := filepath.Join(t.TempDir(), "token")
	client := sidecar.Client(consentd.WithTokenFile(own))
	if _, err := client.Record(t.Context(), event); err == nil || err.(*consentd.Error).Code != "UNAUTHENTICATED" {
		t.Errorf("without the file: %v", err)
	}
	for _, one := range []struct {
		token  string
		isGood bool
	}{{"wrong", false}, {token, true}, {"", false}, {token + "\nanother", true}, {"# none", false},
		{"# of 2026\r\n\n  " + token + " \r\nanother", true}} {
		if err := os.WriteFile(own, []byte(one.token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := client.Record(t.Context(), event)
		if (err == nil) != one.isGood {
			t.Errorf("%v", err)
		}
		if err != nil && strings.Contains(err.Error(), token) {
			t.Error("an error has the token")
		}
	}
}
