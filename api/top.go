package api

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"

	"vic/containervm"
)

// topContainer is docker top. The image need not have a ps: the columns that ps would print are laid
// out here.
func (s *Server) topContainer(w http.ResponseWriter, r *http.Request) error {
	c, err := s.container(r)
	if err != nil {
		return err
	}
	columns, err := psColumns(r.URL.Query().Get("ps_args"))
	if err != nil {
		return err
	}
	list, err := c.Processes(r.Context())
	if err != nil {
		return err
	}
	view := psView{now: time.Now(), memory: c.Info().Spec.Memory}
	reply := container.TopResponse{Titles: []string{}, Processes: [][]string{}}
	for _, col := range columns {
		reply.Titles = append(reply.Titles, col.title)
	}
	for i := range list {
		row := make([]string, len(columns))
		for j, col := range columns {
			row[j] = col.print(view, &list[i])
		}
		reply.Processes = append(reply.Processes, row)
	}
	return writeJSON(w, http.StatusOK, reply)
}

// psView is what columns need beside the process.
type psView struct {
	now    time.Time
	memory int64 // of the container; 0 if it is not known
}

// A psColumn is a column as ps(1) prints it.
type psColumn struct {
	title string
	print func(v psView, p *containervm.Process) string
}

// psNamed are the columns that -o knows, by the names that it takes.
var psNamed = map[string]psColumn{
	"pid":    {"PID", func(_ psView, p *containervm.Process) string { return strconv.Itoa(p.PID) }},
	"ppid":   {"PPID", func(_ psView, p *containervm.Process) string { return strconv.Itoa(p.PPID) }},
	"pgid":   {"PGID", func(_ psView, p *containervm.Process) string { return strconv.Itoa(p.PGID) }},
	"sid":    {"SID", func(_ psView, p *containervm.Process) string { return strconv.Itoa(p.SID) }},
	"tpgid":  {"TPGID", func(_ psView, p *containervm.Process) string { return strconv.Itoa(p.TPGID) }},
	"nlwp":   {"NLWP", func(_ psView, p *containervm.Process) string { return strconv.Itoa(p.Threads) }},
	"uid":    {"UID", func(_ psView, p *containervm.Process) string { return strconv.FormatUint(uint64(p.UID), 10) }},
	"gid":    {"GID", func(_ psView, p *containervm.Process) string { return strconv.FormatUint(uint64(p.GID), 10) }},
	"user":   {"USER", psUser},
	"group":  {"GROUP", func(_ psView, p *containervm.Process) string { return p.Group }},
	"s":      {"S", func(_ psView, p *containervm.Process) string { return p.State }},
	"stat":   {"STAT", psState},
	"ni":     {"NI", func(_ psView, p *containervm.Process) string { return strconv.Itoa(p.Nice) }},
	"pri":    {"PRI", func(_ psView, p *containervm.Process) string { return strconv.Itoa(39 - p.Priority) }},
	"psr":    {"PSR", func(_ psView, p *containervm.Process) string { return strconv.Itoa(p.Processor) }},
	"wchan":  {"WCHAN", func(_ psView, p *containervm.Process) string { return orDash(p.WaitChannel) }},
	"tty":    {"TT", psTTY},
	"vsz":    {"VSZ", func(_ psView, p *containervm.Process) string { return strconv.FormatInt(p.Virtual>>10, 10) }},
	"rss":    {"RSS", func(_ psView, p *containervm.Process) string { return strconv.FormatInt(p.Resident>>10, 10) }},
	"c":      {"C", func(v psView, p *containervm.Process) string { return strconv.Itoa(int(v.cpuShare(p))) }},
	"pcpu":   {"%CPU", func(v psView, p *containervm.Process) string { return fmt.Sprintf("%.1f", v.cpuShare(p)) }},
	"pmem":   {"%MEM", psMemory},
	"time":   {"TIME", func(_ psView, p *containervm.Process) string { return psClock(time.Duration(p.CPU), true) }},
	"etime":  {"ELAPSED", func(v psView, p *containervm.Process) string { return psClock(v.age(p), false) }},
	"etimes": {"ELAPSED", func(v psView, p *containervm.Process) string { return strconv.Itoa(int(v.age(p).Seconds())) }},
	"stime":  {"STIME", psStart},
	"lstart": {"STARTED", func(_ psView, p *containervm.Process) string { return time.Unix(0, p.Started).UTC().Format(time.ANSIC) }},
	"comm":   {"COMMAND", func(_ psView, p *containervm.Process) string { return p.Command }},
	"args":   {"COMMAND", psCommand},
}

