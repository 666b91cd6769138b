// The newest that build with Debian 12's Go 1.19. With a newer Go, `go get -u ./...` brings today's,
// which need no change here (tried with grpc 1.85).
module example.com/consentd-client

go 1.19

require (
	google.golang.org/genproto/googleapis/rpc v0.0.0-20240318140521-94a12d6c2237
	google.golang.org/grpc v1.64.1
	google.golang.org/grpc/cmd/protoc-gen-go-grpc v1.3.0
	google.golang.org/protobuf v1.33.0
)

// Not the oldest that grpc asks for: later ones mend their HTTP/2.
require (
	golang.org/x/net v0.34.0 // indirect
	golang.org/x/sys v0.29.0 // indirect
	golang.org/x/text v0.21.0 // indirect
)
