// Package layerstore keeps images in a folder: each layer as a VMDK delta over the
// one below, so that a container's disk is one more delta on top.
//
// # What comes in, what goes out
//
// Pull takes a Source, which is an image's manifest and config and a way to read
// its blobs, and brings what is missing of it into the store:
//
//	Blob ─► gunzip ─► sha256 ─► diskfs.ReadTar ─► vmdk.LayerWriter      each missing layer,
//	                    │             │                   │             Options.Parallel at once
//	                 diff ID      Changeset      STORE/tmp/<chain>-delta.vmdk
//	                                  │                   │
//	        file system ─► Apply ─► Delta ────────────────┤             one layer after the other
//	        of the layer below                            │
//	                            sync, rename, record: committed         in layer order
//
// The first line depends on nothing and is where the time goes; the second
// touches metadata only, and hands the file system, in memory, from layer to layer.
// A layer whose tar has no entries gets no disk: its record names the disk below.
// Chains are bounded: where an image has more layers, some layers' disks hold what
// the disks right below have as well, see coalesce.go.
//
// Out come disks: DiskPath is for a hypervisor, OpenDisk and FS are for programs,
// CreateContainerDisk is for a container.
//
// # The folder
//
// Names in <> are 64 hexadecimal digits of a SHA-256 digest. The folder's mode is
// 0700. All disks are in one folder, since the relative hints by which QEMU finds
// parents add up otherwise.
//
//	STORE/
//	  version                   JSON: format version, capacity and grain size of all disks, what
//	                            is known of the base disk; made last: without it there is no store
//	  lock                      empty; its bytes are locked, see below
//	  disks/
//	    base.vmdk               descriptor of the disk under all layers, an empty file system
//	    base-delta.vmdk         its extent file
//	    <chain>.vmdk            descriptor of a layer's disk; its parent is in the same folder
//	    <chain>-delta.vmdk      its extent file
//	    <chain>-flattened.vmdk  the one in its place if the disk was flattened, see Flatten
//	    <chain>.recipe          how the layer's tar is rebuilt from its disk, see Recipe
//	  layers/
//	    <chain>.json            Layer: the record, whose presence says that the layer is complete
//	  images/
//	    <config>/               the image's ID; appears and disappears whole
//	      manifest.json         as the registry has it
//	      config.json           as the registry has it
//	      image.json            what the reference resolved to, the layers' chain IDs and sizes
//	  names/
//	    docker.io%2Flibrary%2Fdebian%3A12
//	                            JSON: the reference in full, and the ID of the image that it names
//	  containers/
//	    ID/                     of a container; other files in it belong to others
//	      layers.json           the pin: image, parent disk and layers that the disk needs
//	      volumes.json          the volumes that it mounts, and which of them are its own
//	      disk.vmdk             descriptor of the container's disk
//	      disk-delta.vmdk       its extent file
//	      redo                  what is yet to be written to it in place, see redo.go
//	  volumes/
//	    NAME/                   of a volume; appears and disappears whole
//	      volume.json           Volume: the record
//	      disk.vmdk             descriptor of its disk, which has no parent
//	      disk-delta.vmdk       its extent file, written by guests
//	      redo                  as a container's
//	  boot/                     what guests boot from; belongs to others
//	  tmp/
//	    <chain>-delta.vmdk, <chain>.vmdk, <chain>.recipe
//	                            a layer's disk and recipe while they are made
//	    <chain>.json            its record, before it is committed or while it is removed: says
//	                            that files in disks may be there for no layer
//	    lease-*                 JSON: chain IDs of the layers that a pull or a check wants to keep
//	    file-*, image-*, volume-*
//	                            files, and folders of images and volumes, that are about to be renamed
//	    removed-*               folders that are about to be removed
//	    spool-*                 an archive that is being read, a blob that is being pushed; loses its
//	                            name at once, see TempFile
//
// The CID of a disk is made from its chain ID and a number that changes when this
// program begins to make other disks of the same layers, so that one is never read
// over a parent that it was not made for. Equal layers give equal disks, byte for
// byte, unless one below was flattened. A flattened disk shows the same bytes as the
// chain in whose place it is, and so has the CID of that chain's top disk.
//
// # Crashes
//
// A layer is committed in this order; a step is durable before the next begins,
// except that the steps marked * are so for all layers at once:
//
//	1  tmp/<chain>-delta.vmdk and tmp/<chain>.recipe are complete and synced
//	2  tmp/<chain>.vmdk and tmp/<chain>.json are written and synced
//	3  these but the record are renamed into disks, parents first; disks is synced *
//	4  tmp/<chain>.json is renamed into layers, parents first; layers is synced *
//
// After a crash before 3 there are files in tmp, which the next Open removes.
// After one before 4 the record in tmp tells Open to remove the files in disks as
// well. After 4 the layer is there; if its image is not yet, a pull will use it or a
// sweep will take it. A layer is removed the other way round: its record is renamed
// to tmp, then the files in disks go, then the record. If power fails and the
// datastore has kept the renames in another order than they were done in, a disk
// without a record may be left, which Check reports and Sweep removes.
//
// A flattened extent is completed in tmp, synced and renamed into disks; then the
// layer's record is replaced, which describes both extents from then on; then the
// descriptor, which says which of them is in use; then the layer's own extent is
// removed. Of each layer below the record is replaced before its disk is removed. What a
// crash leaves in disks that is not in use, Check reports and Sweep removes.
//
// A layer that Repair makes again is committed as any other, over files that have the same
// bytes or are damaged, while its record stays in place.
//
// An image's folder is written in tmp, synced and renamed, and only then do names
// point at it; a name is one file, renamed into place. Removal goes backwards:
// names, image, layers. So at any moment a name has its image, an image its layers,
// a layer its parent.
//
// A volume's folder is made in the same way, and goes in one rename to tmp. A container's
// volumes.json is written before the volumes are made that it is the first to name, and goes
// with the container's folder, after the volumes that are its own: so none is left to nobody.
//
// A layer is applied to the disk of a container or a volume in the order: data where nothing is in use, synced; redo, synced and
// renamed into place; what changes in place, synced; redo removed. After a crash before the rename nothing has happened; after
// it, whoever opens the disk next does the rest.
//
// Open looks into tmp and at nothing else, however large the store is.
//
// # Processes
//
// Several may use a store. Their locks are on bytes of STORE/lock:
//
//	byte 0         held shared by who is about to need layers that nothing may need yet
//	               (writes a lease, an image, a name, a pin); exclusively by who
//	               decides that some are needed no more. Held for moments only.
//	byte 2^62 + n  n being the first 62 bits of a chain ID: held by who makes or removes
//	               that layer's files
//
// and on each lease file, by whoever wants it. A lock ends with its process, so
// none is ever stale.
//
// # Order of locks
//
// Byte 0 before the locks of layers and leases, layers' locks children first, and
// those never waited for while byte 0 is held (which may be waited for by who has one). A pull holds its layers' locks
// while it waits for a lower layer only. Within a process, Store.mu and
// committer.mu are held for no system call, and not at the same time.
package layerstore
