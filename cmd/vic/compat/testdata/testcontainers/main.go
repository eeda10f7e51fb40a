// Command testcontainers drives an engine by testcontainers-go. It prints a line for each check: its name, a tab,
// and ok or what is wrong.
package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/exec"
	"github.com/testcontainers/testcontainers-go/log"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
)

type silent struct{}

func (silent) Printf(string, ...any) {}

func main() {
	log.SetDefault(silent{})
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	var c testcontainers.Container
	for _, check := range []struct {
		name string
		run  func() error
	}{
		{"files before the start, wait for HTTP on a mapped port", func() (err error) {
			c, err = testcontainers.Run(ctx, "bb",
				testcontainers.WithFiles(testcontainers.ContainerFile{Reader: strings.NewReader("hello from go"), ContainerFilePath: "/www/index.html", FileMode: 0o644}),
				testcontainers.WithCmd("sh", "-c", "echo ready; exec httpd -f -p 80 -h /www"),
				testcontainers.WithExposedPorts("80/tcp"),
				testcontainers.WithEnv(map[string]string{"MODE": "tc"}),
				testcontainers.WithWaitStrategyAndDeadline(2*time.Minute, wait.ForAll(wait.ForLog("ready"), wait.ForHTTP("/"))),
			)
			return err
		}},
		{"what the port serves", func() error {
			url, err := c.Endpoint(ctx, "http")
			if err != nil {
				return err
			}
			resp, err := http.Get(url)
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			return same(resp.Body, "hello from go")
		}},
		{"exec and its output", func() error {
			code, out, err := c.Exec(ctx, []string{"sh", "-c", "echo $MODE; exit 3"}, exec.Multiplexed())
			if err != nil {
				return err
			}
			if code != 3 {
				return fmt.Errorf("exit code %d", code)
			}
			return same(out, "tc\n")
		}},
		{"copies in and out", func() error {
			if err := c.CopyToContainer(ctx, []byte("copied"), "/tmp/in", 0o600); err != nil {
				return err
			}
			out, err := c.CopyFileFromContainer(ctx, "/tmp/in")
			if err != nil {
				return err
			}
			defer out.Close()
			return same(out, "copied")
		}},
		{"logs and state", func() error {
			st, err := c.State(ctx)
			if err != nil || !st.Running {
				return fmt.Errorf("state %+v, %w", st, err)
			}
			out, err := c.Logs(ctx)
			if err != nil {
				return err
			}
			defer out.Close()
			return same(out, "ready\n")
		}},
		{"stopped and removed", func() error { return testcontainers.TerminateContainer(c, testcontainers.StopTimeout(time.Second)) }},
		{"a network of its own", func() error {
			n, err := network.New(ctx)
			if err != nil {
				return err
			}
			return n.Remove(ctx)
		}},
	} {
		result := "ok"
		if err := check.run(); err != nil {
			result = strings.Join(strings.Fields(err.Error()), " ")
		}
		fmt.Printf("%s\t%s\n", check.name, result)
		if c == nil {
			return
		}
	}
}

func same(r io.Reader, want string) error {
	b, err := io.ReadAll(r)
	if err == nil && string(b) != want {
		err = fmt.Errorf("%q, want %q", b, want)
	}
	return err
}
