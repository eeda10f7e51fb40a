package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"vic/containervm/boot"
)

func TestBeside(t *testing.T) {
	dir := t.TempDir()
	if _, err := (&guestFlags{}).beside(dir); err == nil || !strings.Contains(err.Error(), "name it with --tether") {
		t.Errorf("without a tether: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "tether"), nil, 0o700); err != nil {
		t.Fatal(err)
	}
	check := func(what string, g guestFlags, want boot.Options) {
		t.Helper()
		want.Tether = filepath.Join(dir, "tether")
		if got, err := g.beside(dir); err != nil || got != want {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
	check("no kernel", guestFlags{}, boot.Options{})
	if err := os.Mkdir(filepath.Join(dir, "kernel"), 0o700); err != nil {
		t.Fatal(err)
	}
	check("one that is being built", guestFlags{}, boot.Options{})
	own := filepath.Join(dir, "kernel", "vmlinuz")
	if err := os.WriteFile(own, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check("a kernel", guestFlags{}, boot.Options{Kernel: own, Modules: filepath.Dir(own)})
	check("a flag", guestFlags{kernel: "/k"}, boot.Options{Kernel: "/k"})
	check("modules of the newest", guestFlags{modules: "/m"}, boot.Options{Modules: "/m"})
}
