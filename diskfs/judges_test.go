package diskfs

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vic/bench/oracle"

	"golang.org/x/sys/unix"
)

// differences are the cases of which another implementation makes another tree than
// layer.md and this package do, or refuses what they take, or takes what they refuse.
// Each is listed here and nowhere else, by judge and test; what all cases have in common
// is in (judgement).excuse.
var differences = map[string]map[string]string{
	"containerd": {
		"TestNames/root_is_a_directory":                ignoresRoot,
		"TestNames/no_name":                            ignoresRoot,
		"TestNames/dot_dot_as_the_last_name_of_a_file": ignoresRoot,

		"TestWhiteouts/what_does_not_exist":                                      "wants the whiteout's folder to be a folder",
		"TestWhiteouts/directory_and_something_below_it":                         "makes the folder of a whiteout that comes after that of the folder",
		"TestWhiteouts/after_an_entry_of_the_same_name":                          tarOrder,
		"TestWhiteouts/of_a_directory_that_the_layer_fills":                      tarOrder,
		"TestWhiteouts/of_a_name_another_layer_never_had,_with_an_entry":         tarOrder,
		"TestWhiteouts/with_a_directory_of_the_same_name:_its_children_are_gone": tarOrder,
		"TestWhiteouts/aufs_bookkeeping":                                         noAufs,
		"TestWhiteouts/aufs_pseudo_links":                                        noAufs,

		"TestOpaque/late,_with_implied_parents":                "keeps what entries name, not the folders above",
		"TestOpaque/below_a_directory_that_replaces_a_symlink": tarOrder,
		"TestOpaque/in_what_is_a_file":                         "wants the whiteout's folder to be a folder",

		"TestReplace/directory's_attributes":                  addsXattrs,
		"TestReplace/directory's_xattrs_with_none":            addsXattrs,
		"TestReplace/every_kind_over_every_kind_in_one_layer": "dates directories at the end, and what replaced them",

		"TestHardLinks/to_itself":                                removesFirst,
		"TestHardLinks/over_the_directory_that_holds_the_target": removesFirst,
		"TestHardLinks/header's_xattrs_replace":                  addsXattrs,
		"TestHardLinks/to_what_the_layer's_whiteout_removes":     tarOrder,

		"TestMetadata/owner_below_zero":                     "takes -1 for no change",
		"TestMetadata/owner_too_large":                      "takes -1 for no change",
		"TestMetadata/device_with_a_major_number_too_large": "makes a device of what fits",
		"TestMetadata/device_with_a_minor_number_too_large": "makes a device of what fits",
		"TestMetadata/contiguous_file":                      "refuses it; POSIX says that it is a file",
	},
	"umoci": {
		"TestWhiteouts/aufs_bookkeeping":  "takes .wh..wh.orph for a whiteout",
		"TestWhiteouts/aufs_pseudo_links": noAufs,

		"TestOpaque/in_a_directory_that_does_not_exist":        "does not make it, as containerd and moby do",
		"TestOpaque/below_a_directory_that_replaces_a_symlink": tarOrder,

		"TestHardLinks/to_itself":                                removesFirst,
		"TestHardLinks/over_the_directory_that_holds_the_target": removesFirst,
		"TestHardLinks/header_applied_to_the_inode":              ignoresLinkHeader,
		"TestHardLinks/header's_mode_not_applied_to_a_symlink":   ignoresLinkHeader,
		"TestHardLinks/header's_xattrs_replace":                  ignoresLinkHeader,

		"TestMetadata/times":                                       "cannot set times after 2262",
		"TestMetadata/times_out_of_ext4's_range":                   "cannot set times after 2262",
		"TestMetadata/xattr_without_a_value":                       "takes it for none",
		"TestMetadata/trusted_xattrs_dropped":                      "sets trusted.*",
		"TestMetadata/user_xattrs_of_symlinks_and_devices_dropped": "fails to set them",
		"TestMetadata/contiguous_file":                             "refuses it; POSIX says that it is a file",
		"TestMetadata/global_header_ignored":                       "refuses it",
	},
}

