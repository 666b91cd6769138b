// Command generate writes the Go code of the contract, proto/consent/v1.
//
// Usage: generate PROTO OUT, where PROTO is the folder that has consent/v1, and OUT the folder
// for the generated files. `clients/go/generate` runs it.
//
// Compiler and plugins are Go modules whose versions tools/go.mod pins, so that everybody's
// generated code is the same, and nobody has to install protoc.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"sort"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/pluginpb"
)

// goPackage is where the generated code is imported from. The contract itself names no package of
// any language.
const goPackage = "consentd.dev/consentd/consentv1"

// The plugins, as packages that go.mod pins.
var plugins = []string{
	"google.golang.org/protobuf/cmd/protoc-gen-go",
	"google.golang.org/grpc/cmd/protoc-gen-go-grpc",
}

func main() {
	log.SetFlags(0)
	if len(os.Args) != 3 {
		log.Fatal("usage: generate PROTO OUT")
	}
	if err := generate(os.Args[1], os.Args[2]); err != nil {
		log.Fatal(err)
	}
}

func generate(protos, out string) error {
	names, err := filepath.Glob(filepath.Join(protos, "consent", "v1", "*.proto"))
	if err != nil {
		return err
	}
	if len(names) == 0 {
		return fmt.Errorf("no contract in %s", protos)
	}
	sort.Strings(names)
	for i, name := range names {
		relative, err := filepath.Rel(protos, name)
		if err != nil {
			return err
		}
		names[i] = filepath.ToSlash(relative)
	}
	compiler := protocompile.Compiler{
		Resolver: protocompile.WithStandardImports(&protocompile.SourceResolver{
			ImportPaths: []string{protos},
		}),
		// The comments of the contract become the documentation of the generated code.
		SourceInfoMode: protocompile.SourceInfoStandard,
	}
	files, err := compiler.Compile(context.Background(), names...)
	if err != nil {
		return err
	}
	request := &pluginpb.CodeGeneratorRequest{FileToGenerate: names}
	seen := map[string]bool{}
	for _, file := range files {
		addFile(request, seen, file)
	}
	for _, name := range names {
		parameter := fmt.Sprintf("M%s=%s", name, goPackage)
		request.Parameter = proto.String(request.GetParameter() + parameter + ",")
	}
	request.Parameter = proto.String(request.GetParameter() + "module=" + goPackage)
	for _, plugin := range plugins {
		if err := run(plugin, request, out); err != nil {
			return fmt.Errorf("%s: %w", plugin, err)
		}
	}
	return nil
}

// addFile adds a file behind all that it imports, as plugins want it.
func addFile(
	request *pluginpb.CodeGeneratorRequest, seen map[string]bool, file protoreflect.FileDescriptor,
) {
	if seen[file.Path()] {
		return
	}
	seen[file.Path()] = true
	imports := file.Imports()
	for i := 0; i < imports.Len(); i++ {
		addFile(request, seen, imports.Get(i).FileDescriptor)
	}
	descriptor := protodesc.ToFileDescriptorProto(file)
	if result, ok := file.(interface {
		FileDescriptorProto() *descriptorpb.FileDescriptorProto
	}); ok {
		descriptor = result.FileDescriptorProto() // It has the comments.
	}
	request.ProtoFile = append(request.ProtoFile, descriptor)
}

// run gives the request to a plugin, and writes the files that it answers.
func run(plugin string, request *pluginpb.CodeGeneratorRequest, out string) error {
	input, err := proto.Marshal(request)
	if err != nil {
		return err
	}
	command := exec.Command("go", "run", plugin)
	command.Stdin = bytes.NewReader(input)
	command.Stderr = os.Stderr
	output, err := command.Output()
	if err != nil {
		return err
	}
	var response pluginpb.CodeGeneratorResponse
	if err := proto.Unmarshal(output, &response); err != nil {
		return err
	}
	if response.GetError() != "" {
		return errors.New(response.GetError())
	}
	for _, file := range response.GetFile() {
		path := filepath.Join(out, filepath.FromSlash(file.GetName()))
		if err := os.WriteFile(path, []byte(file.GetContent()), 0o644); err != nil {
			return err
		}
	}
	return nil
}
