//go:build tools

// What `generate` builds; named here, so that go.mod and go.sum pin it.
package main

import (
	_ "google.golang.org/grpc/cmd/protoc-gen-go-grpc"
	_ "google.golang.org/protobuf/cmd/protoc-gen-go"
)
