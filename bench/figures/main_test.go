package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPublish(t *testing.T) {
	dir := t.TempDir()
	readme, chart := filepath.Join(dir, "README.md"), filepath.Join(dir, "new.svg")
	if err := os.WriteFile(chart, []byte("<svg/>"), 0o644); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(readme, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("above\n\n" + begin + "old\n" + end + "below\n")
	for range 2 {
		if err := publish(readme, "vic 1\nmachine: secret\n\nENGINE  WALL  \nvic     1\n\n", "2 cores", chart); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(readme)
		want := "above\n\n" + begin + "\n    vic 1\n    machine: 2 cores\n\n    ENGINE  WALL\n    vic     1\n\n" + end + "below\n"
		if err != nil || string(got) != want {
			t.Errorf("got\n%s\nwant\n%s%v", got, want, err)
		}
	}
	if b, err := os.ReadFile(filepath.Join(dir, "figures.svg")); err != nil || string(b) != "<svg/>" {
		t.Errorf("chart: %q, %v", b, err)
	}
	write("no place")
	if err := publish(readme, "x", "", chart); err == nil || !strings.Contains(err.Error(), "no place") {
		t.Errorf("no place: %v", err)
	}
}

// TestReadmeHasAPlace holds the documentation to what publish needs.
func TestReadmeHasAPlace(t *testing.T) {
	b, err := os.ReadFile("../README.md")
	if err != nil || strings.Count(string(b), begin) != 1 || strings.Count(string(b), end) != 1 {
		t.Errorf("bench/README.md has no place for the figures; %v", err)
	}
}