// psAliases are further names of columns.
var psAliases = map[string]string{
	"tid": "pid", "lwp": "pid", "pgrp": "pgid", "sess": "sid", "session": "sid", "thcount": "nlwp", "euid": "uid", "egid": "gid",
	"euser": "user", "uname": "user", "egroup": "group", "state": "s", "nice": "ni", "tt": "tty", "tname": "tty", "vsize": "vsz",
	"rssize": "rss", "rsz": "rss", "%cpu": "pcpu", "%mem": "pmem", "cputime": "time", "start_time": "stime", "start": "stime",
	"bsdstart": "stime", "ucmd": "comm", "ucomm": "comm", "command": "args", "cmd": "args",
}

func column(name string) (psColumn, bool) {
	if own, ok := psAliases[name]; ok {
		c := psNamed[own]
		switch name { // whose titles are their own
		case "cmd", "ucmd":
			c.title = "CMD"
		case "euser", "egroup", "euid", "egid", "pgrp", "lwp", "tid":
			c.title = strings.ToUpper(name)
		case "tname":
			c.title = "TTY"
		case "start_time":
			c.title = "START"
		}
		return c, true
	}
	c, ok := psNamed[name]
	return c, ok
}

func (c psColumn) titled(title string) psColumn { return psColumn{title, c.print} }

// Layouts of ps, by what chooses them.
var (
	psShort = []psColumn{psNamed["pid"], psNamed["tty"].titled("TTY"), psNamed["time"], psNamed["comm"].titled("CMD")}
	psFull  = []psColumn{psNamed["user"].titled("UID"), psNamed["pid"], psNamed["ppid"], psNamed["c"], psNamed["stime"],
		psNamed["tty"].titled("TTY"), psNamed["time"], psNamed["args"].titled("CMD")}
	psBSD     = []psColumn{psNamed["pid"], psNamed["tty"].titled("TTY"), psNamed["stat"], {"TIME", psShortClock}, psNamed["args"]}
	psBSDUser = []psColumn{psNamed["user"], psNamed["pid"], psNamed["pcpu"], psNamed["pmem"], psNamed["vsz"], psNamed["rss"],
		psNamed["tty"].titled("TTY"), psNamed["stat"], psNamed["stime"].titled("START"), {"TIME", psShortClock}, psNamed["args"]}
)

// psColumns reads the arguments of ps. Those that choose processes are taken if they choose all of a
// container's, which is what docker top lists; those that lay out columns as far as they are known.
func psColumns(text string) ([]psColumn, error) {
	if strings.TrimSpace(text) == "" {
		return psFull, nil
	}
	words := strings.Fields(text)
	var own []psColumn
	layout := psShort
	for i := 0; i < len(words); i++ {
		word := words[i]
		letters, isUnix := strings.CutPrefix(word, "-")
		if letters == "" || strings.HasPrefix(letters, "-") {
			return nil, badRequest("docker top: the argument %q of ps is not supported: use -e, -f, -o or aux", word)
		}
		if !isUnix && layout[0].title == "PID" && len(layout) == len(psShort) {
			layout = psBSD
		}
		for j, l := range letters {
			switch {
			case l == 'e' || l == 'A' || l == 'a' || l == 'x' || l == 'w' || l == 'd' && isUnix:
			case l == 'f' && isUnix:
				layout = psFull
			case l == 'u' && (!isUnix || word == "-aux"):
				layout = psBSDUser
			case l == 'o':
				list := letters[j+1:]
				if list == "" {
					if i++; i == len(words) {
						return nil, badRequest("docker top: ps -o names no column")
					}
					list = words[i]
				}
				cols, err := namedColumns(list)
				if err != nil {
					return nil, err
				}
				own = append(own, cols...)
			default:
				return nil, badRequest("docker top: the argument %q of ps is not supported: use -e, -f, -o or aux", word)
			}
			if l == 'o' {
				break
			}
		}
	}
	if own == nil {
		return layout, nil
	}
	for _, c := range own {
		if c.title == "PID" {
			return own, nil
		}
	}
	return nil, badRequest("Couldn't find PID field in ps output")
}