// What several cases differ in.
const (
	tarOrder          = "acts in tar order: layer.md wants whiteouts to hide lower layers only"
	addsXattrs        = "adds extended attributes: layer.md wants attributes replaced"
	removesFirst      = "removes what is in the way, and with it the target, first"
	noAufs            = "knows nothing of aufs"
	ignoresRoot       = "ignores the root's entry whatever it is"
	ignoresLinkHeader = "leaves the attributes of the inode alone; who writes archives tells the inode's"
)

// A judgement is a tree that another implementation made, and when it began.
type judgement struct {
	tree  tree
	begun time.Time
}

// judge wants containerd and umoci to make the same of a case, or not to, if differences
// says so. A case that is refused must be refused by containerd as well.
func (tc layerCase) judge(t *testing.T, got tree, tars [][]byte) {
	t.Helper()
	if len(tars) == 0 || os.Geteuid() != 0 {
		return
	}
	tc.compare(t, "containerd", got, tars, containerdTree)
	if tc.refused == "" && oracle.Have(t, "umoci") {
		tc.compare(t, "umoci", got, tars, umociTree)
	}
}

func (tc layerCase) compare(t *testing.T, judge string, got tree, tars [][]byte, unpack func(testing.TB, [][]byte) (tree, error)) {
	t.Helper()
	why := differences[judge][t.Name()]
	j := judgement{begun: time.Now()}
	var err error
	j.tree, err = unpack(t, tars)
	switch {
	case (err != nil) != (tc.refused != ""):
		if why == "" {
			t.Errorf("%s: error %v, want one: %v", judge, err, tc.refused != "")
		}
	case err != nil:
		if why != "" {
			t.Errorf("%s refuses it too, but differences says that it %s", judge, why)
		}
	default:
		j.excuse(got)
		if why == "" {
			compareTrees(t, "diskfs", got, judge, j.tree)
		} else if maps.Equal(got, j.tree) {
			t.Errorf("%s makes the same tree, but differences says that it %s", judge, why)
		}
	}
}

// excuse changes the judge's tree where all judges differ from layer.md, or may.
func (j judgement) excuse(got tree) {
	for p, n := range got {
		w, ok := j.tree[p]
		if !ok {
			continue
		}
		const latest = 1<<63/1_000_000_000 - 1
		switch {
		case p == ".": // the root's entry is ignored, which layer.md does not say
			w = n
		case n.mode == w.mode && n.mode&unix.S_IFMT == unix.S_IFDIR && w.sec >= j.begun.Unix():
			// A directory that the tar does not name is dated when it is made or changed.
			// Changesets say nothing of its time.
			w.sec, w.nsec = n.sec, n.nsec
			if n.implied() { // in a setgid directory the kernel gives it that group
				w.gid = n.gid
			}
		case w.sec == 0 && w.nsec == 0 && (n.sec < 0 || n.sec > latest):
			// containerd has no times before 1970 and after 2262.
			w.sec, w.nsec = n.sec, n.nsec
		}
		j.tree[p] = w
	}
}

// containerdTree applies the layers with containerd's archive package, as it does for
// every snapshotter that has no driver of its own.
func containerdTree(t testing.TB, layers [][]byte) (tree, error) {
	t.Helper()
	root := t.TempDir()
	for i, l := range layers {
		if err := containerdApply(t, root, l); err != nil {
			return nil, fmt.Errorf("layer %d: %w", i, err)
		}
	}
	return hostTree(t, root), nil
}

// containerdApply applies one more layer to a folder.
func containerdApply(t testing.TB, root string, layer []byte) error {
	t.Helper()
	oracle.Root(t)
	path := filepath.Join(t.TempDir(), "layer.tar")
	if err := os.WriteFile(path, layer, 0600); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(path)
	if out, err := exec.Command(containerdProgram(t), root, path).CombinedOutput(); err != nil {
		return fmt.Errorf("containerd: %w: %s", err, strings.TrimSpace(string(out)))
	}
	return nil
}
