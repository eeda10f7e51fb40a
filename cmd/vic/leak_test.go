package main

import (
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var leakRuns = flag.Int("leaks", 6, "how many containers the test of leaks runs, and that of stress on vSphere if it would run fewer")

// held is what vic serve, which is part of this process, and its host hold.
type held struct {
	goroutines, descriptors, processes int
	files                              map[string]bool // of the store
	resident                           int             // KiB
}

// spareNames are those of VMs that are kept ready, of which there is one, and each time another.
var spareNames = regexp.MustCompile("spare-[0-9a-f]+")

func (s *suite) held(t *testing.T) held {
	t.Helper()
	debug.FreeOSMemory()
	h := held{goroutines: runtime.NumGoroutine(), files: map[string]bool{}}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	h.descriptors = len(fds)
	// VMs are detached: any process that was told of the store is one.
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range commands {
		if line, err := os.ReadFile(path); err == nil && strings.Contains(string(line), s.dir+"/store") {
			h.processes++
		}
	}
	err = filepath.WalkDir(filepath.Join(s.dir, "store"), func(path string, _ fs.DirEntry, err error) error {
		h.files[spareNames.ReplaceAllString(path, "spare")] = true
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			h.resident, err = strconv.Atoi(strings.Fields(text)[0])
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	return h
}

// Containers that came and went leave nothing: no descriptor, goroutine, process, file, nor memory.
func testLeaks(t *testing.T, s *suite) {
	life := func(i int) {
		t.Helper()
		s.docker(t, "", "run", "--rm", "bb", "echo", fmt.Sprint(i)).want(0, fmt.Sprintln(i))
	}
	life(0)
	s.awaitSpare(t)
	before := s.held(t)
	for i := range *leakRuns {
		life(i)
	}
	s.awaitSpare(t)
	after := s.held(t)
	// Connections that their client has closed end when the server notices, which tells nobody.
	for tries := 0; tries < 500 && (after.goroutines > before.goroutines || after.descriptors > before.descriptors); tries++ {
		time.Sleep(10 * time.Millisecond)
		after = s.held(t)
	}
	t.Logf("after %d containers: %d goroutines, %d descriptors, %d processes, %d files, %d KiB resident; before: %d, %d, %d, %d, %d",
		*leakRuns, after.goroutines, after.descriptors, after.processes, len(after.files), after.resident,
		before.goroutines, before.descriptors, before.processes, len(before.files), before.resident)
	if after.goroutines > before.goroutines || after.descriptors > before.descriptors || after.processes > before.processes {
		t.Error("goroutines, descriptors or processes are left")
	}
	for path := range before.files {
		delete(after.files, path)
	}
	if len(after.files) > 0 {
		t.Errorf("files are left: %v", slices.Collect(maps.Keys(after.files)))
	}
	const slack = 48 << 10 // KiB; what the runtime keeps differs
	if after.resident > before.resident+slack {
		t.Errorf("%d KiB resident, %d before", after.resident, before.resident)
	}
}
