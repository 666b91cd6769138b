// The tests against the real binary. `clients/go/test` runs them in an empty project against the
// installed artifact; here, where they are written, they run against the sources.
module consentd.dev/consentd/scenarios

go 1.26.0

require (
	consentd.dev/consentd v0.1.0
	google.golang.org/protobuf v1.36.12
)

require (
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sys v0.48.0 // indirect
	golang.org/x/text v0.42.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/grpc v1.85.0 // indirect
)

replace consentd.dev/consentd => ../
