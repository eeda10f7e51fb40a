package bench

import (
	"fmt"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// A Machine is what the figures depend on besides the programs.
type Machine struct {
	Cores      int    `json:"cores"` // that may be used
	CPU        string `json:"cpu"`
	Memory     int64  `json:"memory"` // bytes
	Kernel     string `json:"kernel"`
	FileSystem string `json:"fileSystem"` // of the stores
	Virtual    bool   `json:"virtual"`    // a hypervisor is below
}

// thisMachine describes the machine, and the file system that dir, a path without symlinks, is on.
func thisMachine(dir string) (Machine, error) {
	m := Machine{Cores: runtime.GOMAXPROCS(0), CPU: runtime.GOARCH}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return m, fmt.Errorf("describe the machine: %w", err)
	}
	m.Kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return m, fmt.Errorf("describe the machine: %w", err)
	}
	m.Memory = int64(info.Totalram) * int64(info.Unit)
	cpu, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return m, fmt.Errorf("describe the machine: %w", err)
	}
	for line := range strings.Lines(string(cpu)) {
		key, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(key) {
		case "model name":
			m.CPU = strings.TrimSpace(value)
		case "flags":
			m.Virtual = strings.Contains(value+" ", " hypervisor ")
		}
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return m, fmt.Errorf("describe the machine: %w", err)
	}
	longest := 0
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) > 2 && len(f[1]) >= longest && strings.HasPrefix(dir+"/", strings.TrimSuffix(f[1], "/")+"/") {
			longest, m.FileSystem = len(f[1]), f[2]
		}
	}
	return m, nil
}
