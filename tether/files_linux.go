package tether

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"vic/tether/wire"
)

// writeFiles writes the files that say who and where the container is into the
// directory in memory, and mounts them over the image's.
func writeFiles(memory *os.File, conf *wire.Config, n *network) error {
	for _, f := range []struct{ name, text string }{
		{"hostname", conf.Hostname + "\n"},
		{"hosts", hosts(conf, n.first())},
		{"resolv.conf", resolvConf(conf.DNS, n)},
	} {
		fd, err := unix.Openat(int(memory.Fd()), f.name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0644)
		if err != nil {
			return fmt.Errorf("write %s: %w", f.name, err)
		}
		file := os.NewFile(uintptr(fd), f.name)
		_, err = file.WriteString(f.text)
		if err == nil {
			err = bind(file, "/etc/"+f.name)
		}
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	err := os.Symlink("/proc/mounts", "/etc/mtab")
	if err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return nil
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
	for _, l := range n.leases {
		servers = append(servers[:len(servers):len(servers)], l.dns...)
		if len(dns.Search) == 0 {
			search = append(search[:len(search):len(search)], l.search...)
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
