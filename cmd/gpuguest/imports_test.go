package main

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// layers are the project's packages from the bottom up. A package may import those below it only.
var layers = []string{
	"gpuguest/assets",
	"gpuguest/internal/sh",
	"gpuguest/internal/action",
	"gpuguest/internal/facts",
	"gpuguest/internal/catalog",
	"gpuguest/internal/runfile",
	"gpuguest/internal/diagnosis",
	"gpuguest/internal/bundle",
	"gpuguest/internal/offline",
	"gpuguest/internal/hypervisor",
	"gpuguest/internal/cuda",
	"gpuguest/internal/smi",
	"gpuguest/distros",
	"gpuguest/internal/choice",
	"gpuguest/internal/remedy",
	"gpuguest/steps",
	"gpuguest/internal/plan",
	"gpuguest/internal/guest",
	"gpuguest/internal/engine",
	"gpuguest/internal/inventory",
	"gpuguest/internal/fleet",
	"gpuguest/internal/report",
	"gpuguest/internal/cgroup",
	"gpuguest/internal/oven",
	"gpuguest/internal/oven/nspawn",
	"gpuguest/internal/bake",
	"gpuguest/cmd/gpuguest",
}

// pure packages are functions from values to values: the same input, the same plan.
var pure = []string{"gpuguest/internal/runfile", "gpuguest/internal/hypervisor", "gpuguest/internal/cuda", "gpuguest/internal/smi", "gpuguest/distros", "gpuguest/internal/choice", "gpuguest/internal/remedy", "gpuguest/steps", "gpuguest/internal/plan"}

var impure = []string{"os", "os/exec", "net", "net/http", "gpuguest/internal/guest", "gpuguest/internal/engine"}

// TestImportsPointOneWay holds the picture of the README against the code.
func TestImportsPointOneWay(t *testing.T) {
	root := filepath.Join("..", "..")
	seen := 0
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && d.Name() != ".." || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		pkg := "gpuguest/" + filepath.ToSlash(rel)
		level := slices.Index(layers, pkg)
		if level < 0 {
			return nil
		}
		seen++
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if below := slices.Index(layers, name); strings.HasPrefix(name, "gpuguest/") && (below < 0 || below >= level) {
				t.Errorf("%s imports %s, which is not below %s", path, name, pkg)
			}
			if slices.Contains(pure, pkg) && slices.Contains(impure, name) {
				t.Errorf("%s imports %s, and %s reaches nothing", path, name, pkg)
			}
			if name == "github.com/schollz/progressbar/v3" && filepath.Base(path) != "ui.go" {
				t.Errorf("%s imports the progress bar; only ui.go may", path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen < len(layers) {
		t.Errorf("only %d files were looked at", seen)
	}
}
