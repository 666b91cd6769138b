//go:build tools

// What the programs here run with `go run`, named so that go.mod and go.sum pin it.
package tools

import (
	_ "google.golang.org/grpc/cmd/protoc-gen-go-grpc"
	_ "google.golang.org/protobuf/cmd/protoc-gen-go"
)
