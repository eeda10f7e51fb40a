// Package vsphere keeps files, and the disks of images, on a vSphere datastore: through vCenter or an ESXi host, by its file
// service and its task API.
//
// A Session is one login. It keeps itself alive, and logs in again when the server has dropped it: what
// was asked for meanwhile is asked for again. So its users see an outage only as time, bounded by their
// contexts. A Datastore is a folder on a datastore, seen through a Session. A Store is an image store in it; its comment shows the
// files.
//
// All types may be used concurrently. What reads a local store is there on Linux alone, as those are; vic-machine, which runs elsewhere too,
// has the rest.
//
// # How disks come there
//
// No one format of deltas is taken everywhere, so a store has an Encoding, which is recorded in it:
//
//	vmfsSparse   VMFS5, NFS   a delta for each layer: extent and descriptor are uploaded, made from the local disk as they go
//	blockWriter  everywhere   the server makes a child disk, attached to the OwnVM, which writes the changed grains to its device
//	flattened    everywhere   a disk without a parent for each image, through an NFC lease
//	hosted       simulators   as vmfsSparse, in the format of local stores
//
// OpenStore chooses by what the datastore says of itself; Probe finds out what its hosts really take. A process that runs in no
// virtual machine brings flattened disks to a blockWriter store: a disk's record says whose child it is, so both fit.
//
// A call of the server costs more than a layer's bytes. So the block writer makes as few disks as sharing allows: layers that no
// other image of the local store has are one disk (few.go), which is two changes of the machine. Changes that are asked for while one is
// under way go together in the next (ownvm.go), and their outcome is what the machine has afterwards, since an answer may be lost. A
// child notes the content ID that its parent has when it is made, and writing changes that: a disk is written and detached
// before the next is made over it.
//
// An attached disk is found by its UUID and its place on the bus, opened for this program alone, compared in size, and must show
// its parent's first block before anything is written (devices_linux.go). Machines are told to detach by a device's key alone.
//
// # What a crash leaves
//
//	before a disk's record   files, which a Sweep removes when no pull names them; at the next OpenStore of the VCH none does
//	while blocks are written a disk attached to the OwnVM, which OpenStore detaches
//	during an import         a virtual machine vic-import-DISK, which the server removes with its lease, or a Sweep with the disk
//	during a Probe           a folder and virtual machines vic-probe-ID, which the next Probe names
//
// # What stays
//
// A disk stays that is named by an image or a pull of any VCH, or that any virtual machine has, or stands on, whoever made it. A VCH's images
// are those of its local store, and those that its containers were made from: Tidy forgets the others.
package vsphere
