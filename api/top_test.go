package api

import (
	"strings"
	"testing"
	"time"

	"vic/containervm"
)

func TestPSColumns(t *testing.T) {
	for _, tt := range []struct{ args, titles, err string }{
		{"", "UID PID PPID C STIME TTY TIME CMD", ""},
		{"-ef", "UID PID PPID C STIME TTY TIME CMD", ""},
		{"-e -f", "UID PID PPID C STIME TTY TIME CMD", ""},
		{"-A", "PID TTY TIME CMD", ""},
		{"aux", "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND", ""},
		{"-aux", "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND", ""},
		{"auxww", "USER PID %CPU %MEM VSZ RSS TTY STAT START TIME COMMAND", ""},
		{"ax", "PID TTY STAT TIME COMMAND", ""},
		{"-o pid,ppid,comm", "PID PPID COMMAND", ""},
		{"-eo pid -o args=WHAT", "PID WHAT", ""},
		{"axo user,pid,%cpu", "USER PID %CPU", ""},
		{"-opid,cmd", "PID CMD", ""},
		{"-o comm", "", "Couldn't find PID field"},
		{"-o pid,nope", "", `column "nope"`},
		{"-o", "", "names no column"},
		{"-p 1", "", `argument "-p"`},
		{"-u root", "", `argument "-u"`},
		{"--forest", "", `argument "--forest"`},
		{"-", "", `argument "-"`},
		{"1", "", `argument "1"`},
	} {
		cols, err := psColumns(tt.args)
		var titles []string
		for _, c := range cols {
			titles = append(titles, c.title)
		}
		if got := strings.Join(titles, " "); got != tt.titles || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("ps %s: %q, %v", tt.args, got, err)
		}
	}
}

func TestPSRows(t *testing.T) {
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	v := psView{now: now, memory: 100 << 20}
	p := &containervm.Process{PID: 7, PPID: 1, PGID: 7, SID: 7, TPGID: 7, Threads: 2, User: "app", State: "S", Command: "web", Args: []string{"web", "-x"},
		TTY: "pts/0", Nice: -5, Started: now.Add(-26 * time.Hour).UnixNano(), CPU: int64(2*time.Hour + 3*time.Minute + 4*time.Second), Resident: 5 << 20, Virtual: 9 << 20}
	for args, want := range map[string]string{
		"-ef":              "app|7|1|7|Mar01|pts/0|02:03:04|web -x",
		"aux":              "app|7|7.9|5.0|9216|5120|pts/0|S<sl+|Mar01|123:04|web -x",
		"-o pid,etime,pri": "7|01-02:00:00|39",
	} {
		cols, err := psColumns(args)
		if err != nil {
			t.Fatal(err)
		}
		var row []string
		for _, c := range cols {
			row = append(row, c.print(v, p))
		}
		if got := strings.Join(row, "|"); got != want {
			t.Errorf("ps %s: %s, want %s", args, got, want)
		}
	}
	idle := &containervm.Process{PID: 8, Command: "kid", User: "averylongname", UID: 1001, Started: now.Add(-time.Minute).UnixNano()}
	if got := psUser(v, idle) + psTTY(v, idle) + psCommand(v, idle) + psStart(v, idle) + psClock(v.age(idle), false); got != "1001?[kid]11:5901:00" {
		t.Error(got)
	}
}

// FuzzPSColumns: whatever ps is asked for, there is a PID or a reason.
func FuzzPSColumns(f *testing.F) {
	f.Add("-eo pid,comm=x")
	f.Add("auxf -o")
	f.Fuzz(func(t *testing.T, args string) {
		cols, err := psColumns(args)
		if err == nil && len(cols) == 0 {
			t.Errorf("%q: no columns", args)
		}
	})
}
