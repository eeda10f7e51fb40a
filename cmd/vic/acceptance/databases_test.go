package acceptance

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
)

func testRedis(a *app) {
	a.run([]string{"-p", "6379"}, "--protected-mode", "no", "--appendonly", "yes", "--appendfsync", "always", "--enable-debug-command", "yes")
	const ready = "Ready to accept connections"
	a.said(1, ready)
	cli := func(args ...string) string {
		a.t.Helper()
		return a.tool("redis-cli", append([]string{"-p", a.port("6379")}, args...)...)
	}
	out := a.tool("redis-benchmark", "-p", a.port("6379"), "-n", strconv.Itoa(int(2000*load.Seconds())), "-c", "20", "-P", "4", "-r", "1000", "-q", "-t", "ping,set,get,incr,lpush,lpop,sadd,hset,zadd,mset")
	if strings.Contains(strings.ToLower(out), "error") {
		a.t.Errorf("redis-benchmark: %s", out)
	}
	a.typing("> ", "INCRBY typed 42", "(integer) 42", "quit", "redis-cli")
	// The same keys and values have the same digest.
	digest := cli("DEBUG", "DIGEST")
	if digest == strings.Repeat("0", 40) {
		a.t.Error("redis has no data")
	}
	a.stops("0")
	if logs := a.logs(); !strings.Contains(logs[len(logs)-1], "bye bye") {
		a.t.Errorf("the last line is %q", logs[len(logs)-1])
	}
	a.docker("start", a.name)
	a.said(2, ready)
	if got := cli("DEBUG", "DIGEST"); got != digest {
		a.t.Errorf("the data's digest is %s after a stop, was %s", got, digest)
	}
	count := a.increments()
	a.docker("kill", a.name)
	acknowledged := count()
	a.docker("start", a.name)
	a.said(3, ready)
	if got, err := strconv.Atoi(cli("GET", "count")); err != nil || got < acknowledged || got > acknowledged+1 {
		a.t.Errorf("the counter is %d after a power cut, %d was acknowledged (%v)", got, acknowledged, err)
	}
}

