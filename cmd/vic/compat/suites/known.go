package main

import "regexp"

// A reason says why tests fail that are of a suite and have a name that match, and write something that matches.
type reason struct {
	tests  string // a regexp for SUITE/TEST; all if it is ""
	output string // a regexp; whatever if it is ""
	why    string
	skips  bool // it did not run, though it says that it failed
}

// leftOut are the tests that are not run.
var leftOuts = []reason{
	{tests: `^moby-cli/TestDockerDaemonSuite/`, why: "they are about dockerd's own options and restarts"},
	{tests: `^moby-cli/TestDocker(Swarm|ExternalVolume|Plugin)Suite/|^moby-cli/TestDockerCLI(Plugins|PluginLogDriver)Suite/`, why: "there are neither swarms nor plugins"},
	{tests: `^moby-cli/TestDockerRegistry\w*Suite/`, why: "they start a dockerd of their own"},
	{tests: `^moby-cli/TestDocker(HubPull|CLISearch)Suite/`, why: "they need Docker Hub"},
	{tests: `^moby-cli/TestDockerBenchmarkSuite/`, why: "they measure"},
	{tests: `^moby-cli/TestDockerNetworkSuite/`, why: "they put plugins into the machine's /etc/docker"},
	{tests: `/TestDaemonDefaultNetworkPools$|/TestPrivilegedHostDevices$`, why: "they change the machine's network or devices"},
}

// known are the reasons of failures. The first that fits counts.
var known = []reason{
	{output: `no dockerd here`, why: "it starts a dockerd of its own", skips: true},
}

// left says why a test is not run, or "".
func left(t test) string {
	for _, r := range leftOuts {
		if regexp.MustCompile(r.tests).MatchString(t.String()) {
			return r.why
		}
	}
	return ""
}

// explain says why a test fails that wrote text, "" if nobody knows, and whether it ran at all.
func explain(suite, name, text string) (why string, skips bool) {
	for _, r := range known {
		if regexp.MustCompile(r.tests).MatchString(suite+"/"+name) && regexp.MustCompile(r.output).MatchString(text) {
			return r.why, r.skips
		}
	}
	return "", false
}
