package main

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// The user's documentation tells of each flag, and of none that is not there.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/vic-machine.md")
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]bool{}
	for _, m := range regexp.MustCompile("--([a-z][a-z-]*)").FindAllStringSubmatch(string(text), -1) {
		told[m[1]] = true
	}
	flags := map[string]bool{}
	var visit func(*cobra.Command)
	visit = func(c *cobra.Command) {
		c.Flags().VisitAll(func(f *pflag.Flag) {
			flags[f.Name] = true
			if !told[f.Name] {
				t.Errorf("%s --%s is not told of", c.CommandPath(), f.Name)
			}
		})
		if c.RunE != nil && !strings.Contains(string(text), strings.TrimPrefix(c.CommandPath(), "vic-machine ")) {
			t.Errorf("%s is not told of", c.CommandPath())
		}
		for _, sub := range c.Commands() {
			visit(sub)
		}
	}
	visit(rootCommand())
	for _, f := range foreigns {
		if flags[f.name] = true; !told[f.name] {
			t.Errorf("it is not told that --%s is not here", f.name)
		}
	}
	for name := range told {
		if !flags[name] {
			t.Errorf("there is no flag --%s", name)
		}
	}
}

// vic-machine is for other systems as well.
func TestOtherSystems(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles a great deal")
	}
	for _, system := range []string{"darwin", "windows"} {
		cmd := exec.Command("go", "build", "-o", os.DevNull, ".")
		cmd.Env = append(os.Environ(), "GOOS="+system, "CGO_ENABLED=0")
		if msg, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", system, err, msg)
		}
	}
}
