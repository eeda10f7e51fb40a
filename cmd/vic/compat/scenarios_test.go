package compat

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A scenario is one of the original's acceptance tests, and what proves it here: tests as PACKAGE TEST/SUBTEST, and
// checks of judges as JUDGE: CHECK. Missing says what nothing proves yet.
type scenario struct {
	number  int
	title   string
	proof   []string
	missing string
}

var scenarios = []scenario{
	{1, "pull busybox/nginx/ubuntu", []string{"cmd/vic TestDocker/images", "cmd/vic TestDocker/run", "cmd/vic/acceptance TestDebianImage"}, ""},
	{2, "by digest / multiple tags", []string{"cmd/vic TestDocker/images", "cmd/vic TestDocker/transport"}, ""},
	{3, "same image pulled concurrently ×50", []string{"layerstore TestPullConcurrently"}, ""},
	{4, "two images sharing layers, parallel", []string{"layerstore TestTwinsOfTwoPulls", "layerstore TestPullConcurrently"}, ""},
	{5, "re-pull after rmi", []string{"cmd/vic TestDocker/transport"}, ""},
	{6, "missing image/tag/host", []string{"cmd/vic TestDocker/images", "fetch TestResolveNobody"}, ""},
	{7, "MITM'd layer", []string{"fetch TestBlobFaults", "cmd/vic TestHostile", "layerstore TestPullFaults"}, ""},
	{8, "pull interrupted by restart", []string{"layerstore TestKilledAtEachStep", "layerstore TestKilledAtRandom"}, ""},
	{9, "archive compare", []string{"cmd/vic/acceptance TestForeignBuilders", "cmd/vic/acceptance TestDebianImage"}, ""},
	{10, "images", []string{"cmd/vic TestDocker/images", "dockerd 20.10: images", "dockerd 20.10: images by age"}, ""},
	{11, "rmi", []string{"cmd/vic TestDocker/remove images", "layerstore TestRemoveFreesSpace"}, ""},
	{12, "run exit codes", []string{"dockerd 20.10: a command's exit code", "dockerd 20.10: a command that is not there", "cmd/vic TestDocker/run"}, ""},
	{13, "run --rm concurrent", []string{"cmd/vic/compat TestScenarios/13 run --rm concurrent"}, ""},
	{14, "mysql/mariadb/postgres", []string{"cmd/vic/acceptance TestApps"}, ""},
	{15, "hostname/label/name-vs-id", []string{"cmd/vic TestDocker/create", "containervm TestNames"}, ""},
	{16, "CPU and memory", []string{"dockerd 20.10: too many CPUs", "api TestSpecOf"}, ""},
	{17, "volume topologies", []string{"cmd/vic TestDocker/volumes of containers"}, ""},
	{18, "parallel create same name", []string{"cmd/vic/compat TestScenarios/18 parallel create same name"}, ""},
	{19, "no command", []string{"cmd/vic/compat TestScenarios/19 no command"}, ""},
	{20, "parallel start ×5 + inspect loop", []string{"cmd/vic/compat TestScenarios/20 parallel start and inspect", "containervm/boot TestStarvedTimer"}, ""},
	{21, "no NIC / removed network", []string{"cmd/vic TestDocker/network"}, ""},
	{22, "image without PATH", []string{"tether TestEnvironment"}, ""},
	{23, "stop, grace, stop-signal", []string{"cmd/vic TestDocker/lifecycle", "containervm TestStop"}, ""},
	{24, "OOB power on/off/destroy (the half of Q)", []string{"cmd/vic TestDocker/restart of the server", "containervm TestEnds"}, ""},
	{25, "kill signals", []string{"cmd/vic TestDocker/lifecycle", "dockerd 20.10: running, bad signal"}, ""},
	{26, "restart stress", []string{"containervm TestRestartKeeps", "containervm TestCrowd"}, ""},
	{27, "logs", []string{"cmd/vic TestDocker/logs", "cmd/vic TestDocker/binary"}, ""},
	{28, "attach and TTY", []string{"cmd/vic TestDocker/terminal", "cmd/vic TestDocker/stdin"}, ""},
	{29, "exec exit codes", []string{"cmd/vic TestDocker/exec", "dockerd 20.10: running, exec"}, ""},
	{30, "50 concurrent execs + exec during power-off", []string{"cmd/vic TestDocker/exec"}, ""},
	{31, "USER", []string{"cmd/vic TestDocker/run", "dockerd 20.10: a user that is not there"}, ""},
	{32, "ps", []string{"cmd/vic TestDocker/filters", "cmd/vic TestDocker/create"}, ""},
	{33, "rm", []string{"cmd/vic TestDocker/lifecycle", "dockerd 20.10: removed again"}, ""},
	{34, "rename", []string{"cmd/vic TestDocker/create", "dockerd 20.10: renamed"}, ""},
	{35, "inspect", []string{"Docker's description of its API: /containers/swagger/json?size=1", "cmd/vic TestDocker/restart of the server"}, ""},
	{36, "stats", []string{"cmd/vic TestDocker/inside", "docker-py 5.0: top and stats"}, ""},
	{37, "networks", []string{"cmd/vic TestDocker/networks"}, ""},
	{38, "connect multi, non-overlap", []string{"cmd/vic TestDocker/networks"}, ""},
	{39, "internal network", []string{"cmd/vic TestDocker/networks"}, ""},
	{40, "link and alias", []string{"cmd/vic TestDocker/networks"}, ""},
	{41, "port map", []string{"cmd/vic TestDocker/network", "containervm/network TestPublish"}, ""},
	{42, "container-network and firewall levels", []string{"tether TestFilter", "bench/vcsim/bridge TestPortGroups", "containervm TestOnContainerNetworks"}, ""},
	{43, "volume create options", []string{"cmd/vic TestDocker/volumes", "layerstore TestVolumeOptions"}, ""},
	{44, "image content copy", []string{"cmd/vic TestDocker/volumes of containers"}, ""},
	{45, "volume ls/rm", []string{"cmd/vic TestDocker/volumes"}, ""},
	{46, "volume in use by running cVM", []string{"cmd/vic TestDocker/volumes of containers", "layerstore TestVolumeUse"}, ""},
	{47, "commit / diff", []string{"cmd/vic TestDocker/inside"}, ""},
	{48, "cp offline incl. malicious tar", []string{"cmd/vic TestDocker/inside", "cmd/vic TestDocker/volumes of containers", "layerstore TestApplyToContainer", "layerstore TestApplyToVolume"}, ""},
	{49, "cp online incl. concurrency", []string{"cmd/vic TestDocker/inside"}, ""},
	{50, "engine restart", []string{"cmd/vic TestDocker/restart of the server", "containervm TestReopen"}, ""},
	{55, "TLS", []string{"cmd/vic TestMutualTLS", "cmd/vic TestCerts", "cmd/vic TestDocker/door"}, ""},
	{58, "admin", []string{"api TestObserve"}, "this host has no pages for administrators; what it logs and measures has no secrets"},
	{59, "guest", []string{"containervm/boot TestGuest", "containervm/boot TestShutdown"}, ""},
	{60, "stress (1,000 runs with -leaks 1000)", []string{"cmd/vic TestDocker/leaks", "containervm TestNothingLeaks", "cmd/vic TestDocker/slow readers"}, ""},
}

