package tether

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/moby/sys/user"

	"vic/tether/wire"
)

// defaultPath is PATH where the image has none, as docker sets it.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// A command is a process to be, all names resolved.
type command struct {
	path   string // of the executable
	args   []string
	env    []string
	dir    string
	cred   *syscall.Credential
	limits []wire.Rlimit
	tty    bool

	privileges wire.Privileges
	umask      *uint32
	in         enclosure
	newPIDs    bool                // it is the first of a PID namespace
	stopped    func(pid int) error // called before its first instruction; may be nil
}

// resolve makes a command of e in the container of conf. What cannot be executed
// is a *wire.Error in docker's words.
func resolve(conf *wire.Config, e wire.Exec) (*command, error) {
	if len(e.Args) == 0 {
		return nil, &wire.Error{Kind: wire.NotStarted, Message: "no command specified", ExitCode: 127}
	}
	c := &command{args: e.Args, dir: e.Dir, limits: conf.Rlimits, tty: e.TTY, privileges: conf.Privileges, umask: conf.Umask}
	if e.Privileged {
		c.privileges = wire.Privileges{OOMScoreAdj: conf.Privileges.OOMScoreAdj}
	}
	if c.dir == "" {
		c.dir = conf.Dir
	}
	if c.dir == "" {
		c.dir = "/"
	}
	if !path.IsAbs(c.dir) {
		return nil, &wire.Error{Kind: wire.NotStarted, ExitCode: 127, Message: fmt.Sprintf("Cwd must be an absolute path: %q", c.dir)}
	}
	if fi, err := os.Stat(c.dir); err != nil || !fi.IsDir() {
		if err == nil {
			err = syscall.ENOTDIR
		}
		return nil, &wire.Error{Kind: wire.NotStarted, ExitCode: 127, Message: fmt.Sprintf("chdir to cwd (%q) failed: %v", c.dir, cause(err))}
	}
	name := e.User
	if name == "" {
		name = conf.User
	}
	cred, home, err := lookUpUser(name, e.Groups)
	if err != nil {
		return nil, &wire.Error{Kind: wire.NotStarted, ExitCode: 126, Message: err.Error()}
	}
	c.cred = cred
	c.env = environment(conf.Hostname, home, e.TTY, conf.Env, e.Env)
	c.path, err = lookUpExecutable(e.Args[0], c.dir, envValue(c.env, "PATH"))
	if err != nil {
		return nil, err
	}
	return c, nil
}

// lookUpUser resolves docker's USER in the container's own passwd and group files.
func lookUpUser(name string, groups []string) (*syscall.Credential, string, error) {
	u, err := user.GetExecUserPath(name, &user.ExecUser{Home: "/"}, "/etc/passwd", "/etc/group")
	if err != nil {
		return nil, "", err
	}
	extra, err := user.GetAdditionalGroupsPath(groups, "/etc/group")
	if err != nil && len(groups) > 0 { // without groups it may fail for want of the file
		return nil, "", err
	}
	cred := &syscall.Credential{Uid: uint32(u.Uid), Gid: uint32(u.Gid), Groups: []uint32{uint32(u.Gid)}}
	for _, gid := range slices.Concat(u.Sgids, extra) {
		if !slices.Contains(cred.Groups, uint32(gid)) {
			cred.Groups = append(cred.Groups, uint32(gid))
		}
	}
	return cred, u.Home, nil
}

// environment is lists put together, the later one winning, with what docker adds
// where it is absent. A name without a value takes away what is there.
func environment(hostname, home string, tty bool, lists ...[]string) []string {
	env := []string{"PATH=" + defaultPath, "HOSTNAME=" + hostname}
	if tty {
		env = append(env, "TERM=xterm")
	}
	for _, kv := range slices.Concat(lists...) {
		k, _, ok := strings.Cut(kv, "=")
		if k == "" {
			continue
		}
		i := slices.IndexFunc(env, func(have string) bool { return strings.HasPrefix(have, k+"=") })
		switch {
		case !ok && i >= 0:
			env = slices.Delete(env, i, i+1)
		case !ok:
		case i >= 0:
			env[i] = kv
		default:
			env = append(env, kv)
		}
	}
	if envValue(env, "HOME") == "" {
		env = slices.DeleteFunc(env, func(kv string) bool { return kv == "HOME=" })
		env = append(env, "HOME="+home)
	}
	return env
}

func envValue(env []string, key string) string {
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, key+"="); ok {
			return v
		}
	}
	return ""
}

// lookUpExecutable finds file as execvp(3) does, relative names from dir.
func lookUpExecutable(file, dir, pathList string) (string, error) {
	if strings.Contains(file, "/") {
		p := file
		if !path.IsAbs(p) {
			p = path.Join(dir, p)
		}
		if err := executable(p); err != nil {
			return "", notExecutable(file, err)
		}
		return p, nil
	}
	for _, d := range strings.Split(pathList, ":") {
		if !path.IsAbs(d) {
			d = path.Join(dir, d)
		}
		if p := path.Join(d, file); file != "" && executable(p) == nil {
			return p, nil
		}
	}
	return "", &wire.Error{Kind: wire.NotStarted, ExitCode: 127, Message: fmt.Sprintf("exec: %q: executable file not found in $PATH", file)}
}

func executable(p string) error {
	fi, err := os.Stat(p)
	switch {
	case err != nil:
		return err
	case fi.IsDir():
		return syscall.EISDIR
	case fi.Mode()&0111 == 0:
		return fs.ErrPermission
	}
	return nil
}

// notExecutable words the error as Go's os/exec does, from which runc and docker have
// it.
func notExecutable(file string, err error) *wire.Error {
	code := 126
	text := fmt.Sprintf("exec: %q: %v", file, cause(err))
	if errors.Is(err, fs.ErrNotExist) {
		code = 127
		text = fmt.Sprintf("exec: %q: stat %s: %v", file, file, cause(err))
	}
	return &wire.Error{Kind: wire.NotStarted, ExitCode: code, Message: text}
}

// cause takes off what os wraps around an errno.
func cause(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}
