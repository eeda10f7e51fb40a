package qemu

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// How guests are carried out.
const (
	KVM = "kvm" // by the processor
	TCG = "tcg" // by translating their code
)

// A Platform is the part of a VM's hardware that the host decides.
type Platform struct {
	// Machine is QEMU's versioned name, such as pc-q35-7.2: a VM must not change
	// under a saved state when QEMU is upgraded.
	Machine string `json:"machine"`
	Accel   string `json:"accel"` // KVM or TCG
	// Firmware is qboot's file, which takes a fifth of a second less than the default to
	// start a kernel under emulation; "" is the default.
	Firmware string `json:"firmware,omitempty"`
}

// probeTimeout is how long the kernel may take to come up under KVM, which normally needs less than a second.
const probeTimeout = 10 * time.Second

// kvmDevice is there where KVM may be.
const kvmDevice = "/dev/kvm"

// probed is the cache file: what was found, and for which QEMU and boot of the host.
type probed struct {
	Platform
	Binary, Boot string
}

// platform finds out what this host can do, or looks it up in the cache file.
func (d *Driver) platform(ctx context.Context, kernel string) (Platform, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.found != nil {
		return *d.found, nil
	}
	key, err := d.probeKey()
	if err != nil {
		return Platform{}, err
	}
	var p probed
	if b, err := os.ReadFile(d.Cache); err == nil && json.Unmarshal(b, &p) == nil && p.Binary == key.Binary && p.Boot == key.Boot &&
		p.Machine != "" && (p.Accel == KVM || p.Accel == TCG) {
		d.found = &p.Platform
		return p.Platform, nil
	}
	if key.Platform, err = d.ask(ctx, TCG); err != nil {
		return Platform{}, err
	}
	if err := d.tryKVM(ctx, key.Platform, kernel); err == nil {
		key.Accel = KVM
	} else if ctx.Err() != nil {
		return Platform{}, ctx.Err()
	} else {
		d.log().Info("KVM is not usable, guests are emulated", "reason", err)
	}
	if d.Cache != "" {
		if err := writeCache(d.Cache, key); err != nil {
			d.log().Warn("remember what the host can do", "error", err)
		}
	}
	d.found = &key.Platform
	return key.Platform, nil
}

// probeKey names what a result holds for.
func (d *Driver) probeKey() (probed, error) {
	path, err := exec.LookPath(d.binary())
	if err != nil {
		return probed{}, err
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return probed{}, err
	}
	fi, err := os.Stat(path)
	if err != nil {
		return probed{}, err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return probed{}, err
	}
	return probed{
		Binary: fmt.Sprintf("%s %d %d", path, fi.Size(), fi.ModTime().UnixNano()),
		Boot:   strings.TrimSpace(string(boot)),
	}, nil
}

func writeCache(path string, p probed) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".tmp", b, 0o600); err != nil {
		return err
	}
	return os.Rename(path+".tmp", path)
}

// ask asks QEMU what it has.
func (d *Driver) ask(ctx context.Context, accel string) (p Platform, err error) {
	p.Accel = accel
	if p.Machine, err = d.machine(ctx); err != nil {
		return Platform{}, err
	}
	p.Firmware, err = d.firmware(ctx)
	return p, err
}

// firmware looks for qboot in QEMU's folders.
func (d *Driver) firmware(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, d.binary(), "-L", "help").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its folders: %w", d.binary(), err)
	}
	for dir := range strings.Lines(string(out)) {
		path := filepath.Join(strings.TrimSuffix(dir, "\n"), "qboot.rom")
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", nil
}

// machine asks QEMU which versioned machine "q35" stands for.
func (d *Driver) machine(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, d.binary(), "-machine", "help").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its machines: %w", d.binary(), err)
	}
	for line := range strings.Lines(string(out)) {
		if name, ok := strings.CutPrefix(line, "q35 "); ok {
			if _, name, ok = strings.Cut(name, "(alias of "); ok {
				name, _, _ = strings.Cut(name, ")")
				return name, nil
			}
		}
	}
	return "", fmt.Errorf("%s has no machine q35", d.binary())
}

// tryKVM boots the guest's kernel without anything it could run, which ends in a panic and so the
// VM's end. A device that opens, and a processor that counts to three, prove little: there are hosts
// whose KVM does both and then hangs, or fails on a register. The process is given up if it cannot be killed.
func (d *Driver) tryKVM(ctx context.Context, p Platform, kernel string) error {
	if _, err := os.Stat(kvmDevice); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	p.Accel = KVM
	a := append(platformArgs(p), "-m", "128", "-serial", "stdio", "-kernel", kernel, "-append", "console=ttyS0 panic=-1")
	cmd := exec.Command(d.binary(), a...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }() // a process in the kernel's hands may never end, and this with it
	select {
	case err := <-done:
		switch {
		case err != nil:
			return fmt.Errorf("probe: %w: %.200s", err, bytes.TrimSpace(out.Bytes()))
		case !bytes.Contains(out.Bytes(), []byte("Kernel panic")):
			return errors.New("probe: the kernel did not come up")
		}
		return nil
	case <-ctx.Done():
		_ = cmd.Process.Kill() // it ends, or nothing can be done about it
		return fmt.Errorf("probe: %w", ctx.Err())
	}
}
