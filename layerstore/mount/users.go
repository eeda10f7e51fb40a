package mount

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// A User is a process that keeps a view from being unmounted.
type User struct {
	PID  int
	Name string // of its program
}

// String is how the user is shown to people.
func (u User) String() string { return fmt.Sprintf("%s (pid %d)", u.Name, u.PID) }

// Users returns the processes that have a file of the view open or their working directory in
// it, ascending, of those whose files this process may look at.
func (v *View) Users() []User {
	var users []User
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil || !v.usedBy(p) {
			continue
		}
		name, _ := os.ReadFile(p + "/comm")
		users = append(users, User{pid, strings.TrimSpace(string(name))})
	}
	slices.SortFunc(users, func(a, b User) int { return cmp.Compare(a.PID, b.PID) })
	return users
}

func (v *View) usedBy(proc string) bool {
	links := []string{proc + "/cwd", proc + "/root", proc + "/exe"}
	open, _ := filepath.Glob(proc + "/fd/*")
	for _, l := range append(links, open...) {
		if at, err := os.Readlink(l); err == nil && strings.HasPrefix(at+"/", v.dir+"/") {
			return true
		}
	}
	return false
}
