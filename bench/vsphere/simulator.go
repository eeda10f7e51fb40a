package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/prometheus/procfs"

	datastore "vic/layerstore/vsphere"
)

const datastoreName = "datastore1"

// A simulator is a vcsim process.
type simulator struct {
	cmd    *exec.Cmd
	folder string // of the datastore
	said   struct {
		URL        string `json:"url"`
		Thumbprint string `json:"thumbprint"`
	}
}

// startSimulator builds a vcsim in work and runs it with a datastore in a folder below parent.
func startSimulator(ctx context.Context, work, parent string) (_ *simulator, err error) {
	bin := filepath.Join(work, "vcsim")
	build := exec.CommandContext(ctx, "go", "build", "-o", bin, "vic/cmd/vcsim")
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%v: %w\n%s", build, err, text)
	}
	folder, err := os.MkdirTemp(parent, "vic-datastore-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(folder))
		}
	}()
	s := &simulator{folder: folder, cmd: exec.Command(bin, "-no-qemu", "-json", "-datastore", datastoreName+"="+folder+",NFS", "-portgroup", bridgeName)}
	s.cmd.Stderr = os.Stderr
	stdout, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	if err := json.NewDecoder(stdout).Decode(&s.said); err != nil {
		return nil, errors.Join(fmt.Errorf("what vcsim says: %w", err), s.stop())
	}
	return s, nil
}

func (s *simulator) endpoint() datastore.Endpoint {
	u, _ := url.Parse(s.said.URL) // of the program's own making
	password, _ := u.User.Password()
	return datastore.Endpoint{Server: u.Host, User: u.User.Username(), Password: password, Thumbprint: s.said.Thumbprint}
}

// cpu is how many seconds of processors it has used.
func (s *simulator) cpu() (float64, error) {
	p, err := procfs.NewProc(s.cmd.Process.Pid)
	if err != nil {
		return 0, err
	}
	stat, err := p.Stat()
	return stat.CPUTime(), err
}

func (s *simulator) stop() error {
	err := s.cmd.Process.Signal(os.Interrupt)
	return errors.Join(err, s.cmd.Wait(), os.RemoveAll(s.folder))
}
