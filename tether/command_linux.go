package tether

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/moby/sys/user"

	"vic/tether/wire"
)

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// A command is what start needs to know of a process.
type command struct {
	path       string // of the program
	args, env  []string
	dir        string
	credential *syscall.Credential
	tty        bool
	limits     []wire.Rlimit
}

// resolve looks up the user, the program and the environment of a process as docker does.
// An error of the kind that docker has an exit code for is a *wire.Error.
func resolve(conf *wire.Config, e wire.Exec) (*command, error) {
	if len(e.Args) == 0 {
		return nil, &wire.Error{Kind: wire.Invalid, Message: "no command specified"}
	}
	c := &command{args: e.Args, dir: e.Dir, tty: e.TTY, limits: conf.Rlimits}
	if c.dir == "" {
		c.dir = conf.Dir
	}
	if c.dir == "" {
		c.dir = "/"
	}
	name := e.User
	if name == "" {
		name = conf.User
	}
	home, err := c.setUser(name, e.Groups)
	if err != nil {
		return nil, err
	}
	c.setEnv(conf, e, home)
	if c.path, err = c.lookPath(e.Args[0]); err != nil {
		return nil, err
	}
	return c, nil
}

// setUser resolves NAME|UID[:GROUP|GID] and further groups in the container's files.
func (c *command) setUser(name string, groups []string) (home string, err error) {
	u, err := user.GetExecUserPath(name, &user.ExecUser{Home: "/"}, "/etc/passwd", "/etc/group")
	if err != nil {
		return "", &wire.Error{Kind: wire.NotStarted, Message: err.Error(), ExitCode: 126}
	}
	more, err := user.GetAdditionalGroupsPath(groups, "/etc/group")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", &wire.Error{Kind: wire.NotStarted, Message: err.Error(), ExitCode: 126}
	}
	c.credential = &syscall.Credential{Uid: uint32(u.Uid), Gid: uint32(u.Gid)}
	for _, g := range append(u.Sgids, more...) {
		c.credential.Groups = append(c.credential.Groups, uint32(g))
	}
	return u.Home, nil
}

// setEnv joins the environments, the later of a name winning, and adds what is expected.
func (c *command) setEnv(conf *wire.Config, e wire.Exec, home string) {
	at := make(map[string]int)
	set := func(kv string, override bool) {
		key, _, _ := strings.Cut(kv, "=")
		i, ok := at[key]
		switch {
		case !ok:
			at[key] = len(c.env)
			c.env = append(c.env, kv)
		case override:
			c.env[i] = kv
		}
	}
	for _, kv := range conf.Env {
		set(kv, true)
	}
	for _, kv := range e.Env {
		set(kv, true)
	}
	set("PATH="+defaultPath, false)
	set("HOSTNAME="+conf.Hostname, false)
	if e.TTY {
		set("TERM=xterm", false)
	}
	set("HOME="+home, false)
}

func (c *command) getenv(key string) string {
	for _, kv := range c.env {
		if v, ok := strings.CutPrefix(kv, key+"="); ok {
			return v
		}
	}
	return ""
}

// lookPath finds the program. Its errors have the words by which clients tell 127 from 126.
func (c *command) lookPath(name string) (string, error) {
	if strings.Contains(name, "/") {
		p := name
		if !filepath.IsAbs(p) {
			p = filepath.Join(c.dir, p)
		}
		if err := executable(p); err != nil {
			return "", notStarted(name, err)
		}
		return p, nil
	}
	var denied error
	for _, dir := range filepath.SplitList(c.getenv("PATH")) {
		if dir == "" {
			dir = "."
		}
		p := filepath.Join(dir, name)
		if !filepath.IsAbs(p) {
			p = filepath.Join(c.dir, p)
		}
		err := executable(p)
		if err == nil {
			return p, nil
		}
		if errors.Is(err, fs.ErrPermission) {
			denied = err
		}
	}
	if denied != nil {
		return "", notStarted(name, denied)
	}
	return "", &wire.Error{Kind: wire.NotStarted, ExitCode: 127, Message: fmt.Sprintf("exec: %q: executable file not found in $PATH", name)}
}

var errIsDirectory = errors.New("is a directory")

// executable says why the kernel would refuse to execute the file, as far as can be seen.
func executable(p string) error {
	info, err := os.Stat(p)
	switch {
	case err != nil:
		return err
	case info.IsDir():
		return errIsDirectory
	case info.Mode()&0111 == 0:
		return fs.ErrPermission
	}
	return nil
}

func notStarted(name string, err error) error {
	e := &wire.Error{Kind: wire.NotStarted, ExitCode: 127}
	switch {
	case errors.Is(err, errIsDirectory):
		e.ExitCode, e.Message = 126, fmt.Sprintf("exec: %q: is a directory", name)
	case errors.Is(err, fs.ErrPermission):
		e.ExitCode, e.Message = 126, fmt.Sprintf("exec: %q: permission denied", name)
	case errors.Is(err, fs.ErrNotExist):
		e.Message = fmt.Sprintf("exec: %q: stat %s: no such file or directory", name, name)
	default:
		e.ExitCode, e.Message = 126, fmt.Sprintf("exec: %q: %v", name, err)
	}
	return e
}

// startError words what fork and exec made of the command.
func (c *command) startError(err error) error {
	if info, statErr := os.Stat(c.dir); statErr != nil {
		return &wire.Error{Kind: wire.NotStarted, ExitCode: 127, Message: fmt.Sprintf("chdir to cwd (%q) failed: no such file or directory", c.dir)}
	} else if !info.IsDir() {
		return &wire.Error{Kind: wire.NotStarted, ExitCode: 126, Message: fmt.Sprintf("chdir to cwd (%q) failed: not a directory: permission denied", c.dir)}
	}
	return notStarted(c.args[0], err)
}