// A list is a numbered one of what is to hold, as a section of the document.
type list struct {
	title, about string
	scenarios    []scenario
}

var lists = []list{
	{"Acceptance scenarios", "What the original VIC was accepted by, as far as it is about QEMU and the Docker API, and the tests that prove it here.", scenarios},
	{"Acceptance scenarios on vSphere", "Those that are about vSphere, too, and the tests that prove them on a simulated one. Its VMs boot in QEMU where a guest is needed.", onVSphere},
	{"What breaks clients", "What clients count on beyond the description of the API, and the tests that prove it here.", pitfalls},
	{"Docker's own tests", "The behaviour that the tests of moby, docker/cli and the SDKs are about, and the tests that prove it here.", behaviours},
}

// section renders a list, and fails the test for a proof that is not there.
func (l list) section(t *testing.T) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s\n\n| # | what | proof |\n|---|---|---|\n", l.about)
	for _, s := range l.scenarios {
		var cells []string
		for _, p := range s.proof {
			cells = append(cells, p)
			if err := findProof(p); err != nil {
				t.Errorf("%s, %d: %v", l.title, s.number, err)
			}
		}
		if s.missing != "" {
			cells = append(cells, "*not proved*: "+s.missing)
		}
		fmt.Fprintf(&b, "| %d | %s | %s |\n", s.number, s.title, strings.ReplaceAll(strings.Join(cells, "; "), "|", "\\|"))
	}
	return b.String()
}

