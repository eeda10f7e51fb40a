package diskfs

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"vic/bench/oracle"
)

// umociTree unpacks the layers with umoci, which follows the image specification's
// layer.md closely, and returns what it made.
func umociTree(t testing.TB, layers [][]byte) (tree, error) {
	t.Helper()
	oracle.Root(t)
	layout, rootfs := filepath.Join(t.TempDir(), "image"), filepath.Join(t.TempDir(), "rootfs")
	writeLayout(t, layout, layers)
	if out, err := exec.Command("umoci", "raw", "unpack", "--image", layout+":latest", rootfs).CombinedOutput(); err != nil {
		return nil, &umociError{string(out)}
	}
	return hostTree(t, rootfs), nil
}

type umociError struct{ out string }

func (e *umociError) Error() string { return "umoci: " + e.out }

// writeLayout writes an OCI image layout with the layers uncompressed, tagged latest.
func writeLayout(t testing.TB, dir string, layers [][]byte) {
	t.Helper()
	type descriptor struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int               `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	}
	write := func(name string, p []byte) {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, p, 0644); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(mediaType string, p []byte) descriptor {
		sum := sha256.Sum256(p)
		name := hex.EncodeToString(sum[:])
		write("blobs/sha256/"+name, p)
		return descriptor{MediaType: mediaType, Digest: "sha256:" + name, Size: len(p)}
	}
	object := func(v any) []byte {
		p, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	var list []descriptor
	var diffs []string
	for _, l := range layers {
		d := blob("application/vnd.oci.image.layer.v1.tar", l)
		list, diffs = append(list, d), append(diffs, d.Digest)
	}
	config := blob("application/vnd.oci.image.config.v1+json", object(map[string]any{
		"architecture": "amd64", "os": "linux", "config": map[string]any{},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	}))
	manifest := blob("application/vnd.oci.image.manifest.v1+json", object(map[string]any{
		"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": list,
	}))
	manifest.Annotations = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	write("index.json", object(map[string]any{"schemaVersion": 2, "manifests": []descriptor{manifest}}))
	write("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
}
