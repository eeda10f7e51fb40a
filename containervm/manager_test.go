package containervm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestLifecycle(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	c := s.create(Spec{Name: "one", Args: []string{"sleep"}, Labels: map[string]string{"k": "v"}})
	if i := c.Info(); i.State.Status != Created || i.Name != "one" || i.State.ExitCode != 0 {
		t.Errorf("created: %+v", i)
	}
	wantError(t, c.Stop(ctx, StopOptions{}), ErrNotModified, "stopped already")
	wantError(t, c.Kill(ctx, syscall.SIGTERM), ErrNotRunning, "is not running")
	wantError(t, c.Kill(ctx, syscall.SIGTERM), ErrConflict, "")
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if st := c.Info().State; st.Status != Running || st.PID != 4711 || st.Started.IsZero() || !st.Finished.IsZero() {
		t.Errorf("running: %+v", st)
	}
	wantError(t, c.Start(ctx), ErrNotModified, "running already")
	wantError(t, c.Remove(ctx, RemoveOptions{}), ErrConflict, `cannot remove container "/one": container is running`)
	if err := c.Stop(ctx, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if st := c.Info().State; st.Status != Exited || st.ExitCode != 143 || st.PID != 0 || st.Finished.Before(st.Started) {
		t.Errorf("stopped: %+v", st)
	}
	if got, want := s.happened(), "container create, container start, container kill, container die, container stop"; got != want {
		t.Errorf("events %s, want %s", got, want)
	}
	if err := c.Restart(ctx, StopOptions{}); err != nil { // of one that does not run
		t.Fatal(err)
	}
	if err := c.Restart(ctx, StopOptions{Signal: syscall.SIGINT}); err != nil {
		t.Fatal(err)
	}
	if err := c.Kill(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if st := c.Info().State; st.ExitCode != 137 || st.Error != "" {
		t.Errorf("killed: %+v", st)
	}
	s.happened()
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Remove(ctx, RemoveOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	if got, want := s.happened(), "container start, container kill, container die, container destroy"; got != want {
		t.Errorf("events %s, want %s", got, want)
	}
	_, err := s.Container("one")
	wantError(t, err, ErrNotFound, "No such container: one")
	wantError(t, c.Start(ctx), ErrNotFound, "No such container")
	wantError(t, c.Remove(ctx, RemoveOptions{}), ErrNotFound, "No such container")
	if _, err := os.Stat(c.Info().LogPath); !os.IsNotExist(err) {
		t.Errorf("the log is still there: %v", err)
	}
}

// TestEnds: how a container ends, and what is told of it.
func TestEnds(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	for _, tt := range []struct {
		args []string
		code int
		text string
	}{
		{[]string{"exit", "0"}, 0, ""},
		{[]string{"exit", "3"}, 3, ""},
		{[]string{"crash"}, 137, `its console ends with "Kernel panic - not syncing"`},
	} {
		c := s.run(Spec{Args: tt.args})
		if code := s.wait(c, NotRunning); code != tt.code {
			t.Errorf("%q: exit code %d, want %d", tt.args, code, tt.code)
		}
		if st := c.Info().State; st.Status != Exited || st.ExitCode != tt.code || !strings.Contains(st.Error, tt.text) || tt.text == "" && st.Error != "" {
			t.Errorf("%q: %+v", tt.args, st)
		}
	}

	c := s.create(Spec{Args: []string{"nope"}})
	err := c.Start(ctx)
	var start *StartError
	if !errors.As(err, &start) || start.ExitCode != 127 || !strings.Contains(start.Message, "executable file not found") {
		t.Errorf("nope: %v", err)
	}
	if st := c.Info().State; st.Status != Created || st.ExitCode != 127 || st.Error != start.Message {
		t.Errorf("nope: %+v", st)
	}

	gone := s.create(Spec{Args: []string{"nope"}, AutoRemove: true})
	if err := gone.Start(ctx); err == nil {
		t.Error("nope started")
	}
	if code := s.wait(gone, Removed); code != 127 {
		t.Errorf("exit code %d after removal", code)
	}

	failure := errors.New("no such machine type")
	s.rack.fails = failure
	wantError(t, c.Start(ctx), failure, "")
	if st := c.Info().State; st.Status != Created || st.ExitCode != 128 || st.Error != failure.Error() {
		t.Errorf("no VM: %+v", st)
	}
	again := s.run(Spec{Args: []string{"exit", "0"}})
	s.wait(again, NotRunning)
	before := again.Info().State
	s.rack.fails = failure
	wantError(t, again.Start(ctx), failure, "")
	if st := again.Info().State; st.Status != Exited || st.ExitCode != 128 || st.Error != failure.Error() ||
		!st.Started.Equal(before.Started) || !st.Finished.Equal(before.Finished) {
		t.Errorf("no VM for what ran before: %+v, it was %+v", st, before)
	}
	s.disks.fails = failure
	if _, err := s.Create(ctx, Spec{Name: "full", Args: []string{"sleep"}}); !errors.Is(err, failure) {
		t.Errorf("no disk: %v", err)
	}
	s.create(Spec{Name: "full", Args: []string{"sleep"}}) // the name is free again

	s.disks.fails = failure
	wantError(t, c.Remove(ctx, RemoveOptions{}), failure, "remove container")
	if st := c.Info().State; st.Status != Dead {
		t.Errorf("half removed: %+v", st)
	}
	wantError(t, c.Start(ctx), ErrConflict, "marked for removal")
	if err := c.Remove(ctx, RemoveOptions{}); err != nil {
		t.Error(err)
	}
}

func TestStartTimeout(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.Close()
	s.o.StartTimeout = time.Millisecond
	s.open()
	c := s.create(Spec{Args: []string{"never"}})
	if err := c.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "did not run within 1ms: see "+c.Info().ConsolePath) {
		t.Errorf("got %v", err)
	}
	if st := c.Info().State; st.Status != Created || st.ExitCode != 128 {
		t.Errorf("%+v", st)
	}
}

// TestStop: a process that takes no notice is killed, and a guest that takes none is unplugged.
func TestStop(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	brief := time.Millisecond
	c := s.run(Spec{Args: []string{"stubborn"}, StopSignal: syscall.SIGINT, StopGrace: &brief})
	if err := c.Stop(ctx, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if st := c.Info().State; st.ExitCode != 137 || st.Error != "" {
		t.Errorf("%+v", st)
	}
	c = s.run(Spec{Args: []string{"stubborn"}})
	if err := c.Kill(ctx, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	c = s.run(Spec{Args: []string{"lingers"}})
	wantError(t, c.Kill(ctx, syscall.SIGHUP), ErrNotRunning, "is not running")
	killed := make(chan error)
	go func() { killed <- c.Kill(ctx, syscall.SIGKILL) }()
	v := s.rack.vm(c.ID())
	<-v.signals
	<-v.signals
	v.exit(6)
	if err := <-killed; err != nil {
		t.Fatal(err)
	}
	if code := c.Info().State.ExitCode; code != 6 {
		t.Errorf("the plug was pulled while the guest was writing: exit code %d", code)
	}
	c = s.run(Spec{Args: []string{"stubborn"}})
	forever := -time.Second
	gaveUp, cancel := context.WithCancel(ctx)
	cancel()
	wantError(t, c.Stop(gaveUp, StopOptions{Grace: &forever}), context.Canceled, "")
	if err := c.Kill(ctx, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if testing.Short() {
		return
	}
	c = s.run(Spec{Args: []string{"deaf"}, StopGrace: &brief})
	if err := c.Stop(ctx, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if st := c.Info().State; st.ExitCode != 137 || st.Error != "" {
		t.Errorf("%+v", st)
	}
	if v = s.rack.vm(c.ID()); v.dials < 2 {
		t.Errorf("a guest that does not answer was greeted %d times", v.dials)
	}
}

// TestReopen: what a new Manager finds of an old one's containers.
func TestReopen(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	if _, err := Open(ctx, s.o); !errors.Is(err, ErrConflict) || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a second Manager: %v", err)
	}
	created := s.create(Spec{Name: "created", Args: []string{"sleep"}, Env: []string{"A=b"}})
	running := s.run(Spec{Name: "running", Args: []string{"sleep"}, Network: NetworkSpec{Mode: "bridge", Ports: []PortBinding{{Port: 80, HostPort: 8080}}}})
	ended := s.run(Spec{Name: "ended", Args: []string{"sleep"}})
	unplugged := s.run(Spec{Name: "unplugged", Args: []string{"sleep"}})
	removed := s.run(Spec{Name: "removed", Args: []string{"sleep"}, AutoRemove: true})
	damaged := s.create(Spec{Name: "damaged", Args: []string{"sleep"}})
	removing := s.create(Spec{Name: "removing", Args: []string{"sleep"}})
	removing.state.Status = Removing
	if err := removing.saveState(); err != nil {
		t.Fatal(err)
	}
	waiting, err := running.Wait(ctx, NotRunning)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if r := <-waiting; r.Err != ErrClosed {
		t.Errorf("Wait after Close: %+v", r)
	}
	wantError(t, running.Start(ctx), ErrClosed, "")

	s.rack.vm(ended.ID()).exit(5)
	s.rack.vm(unplugged.ID()).end()
	s.rack.vm(removed.ID()).exit(0)
	after := time.Now()
	for file, text := range map[string]string{
		filepath.Join(damaged.dir, stateFile):                            `{"state":`,
		filepath.Join(s.disks.dir, strings.Repeat("ab", 32), "disk"):     "",
		filepath.Join(s.disks.dir, "lost+found", "nothing of ours"):      "",
		filepath.Join(s.disks.dir, strings.Repeat("cd", 32), ".tmp-123"): "{",
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.open()
	for _, tt := range []struct {
		c      *Container
		status Status
		code   int
		text   string
	}{
		{created, Created, 0, ""},
		{running, Running, 0, ""},
		{ended, Exited, 5, ""},
		{unplugged, Exited, 137, "without an exit code"},
		{damaged, Dead, 0, "state is lost"},
	} {
		c, err := s.Container(tt.c.ID())
		if err != nil {
			t.Errorf("%v: %v", tt.status, err)
			continue
		}
		i := c.Info()
		if i.Name != tt.c.spec.Name || i.State.Status != tt.status || i.State.ExitCode != tt.code || !strings.Contains(i.State.Error, tt.text) {
			t.Errorf("%s: %+v", i.Name, i.State)
		}
		if !i.Created.Equal(tt.c.created) || !reflect.DeepEqual(i.Spec, tt.c.spec) {
			t.Errorf("%s is another: %+v", i.Name, i)
		}
	}
	if i := mustFind(t, s, "ended").Info(); i.State.Finished.After(after) {
		t.Errorf("ended at %v, when it was looked at, and not before %v", i.State.Finished, after)
	}
	for _, c := range []*Container{removed, removing} {
		if _, err := os.Stat(c.dir); err == nil {
			if again, err := s.Container(c.ID()); err == nil {
				s.wait(again, Removed)
			}
		}
	}
	if entries, err := os.ReadDir(s.disks.dir); err != nil || len(entries) != 6 { // five, and lost+found
		t.Errorf("folders: %v, %v", entries, err)
	}
	c := mustFind(t, s, "running")
	if e := c.Info().Endpoints; len(e) != 1 || e[0].Ports[0].HostPort != 8080 {
		t.Errorf("endpoint: %+v", e)
	}
	if err := c.Stop(ctx, StopOptions{}); err != nil {
		t.Error(err)
	}
	if code := c.Info().State.ExitCode; code != 143 {
		t.Errorf("exit code %d", code)
	}
	if err := mustFind(t, s, "damaged").Remove(ctx, RemoveOptions{}); err != nil {
		t.Error(err)
	}
}

// What was made for somebody who is gone goes too, whatever it is doing; what was retained stays.
func TestTransient(t *testing.T) {
	s := newSite(t)
	for _, name := range []string{"runs", "ended", "created", "retained"} {
		spec := Spec{Name: name, Args: []string{"sleep"}, Transient: true}
		switch name {
		case "created":
			s.create(spec)
		case "ended":
			spec.Args = []string{"exit", "0"}
			s.wait(s.run(spec), NotRunning)
		default:
			s.run(spec)
		}
	}
	if err := mustFind(t, s, "retained").Retain(); err != nil {
		t.Fatal(err)
	}
	s.reopen()
	for _, name := range []string{"runs", "ended", "created"} {
		c, err := s.Container(name)
		if err == nil { // it may be on its way
			s.wait(c, Removed)
			_, err = s.Container(name)
		}
		wantError(t, err, ErrNotFound, "No such container")
	}
	if status := mustFind(t, s, "retained").Info().State.Status; status != Running {
		t.Errorf("the retained container is %s", status)
	}
}

func mustFind(t *testing.T, s *site, ref string) *Container {
	t.Helper()
	c, err := s.Container(ref)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestNames(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	a := s.create(Spec{Name: "aa", Args: []string{"sleep"}})
	b := s.run(Spec{Args: []string{"sleep"}, Network: NetworkSpec{Mode: "bridge"}})
	if err := checkName(b.Info().Name); err != nil {
		t.Error(err)
	}
	_, err := s.Create(ctx, Spec{Name: "aa", Args: []string{"x"}})
	wantError(t, err, ErrConflict, `Conflict. The container name "/aa" is already in use by container "`+a.ID()+`"`)
	wantError(t, b.Rename("aa"), ErrConflict, "already in use")
	wantError(t, b.Rename("a b"), ErrInvalid, "Invalid container name (a b)")
	wantError(t, a.Rename("aa"), ErrInvalid, "same name")
	if err := b.Rename("bb"); err != nil {
		t.Fatal(err)
	}
	if got := s.net.names[len(s.net.names)-1][0]; got != "bb" {
		t.Errorf("the network knows %s", got)
	}
	s.reopen()
	for _, ref := range []string{"bb", "/bb", b.ID(), b.ID()[:12]} {
		if c, err := s.Container(ref); err != nil || c.ID() != b.ID() {
			t.Errorf("%s: %v", ref, err)
		}
	}
	for ref, kind := range map[string]error{"": ErrNotFound, "b": ErrNotFound, "/" + b.ID(): ErrNotFound} {
		if strings.HasPrefix(b.ID(), "b") || strings.HasPrefix(a.ID(), "b") {
			continue
		}
		if _, err := s.Container(ref); !errors.Is(err, kind) {
			t.Errorf("%q: %v", ref, err)
		}
	}
	if list := s.List(); len(list) != 2 || list[0].ID() != b.ID() {
		t.Errorf("not the newest first: %v", list)
	}
}

func TestPorts(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	ports := NetworkSpec{Mode: "bridge", Ports: []PortBinding{{Port: 80, HostPort: 8080}}}
	a := s.run(Spec{Args: []string{"sleep"}, Network: ports})
	b := s.create(Spec{Name: "second", Args: []string{"sleep"}, Network: ports})
	wantError(t, b.Start(ctx), ErrPortAllocated, "driver failed programming external connectivity on endpoint second (")
	if a.Info().Endpoints == nil || b.Info().Endpoints != nil {
		t.Error("endpoints are wrong")
	}
	if err := a.Stop(ctx, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	s.rack.mu.Lock()
	s.rack.fails = errors.New("no memory")
	s.rack.mu.Unlock()
	if err := b.Start(ctx); err == nil {
		t.Error("started without a VM")
	}
	if err := b.Start(ctx); err != nil {
		t.Errorf("the port was not given back: %v", err)
	}
	if got, want := s.happened(), "network connect, container start"; !strings.HasSuffix(got, want) {
		t.Errorf("events %s, want at last %s", got, want)
	}
}

func TestWait(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	c := s.create(Spec{Args: []string{"sleep"}, AutoRemove: true})
	if code := s.wait(c, NotRunning); code != 0 {
		t.Errorf("of one that never ran: %d", code)
	}
	_, err := c.Wait(t.Context(), "tomorrow")
	wantError(t, err, ErrInvalid, `invalid condition: "tomorrow"`)
	ctx, cancel := context.WithCancel(t.Context())
	var chans []<-chan WaitResult
	for _, cond := range []WaitCondition{NextExit, Removed} {
		ch, err := c.Wait(t.Context(), cond)
		if err != nil {
			t.Fatal(err)
		}
		chans = append(chans, ch)
	}
	given, err := c.Wait(ctx, NextExit)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	if r := <-given; r.Err != context.Canceled {
		t.Errorf("given up: %+v", r)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	running, err := c.Wait(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	s.rack.vm(c.ID()).exit(9)
	for _, ch := range append(chans, running) {
		if r := <-ch; r.Err != nil || r.ExitCode != 9 {
			t.Errorf("%+v", r)
		}
	}
	if code := s.wait(c, Removed); code != 9 {
		t.Errorf("after removal: %d", code)
	}
	_, err = c.Wait(t.Context(), NotRunning)
	wantError(t, err, ErrNotFound, "No such container")
}

// TestRestartKeeps: a container that removes itself is not removed by its restart.
func TestRestartKeeps(t *testing.T) {
	t.Parallel()
	s, ctx := newSite(t), t.Context()
	c := s.run(Spec{Args: []string{"sleep"}, AutoRemove: true})
	if err := c.Restart(ctx, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	if st := c.Info().State; st.Status != Running {
		t.Errorf("%+v", st)
	}
	if err := c.Stop(ctx, StopOptions{}); err != nil {
		t.Fatal(err)
	}
	s.wait(c, Removed)
}

func TestSpec(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	for _, tt := range []struct {
		spec Spec
		kind error
		text string
	}{
		{Spec{}, ErrInvalid, "no command"},
		{Spec{Name: "x"}, ErrInvalid, "container name (x)"},
		{Spec{Name: "../x"}, ErrInvalid, "container name"},
		{Spec{Dir: "x"}, ErrInvalid, "working directory 'x'"},
		{Spec{Memory: 64 << 20}, ErrInvalid, "96MB"},
		{Spec{CPUs: 10000}, ErrInvalid, "CPUs"},
		{Spec{StopSignal: 65}, ErrInvalid, "Invalid signal: 65"},
		{Spec{Extra: make([]byte, 1<<20+1)}, ErrInvalid, "1048576"},
		{Spec{Restart: RestartPolicy{Name: "sometimes"}}, ErrInvalid, "invalid restart policy: unknown policy 'sometimes'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"},
		{Spec{Restart: RestartPolicy{Name: "on-failure", MaxRetries: -1}}, ErrInvalid, "maximum retry count cannot be negative"},
		{Spec{Restart: RestartPolicy{Name: "always"}, AutoRemove: true}, ErrInvalid, "can't create 'AutoRemove' container with restart policy"},
		{Spec{Env: []string{"=x"}}, ErrInvalid, "environment variable: =x"},
		{Spec{Env: []string{"A=b\x00"}}, ErrInvalid, "environment variable"},
		{Spec{Tmpfs: []Tmpfs{{Target: "x"}}}, ErrInvalid, "'x'"},
		{Spec{Network: NetworkSpec{Mode: "host"}}, ErrInvalid, `"host"`},
		{Spec{Network: NetworkSpec{Mode: "container:x"}}, ErrInvalid, `"container:x"`},
		{Spec{Network: NetworkSpec{Mode: "none", Ports: []PortBinding{{Port: 1}}}}, ErrInvalid, "without a network"},
		{Spec{Network: NetworkSpec{Mode: "none", Endpoints: []EndpointSpec{{Network: "bridge"}}}}, ErrInvalid, "without a network"},
		{Spec{Network: NetworkSpec{Ports: []PortBinding{{Proto: "sctp", Port: 1}}}}, ErrInvalid, "1/sctp"},
	} {
		if tt.spec.Args == nil && tt.text != "no command" {
			tt.spec.Args = []string{"sleep"}
		}
		_, err := s.Create(t.Context(), tt.spec)
		wantError(t, err, tt.kind, tt.text)
	}
	if list := s.List(); len(list) != 0 {
		t.Errorf("%d containers", len(list))
	}
	// More than a VM's hardware can tell is refused at the start.
	huge := s.create(Spec{Args: []string{"sleep", randomText(1 << 20)}})
	wantError(t, huge.Start(t.Context()), ErrInvalid, "too large")
}

// TestCrowd: many at once.
func TestCrowd(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	done := make(chan error)
	const n = 30
	for range n {
		go func() {
			done <- func() error {
				c, err := s.Create(t.Context(), Spec{Args: []string{"sleep"}, Network: NetworkSpec{Mode: "none"}})
				if err != nil {
					return err
				}
				if err := c.Start(t.Context()); err != nil {
					return err
				}
				errs := make(chan error, 2)
				go func() { errs <- c.Stop(t.Context(), StopOptions{}) }()
				go func() { errs <- c.Remove(t.Context(), RemoveOptions{Force: true}) }()
				for range 2 {
					if err := <-errs; err != nil && !errors.Is(err, ErrNotModified) && !errors.Is(err, ErrNotFound) {
						return err
					}
				}
				return nil
			}()
		}()
	}
	for range n {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if list := s.List(); len(list) != 0 {
		t.Errorf("%d containers are left", len(list))
	}
}
