package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/events"

	"vic/containervm"
)

// Docker's own reader takes our frames apart.
func TestFrameWriter(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	var wire, wantOut, wantErr bytes.Buffer
	f := newFrameWriter(&wire)
	out, errOut := f.on(stdout), f.on(stderr)
	for range 200 {
		p := make([]byte, rnd.IntN(3*maxFrame))
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		w, want := out, &wantOut
		if rnd.IntN(2) == 0 {
			w, want = errOut, &wantErr
		}
		n, err := w.Write(p)
		if n != len(p) || err != nil {
			t.Fatalf("wrote %d of %d: %v", n, len(p), err)
		}
		want.Write(p)
	}
	var gotOut, gotErr bytes.Buffer
	if _, err := stdcopy.StdCopy(&gotOut, &gotErr, &wire); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(gotOut.Bytes(), wantOut.Bytes()) || !bytes.Equal(gotErr.Bytes(), wantErr.Bytes()) {
		t.Error("the streams differ from what was written")
	}
}

type writeCounter struct{ writes [][]byte }

func (c *writeCounter) Write(p []byte) (int, error) {
	c.writes = append(c.writes, bytes.Clone(p))
	return len(p), nil
}

func TestFrameIsOneWrite(t *testing.T) {
	var c writeCounter
	if _, err := newFrameWriter(&c).on(stderr).Write([]byte("hi\n")); err != nil {
		t.Fatal(err)
	}
	if len(c.writes) != 1 || string(c.writes[0]) != "\x02\x00\x00\x00\x00\x00\x00\x03hi\n" {
		t.Errorf("got %q", c.writes)
	}
}

