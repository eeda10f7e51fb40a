package diskfs

import (
	"bytes"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"testing"

	"vic/bench/oracle"
)

// journalled makes an ext4 that the kernel was writing to when its power went: what was done last is
// in the journal alone.
func journalled(t *testing.T, features string) string {
	t.Helper()
	oracle.Root(t)
	oracle.Need(t, "mke2fs", "mount", "e2fsck")
	dir := t.TempDir()
	raw, cut, mnt := filepath.Join(dir, "raw"), filepath.Join(dir, "cut"), filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	command(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-J", "size=4", "-O", features, raw, "64M")
	command(t, "mount", "-o", "loop", raw, mnt)
	defer command(t, "umount", mnt)
	// Twice round the log, folders removed whose blocks become data, and data that begins like the journal's own blocks.
	const script = `cd "$1"
		round() { for i in 1 2 3 4 5 6 7 8 9; do mkdir -p $1/d$i; for j in $(seq 60); do echo $1 $i $j >$1/d$i/file-with-a-long-name-$j; done; ln $1/d$i/file-with-a-long-name-1 $1/d$i/hard; done; }
		fsync() { dd if=/dev/zero of=synced bs=1 count=1 conv=fsync status=none; }
		round a; fsync; round b; fsync; rm -r a/d3 b; fsync; round c; fsync; rm -r c/d1; fsync
		for i in $(seq 200); do printf '\300\073\071\230rest' >c/magic$i; done; fsync; truncate -s 5 c/magic1; chmod 600 c/magic2; mv c/magic3 a/moved; ln -s x c/link; fsync
		cp "$2" "$3"`
	command(t, "bash", "-ec", script, "sh", mnt, raw, cut)
	return cut
}

// TestReplay has the kernel judge: what it sees when it has replayed a journal is what is read without.
func TestReplay(t *testing.T) {
	for _, features := range []string{"^metadata_csum_seed,^orphan_file", "^metadata_csum,^metadata_csum_seed,^orphan_file", "^64bit,^metadata_csum_seed,^orphan_file"} {
		t.Run(features, func(t *testing.T) {
			cut := journalled(t, features)
			image, err := os.ReadFile(cut)
			if err != nil {
				t.Fatal(err)
			}
			disk := bytes.NewReader(image)
			f, err := Open(disk, disk.Size())
			if err != nil || !f.Unclean() {
				t.Fatalf("the power cut left a clean file system: %v", err)
			}
			r, err := Replay(disk, disk.Size())
			if err != nil {
				t.Fatal(err)
			}
			if n := len(r.(*Replayed).blocks); n < 10 {
				t.Fatalf("the journal had %d blocks: too few to tell", n)
			}
			if f, err = Open(r, disk.Size()); err != nil || f.Unclean() {
				t.Fatalf("replayed: %v", err)
			}
			dir := t.TempDir()
			ours, mnt, tar, kept := filepath.Join(dir, "ours"), filepath.Join(dir, "mnt"), filepath.Join(dir, "tar"), filepath.Join(dir, "kept")
			for _, d := range []string{ours, mnt} {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			out, err := os.Create(tar)
			if err != nil {
				t.Fatal(err)
			}
			if err := f.WriteTar(out); err != nil {
				t.Fatal(err)
			}
			if err := out.Close(); err != nil {
				t.Fatal(err)
			}
			command(t, "tar", "-xpf", tar, "-C", ours)
			keepUsed(t, f, image, kept)
			for _, disk := range []string{cut, kept} {
				command(t, "mount", "-o", "loop", disk, mnt) // which replays
				defer command(t, "e2fsck", "-fn", disk)
				defer command(t, "umount", mnt)
				command(t, "bash", "-ec", `list() { cd "$1"; find . ! -name . | sort | xargs stat -c '%n %F %a %u:%g %h %Y'; find . -type f | sort | xargs md5sum; }
					diff <(list "$1") <(list "$2")`, "sh", ours, mnt)
			}
		})
	}
}

// keepUsed copies what a file system has in use of an image.
func keepUsed(t *testing.T, f *FS, image []byte, to string) {
	t.Helper()
	used, err := f.Used()
	if err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(to)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := out.Truncate(int64(len(image))); err != nil {
		t.Fatal(err)
	}
	var sum, end int64
	for _, r := range used {
		if r.Off < end {
			t.Fatalf("%+v begins before %d", r, end)
		}
		end = r.Off + r.Len
		sum += r.Len
		if _, err := out.WriteAt(image[r.Off:end], r.Off); err != nil {
			t.Fatal(err)
		}
	}
	if sum > int64(len(image))*3/4 {
		t.Errorf("%d bytes of %d are in use", sum, len(image))
	}
}

// FuzzReplay: a damaged journal is an error, or less is replayed.
func FuzzReplay(f *testing.F) {
	f.Add(uint16(5), []byte{1, 2, 3}, true)
	f.Add(uint16(0), []byte{0xc0, 0x3b, 0x39, 0x98, 0, 0, 0, 4}, false)
	f.Fuzz(func(t *testing.T, at uint16, data []byte, csum bool) {
		j := fakeJournal(csum)
		copy(j[min(int(at), len(j)):], data)
		file := &fileReader{disk: bytes.NewReader(j), size: int64(len(j)), runs: []run{{0, 0, int64(len(j)) / BlockSize}}}
		x := &journal{file: file, limit: 1000, r: &Replayed{disk: bytes.NewReader(nil), blocks: map[int64][]byte{}}}
		if x.open() == nil && x.start != 0 {
			_ = x.replay() // ends
		}
		if len(x.r.blocks) > len(j)/BlockSize {
			t.Errorf("%d blocks of a journal of %d", len(x.r.blocks), len(j)/BlockSize)
		}
	})
}

// fakeJournal is a journal with a transaction of a revocation and one block.
func fakeJournal(csum bool) []byte {
	be := binary.BigEndian
	j := make([]byte, 8*BlockSize)
	put := func(block int, words ...uint32) {
		for i, w := range words {
			be.PutUint32(j[block*BlockSize+4*i:], w)
		}
	}
	put(0, journalMagic, journalSuper2, 0, BlockSize, 8, 1, 7, 1, 0, 0, 0)
	put(1, journalMagic, journalRevoke, 7, 20, 0)
	put(2, journalMagic, journalDescriptor, 7, 55, tagLast|tagSameUUID)
	put(4, journalMagic, journalCommit, 7)
	if csum {
		be.PutUint32(j[0x28:], journalCsum3)
		be.PutUint32(j[0xfc:], crc32c(^uint32(0), j[:1024]))
	}
	return j
}

func TestReplayed(t *testing.T) {
	disk := bytes.NewReader(bytes.Repeat([]byte{1}, 4*BlockSize))
	r := &Replayed{disk: disk, blocks: map[int64][]byte{1: bytes.Repeat([]byte{2}, BlockSize), 3: bytes.Repeat([]byte{3}, BlockSize)}}
	all := make([]byte, 4*BlockSize)
	if _, err := r.ReadAt(all, 0); err != nil && err != io.EOF {
		t.Fatal(err)
	}
	for _, span := range [][2]int{{0, 10}, {BlockSize - 3, 7}, {BlockSize + 5, 10}, {2*BlockSize - 1, BlockSize + 2}, {3*BlockSize + 9, BlockSize - 9}} {
		p := make([]byte, span[1])
		if _, err := r.ReadAt(p, int64(span[0])); err != nil && err != io.EOF || !bytes.Equal(p, all[span[0]:span[0]+span[1]]) {
			t.Errorf("%v: %v, or not the same", span, err)
		}
	}
	if all[0] != 1 || all[BlockSize] != 2 || all[2*BlockSize] != 1 || all[4*BlockSize-1] != 3 {
		t.Error("blocks are not where they belong")
	}
}
