package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// served is the last address that vic serve told in a line of its log that has a text.
func (s *suite) served(t *testing.T, text string) string {
	t.Helper()
	found := regexp.MustCompile(`(?m)^.*`+regexp.QuoteMeta(text)+`.* address=(\S*)`).FindAllStringSubmatch(s.log.String(), -1)
	for i := len(found) - 1; i >= 0; i-- {
		if !strings.HasPrefix(found[i][1], "unix") {
			return found[i][1]
		}
	}
	t.Fatalf("no address of %q", text)
	return ""
}

// The docker client comes in by TCP with a certificate, and not without; Prometheus's parser reads what is
// measured; what is too large is refused.
func testDoor(t *testing.T, s *suite) {
	addr := s.served(t, "serving the Docker API")
	client := filepath.Join(s.dir, "certs", "client")
	s.docker(t, "", "-H", addr, "--tlsverify", "--tlscacert", client+"/ca.pem", "--tlscert", client+"/cert.pem", "--tlskey", client+"/key.pem",
		"version", "--format", "{{.Server.APIVersion}}").want(0, "1.51\n")
	s.docker(t, "", "-H", addr, "--tls", "--tlscacert", client+"/ca.pem", "--tlscert", "", "--tlskey", "", "version").wantError(1, "certificate required")
	s.docker(t, "", "-H", addr, "--tls=false", "version").wantError(1, "HTTP request to an HTTPS server")

	resp, err := http.Get(s.served(t, "serving metrics"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	for name, least := range map[string]float64{
		"vic_image_pulls_total": 1, "vic_image_bytes_total": 1000, "vic_container_start_seconds": 1, "vic_api_requests_total": 10,
		"vic_api_request_seconds": 10, "vic_containers": 0, "process_open_fds": 5, "go_goroutines": 5, "vic_build_info": 1,
	} {
		got := 0.0
		for _, m := range families[name].GetMetric() {
			got += m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
		if families[name] == nil || got < least {
			t.Errorf("%s is %v (%v), want at least %v", name, got, families[name], least)
		}
	}

	big, v := s.request(t, "POST", "/containers/create", "application/json", `{"Image":"`+strings.Repeat("x", 4<<20)+`"}`)
	if big.StatusCode != 400 || !strings.Contains(fmt.Sprint(v["message"]), "too large") {
		t.Errorf("a body of more than 4 MiB: %d %v", big.StatusCode, v)
	}
	if huge, _ := s.request(t, "GET", "/info", "", "", "X-Registry-Config", strings.Repeat("x", 2*maxHeader)); huge.StatusCode != 431 {
		t.Errorf("a header of %d bytes: %d", 2*maxHeader, huge.StatusCode)
	}
}

// Clients that ask and do not read hold up neither the container nor others.
func testSlowReaders(t *testing.T, s *suite) {
	const size = 8 << 20 // many times what sockets and pipes take
	s.docker(t, "", "create", "--name", "loud", "-i", "bb", "sh", "-c", fmt.Sprintf("read x; yes | head -c %d", size)).ok()
	for _, path := range []string{
		"POST /containers/loud/attach?stream=1&stdout=1&stderr=1", "GET /events", "GET /containers/loud/logs?stdout=1&follow=1",
	} {
		c, err := net.Dial("unix", s.socket)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := io.WriteString(c, path+" HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReaderSize(c, 16).ReadString('\n'); err != nil || !strings.Contains(line, "200 OK") {
			t.Fatalf("%s: %q, %v", path, line, err)
		}
	}
	out := s.docker(t, "go\n", "start", "-a", "-i", "loud")
	if out.code != 0 || len(out.out) != size {
		t.Errorf("attached beside slow readers: exit code %d and %d bytes, want %d; %s", out.code, len(out.out), size, out.errOut)
	}
	s.docker(t, "", "wait", "loud").want(0, "0\n")
	if logs := s.docker(t, "", "logs", "loud"); len(logs.out) != size {
		t.Errorf("the log has %d bytes, want %d", len(logs.out), size)
	}
	s.docker(t, "", "rm", "loud").ok()
}
