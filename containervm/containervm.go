// Package containervm runs containers, each in a virtual machine of its own.
//
// A container is a folder, STORE/containers/ID:
//
//	config.json   what it is; written last by Create: without it there is no container
//	state.json    what it does, replaced whole at every change
//	disk.vmdk     its disk, a delta over its image (and disk-delta.vmdk), layerstore's
//	output.log    what its process wrote and how it ended, wire's log, written by the hypervisor
//	console.log   what the guest's kernel said, for people
//
// The Manager starts a VM and from then on only follows its log and serves its ports. So it
// may go away at any time and come back: the VM runs on, its output and its exit code are in
// the log, and a state.json that says "running" is compared with what the hypervisor has.
// Attachments, Logs and Wait all read the log; nothing is handed from one to the other.
package containervm
