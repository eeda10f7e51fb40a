package compat

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"vic/bench/oracle"
)

// described is the version of the API whose description is held against the replies.
const described = "v1.51"

// judgeSwagger asks for everything there is to GET, with objects of each kind there.
func judgeSwagger(t *testing.T, e engine) []finding {
	program := filepath.Join(e.dir, "swagger")
	build := exec.Command("go", "build", "-o", program, ".")
	build.Dir = "testdata/swagger"
	if out, err := build.CombinedOutput(); err != nil {
		oracle.Missing(t, fmt.Errorf("build the swagger judge: %w\n%s", err, out))
	}
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/moby/moby/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	script := `docker run -d --name swagger -p 80 -l l=v --tmpfs /run -v swaggervol:/v bb sh -c 'trap "exit 0" TERM; while :; do sleep 0.1; done' &&
		docker create --name swagger2 bb && docker volume create swaggervol2`
	if out, err := e.command(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	defer e.command(context.Background(), "sh", "-c", "docker rm -f swagger swagger2; docker volume rm swaggervol swaggervol2").Run()
	client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", e.socket) }}}
	defer client.CloseIdleConnections()
	ask := func(method, path, body string) ([]byte, error) {
		req, err := http.NewRequestWithContext(t.Context(), method, "http://vic/"+described+path, strings.NewReader(body))
		if err != nil {
			return nil, err
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := client.Do(req)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode/100 != 2 {
			err = fmt.Errorf("%s: %s", resp.Status, b)
		}
		return b, err
	}
	var exec struct{ ID string }
	b, err := ask("POST", "/containers/swagger/exec", `{"Cmd":["true"]}`)
	if err == nil {
		err = json.Unmarshal(b, &exec)
	}
	if err != nil {
		t.Fatal(err)
	}
	type reply struct {
		Path string          `json:"path"`
		As   string          `json:"as"`
		Body json.RawMessage `json:"body"`
	}
	var replies []reply
	for _, p := range []struct{ path, real string }{
		{"/version", ""}, {"/info", ""}, {"/system/df", ""}, {"/system/df", "/system/df?type=volume"},
		{"/images/json", "/images/json?all=1&shared-size=1&manifests=1"}, {"/images/{name}/json", "/images/bb/json"}, {"/images/{name}/history", "/images/bb/history"},
		{"/containers/json", "/containers/json?all=1&size=1"}, {"/containers/{id}/json", "/containers/swagger/json?size=1"}, {"/containers/{id}/json", "/containers/swagger2/json"},
		{"/containers/{id}/top", "/containers/swagger/top"}, {"/containers/{id}/changes", "/containers/swagger/changes"},
		{"/containers/{id}/stats", "/containers/swagger/stats?stream=0"}, {"/containers/{id}/stats", "/containers/swagger2/stats?stream=0"},
		{"/exec/{id}/json", "/exec/" + exec.ID + "/json"}, {"/networks", ""}, {"/networks/{id}", "/networks/bridge"},
		{"/volumes", ""}, {"/volumes/{name}", "/volumes/swaggervol"}, {"/plugins", ""},
	} {
		if p.real == "" {
			p.real = p.path
		}
		as := "GET " + strings.Replace(p.real, exec.ID, "ID", 1)
		b, err := ask("GET", p.real, "")
		if err != nil {
			t.Errorf("%s: %v", as, err) // which no reason excuses
			continue
		}
		replies = append(replies, reply{p.path, as, b})
	}
	in, err := json.Marshal(replies)
	if err != nil {
		t.Fatal(err)
	}
	cmd := e.command(t.Context(), program, filepath.Join(strings.TrimSpace(string(dir)), "docs", described+".yaml"))
	cmd.Stdin = bytes.NewReader(in)
	return programChecks(t, cmd)
}
