// Package archive reads images from files, as package fetch does from registries.
//
//	folder ─────────────────────────────┐
//	tar ───────────────► index of a tar ┼─► fs.FS ─► Entries ─► Resolve ─► *Image ─► Blob
//	stream, gzip, zstd ─► spool ─► tar ─┘
//
// Two kinds are known, by the files at their root:
//
//	oci-layout, index.json    an OCI image layout (image-spec image-layout.md), a folder or a tar:
//	                          skopeo, buildah, umoci, buildx, docker save since 25
//	manifest.json             docker's own, a tar: docker save, skopeo and buildah's docker-archive
//
// What is both is read as a layout, whose manifests are the originals. In docker's, there are no
// manifests: one is made, of schema 2, that describes the layers as they lie in the archive. A
// layer that is not compressed has its diff ID for a digest, and so need not be read for it.
//
// # Trust
//
// An archive is as hostile as a registry. Nothing of it becomes a path of this machine: a tar's
// members are found in an index by their names, links in it lead to other members of it and
// nowhere else, and a folder is read through os.Root, which no link leaves. A name that is there
// twice is refused when it is wanted, since two programs could read two images. JSON files, the
// members of a tar, their names and what links they go through are bounded; every document and
// every blob is verified against the digest that led to it, or, in docker's archives, against the
// one in its own name if it has one, while the store compares its layers with the config's diff
// IDs. What a stream decompresses to is bounded by its length.
//
// Entries and Images may be used by any number of goroutines. The package starts none.
package archive
