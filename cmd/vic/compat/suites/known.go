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
	{output: `lookup (registry-1|hub)\.docker\.(io|com)`, why: "it needs Docker Hub", skips: true},
	{output: `"registry": executable file not found`, why: "it needs a registry of its own", skips: true},

	{tests: `/Test(Trusted|Untrusted)\w*|BadTrustServer$`, why: "it needs a registry with a notary", skips: true},
	{tests: `^moby/capabilities/`, why: "its image installs packages from the Internet", skips: true},
	{output: `user unprivilegeduser does not exist`, why: "it needs a user on this machine", skips: true},
	{output: `notary|evil-notary|[Cc]ontent[ -]?[Tt]rust|lookup registry`, why: "it needs a registry with a notary", skips: true},
	{output: `executable file not found in \$PATH`, tests: `/TestAPIStatsNetworkStats$`, why: "it needs a ping on this machine", skips: true},
	{tests: `/TestPromptExitCode/plugin_|/TestPromptExitCode/revoke`, why: "there are no plugins, and no notary"},

	{tests: `^moby/session/`, why: "there are no sessions of BuildKit"},
	{tests: `^moby/build/|/TestDockerCLIBuildSuite/`, why: "not looked into yet"},
	{output: `--network is not supported`, why: "it shares a network with the host or another container: each has that of its own virtual machine"},
	{output: `--(pid|ipc|uts|userns|cgroupns) is not supported`, why: "it shares a namespace with the host or another container: each has a kernel of its own"},
	{output: `--(device|device-cgroup-rule|gpus) is not supported`, why: "it passes a device of the host through"},
	{output: `--(cpu-shares|blkio-weight|kernel-memory|cgroup-parent|memory-swappiness|oom-kill-disable|cpuset-mems|cpu-rt-\w+|device-(read|write)-\w+) is not supported`, why: "it sets limits that the control groups of one kernel have between containers"},
	{output: `--storage-opt is not supported`, why: "a container's disk has the capacity of the store's"},
	{output: `--security-opt is not supported`, why: "it has a seccomp, AppArmor or SELinux profile: those keep containers of one kernel apart"},
	{output: `mount propagation \w+ is not supported|unexpected propagation mode`, why: "mounts do not propagate between two kernels"},
	{output: `bind-recursive=\w+ is not supported|does not contain " /dev/shm ro,"`, why: "what is mounted in a shared folder is shared as the host has it"},
	{output: `invalid mount config for type "image"|mounts of type volume, bind and tmpfs`, why: "images cannot be mounted"},
	{output: `Minimum memory limit allowed is \d+MB: a container is a virtual machine`, why: "a virtual machine has a kernel of its own, which needs more memory"},
	{output: `published ports are more than the 4096 allowed`, why: "it publishes 65535 ports: 4096 are the most"},
	{output: `/store/(containers|volumes|image)/|/var/lib/docker/|docker0`, why: "it looks into dockerd's own folders or at the host's network"},
	{output: `pulling all tags of|importing from a URL`, why: "it asks for what this host refuses by name: all tags of an image, or an import from a URL"},
	{output: `searching a registry|inspecting images in a registry`, why: "this host does not search registries"},

	{output: `a volume is a disk of its own, and takes size`, why: "it mounts a file system of the host as a volume: a volume is a disk"},
	{tests: `/TestRunMode(Ipc|PID|Pid|UTS)`, why: "it shares a namespace with the host or another container: each has a kernel of its own"},
	{output: `is in use by running container`, why: "two containers that run share a volume: a volume is a disk, which one virtual machine at a time can write"},
	{output: `adduser: not found|addgroup`, why: "Debian's static busybox, of which the images are, lacks it"},
	{output: `readlink /proc/1/ns`, why: "it compares namespaces with the host's"},
	{tests: `/TestAPINetworkGetDefaults$|/TestRunContainerNetMode|/TestRunNetContainer|/TestRunAddHostInHostMode`, why: "there is no network host, and none of another container's"},
	{tests: `/TestAPINetworkInspectUserDefinedNetwork$`, why: "options of a network that this host does not know are refused"},
	{tests: `/TestAPIStatsNoStreamGetCpu$`, why: "it wants the CPU time to have grown in less time than an emulated guest needs"},
	{tests: `/TestAPIClientVersionOldNotSupported$`, why: "an error is JSON here as for every other request"},
	{tests: `/TestCommitPausedContainer$`, why: "what is written, and not yet on its disk, only a guest that runs can say"},
	{tests: `/TestRunContainerWithReadonly|/TestRunNetworkFilesBindMountROFilesystem$`, why: "the guest's own /etc/hosts and resolv.conf can be written, with --read-only too"},
	{tests: `/TestRunContainerWithCgroupMountRO$`, why: "control groups are of version 2 in every guest"},
	{tests: `/TestCmdCannotBeInvoked$`, why: "the message says that the command is a folder"},
	{tests: `/TestRunTLSVerify$`, why: "it looks for words of the docker client before 20.10"},
	{tests: `^cli/container/Test(ProcessTermination|SigProxyWithTTY|KillContainer|AttachInterrupt)$`, why: "it has less time than an emulated guest needs"},

	{tests: `/TestStats$`, why: "a container without a limit has 256 MiB, and not the host's memory"},
	{tests: `/TestGetContainerStatsNoStream$`, why: "it counts the word read, which the statistics of disks have, too"},
	{tests: `/TestContainerAPITop$|/TestTop`, output: `of ps is not supported`, why: "the columns of docker top are made here, and not by the host's ps"},
	{tests: `/TestPostContainersAttachContainerNotFound$`, why: "an error is JSON here as for every other request"},
	{tests: `/TestInfoLegacyFields`, why: "fields of the host's bridge, which there is not"},
	{tests: `/TestPortBindingOnSandbox$`, why: "it looks for the port from the host's network namespace"},
	{tests: `/TestCpToSymlink(ToDirectory|Destination)$|/TestCpToContainer|/TestCpCheckDestOwnership$|/TestCpVolumePath$`, why: "a copy into a container that does not run goes to its disk, not through its binds"},
	{output: `neither a folder nor a regular file`, why: "it mounts a device or a socket of the host"},
	{output: `/sys/fs/cgroup/(devices|memory|cpu|cpuset|blkio|pids)/`, why: "it looks for control groups of version 1"},
	{tests: `/TestExecUser/`, why: "what is wrong with an exec's user is told as its output, behind the reply that takes the connection over"},
	{tests: `/TestAPIImagesFilters/registry_port_regex$`, why: "it counts the images that the suites have here, too"},
	{tests: `/TestCpToErrReadOnlyVolume$`, why: "a copy into a container that does not run goes to its disk, not through its binds"},
	{tests: `/TestEventsImage(Load|Import)$`, why: "not looked into yet"},
	{tests: `^cli/container/TestRunAttach/`, why: "not looked into yet"},
	{tests: `/TestRunStoppedLoggingDriverNoLeak$`, why: "a log driver that is not there is refused when the container is made"},
	{tests: `/TestRunDuplicateMount$`, why: "an image's empty list of volumes is shown as {} and not as null"},
	{tests: `/TestRun(RedirectStdout|AttachDetach\w*)$`, why: "it has less time than an emulated guest needs"},
	{tests: `^cli/global/TestPromptExitCode/`, why: "a test within it waits for plugins, which there are not, and takes the time of all"},

	{tests: `/TestPutContainerArchiveErrSymlinkInVolumeToReadOnlyRootfs$`, why: "a copy into a container that does not run goes to its disk, not through its binds"},
	{tests: `/TestExecStateCleanup$`, why: "it looks into containerd's folders"},
	{tests: `/TestPostContainersCreateWithWrongCpusetValues$`, why: "there are no memory nodes to choose"},
	{tests: `/TestContainerAPIDeleteRemoveLinks$`, why: "a container cannot be asked for by the name that a link gives it"},
	{tests: `/TestPostContainersAttach$`, why: "it takes for granted that a process has written before the client attaches: emulated, it has not"},

	{tests: `/TestIpcModePrivate$`, why: "it compares device numbers with the host's, which is another kernel"},
	{tests: `/TestPIDModeHost$`, why: "it reads the host's process 1, or shares its namespace"},
	{tests: `/TestNetwork(Nat|LocalhostTCPNat)$`, why: "it connects at once, and the port is the host's, which listens before an emulated guest does: the connection is reset, as dockerd's own proxy has it"},
	{tests: `/TestCDI|/TestCreateWithCDIDevices`, why: "devices of the host"},
	{tests: `/TestRunMountVolumeSubdir/subdir_with_copy_data$`, why: "a part of a volume does not get what the image has there"},
	{tests: `/TestVolumesCreateAndList$`, why: "a volume is a disk, which its mount point names, and no folder"},
	{tests: `/TestInfoFirewallBackend$`, why: "nothing is configured on the host"},
	{tests: `/TestRenameContainerWithLinkedContainer$`, why: "a container cannot be asked for by the name that a link gives it"},
	{tests: `/TestDockerCLILinksSuite/|/TestRunLinksContainerWithContainer(Name|ID)$|/TestExecEnvLinksHost$|/TestRenameContainerWithLinked|/TestLinksPingLinked`, why: "links are names in the network's DNS: they make no lines of /etc/hosts and no variables"},
	{tests: `/TestRunDNS|/TestRunCreateVolumeEtc$|/TestRunMutableNetworkFiles$|/TestResolvConf|/TestInternalNetworkDNS`, why: "a container asks its network's DNS server, which asks those that --dns names: resolv.conf names the first only"},
	{tests: `/TestRunNoDupVolumes$`, why: "it wants a volume to be left of a container that was refused: nothing is left here"},
	{tests: `/TestPsListContainersSize$`, why: "a container's size is what its disk takes"},
	{tests: `/TestCreateWithWorkdir$`, why: "a container's working directory is made when it is started"},
	{tests: `/TestRunWithNetAliasOnDefaultNetworks$|/TestInspectTemplateError$`, why: "it looks for words of the docker client before 20.10"},
	{tests: `/TestSaveCheckTimes$`, why: "files of a saved image have the time 0, as those of dockerd with containerd's image store"},
	{tests: `/Test(ContainerRestartWithCancelledRequest|HealthCheckProcessKilled|RestartWithPolicyUserDefinedNetwork|RestartContainerwithRestartPolicy|AttachAfterDetach|ConnectWithPriority|CreateWithCustomMACs)$`, why: "it has less time than an emulated guest needs"},
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
