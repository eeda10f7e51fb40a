package vsphere

import (
	"cmp"
	"fmt"
)

// An Encoding is how a store's disks come to the datastore, and what they are there.
type Encoding string

const (
	// VMFSSparse is COWD, which ESXi's own deltas on VMFS5 and NFS are: a delta for each layer, uploaded.
	VMFSSparse Encoding = "vmfsSparse"
	// BlockWriter is deltas that the server makes, in whatever format the datastore has, and this program's own virtual machine writes:
	// works on every datastore. A process that runs in no virtual machine of the server brings flattened disks to such a store.
	BlockWriter Encoding = "blockWriter"
	// Flattened is a disk without a parent for each image, imported: works on every datastore, and shares nothing.
	Flattened Encoding = "flattened"
	// Hosted is KDMV, as local stores have it: no ESXi opens it, but QEMU does, which takes a hundred times as long
	// with vmfsSparse. It is for simulated datastores.
	Hosted Encoding = "hosted"
)

// uploaded tells whether the disks are a delta for each layer, sent as files.
func (e Encoding) uploaded() bool { return e == VMFSSparse || e == Hosted }

// ChooseEncoding says which encoding a store on such a datastore has unless it is told; own tells whether this program
// runs in a virtual machine of the server.
func (sp Space) ChooseEncoding(own bool) Encoding {
	switch {
	case sp.SparseDeltas:
		return VMFSSparse
	case own:
		return BlockWriter
	}
	return Flattened
}

// check says why a store on such a datastore cannot be made with an encoding.
func (e Encoding) check(sp Space) error {
	switch e {
	case VMFSSparse:
		if !sp.SparseDeltas {
			return fmt.Errorf("a datastore of type %s has no vmfsSparse deltas: make the store with the encoding %s, which shares nothing between images, or %s, for appliances", cmp.Or(sp.Kind(), "unknown"), Flattened, BlockWriter)
		}
	case BlockWriter, Flattened, Hosted:
	default:
		return fmt.Errorf("there is no encoding %q; there are %s, %s, %s and %s", e, VMFSSparse, BlockWriter, Flattened, Hosted)
	}
	return nil
}