func findProof(proof string) error {
	title, check, isCheck := strings.Cut(proof, ": ")
	if !isCheck {
		return findTest(proof)
	}
	for _, j := range judges {
		if j.title != title {
			continue
		}
		text, err := os.ReadFile(j.source)
		if err != nil {
			return err
		}
		if strings.Contains(string(text), check) {
			return nil
		}
	}
	return fmt.Errorf("there is no check %s", proof)
}

// findTest looks for a test and its subtest in the sources of its package.
func findTest(proof string) error {
	dir, name, _ := strings.Cut(proof, " ")
	name, sub, _ := strings.Cut(name, "/")
	files, err := filepath.Glob(filepath.Join("../../..", dir, "*_test.go"))
	if err != nil {
		return err
	}
	foundTest, foundSub := false, sub == ""
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return err
		}
		foundTest = foundTest || strings.Contains(string(text), "\nfunc "+name+"(")
		foundSub = foundSub || strings.Contains(string(text), `{"`+sub+`", `) || strings.Contains(string(text), `t.Run("`+sub+`", func(`)
	}
	if !foundTest || !foundSub {
		return fmt.Errorf("there is no test %s", proof)
	}
	return nil
}

// TestScenarios has those that no other test is about.
func TestScenarios(t *testing.T) {
	e := newHost(t)
	run := func(t *testing.T, script string) string {
		t.Helper()
		return e.outcome(t.Context(), script)
	}
	for _, tt := range []struct {
		name, script, want string
	}{
		// One succeeds, the others are told who has the name.
		{"13 run --rm concurrent", `docker ps -aq; for i in $(seq 10); do docker run --rm -l s=13 bb echo x 2>&1 & done | sort | uniq -c | sed 's/^ *//'; docker ps -aq --filter label=s=13`,
			`exit code 0, output "10 x", error ""`},
		{"18 parallel create same name", `for i in $(seq 8); do docker create --name same bb 2>&1 & done | sed 's/.*already in use.*/taken/; s/You have to.*//' | sort | uniq -c | sed 's/^ *//'; docker rm same`,
			`exit code 0, output "1 ID\n7 taken\nsame", error ""`},
		{"19 no command", `printf '' | tar c -T /dev/null | docker import - nocmd >/dev/null; docker create nocmd; docker ps -aq; docker rmi nocmd | head -1`,
			`exit code 0, output "Untagged: nocmd:latest", error "Error response from daemon: no command specified"`},
		// All are looked at while they start, and no look fails.
		{"20 parallel start and inspect", `for i in $(seq 5); do docker create --name par$i bb sleep 600; done >/dev/null
			: >$T/started
			{ for i in $(seq 5); do docker start par$i & done; wait; } >$T/started 2>&1 &
			while [ $(docker inspect -f '{{.State.Status}}' par1 par2 par3 par4 par5 | grep -c running) != 5 ] && ! grep -q Error $T/started; do :; done
			wait; sort $T/started | tr '\n' ' '; docker inspect -f '{{.State.Status}}' par1 par2 par3 par4 par5 | uniq -c | sed 's/^ *//'; docker rm -f par1 par2 par3 par4 par5 >/dev/null`,
			`exit code 0, output "par1 par2 par3 par4 par5 5 running", error ""`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := run(t, tt.script); got != tt.want {
				t.Errorf("got %s\nwant %s", got, tt.want)
			}
		})
	}
}
