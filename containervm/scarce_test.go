package containervm

import (
	"log/slog"
	"syscall"
	"testing"

	"vic/tether/wire"
)

// takeDescriptors lets this process open no file until giveBack, or the test's end. No test may run beside it.
func takeDescriptors(t *testing.T) (giveBack func()) {
	t.Helper()
	var was syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	giveBack = func() {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &was); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(giveBack)
	none := was
	none.Cur = 3 // below which there is none that is not open
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	return giveBack
}

// How a container has ended is not made up where no file can be opened when it does: it is read later, by the next VCH if need be.
func TestEndsWithoutDescriptors(t *testing.T) {
	for name, restarted := range map[string]bool{"waits": false, "VCH restarts": true} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			s.Close()
			log := &logLines{more: make(chan struct{})}
			s.o.Log = slog.New(slog.NewTextHandler(log, nil))
			s.open()
			c := s.run(Spec{Args: []string{"idle"}})
			s.tells("container create, container start")
			v := s.rack.vm(c.ID())
			v.record(wire.RecExit, `{"code":3}`)
			giveBack := takeDescriptors(t)
			v.end()
			log.await(t, `msg="wait to read how a container has ended"`, "container="+c.ID(), "too many open files")
			if st := c.Info().State; st.Status != Running {
				t.Errorf("before anybody knows: %+v", st)
			}
			if restarted {
				err := s.Close()
				giveBack()
				if err != nil {
					t.Fatal(err)
				}
				s.open()
				c = mustFind(t, s, c.ID())
			} else {
				giveBack()
			}
			if code := s.wait(c, NotRunning); code != 3 {
				t.Errorf("exit code %d, want 3", code)
			}
			if st := c.Info().State; st.Status != Exited || st.Error != "" {
				t.Errorf("%+v", st)
			}
		})
	}
}
