package vsphere

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"vic/bench/vcsim"
)

// TestPast looks for the files of a container's earlier runs.
func TestPast(t *testing.T) {
	s := newSite(t, vcsim.Options{})
	id := s.create(1)
	spec := s.spec(id)
	logs := func() (names []string) {
		t.Helper()
		all, err := filepath.Glob(s.file(id, "*-[0-9]*.log"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range all {
			names = append(names, filepath.Base(file))
		}
		return names
	}
	run := func(text string) *machine {
		t.Helper()
		m := s.start(spec)
		s.write(id, m.part.run, text)
		if err := os.WriteFile(s.file(id, consoleName(m.part.run)), []byte("boots"), 0o600); err != nil {
			t.Fatal(err)
		}
		return m
	}
	stop := func(m *machine) {
		t.Helper()
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
		s.wait(m)
		m.Close()
	}
	has := func(want ...string) {
		t.Helper()
		s.until("there are "+strings.Join(want, " "), func() bool { return slices.Equal(logs(), want) })
	}
	m := run("one ")
	stop(m)
	has("console-1.log", "output-1.log") // until the next start
	m = run("two ")
	has("console-2.log", "output-2.log")
	stop(m)
	s.has(spec.Log, "one two ")

	// Somebody runs the VM past the VCH, which reads none of what it writes: it stays.
	s.write(id, 2, "past")
	m = run("three ")
	has("console-3.log", "output-2.log", "output-3.log")
	stop(m)
	s.has(spec.Log, "one two three ")

	// The VCH dies with the start of a run, before it has removed anything.
	rec, err := readRecord(spec.Dir)
	if err != nil || len(rec.Past) != 0 {
		t.Fatalf("record %+v, %v", rec, err)
	}
	rec.Past = rec.retire(int64(len("one two three ")))
	rec.Run, rec.Base = rec.Run+1, int64(len("one two three "))
	if err := rec.write(spec.Dir); err != nil {
		t.Fatal(err)
	}
	m = run("five")
	has("console-5.log", "output-2.log", "output-5.log")
	s.until("the record says so", func() bool { rec, err := readRecord(spec.Dir); return err == nil && len(rec.Past) == 0 })
	stop(m)
	s.has(spec.Log, "one two three five")

	var r record
	for i := range mostPast + 5 {
		r.Past = r.retire(int64(i))
		r.Run++
	}
	if n := len(r.Past); n != mostPast || r.Past[n-1].Run != mostPast+4 {
		t.Errorf("%d past runs, the last %+v", n, r.Past[n-1])
	}
}
