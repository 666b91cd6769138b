// Command pack makes what a module proxy serves of the package: a folder that GOPROXY can name.
//
// Usage: pack MODULE VERSION OUT, where MODULE is the folder of the module, VERSION is such as
// 0.1.0, and OUT is the folder to make. `clients/go/build` runs it.
package main

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/zip"
)

func main() {
	log.SetFlags(0)
	if len(os.Args) != 4 {
		log.Fatal("usage: pack MODULE VERSION OUT")
	}
	zipped, err := pack(os.Args[1], "v"+os.Args[2], os.Args[3])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(zipped)
}

// pack writes the files of the module proxy's protocol, and returns the path of the zip.
func pack(folder, version, out string) (string, error) {
	goMod, err := os.ReadFile(filepath.Join(folder, "go.mod"))
	if err != nil {
		return "", err
	}
	name := module.Version{Path: modfile.ModulePath(goMod), Version: version}
	escaped, err := module.EscapePath(name.Path)
	if err != nil {
		return "", err
	}
	target := filepath.Join(out, filepath.FromSlash(escaped), "@v")
	if err := os.MkdirAll(target, 0o755); err != nil {
		return "", err
	}
	info, err := json.Marshal(struct {
		Version string
		Time    time.Time
	}{version, time.Now().UTC().Truncate(time.Second)})
	if err != nil {
		return "", err
	}
	for name, content := range map[string][]byte{
		"list":            []byte(version + "\n"),
		version + ".info": info,
		version + ".mod":  goMod,
	} {
		if err := os.WriteFile(filepath.Join(target, name), content, 0o644); err != nil {
			return "", err
		}
	}
	zipped := filepath.Join(target, version+".zip")
	file, err := os.Create(zipped)
	if err != nil {
		return "", err
	}
	// Modules inside the folder, such as the tools, are left out as the go command has it.
	if err := zip.CreateFromDir(file, name, folder); err != nil {
		_ = file.Close()
		return "", err
	}
	return zipped, file.Close()
}
