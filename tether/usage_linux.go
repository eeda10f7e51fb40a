package tether

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"vic/tether/wire"
)

// usage reads what this VM has used since its boot.
func usage() (*wire.Usage, error) {
	u := &wire.Usage{Time: time.Now().UnixNano(), Memory: map[string]int64{}}
	for _, f := range []struct {
		file string
		line func(string) error
	}{
		{"stat", func(l string) error { return addCPU(u, l) }},
		{"meminfo", func(l string) error { return addMemory(u, l) }},
		{"vmstat", func(l string) error { return addFaults(u, l) }},
		{"net/dev", func(l string) error { return addNetwork(u, l) }},
		{"diskstats", func(l string) error { return addDisk(u, l) }},
	} {
		if err := eachLine(ownProc(f.file), f.line); err != nil {
			return nil, fmt.Errorf("/proc/%s: %w", f.file, err)
		}
	}
	err := containerProcesses(func(p *wire.ProcessInfo) error {
		u.Tasks += int64(p.Threads)
		return nil
	})
	return u, err
}

func eachLine(file string, fn func(string) error) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		if err := fn(sc.Text()); err != nil {
			return err
		}
	}
	return sc.Err()
}

// numbers reads all words as numbers.
func numbers(words []string) ([]uint64, error) {
	list := make([]uint64, len(words))
	for i, w := range words {
		n, err := strconv.ParseUint(w, 10, 64)
		if err != nil {
			return nil, err
		}
		list[i] = n
	}
	return list, nil
}

// addCPU adds a line of /proc/stat: "cpu  USER NICE SYSTEM IDLE IOWAIT IRQ SOFTIRQ STEAL GUEST GUEST_NICE", in
// ticks. What a hypervisor took is time that went by.
func addCPU(u *wire.Usage, line string) error {
	name, rest, _ := strings.Cut(line, " ")
	if strings.HasPrefix(name, "cpu") && name != "cpu" {
		u.CPUs++
	}
	if name != "cpu" {
		return nil
	}
	n, err := numbers(strings.Fields(rest))
	if err != nil || len(n) < 8 {
		return errors.Join(errors.New("line cpu is not understood"), err)
	}
	u.User = int64(n[0]+n[1]) * clockTick
	u.Kernel = int64(n[2]+n[5]+n[6]) * clockTick
	u.Total = u.User + u.Kernel + int64(n[3]+n[4]+n[7])*clockTick
	return nil
}

// addMemory adds a line of /proc/meminfo: "MemTotal:  227284 kB".
func addMemory(u *wire.Usage, line string) error {
	key, rest, ok := strings.Cut(line, ":")
	f := strings.Fields(rest)
	if !ok || len(f) != 2 {
		return nil // numbers of huge pages
	}
	n, err := strconv.ParseInt(f[0], 10, 64)
	u.Memory[key] = n << 10
	return err
}

// addFaults adds a line of /proc/vmstat: "pgfault 4711".
func addFaults(u *wire.Usage, line string) (err error) {
	key, value, _ := strings.Cut(line, " ")
	switch key {
	case "pgfault":
		u.Faults, err = strconv.ParseInt(value, 10, 64)
	case "pgmajfault":
		u.MajorFaults, err = strconv.ParseInt(value, 10, 64)
	}
	return err
}

// addNetwork adds a line of /proc/net/dev: "eth0: " and 8 numbers of what was received, 8 of what was sent.
func addNetwork(u *wire.Usage, line string) error {
	name, rest, ok := strings.Cut(line, ":")
	name = strings.TrimSpace(name)
	if !ok || !strings.HasPrefix(name, "eth") {
		return nil
	}
	n, err := numbers(strings.Fields(rest))
	if err != nil || len(n) < 12 {
		return errors.Join(fmt.Errorf("line of %s is not understood", name), err)
	}
	u.Networks = append(u.Networks, wire.NetworkUsage{Name: name,
		RxBytes: n[0], RxPackets: n[1], RxErrors: n[2], RxDropped: n[3],
		TxBytes: n[8], TxPackets: n[9], TxErrors: n[10], TxDropped: n[11]})
	return nil
}

// addDisk adds a line of /proc/diskstats (Documentation/admin-guide/iostats.rst): "254 0 vda READS MERGED SECTORS MS
// WRITES MERGED SECTORS MS …", of a whole disk that has been used.
func addDisk(u *wire.Usage, line string) error {
	f := strings.Fields(line)
	if len(f) < 11 {
		return errors.New("a line has too few numbers")
	}
	if _, err := os.Stat("/sys/block/" + f[2]); err != nil || strings.HasPrefix(f[2], "loop") || strings.HasPrefix(f[2], "ram") {
		return nil
	}
	n, err := numbers(append(f[:2:2], f[3:11]...))
	if err != nil {
		return err
	}
	if n[2]+n[6] > 0 {
		u.Disks = append(u.Disks, wire.DiskUsage{Major: n[0], Minor: n[1],
			Reads: n[2], ReadBytes: n[4] * 512, Writes: n[6], WrittenBytes: n[8] * 512})
	}
	return nil
}
