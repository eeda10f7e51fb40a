// Package mount shows an image store as files, read-only, by FUSE.
//
//	DIR/images/<id>/rootfs/        the image's root file system as its disk has it
//	               /config.json    as the registry has them
//	               /manifest.json
//	               /disk.raw       symlink to the disk of the top layer
//	               /layers/000…    symlinks to the layers, bottom first
//	DIR/images/docker.io/library/debian:12
//	                               a name: symlink to the folder of the image's ID
//	DIR/layers/<chain>/disk.raw    the disk with this layer on top, its whole capacity
//	                  /diff/       the layer's own changeset, whiteouts as .wh. files
//	                  /layer.json  its record
//
// <id> and <chain> are 64 hexadecimal digits. A name is split at its slashes; a part that is
// longer than a file name can be is cut, and '~' and the digest of the whole part end it.
// Names are symlinks because a directory that has two places is none: a tree is there once,
// so a program that walks over all of it reads each image once, and the page cache has it
// once. What docker takes for a name or an ID and has no slash can be looked up as well
// (images/debian:12, images/3f29), although it is not listed. diff is missing where a
// layer was stored without a recipe, and disk.raw too where Flatten merged its disk into one
// above: no disk shows the layer any more.
//
// # Numbers
//
// The kernel knows files by 64-bit node IDs. Here the upper half is a tree and the lower a
// file of the tree, and nothing is kept for a file: whatever the kernel asks is answered from
// the numbers.
//
//	tree 0           the catalog: what DIR has above rootfs, diff and disk.raw
//	tree of an image its root file system; the file is the inode number
//	tree of a layer  1 is disk.raw, 2+n the n-th name of its changeset
//
// A tree's number comes from the digest of what it is of, as long as no other open tree has
// that one, so st_ino is the same at the next mount. All of a tree can be told from its
// number forever: layers never change.
//
// # What is open stays readable
//
// A tree is open while the kernel knows a file of it, and has its disks' files open, which
// stay readable when a sweep removes them. A lease would keep the layers as well, but also
// after a mere listing: the kernel forgets files only when it needs the memory. So nothing
// holds a removal up; it is noticed (layerstore.Store.Watch), the kernel is told to drop what
// it knows of the image and is not in use, and what is in use stays until it is closed. The
// kernel is told the same of the tree that was not used for longest when more than a few are
// open, which bounds memory and open files.
//
// # Speed
//
// Nothing changes, so the kernel may cache all: attributes, names, listings, links and pages
// for a day. There is no open and no release; reads come by node ID. Directory listings bring
// the attributes of all files along. Large reads are spliced from the extent file's page
// cache into the kernel's request without passing through this process.
//
// # Locks
//
// forest.mu, slot.mu, catalog.mu and the like are held for no request to the kernel. A
// notification waits for the requests on its directory, so none is sent by a request.
package mount
