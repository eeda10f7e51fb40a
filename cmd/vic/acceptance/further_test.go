package acceptance

import (
	"flag"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"vic/bench/testimage"
)

// further has more software tried.
var further = flag.Bool("further", false, "try the software of TestFurtherApps")

// TestFurtherApps is for the software of VIC's suites 22-xx that Debian has, beyond TestApps.
func TestFurtherApps(t *testing.T) {
	if !*further {
		t.Skip("takes minutes; -further has it run")
	}
	need(t, "memcslap", "mariadb", "mariadb-slap", "ab", "skopeo", "busybox")
	h := appsHost(t, "memcached", "mariadb", "httpd", "registry")
	for _, tt := range []struct {
		name string
		code string // when stopped
		test func(*app)
	}{
		{"memcached", "0", testMemcached},
		{"mariadb", "0", testMariadb},
		{"httpd", "0", testHttpd},
		{"registry", "2", testRegistry}, // it does not handle SIGTERM, and Go's programs end so
	} {
		t.Run(tt.name, func(t *testing.T) {
			a := &app{t, h, tt.name}
			tt.test(a)
			a.stops(tt.code)
			a.docker("rm", "-f", "-v", tt.name)
		})
	}
}

func testMemcached(a *app) {
	a.run([]string{"-p", "11211"}, "-vv")
	a.said(1, "server listening")
	server := "--servers=127.0.0.1:" + a.port("11211")
	a.tool("memcslap", server, "--concurrency=4", "--execute-number="+strconv.Itoa(int(100*load.Seconds())), "--test=set")
	a.tool("memcslap", server, "--concurrency=4", "--execute-number="+strconv.Itoa(int(100*load.Seconds())), "--test=get", "--initial-load=100")
}

func testMariadb(a *app) {
	a.run([]string{"-p", "3306", "-e", "MARIADB_ROOT_PASSWORD=secret"})
	const ready = "ready for connections"
	a.said(1, ready)
	sql := func(statement string) string {
		a.t.Helper()
		return a.tool("mariadb", "--protocol=tcp", "-h", "127.0.0.1", "-P", a.port("3306"), "-u", "root", "-psecret", "-N", "app", "-e", statement)
	}
	sql("CREATE TABLE kept (i INT PRIMARY KEY, sum CHAR(32)) ENGINE=InnoDB SELECT seq AS i, md5(seq) AS sum FROM seq_1_to_5000")
	const checksum = "CHECKSUM TABLE kept; SELECT count(*) FROM kept"
	kept := sql(checksum)
	a.tool("mariadb-slap", "--protocol=tcp", "-h", "127.0.0.1", "-P", a.port("3306"), "-u", "root", "-psecret", "--auto-generate-sql", "--auto-generate-sql-load-type=mixed",
		"--concurrency=4", "--number-of-queries="+strconv.Itoa(int(100*load.Seconds())), "--no-drop", "--create-schema=slap")
	a.stops("0")
	a.docker("start", a.name)
	a.said(2, ready)
	if got := sql(checksum); got != kept {
		a.t.Errorf("the table has %s after a stop, had %s", got, kept)
	}
	a.docker("kill", a.name)
	a.docker("start", a.name)
	a.said(3, ready)
	if got := sql(checksum); got != kept {
		a.t.Errorf("the table has %s after a power cut, had %s", got, kept)
	}
	if got := sql("CHECK TABLE kept, slap.t1 EXTENDED"); strings.Count(got, "OK") != 2 {
		a.t.Errorf("after a power cut: %s", got)
	}
}

func testHttpd(a *app) {
	a.run([]string{"-p", "80"})
	a.said(1, "resuming normal operations")
	url := "http://127.0.0.1:" + a.port("80") + "/"
	a.get(url, "It works!\n")
	n := int(200 * load.Seconds())
	out := a.tool("ab", "-n", strconv.Itoa(n), "-c", "8", url)
	for _, line := range []string{`Complete requests:\s+` + strconv.Itoa(n) + `\n`, `Failed requests:\s+0\n`} {
		if !regexp.MustCompile(line).MatchString(out) {
			a.t.Errorf("ab: %s", out)
		}
	}
	got := 0
	for _, line := range a.logs() {
		if strings.Contains(line, "ApacheBench") {
			got++
		}
	}
	if got != n {
		a.t.Errorf("the log has %d requests, want %d", got, n)
	}
}

// testRegistry pushes an image to a registry in a container and pulls it out again.
func testRegistry(a *app) {
	a.run([]string{"-p", "5000"})
	a.said(1, "listening on")
	busybox, err := testimage.Busybox()
	if err != nil {
		a.t.Fatal(err)
	}
	img, err := testimage.Build(v1.Config{Cmd: []string{"true"}}, busybox, testimage.RandomBytes(8<<20))
	if err != nil {
		a.t.Fatal(err)
	}
	want, err := img.Digest()
	if err != nil {
		a.t.Fatal(err)
	}
	reference := func() string { return "127.0.0.1:" + a.port("5000") + "/lib/random:1" }
	registry := &testimage.Registry{Addr: "127.0.0.1:" + a.port("5000")}
	if _, err := registry.Push(a.t.Context(), "lib/random:1", img); err != nil {
		a.t.Fatal(err)
	}
	a.stops("2")
	a.docker("start", a.name)
	a.said(2, "listening on")
	dir := filepath.Join(a.t.TempDir(), "image")
	a.tool("skopeo", "copy", "--src-tls-verify=false", "docker://"+reference(), "dir:"+dir)
	if got := a.tool("sha256sum", filepath.Join(dir, "manifest.json")); !strings.HasPrefix(got, want.Hex) {
		a.t.Errorf("the image that came back has digest %s, want %s", got, want)
	}
	a.docker("pull", "-q", reference())
}
