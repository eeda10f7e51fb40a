package vmdk

// WriteMonolithic makes f a disk in one file, descriptor and all, that shows what the chain
// shows, has no parent, and may be written. name is what the file is called, for the
// descriptor. What f held is lost. After an error f is not a disk.
func (d *Disk) WriteMonolithic(f File, name string, cid uint32) error {
	desc := NewDescriptor(name, d.capacity, cid)
	desc.CreateType = "monolithicSparse"
	text, err := embedded(desc)
	if err != nil {
		return err
	}
	size, err := createExtent(f, d.capacity, text)
	if err != nil {
		return err
	}
	e, err := OpenExtent(f, size)
	if err != nil {
		return err
	}
	to, err := OpenDisk([]Link{{Extents: []*Extent{e}}})
	if err != nil {
		return err
	}
	return d.CopyTo(to, DefaultGrainSize)
}

// embedded returns a descriptor as it stands in an extent file: with room for changes, since
// QEMU rewrites 20 sectors at once.
func embedded(desc *Descriptor) ([]byte, error) {
	text, err := desc.Marshal()
	if err != nil {
		return nil, err
	}
	if len(text) >= headLimit {
		return nil, formatErrorf(-1, "descriptor", "%d bytes, %d have room in the file", len(text), headLimit)
	}
	return append(text, make([]byte, headLimit-len(text))...), nil
}