// namedColumns reads a list of -o: names joined by commas, and behind the last one, after an equals sign,
// its title.
func namedColumns(list string) ([]psColumn, error) {
	list, title, titled := strings.Cut(list, "=")
	var cols []psColumn
	for name := range strings.SplitSeq(list, ",") {
		c, ok := column(name)
		if !ok {
			return nil, badRequest("docker top: the column %q of ps is not supported", name)
		}
		cols = append(cols, c)
	}
	if titled {
		cols[len(cols)-1].title = title
	}
	return cols, nil
}

func (v psView) age(p *containervm.Process) time.Duration {
	return max(0, v.now.Sub(time.Unix(0, p.Started)))
}

// cpuShare is how much of one CPU a process took over its life, in percent.
func (v psView) cpuShare(p *containervm.Process) float64 {
	age := v.age(p)
	if age < time.Second {
		return 0
	}
	return 100 * float64(p.CPU) / float64(age)
}

func psMemory(v psView, p *containervm.Process) string {
	if v.memory == 0 {
		v.memory = containervm.DefaultMemory
	}
	return fmt.Sprintf("%.1f", 100*float64(p.Resident)/float64(v.memory))
}

// psUser is a name, or where that is too long for its column the number, as ps prints it.
func psUser(_ psView, p *containervm.Process) string {
	if len(p.User) > 8 {
		return strconv.FormatUint(uint64(p.UID), 10)
	}
	return p.User
}

func psTTY(_ psView, p *containervm.Process) string {
	if p.TTY == "" {
		return "?"
	}
	return p.TTY
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// psState is the state with the letters that BSD adds.
func psState(_ psView, p *containervm.Process) string {
	s := p.State
	if p.Nice < 0 {
		s += "<"
	}
	if p.Nice > 0 {
		s += "N"
	}
	if p.Locked {
		s += "L"
	}
	if p.SID == p.PID {
		s += "s"
	}
	if p.Threads > 1 {
		s += "l"
	}
	if p.TPGID == p.PGID {
		s += "+"
	}
	return s
}

// psCommand is the command line, or the name in brackets if there is none.
func psCommand(_ psView, p *containervm.Process) string {
	if len(p.Args) == 0 {
		return "[" + p.Command + "]"
	}
	return strings.Join(p.Args, " ")
}

// psStart is when a process began: a time today, a day this year, or a year.
func psStart(v psView, p *containervm.Process) string {
	at, now := time.Unix(0, p.Started).UTC(), v.now.UTC()
	switch {
	case at.Year() != now.Year():
		return at.Format("2006")
	case at.YearDay() != now.YearDay():
		return at.Format("Jan02")
	}
	return at.Format("15:04")
}

// psClock is a time as [DD-]HH:MM:SS; without whole as [[DD-]HH:]MM:SS.
func psClock(d time.Duration, whole bool) string {
	s := int64(d.Seconds())
	day, hour, text := s/86400, s/3600%24, fmt.Sprintf("%02d:%02d", s/60%60, s%60)
	if whole || day > 0 || hour > 0 {
		text = fmt.Sprintf("%02d:%s", hour, text)
	}
	if day > 0 {
		text = fmt.Sprintf("%02d-%s", day, text)
	}
	return text
}

// psShortClock is the time that BSD prints: minutes and seconds.
func psShortClock(_ psView, p *containervm.Process) string {
	s := int64(time.Duration(p.CPU).Seconds())
	return fmt.Sprintf("%d:%02d", s/60, s%60)
}