func TestHijack(t *testing.T) {
	for _, tt := range []struct {
		name, upgrade, body, want string
	}{
		{"upgrade", "tcp", "", "HTTP/1.1 101 UPGRADED\r\nContent-Type: a/b\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"},
		{"upgrade with a body", "tcp", "{}", "HTTP/1.1 101 UPGRADED\r\nContent-Type: a/b\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"},
		{"plain", "", "", "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			failed := make(chan error, 1)
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				failed <- func() error {
					conn, err := hijack(w, r, "a/b")
					if err != nil {
						return err
					}
					// Everything up to the half-close is input, what came with the request included.
					in, err := io.ReadAll(conn)
					if err != nil {
						return err
					}
					fmt.Fprintf(conn, "got %s", in)
					return conn.close()
				}()
			}))
			defer srv.Close()
			c, err := net.Dial("tcp", srv.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			head := fmt.Sprintf("POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n", len(tt.body))
			if tt.upgrade != "" {
				head += "Connection: Upgrade\r\nUpgrade: " + tt.upgrade + "\r\n"
			}
			io.WriteString(c, head+"\r\n"+tt.body+"early ")
			io.WriteString(c, "late")
			if err := c.(*net.TCPConn).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			all, err := io.ReadAll(c)
			if err != nil {
				t.Fatal(err)
			}
			if want := tt.want + "got early late"; string(all) != want {
				t.Errorf("got %q, want %q", all, want)
			}
			if err := <-failed; err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHeadAlone has a slow client on a UNIX socket get the head of a reply without what follows.
func TestHeadAlone(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		conn, err := hijack(w, r, "a/b")
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(conn, "stream")
		conn.close()
	})}
	go srv.Serve(l)
	defer srv.Close()
	c, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begin := time.Now()
	io.WriteString(c, "POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
	time.Sleep(50 * time.Millisecond) // slow, not waiting for anything
	const head = "HTTP/1.1 200 OK\r\nContent-Type: a/b\r\n\r\n"
	buf := make([]byte, 1<<10)
	n, err := c.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if time.Since(begin) < headPatience && string(buf[:n]) != head {
		t.Errorf("first read %q, want %q", buf[:n], head)
	}
	rest, err := io.ReadAll(c)
	if got := string(buf[:n]) + string(rest); err != nil || got != head+"stream" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestEventLog(t *testing.T) {
	var l eventLog
	list, pos, more := l.read(0)
	if len(list) != 0 || pos != 0 {
		t.Fatalf("an empty log has %d events", len(list))
	}
	select {
	case <-more:
		t.Fatal("woken by nothing")
	default:
	}
	for i := range keptEvents + 10 {
		l.publish(events.Message{Actor: events.Actor{ID: fmt.Sprint(i)}})
	}
	<-more
	list, pos, _ = l.read(pos)
	if len(list) != keptEvents || list[0].Actor.ID != "10" || pos != keptEvents+10 {
		t.Errorf("kept %d events from %s, then %d", len(list), list[0].Actor.ID, pos)
	}
	if e := list[0]; e.Scope != "local" || e.TimeNano == 0 || e.Time != e.TimeNano/1e9 {
		t.Errorf("event %+v", e)
	}
	if list, _, _ = l.read(l.end()); len(list) != 0 {
		t.Errorf("%d events after the end", len(list))
	}
}

func TestMatchEvent(t *testing.T) {
	die := events.Message{Type: "container", Action: "die", Scope: "local", Actor: events.Actor{
		ID: "0123abcd", Attributes: map[string]string{"name": "web", "image": "reg:5000/lib/bb:1", "l": "v"},
	}}
	exec := die
	exec.Action = "exec_create: sh -c exit"
	pull := events.Message{Type: "image", Action: "pull", Scope: "local", Actor: events.Actor{ID: "bb:1", Attributes: map[string]string{"name": "bb"}}}
	for _, tt := range []struct {
		name string
		f    filters
		want string // d, e, p for those that pass
	}{
		{"all", nil, "dep"},
		{"type", filters{"type": {"image"}}, "p"},
		{"event", filters{"event": {"die", "pull"}}, "dp"},
		{"exec", filters{"event": {"exec_create"}}, "e"},
		{"container name", filters{"container": {"web"}}, "de"},
		{"container ID", filters{"container": {"0123"}}, "de"},
		{"other container", filters{"container": {"db"}}, ""},
		{"image", filters{"image": {"reg:5000/lib/bb"}}, "de"},
		{"image tag", filters{"image": {"bb:1"}}, "p"},
		{"label", filters{"label": {"l=v"}}, "de"},
		{"and", filters{"label": {"l=v"}, "event": {"die"}}, "d"},
		{"network", filters{"network": {"bridge"}}, ""},
		{"scope", filters{"scope": {"swarm"}}, ""},
	} {
		var got strings.Builder
		if matchEvent(tt.f, die) {
			got.WriteByte('d')
		}
		if matchEvent(tt.f, exec) {
			got.WriteByte('e')
		}
		if matchEvent(tt.f, pull) {
			got.WriteByte('p')
		}
		if got.String() != tt.want {
			t.Errorf("%s: got %q, want %q", tt.name, got.String(), tt.want)
		}
	}
	r := replyOf(die)
	if r.Status != "die" || r.ID != "0123abcd" || r.From != "reg:5000/lib/bb:1" {
		t.Errorf("old fields: %+v", r)
	}
}

func TestProgressStream(t *testing.T) {
	w := httptest.NewRecorder()
	p := newProgressStream(w)
	if err := p.fail(errors.New("early")); err == nil || w.Body.Len() != 0 {
		t.Errorf("an error ahead of the first line is an ordinary one: %v, %q", err, w.Body)
	}
	p.say("latest", "Pulling from x")
	p.layer("abc", "Downloading", 1, 10)
	p.layer("abc", "Downloading", 2, 10) // too soon
	p.layer("abc", "Download complete", 0, 0)
	if err := p.fail(errors.New("late")); err != nil {
		t.Error(err)
	}
	p.end()
	p.say("", "after the end")
	want := `{"status":"Pulling from x","id":"latest"}` + "\r\n" +
		`{"status":"Downloading","progressDetail":{"current":1,"total":10},"id":"abc"}` + "\r\n" +
		`{"status":"Download complete","progressDetail":{},"id":"abc"}` + "\r\n" +
		`{"error":"late","errorDetail":{"message":"late"}}` + "\r\n"
	if w.Body.String() != want || w.Header().Get("Content-Type") != "application/json" || !w.Flushed {
		t.Errorf("got %s", w.Body)
	}
}

func TestStatusText(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, tt := range []struct {
		st   containervm.State
		want string
	}{
		{containervm.State{Status: containervm.Created}, "Created"},
		{containervm.State{Status: containervm.Running, Started: now.Add(-3 * time.Second)}, "Up 3 seconds"},
		{containervm.State{Status: containervm.Running, Started: now}, "Up Less than a second"},
		{containervm.State{Status: containervm.Exited, ExitCode: 137, Finished: now.Add(-4 * time.Minute)}, "Exited (137) 4 minutes ago"},
		{containervm.State{Status: containervm.Removing}, "Removal In Progress"},
		{containervm.State{Status: containervm.Dead}, "Dead"},
	} {
		if got := statusText(tt.st, now); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	if got := commandText([]string{"sh", "-c", "sleep 100"}); got != "sh -c 'sleep 100'" {
		t.Errorf("got %q", got)
	}
}

func TestLogPrinter(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 60, time.FixedZone("", 3600))
	var out, errOut bytes.Buffer
	p := logPrinter{out: &out, errOut: &errOut, timestamps: true, details: true}
	for _, e := range []containervm.LogEntry{
		{Time: at, Data: []byte("a"), Partial: true},
		{Time: at, Data: []byte("err\n"), Stderr: true},
		{Time: at, Data: []byte("b\n")},
		{Time: at, Data: []byte("c\n")},
	} {
		if err := p.print(e); err != nil {
			t.Fatal(err)
		}
	}
	const stamp = "2026-01-02T02:04:05.000000060Z  "
	if out.String() != stamp+"ab\n"+stamp+"c\n" || errOut.String() != stamp+"err\n" {
		t.Errorf("got %q and %q", out.String(), errOut.String())
	}
}

func TestMux(t *testing.T) {
	say := func(text string) handler {
		return func(w http.ResponseWriter, r *http.Request) error {
			return writeJSON(w, http.StatusOK, []string{text, param(r, "name"), param(r, "id")})
		}
	}
	m := mux([]route{
		{"GET", "/images/json", say("list")},
		{"GET", "/images/{name*}/json", say("inspect")},
		{"GET", "/images/{name*}/get", say("get")},
		{"DELETE", "/images/{name*}", say("delete")},
		{"GET", "/containers/{id}/json", say("container")},
		{"*", "/swarm", say("swarm")},
		{"POST", "/fails", func(http.ResponseWriter, *http.Request) error { return conflict("in the way") }},
	})
	for _, tt := range []struct{ method, path, want string }{
		{"GET", "/images/json", `["list","",""]`},
		{"GET", "/images/reg:5000/lib/bb:1/json", `["inspect","reg:5000/lib/bb:1",""]`},
		{"GET", "/images/json/json", `["inspect","json",""]`},
		{"GET", "/images/a/get", `["get","a",""]`},
		{"DELETE", "/images/a/json", `["delete","a/json",""]`},
		{"GET", "/images/a/nope", `{"message":"page not found"}`},
		{"GET", "/containers/abc/json", `["container","","abc"]`},
		{"PATCH", "/swarm", `["swarm","",""]`},
		{"POST", "/containers/abc/json", `{"message":"page not found"}`},
		{"GET", "/nope", `{"message":"page not found"}`},
		{"POST", "/fails", `{"message":"in the way"}`},
	} {
		w := httptest.NewRecorder()
		m.ServeHTTP(w, httptest.NewRequest(tt.method, tt.path, nil))
		if got := strings.TrimSpace(w.Body.String()); got != tt.want || w.Header().Get("Content-Type") != "application/json" {
			t.Errorf("%s %s: got %d %s, want %s", tt.method, tt.path, w.Code, got, tt.want)
		}
	}
}

func TestWriteError(t *testing.T) {
	for _, tt := range []struct {
		err    error
		status int
		msg    string
	}{
		{badRequest("b"), 400, "b"},
		{fmt.Errorf("x: %w", containervm.ErrNotFound), 404, "x: not found"},
		{&containervm.Error{Kind: containervm.ErrNotRunning, Msg: "container 1 is not running"}, 409, "container 1 is not running"},
		{&containervm.StartError{ExitCode: 127, Message: "executable file not found"}, 400, "executable file not found"},
		{containervm.ErrNotModified, 304, ""},
		{errors.New(""), 500, "Internal Server Error"},
		{badRequest("a & <b>"), 400, "a & <b>"},
	} {
		w := httptest.NewRecorder()
		writeError(w, tt.err)
		var body struct{ Message string }
		if tt.status != 304 {
			if err := json.Unmarshal(w.Body.Bytes(), &body); err != nil {
				t.Fatal(err)
			}
		}
		if w.Code != tt.status || body.Message != tt.msg || !strings.Contains(w.Body.String(), tt.msg) {
			t.Errorf("got %d %q, want %d %q", w.Code, body.Message, tt.status, tt.msg)
		}
	}
}
