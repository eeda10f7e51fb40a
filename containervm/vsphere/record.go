package vsphere

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"vic/containervm"
)

// recordFile is the name of a record in the container's folder.
const recordFile = "vsphere.json"

// maxRecord bounds what is read of one.
const maxRecord = 1 << 20

// A record is what is kept of a container's VM beside what vSphere knows. It is written before what it says is so.
type record struct {
	Run int `json:"run"` // how many runs of the VM there were: the last one's files have that number
	// Base is where the last run begins in the local log.
	Base int64 `json:"base"`
	// Mirrored says that all of it is there.
	Mirrored bool `json:"mirrored"`
	// NICs are those of the last run.
	NICs []nic `json:"nics,omitempty"`
	// Disks says that the VM has disks of volumes.
	Disks bool `json:"disks,omitempty"`
	// Past are earlier runs whose files are still on the datastore.
	Past []past `json:"past,omitempty"`
}

// A past is a run whose files are of no use any more.
type past struct {
	Run int   `json:"run"`
	Log int64 `json:"log"` // how many bytes of its log the local one has
}

// A nic is an interface of a VM.
type nic struct {
	End     string `json:"end"`
	MAC     string `json:"mac"`
	Network string `json:"network,omitempty"`
}

// A part is what one run has of a log.
type part struct {
	run  int
	base int64 // where it begins in the local log
}

func (r record) part() part { return part{r.Run, r.Base} }

// readRecord reads the record in a container's folder. Where there is none the VM never ran.
func readRecord(dir string) (record, error) {
	r := record{Mirrored: true}
	f, err := os.Open(filepath.Join(dir, recordFile))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return r, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err == nil && (r.Run < 0 || r.Base < 0) {
		err = errors.New("it has a negative number")
	}
	if err != nil {
		return r, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return r, nil
}

func (r record) write(dir string) error {
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return containervm.WriteFile(filepath.Join(dir, recordFile), text)
}
