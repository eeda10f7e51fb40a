package tether

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// netFiles are the files that say where the container is, open to be written anew.
type netFiles struct{ hosts, resolvConf *os.File }

// write replaces what the files say. A container that has written to them loses that, as with docker.
func (f *netFiles) write(conf *wire.Config, n *network) error {
	for file, text := range map[*os.File]string{f.hosts: hosts(conf, n.first()), f.resolvConf: resolvConf(conf.DNS, n)} {
		if _, err := file.WriteAt([]byte(text), 0); err != nil {
			return err
		}
		if err := file.Truncate(int64(len(text))); err != nil {
			return err
		}
	}
	return nil
}

// writeFiles writes the files that say who and where the container is into the
// directory in memory, and mounts them over the image's, but not over what somebody mounted there.
func writeFiles(memory *os.File, conf *wire.Config, n *network) (*netFiles, error) {
	name, err := memoryFile(memory, conf, "hostname")
	if err != nil {
		return nil, err
	}
	if _, err := name.WriteString(conf.Hostname + "\n"); err != nil {
		return nil, err
	}
	if err := name.Close(); err != nil {
		return nil, err
	}
	f := new(netFiles)
	if f.hosts, err = memoryFile(memory, conf, "hosts"); err != nil {
		return nil, err
	}
	if f.resolvConf, err = memoryFile(memory, conf, "resolv.conf"); err != nil {
		return nil, err
	}
	if err := f.write(conf, n); err != nil {
		return nil, fmt.Errorf("write hosts and resolv.conf: %w", err)
	}
	if err := os.Symlink("/proc/mounts", "/etc/mtab"); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return f, nil
}

// memoryFile makes a file in the directory in memory and mounts it over the one in /etc, unless that is a mount.
func memoryFile(memory *os.File, conf *wire.Config, name string) (*os.File, error) {
	fd, err := unix.Openat(int(memory.Fd()), name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0644)
	if err != nil {
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	f, target := os.NewFile(uintptr(fd), name), "/etc/"+name
	if slices.ContainsFunc(conf.Mounts, func(m wire.Mount) bool { return path.Clean(m.Target) == target }) {
		return f, nil
	}
	if err := bind(f, target); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// bind mounts an open file over target, which is made if it is not there.
func bind(f *os.File, target string) error {
	target, err := follow(target)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(path.Dir(target), 0755); err != nil {
		return err
	}
	t, err := os.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0644)
	if err == nil {
		err = t.Close()
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := unix.Mount(ownProc(fmt.Sprintf("self/fd/%d", f.Fd())), target, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount file on %s: %w", target, err)
	}
	return nil
}

// hosts is the text of /etc/hosts, as docker has it.
func hosts(conf *wire.Config, own netip.Addr) string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n" +
		"::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::\tip6-localnet\n" +
		"ff00::\tip6-mcastprefix\n" +
		"ff02::1\tip6-allnodes\n" +
		"ff02::2\tip6-allrouters\n")
	for _, h := range conf.Hosts {
		fmt.Fprintf(&b, "%s\t%s\n", h.Addr, strings.Join(h.Names, " "))
	}
	if own.IsValid() && conf.Hostname != "" {
		names := conf.Hostname
		if conf.Domain != "" {
			names = conf.Hostname + "." + conf.Domain + " " + names
		} else if short, _, ok := strings.Cut(conf.Hostname, "."); ok {
			names += " " + short
		}
		fmt.Fprintf(&b, "%s\t%s\n", own, names)
	}
	return b.String()
}

// resolvConf is the text of /etc/resolv.conf. What the configuration says comes
// before what DHCP said.
func resolvConf(dns wire.DNS, n *network) string {
	servers, search := dns.Servers, dns.Search
	for _, l := range n.leases() {
		own, domains := l.names()
		servers = append(servers[:len(servers):len(servers)], own...)
		if len(dns.Search) == 0 {
			search = append(search[:len(search):len(search)], domains...)
		}
	}
	var b strings.Builder
	for _, s := range servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(search) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(search, " "))
	}
	if len(dns.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	return b.String()
}