// increments counts in redis until that ends, and returns what waits for this and tells how far it came.
func (a *app) increments() func() int {
	a.t.Helper()
	cmd := a.command(a.t.Context(), "redis-cli", "-p", a.port("6379"), "-r", "-1", "INCR", "count")
	out, err := cmd.StdoutPipe()
	if err != nil {
		a.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	last := 0
	next := func() bool {
		for lines.Scan() {
			if n, err := strconv.Atoi(lines.Text()); err == nil {
				last = n
				return true
			}
			break // it has lost its connection, and would try again for ever
		}
		return false
	}
	for range 20 { // well under way
		if !next() {
			a.t.Fatalf("redis-cli INCR ended at %d: %s", last, lines.Text())
		}
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for next() {
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return func() int {
		wg.Wait()
		return last
	}
}

const postgresReady = "database system is ready to accept connections"

func testPostgres(a *app) {
	a.run([]string{"-p", "5432", "-e", "POSTGRES_PASSWORD=secret", "-e", "POSTGRES_INITDB_ARGS=--data-checksums"})
	a.said(2, postgresReady) // once while the database is made
	a.psql("CREATE TABLE kept AS SELECT i, md5(i::text) AS sum FROM generate_series(1, 5000) i")
	const digest = "SELECT count(*), md5(string_agg(i || sum, ',' ORDER BY i)) FROM kept"
	kept := a.psql(digest)
	a.typing("postgres=# ", "SELECT 6*7;", " 42", "\\q", "psql", "-U", "postgres")
	a.pgbench("-i", "-q")
	out := a.pgbench("-c", "4", "-T", strconv.Itoa(int(max(1, load.Seconds()))))
	if !strings.Contains(out, "number of failed transactions: 0 ") {
		a.t.Errorf("pgbench: %s", out)
	}
	if testing.Verbose() {
		a.t.Log(out)
	}
	a.balanced()
	a.stops("0")
	a.docker("start", a.name)
	a.said(3, postgresReady)
	if got := a.psql(digest); got != kept {
		a.t.Errorf("the table has %s after a stop, had %s", got, kept)
	}
	before := a.history()
	committed := a.transactions()
	a.docker("kill", a.name)
	n, clients := committed()
	a.docker("start", a.name)
	a.said(4, postgresReady)
	a.said(1, "automatic recovery in progress")
	if got := a.history() - before; got < n || got > n+clients {
		a.t.Errorf("the database has %d transactions after a power cut, %d were committed", got, n)
	}
	if got := a.psql(digest); got != kept {
		a.t.Errorf("the table has %s after a power cut, had %s", got, kept)
	}
	a.balanced()
	a.docker("exec", a.name, "pg_amcheck", "-U", "postgres", "--install-missing", "-d", "postgres", "-t", "pgbench_*", "-t", "kept")
}

func (a *app) psql(query string) string {
	a.t.Helper()
	return a.tool("psql", "-h", "127.0.0.1", "-p", a.port("5432"), "-U", "postgres", "-X", "-At", "-v", "ON_ERROR_STOP=1", "-c", query)
}

// pgbenchFile takes pgbench out of the container, for Debian has it with the server and not with its clients.
func (a *app) pgbenchFile() string {
	a.t.Helper()
	file := filepath.Join(a.t.TempDir(), "pgbench")
	a.docker("cp", a.name+":/usr/lib/postgresql/15/bin/pgbench", file)
	return file
}

func (a *app) pgbench(args ...string) string {
	a.t.Helper()
	return a.tool(a.pgbenchFile(), append([]string{"-h", "127.0.0.1", "-p", a.port("5432"), "-U", "postgres"}, append(args, "postgres")...)...)
}

// balanced checks what holds after any number of pgbench's transactions.
func (a *app) balanced() {
	a.t.Helper()
	got := a.psql(`SELECT (SELECT sum(abalance) FROM pgbench_accounts) = coalesce(sum(delta), 0) AND
		(SELECT sum(tbalance) FROM pgbench_tellers) = coalesce(sum(delta), 0) AND
		(SELECT sum(bbalance) FROM pgbench_branches) = coalesce(sum(delta), 0) FROM pgbench_history`)
	if got != "t" {
		a.t.Error("pgbench's balances differ from its history")
	}
}

// history is how many transactions pgbench has committed.
func (a *app) history() int {
	a.t.Helper()
	n, err := strconv.Atoi(a.psql("SELECT count(*) FROM pgbench_history"))
	if err != nil {
		a.t.Fatal(err)
	}
	return n
}

// transactions runs pgbench until it loses its connections, and returns what waits for this and tells how many
// transactions were committed, and how many more may have been of which no client heard.
func (a *app) transactions() func() (committed, clients int) {
	a.t.Helper()
	const n = 2
	prefix := filepath.Join(a.t.TempDir(), "log")
	cmd := a.command(a.t.Context(), a.pgbenchFile(), "-h", "127.0.0.1", "-p", a.port("5432"), "-U", "postgres", "-c", strconv.Itoa(n), "-t", "1000000", "-n",
		"-P", "1", "-l", "--log-prefix", prefix, "postgres")
	said, err := cmd.StderrPipe()
	if err != nil {
		a.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		a.t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	for {
		if !lines.Scan() {
			a.t.Fatal("pgbench ended at once")
		}
		if strings.HasPrefix(lines.Text(), "progress: ") && !strings.Contains(lines.Text(), " 0.0 tps") { // well under way
			break
		}
	}
	return func() (int, int) {
		for lines.Scan() {
		}
		_ = cmd.Wait() // it has lost its connections
		logs, err := filepath.Glob(prefix + ".*")
		if err != nil || len(logs) != 1 {
			a.t.Fatalf("pgbench left %v, %v", logs, err)
		}
		b, err := os.ReadFile(logs[0])
		if err != nil {
			a.t.Fatal(err)
		}
		return strings.Count(string(b), "\n"), n
	}
}

// testHostKilled kills vic serve while clients are at work. The containers run on, and their ports serve again.
func testHostKilled(t *testing.T, h *host) {
	nginx, redis, postgres := &app{t, h, "nginx"}, &app{t, h, "redis"}, &app{t, h, "postgres"}
	state := func() string {
		return nginx.docker("inspect", "--format", "{{.Name}} {{.State.Pid}} {{.State.StartedAt}} {{.RestartCount}} {{.NetworkSettings.IPAddress}} {{.NetworkSettings.Ports}}", "nginx", "redis", "postgres", "node", "python")
	}
	was := state()
	before := postgres.history()
	url := "http://127.0.0.1:" + nginx.port("80")
	wrk := nginx.command(t.Context(), "wrk", "-t", "1", "-c", "8", "-d", "600s", url+"/quiet/1m")
	if err := wrk.Start(); err != nil {
		t.Fatal(err)
	}
	count := redis.increments()
	committed := postgres.transactions()
	h.kill()
	acknowledged := count()
	n, clients := committed()
	h.start()
	if now := state(); now != was {
		t.Errorf("after vic serve was killed:\n%s\nbefore:\n%s", now, was)
	}
	nginx.get(url+"/1m", strings.Repeat("m", 1<<20)) // while wrk is at it again
	if err := wrk.Process.Signal(os.Interrupt); err != nil {
		t.Error(err)
	}
	if err := wrk.Wait(); err != nil {
		t.Errorf("wrk: %v", err)
	}
	if got, err := strconv.Atoi(redis.tool("redis-cli", "-p", redis.port("6379"), "GET", "count")); err != nil || got < acknowledged || got > acknowledged+1 {
		t.Errorf("the counter is %d, %d was acknowledged (%v)", got, acknowledged, err)
	}
	if got := postgres.history() - before; got < n || got > n+clients {
		t.Errorf("the database has %d transactions, %d were committed", got, n)
	}
	postgres.balanced()
	if got := fmt.Sprint(len(nginx.docker("exec", "nginx", "cat", "/var/www/html/1k"))); got != "1024" {
		t.Errorf("exec says %s", got)
	}
}
