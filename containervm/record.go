package containervm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"
)

// Files of a container's folder. The disk is the store's.
const (
	configFile  = "config.json"
	stateFile   = "state.json"
	logFile     = "output.log"
	consoleFile = "console.log"
)

// tmpPrefix begins the names of records that are being written.
const tmpPrefix = ".tmp-"

// maxRecord bounds what is read of a record.
const maxRecord = 16 << 20

// configRecord is config.json: what a container is.
type configRecord struct {
	Created time.Time `json:"created"`
	Token   string    `json:"token"`
	Spec    Spec      `json:"spec"`
}

// stateRecord is state.json: what it does. A crash between two changes leaves one of them.
type stateRecord struct {
	State     State          `json:"state"`
	LogStart  int64          `json:"logStart"` // where the last run begins in the log
	Endpoints []EndpointInfo `json:"endpoints,omitempty"`
	Accel     string         `json:"accel,omitempty"`
	Boot      Boot           `json:"boot,omitzero"`
	// Endpoint is what stores of before have in place of Endpoints.
	Endpoint *EndpointInfo `json:"endpoint,omitempty"`
	// RemoveVolumes goes with State.Status Removing.
	RemoveVolumes bool  `json:"removeVolumes,omitempty"`
	LogSeen       int64 `json:"logSeen,omitempty"` // what follows has not changed the state yet
	Restarts      int   `json:"restarts,omitempty"`
	Stopped       bool  `json:"stopped,omitempty"` // by somebody
	// Pending are signals for a container that is paused.
	Pending []syscall.Signal `json:"pending,omitempty"`
}

// save writes both records; the first one with the container's creation.
func (c *Container) save() error {
	if err := c.saveState(); err != nil {
		return err
	}
	c.saving.Lock()
	defer c.saving.Unlock()
	if c.sealed {
		return nil
	}
	c.mu.Lock()
	conf := configRecord{c.created, c.token, c.spec}
	c.mu.Unlock()
	return writeRecord(filepath.Join(c.dir, configFile), conf)
}

func (c *Container) saveState() error {
	c.saving.Lock()
	defer c.saving.Unlock()
	if c.sealed {
		return nil
	}
	c.mu.Lock()
	st := stateRecord{State: c.state, LogStart: c.logStart, Endpoints: c.endpoints, Accel: c.accel, Boot: c.boot, RemoveVolumes: c.removeVolumes,
		LogSeen: c.logSeen, Restarts: c.restarts, Stopped: c.halted, Pending: c.pending}
	c.mu.Unlock()
	return writeRecord(filepath.Join(c.dir, stateFile), st)
}

// load reads what save wrote. Without config.json the container was never complete.
func (c *Container) load() error {
	var conf configRecord
	if err := readRecord(filepath.Join(c.dir, configFile), &conf); err != nil {
		return err
	}
	c.created, c.token, c.spec = conf.Created, conf.Token, conf.Spec
	var st stateRecord
	if err := readRecord(filepath.Join(c.dir, stateFile), &st); err != nil {
		return fmt.Errorf("state is lost: %v", err) // not fs.ErrNotExist: it did exist
	}
	if st.Endpoint != nil {
		st.Endpoint.End, st.Endpoint.Default = endName(0), true
		st.Endpoints = append(st.Endpoints, *st.Endpoint)
	}
	c.state, c.logStart, c.endpoints, c.accel, c.boot, c.removeVolumes = st.State, st.LogStart, st.Endpoints, st.Accel, st.Boot, st.RemoveVolumes
	c.logSeen, c.restarts, c.halted, c.pending = max(st.LogSeen, st.LogStart), st.Restarts, st.Stopped, st.Pending
	c.spec.Network.fill()
	return nil
}

func readRecord(path string, v any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, v); err != nil {
		return fmt.Errorf("parse %s: %w", path, err)
	}
	return nil
}

// writeRecord replaces a file with a record.
func writeRecord(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "\t")
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return WriteFile(path, text)
}

// WriteFile replaces a file whole: data, sync, name, sync. Nobody but its owner may read it.
func WriteFile(path string, text []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), tmpPrefix)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil // the folder is being removed
	}
	return errors.Join(d.Sync(), d.Close())
}
