package build

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"vic/bench/oracle"
	"vic/containervm"
	"vic/layerstore"
)

var (
	_ tree   = (*Context)(nil)
	_ tree   = (*layerstore.FS)(nil)
	_ Engine = (*host)(nil)
	_ Output = (*host)(nil)
)

// A host builds without containers, and takes down what it is told.
type host struct {
	store *layerstore.Store
	said  strings.Builder
	built []digest.Digest
	held  map[digest.Digest]int
}

func (h *host) BaseImage(_ context.Context, ref string, _ *ocispec.Platform) (*layerstore.Image, error) {
	return h.store.Image(ref)
}

func (h *host) NewContainer(context.Context, *layerstore.Image, dockerspec.DockerOCIImageConfig) (*containervm.Container, []string, error) {
	return nil, nil, errors.New("a container was wanted")
}

func (h *host) Hold(id digest.Digest) func() {
	h.held[id]++
	return func() { h.held[id]-- }
}

func (h *host) Say(text string)        { h.said.WriteString(text) }
func (h *host) Complain(text string)   { h.said.WriteString(text) }
func (h *host) Built(id digest.Digest) { h.built = append(h.built, id) }

func newHost(t testing.TB) *host {
	t.Helper()
	s, err := layerstore.Open(t.TempDir()+"/store", layerstore.Options{Capacity: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return &host{store: s, held: map[digest.Digest]int{}}
}

// files is a context of regular files.
func files(list ...string) []tar.Header {
	var out []tar.Header
	for _, f := range list {
		name, data, _ := strings.Cut(f, "=")
		out = append(out, tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Uname: data, ModTime: time.Unix(1e9, 0)})
	}
	return out
}

// pack makes a tar of headers, whose Uname is the data of a regular file.
func pack(t testing.TB, list ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range list {
		data := h.Uname
		h.Uname, h.Size = "", int64(len(data))
		if h.Typeflag != tar.TypeReg {
			h.Size = 0
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write([]byte(data)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (h *host) build(t testing.TB, o Options, dockerfile string, list ...tar.Header) (*layerstore.Image, error) {
	t.Helper()
	if dockerfile != "" {
		list = append(list, files("Dockerfile="+dockerfile)...)
	}
	c, err := ReadContext(t.Context(), bytes.NewReader(pack(t, list...)), h.store.TempFile)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	h.said.Reset()
	h.built = nil
	o.Store, o.Engine, o.Output, o.Context = h.store, h, h, c
	img, err := Run(t.Context(), o)
	for id, n := range h.held {
		if n != 0 {
			t.Errorf("image %s is still held", id)
		}
	}
	return img, err
}

func (h *host) mustBuild(t testing.TB, o Options, dockerfile string, list ...tar.Header) *layerstore.Image {
	t.Helper()
	img, err := h.build(t, o, dockerfile, list...)
	if err != nil {
		t.Fatalf("%v\n%s", err, h.said.String())
	}
	return img
}

// listing is what GNU tar finds in an image, without times.
func (h *host) listing(t *testing.T, img *layerstore.Image) []string {
	t.Helper()
	oracle.Need(t, "tar")
	root, err := h.store.RootFS(t.Context(), img.Chain())
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close() // read only
	var b bytes.Buffer
	if err := root.WriteTar(&b); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tar", "tv", "--numeric-owner", "--exclude=./lost+found")
	cmd.Stdin = &b
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if f[5] != "./" {
			list = append(list, strings.Join(append([]string{f[0], f[1], f[2]}, f[5:]...), " "))
		}
	}
	return list
}

// folder is a listing's line for one that was made on the way.
const folder = "drwxr-xr-x 0/0 0 "

func dir(name string, mode int64) tar.Header {
	return tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: mode, ModTime: time.Unix(1e9, 0)}
}

func link(name, target string, kind byte) tar.Header {
	return tar.Header{Name: name, Typeflag: kind, Linkname: target, Mode: 0o777, ModTime: time.Unix(1e9, 0)}
}

// What a Dockerfile without RUN makes of a context.
func TestBuild(t *testing.T) {
	const users = "COPY passwd group /etc/\n"
	etc := files("passwd=root:x:0:0::/:/bin/sh\napp:x:100:101::/:/bin/sh\n", "group=app:x:101:\nweb:x:102:\n")
	packed := string(pack(t, tar.Header{Name: "in/file", Typeflag: tar.TypeReg, Mode: 0o4755, Uid: 7, Gid: 8, Uname: "packed"}, tar.Header{Name: "in/link", Linkname: "in/file", Typeflag: tar.TypeLink, Mode: 0o4755, Uid: 7, Gid: 8}))
	for _, tt := range []struct {
		name       string
		dockerfile string
		context    []tar.Header
		want       []string // from the listing
		absent     string   // in it
		err        string
	}{
		{"a file", "FROM scratch\nCOPY f /x\n", files("f=hello"), []string{"-rw-r--r-- 0/0 5 x"}, "", ""},
		{"into a folder", "FROM scratch\nCOPY f /d/\n", files("f=hello"), []string{folder + "d/", "-rw-r--r-- 0/0 5 d/f"}, "", ""},
		{"below the working directory", "FROM scratch\nWORKDIR /a\nWORKDIR b\nCOPY f g/\nCOPY f .\n", files("f=1"), []string{"-rw-r--r-- 0/0 1 a/b/g/f", "-rw-r--r-- 0/0 1 a/b/f"}, "", ""},
		{"a folder's content", "FROM scratch\nCOPY d /e\n", append([]tar.Header{dir("d", 0o700), dir("d/sub", 0o750)}, files("d/f=1", "d/sub/g=22")...),
			[]string{folder + "e/", "-rw-r--r-- 0/0 1 e/f", "drwxr-x--- 0/0 0 e/sub/", "-rw-r--r-- 0/0 2 e/sub/g"}, "", ""},
		{"several", "FROM scratch\nCOPY f d /m/\n", files("f=1", "d/g=2"), []string{"-rw-r--r-- 0/0 1 m/f", "-rw-r--r-- 0/0 1 m/g"}, "m/d/", ""},
		{"several to one", "FROM scratch\nCOPY f d /m\n", files("f=1", "d/g=2"), nil, "", "When using COPY with more than one source file, the destination must be a directory and end with a /"},
		{"patterns", "FROM scratch\nCOPY [f]* d/*.txt /g/\n", files("f=1", "d/a.txt=2", "d/b.md=3", "d/e/c.txt=4"), []string{"-rw-r--r-- 0/0 1 g/a.txt", "-rw-r--r-- 0/0 1 g/f"}, "b.md", ""},
		{"a pattern of nothing", "FROM scratch\nCOPY no* /g/\n", nil, nil, "", "COPY failed: no source files were specified"},
		{"what is not there", "FROM scratch\nCOPY nope /x\n", nil, nil, "", "COPY failed: file not found in build context or excluded by .dockerignore: stat nope: file does not exist"},
		{"what is outside", "FROM scratch\nCOPY ../f /x\n", files("f=1"), nil, "", "COPY failed: forbidden path outside the build context: ../f ()"},
		{"a link that leads outside", "FROM scratch\nCOPY evil /x\n", []tar.Header{link("evil", "/../../etc/passwd", tar.TypeSymlink)}, nil, "", "stat evil: file does not exist"},
		{"a link", "FROM scratch\nCOPY l /d/\nCOPY d /e\n", append(files("d/f=123"), link("l", "/d/f", tar.TypeSymlink), link("d/m", "f", tar.TypeSymlink)), []string{"-rw-r--r-- 0/0 3 d/l", "lrwxrwxrwx 0/0 0 e/m -> f"}, "", ""},
		{"hard links", "FROM scratch\nCOPY . /\n", append(files("a=123"), link("b", "a", tar.TypeLink)), []string{"-rw-r--r-- 0/0 3 a", "hrw-r--r-- 0/0 0 b link to a"}, "", ""},
		{"set-user-ID is lost", "FROM scratch\nCOPY d /\n", []tar.Header{dir("d/s", 0o3777), {Name: "d/f", Typeflag: tar.TypeReg, Mode: 0o6755, Uid: 5, Gid: 6}}, []string{"-rwxr-xr-x 0/0 0 f", "drwxrwsrwt 0/0 0 s/"}, "", ""},
		{"owner by name", "FROM scratch\n" + users + "COPY --chown=app f /new/\nCOPY --chown=app:web d /other/e\nCOPY --chown=7 f /n\n", append(files("f=1", "d/g=2"), etc...),
			[]string{"drwxr-xr-x 100/101 0 new/", "-rw-r--r-- 100/101 1 new/f", folder + "other/", "drwxr-xr-x 100/102 0 other/e/", "-rw-r--r-- 100/102 1 other/e/g", "-rw-r--r-- 7/7 1 n"}, "", ""},
		{"owner that is not there", "FROM scratch\n" + users + "COPY --chown=nope f /x\n", append(files("f=1"), etc...), nil, "", "unable to convert uid/gid chown string to host mapping: can't find uid for user nope: no such user: nope"},
		{"ADD of a tar", "FROM scratch\nADD t.tar /x\nCOPY t.tar /y/\n", files("t.tar=" + packed), []string{folder + "x/", folder + "x/in/", "-rwsr-xr-x 7/8 6 x/in/file", "hrwsr-xr-x 7/8 0 x/in/link link to x/in/file", fmt.Sprintf("-rw-r--r-- 0/0 %d y/t.tar", len(packed))}, "x/t.tar", ""},
		{"ADD of a file", "FROM scratch\nADD f /x\n", files("f=no tar"), []string{"-rw-r--r-- 0/0 6 x"}, "", ""},
		{"ADD of what cannot be unpacked", "FROM scratch\nADD f /x\n", files("f=\xfd7zXZ\x00rest"), nil, "", "compressed with xz"},
		{"ADD of a tar that leads outside", "FROM scratch\nADD t.tar /x\n", files("t.tar=" + string(pack(t, files("../../f=1")...))), nil, "", "leads out of"},
		{"from a stage", "FROM scratch AS one\nCOPY f /d/f\nFROM scratch\nCOPY --from=one /d /e\nCOPY --from=0 d/f /g\n", files("f=1"), []string{"-rw-r--r-- 0/0 1 e/f", "-rw-r--r-- 0/0 1 g"}, " d/", ""},
		{"upon a stage", "FROM scratch AS one\nCOPY f /d/f\nFROM one\nCOPY g /d/g\n", files("f=1", "g=2"), []string{"-rw-r--r-- 0/0 1 d/f", "-rw-r--r-- 0/0 1 d/g"}, "", ""},
		{"from itself", "FROM scratch\nCOPY --from=0 /x /x\n", nil, nil, "", "invalid from flag value 0: refers to current build stage"},
		{"from what comes later", "FROM scratch\nCOPY --from=2 /x /x\n", nil, nil, "", "invalid from flag value 2: index out of bounds"},
		{"over a folder's link", "FROM scratch AS a\nCOPY d /\nFROM a\nCOPY f /l/\n", append(files("f=1", "d/real/x=2"), link("d/l", "real", tar.TypeSymlink)), []string{"-rw-r--r-- 0/0 1 real/f", "lrwxrwxrwx 0/0 0 l -> real"}, "", ""},
		{"over a link out of the image", "FROM scratch AS a\nCOPY d /\nFROM a\nCOPY f /l\n", append(files("f=1"), dir("d", 0o755), link("d/l", "../../../new/x", tar.TypeSymlink)), []string{"-rw-r--r-- 0/0 1 new/x", "lrwxrwxrwx 0/0 0 l -> ../../../new/x"}, "", ""},
		{"a folder over a file", "FROM scratch\nCOPY f /x\nCOPY d /x\n", files("f=1", "d/g=2"), nil, "", "failed to copy files: cannot copy to non-directory: /x"},
		{"below a file", "FROM scratch\nCOPY f /x\nCOPY f /x/y\n", files("f=1"), nil, "", "not a directory"},
		{"a working directory that is a file", "FROM scratch\nCOPY f /x\nWORKDIR /x\n", files("f=1"), nil, "", "Cannot mkdir: /x is not a directory"},
		{"a whiteout", "FROM scratch\nCOPY d /\n", files("d/.wh.x=1"), nil, "", "no layer can have a file of that name"},
		{"a FIFO", "FROM scratch\nCOPY p /p\n", []tar.Header{{Name: "p", Typeflag: tar.TypeFifo, Mode: 0o600}}, nil, "", "neither a file nor a folder"},
		{"COPY --chmod", "FROM scratch\nCOPY --chmod=755 f /f\n", files("f=1"), nil, "", "the --chmod option requires BuildKit."},
		{"COPY of a here-document", "FROM scratch\nCOPY <<EOF /x\nhi\nEOF\n", nil, nil, "", "the heredoc option requires BuildKit."},
		{"COPY of a URL", "FROM scratch\nCOPY http://127.0.0.1:1/x /x\n", nil, nil, "", "COPY failed: source can't be a URL for COPY"},
		{"RUN --mount", "FROM scratch\nLABEL a=b\nRUN --mount=type=cache,target=/x true\n", nil, nil, "", "the --mount option requires BuildKit. Refer to https://docs.docker.com/go/buildkit/"},
		{"RUN in nothing", "FROM scratch\nRUN true\n", nil, nil, "", "no such file or directory"},
		{"nothing", "FROM scratch\n", nil, nil, "", "No image was generated. Is your Dockerfile empty?"},
		{"no stage", "LABEL a=b\n", nil, nil, "", "no build stage in current context"},
		{"an unknown instruction", "FROM scratch\nFOO bar\n", nil, nil, "", "unknown instruction: FOO"},
		{"triggers of triggers", "FROM scratch\nONBUILD ONBUILD LABEL a=b\n", nil, nil, "", "Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed"},
		{"triggers without end", "FROM scratch\n" + strings.Repeat("OnBuild \\\n", 10000) + "LABEL a=b\n", nil, nil, "", "10000 times ONBUILD, 500 are allowed"},
		{"an empty Dockerfile", " \n", nil, nil, "", "the Dockerfile (Dockerfile) cannot be empty"},
		{"no Dockerfile", "", nil, nil, "", "Cannot locate specified Dockerfile: Dockerfile"},
		{"a name twice", "FROM scratch AS a\nLABEL a=b\nFROM scratch AS a\n", nil, nil, "", "a stage name already used"},
		{"no base", "ARG X\nFROM $X\n", nil, nil, "", "base name ($X) should not be blank"},
		{"left out of the context", "FROM scratch\nCOPY . /\n", files(".dockerignore=Docker*\n.dockerignore\n", "f=1"), []string{"-rw-r--r-- 0/0 1 f"}, "ocker", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := newHost(t)
			img, err := h.build(t, Options{}, tt.dockerfile, tt.context...)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("got error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := h.listing(t, img)
			for _, want := range tt.want {
				if !slices.Contains(got, want) {
					t.Errorf("%q is not in the image:\n%s", want, strings.Join(got, "\n"))
				}
			}
			if all := strings.Join(got, "\n"); tt.absent != "" && strings.Contains(all, tt.absent) {
				t.Errorf("%q is in the image:\n%s", tt.absent, all)
			}
			h.check(t, img)
		})
	}
}

// check has e2fsck judge an image's disk.
func (h *host) check(t *testing.T, img *layerstore.Image) {
	t.Helper()
	oracle.Need(t, "qemu-img")
	oracle.Need(t, "e2fsck")
	path, err := h.store.DiskPath(img)
	if err != nil {
		t.Fatal(err)
	}
	raw := filepath.Join(t.TempDir(), "raw")
	for _, cmd := range [][]string{{"qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, raw}, {"e2fsck", "-fn", raw}} {
		if out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", cmd[0], err, out)
		}
	}
}

// What instructions make of the configuration, and what is told meanwhile.
func TestConfig(t *testing.T) {
	h := newHost(t)
	value := "given"
	img := h.mustBuild(t, Options{Labels: map[string]string{"z": "1", "a": "2"}, Args: map[string]*string{"A": &value, "UNUSED": nil, "HTTP_PROXY": &value}}, `ARG BASE=scratch
FROM $BASE
ARG A=default
ENV x=1 y=$x z=$A
MAINTAINER me
EXPOSE 80 90-91/udp
VOLUME ["/v", "/w x"]
STOPSIGNAL SIGINT
USER app
SHELL ["/bin/bash", "-c"]
CMD run it
HEALTHCHECK --interval=5s --retries=3 CMD true
HEALTHCHECK NONE
ONBUILD RUN x
ENTRYPOINT ["a", "b"]
LABEL k="v w"
`)
	const want = `Step 1/18 : ARG BASE=scratch
Step 2/18 : FROM $BASE
 ---> 
Step 3/18 : ARG A=default
 ---> ID
Step 4/18 : ENV x=1 y=$x z=$A
 ---> ID
Step 5/18 : MAINTAINER me
 ---> ID
Step 6/18 : EXPOSE 80 90-91/udp
 ---> ID
Step 7/18 : VOLUME ["/v", "/w x"]
 ---> ID
Step 8/18 : STOPSIGNAL SIGINT
 ---> ID
Step 9/18 : USER app
 ---> ID
Step 10/18 : SHELL ["/bin/bash", "-c"]
 ---> ID
Step 11/18 : CMD run it
 ---> ID
Step 12/18 : HEALTHCHECK --interval=5s --retries=3 CMD true
 ---> ID
Step 13/18 : HEALTHCHECK NONE
Note: overriding previous HEALTHCHECK: [CMD-SHELL true]
 ---> ID
Step 14/18 : ONBUILD RUN x
 ---> ID
Step 15/18 : ENTRYPOINT ["a", "b"]
 ---> ID
Step 16/18 : LABEL k="v w"
 ---> ID
Step 17/18 : LABEL a=2
 ---> ID
Step 18/18 : LABEL z=1
 ---> ID
[Warning] One or more build-args [UNUSED] were not consumed
`
	told := h.said.String()
	if !strings.Contains(told, img.ID.Encoded()[:12]) {
		t.Errorf("the image %s is not told of", img.ID)
	}
	if got := ids.ReplaceAllString(told, "ID"); got != want {
		t.Errorf("told:\n%s\nwant:\n%s", got, want)
	}
	const config = `"config":{"User":"app","ExposedPorts":{"80/tcp":{},"90/udp":{},"91/udp":{}},"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","x=1","y=","z=given"],"Entrypoint":["a","b"],"Cmd":["/bin/bash","-c","run it"],"Volumes":{"/v":{},"/w x":{}},"Labels":{"a":"2","k":"v w","z":"1"},"StopSignal":"SIGINT","Healthcheck":{"Test":["NONE"]},"OnBuild":["RUN x"],"Shell":["/bin/bash","-c"]}`
	if !strings.Contains(string(img.RawConfig), config) {
		t.Errorf("got  %s\nwant %s", img.RawConfig, config)
	}
	if img.Config.Author != "me" || len(img.Layers) != 0 {
		t.Errorf("author %q, %d layers", img.Config.Author, len(img.Layers))
	}
	history := img.History()
	if got := history[len(history)-3].CreatedBy; got != "/bin/sh -c #(nop)  MAINTAINER me" {
		t.Errorf("history says %q", got)
	}
	if !slices.Equal(h.built, []digest.Digest{img.ID}) {
		t.Errorf("built %v, want %s", h.built, img.ID)
	}
}

// Triggers run in the image that is built upon theirs, and not in the one after.
func TestOnBuild(t *testing.T) {
	h := newHost(t)
	h.tag(t, h.mustBuild(t, Options{}, "FROM scratch\nONBUILD COPY f /x\nONBUILD LABEL a=b\n"), "base")
	img := h.mustBuild(t, Options{}, "FROM base\n", files("f=1")...)
	h.tag(t, img, "two")
	if said := ids.ReplaceAllString(h.said.String(), "ID"); said != "Step 1/1 : FROM base\n# Executing 2 build triggers\n ---> ID\n" {
		t.Errorf("told %q", said)
	}
	if got := h.listing(t, img); !slices.Contains(got, "-rw-r--r-- 0/0 1 x") || img.Config.Config.Labels["a"] != "b" {
		t.Errorf("labels %v, files %q", img.Config.Config.Labels, got)
	}
	if img = h.mustBuild(t, Options{}, "FROM two\nLABEL c=d\n"); strings.Contains(h.said.String(), "trigger") {
		t.Errorf("triggers again:\n%s", h.said.String())
	}
}

// A target is the last stage; what comes after it need not make sense.
func TestTarget(t *testing.T) {
	h := newHost(t)
	const dockerfile = "FROM scratch AS One\nLABEL a=b\nFROM nope\n"
	if img := h.mustBuild(t, Options{Target: "one"}, dockerfile); img.Config.Config.Labels["a"] != "b" {
		t.Errorf("labels %v", img.Config.Config.Labels)
	}
	if _, err := h.build(t, Options{Target: "two"}, dockerfile); err == nil || err.Error() != "failed to reach build target two in Dockerfile" || !errors.Is(err, ErrInvalid) {
		t.Errorf("got error %v", err)
	}
}

func (h *host) tag(t *testing.T, img *layerstore.Image, name string) {
	t.Helper()
	if err := h.store.Tag(img.ID.String(), mustName(t, name)); err != nil {
		t.Fatal(err)
	}
}

// A build that is cancelled ends, and leaves nothing behind.
func TestCancel(t *testing.T) {
	h := newHost(t)
	c, err := ReadContext(t.Context(), bytes.NewReader(pack(t, files("Dockerfile=FROM scratch\nCOPY f /\n", "f=1")...)), h.store.TempFile)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, Options{Store: h.store, Engine: h, Output: h, Context: c}); !errors.Is(err, context.Canceled) {
		t.Errorf("got error %v", err)
	}
	if images, err := h.store.Images(); err != nil || len(images) > 0 {
		t.Errorf("%d images are left, %v", len(images), err)
	}
}

func command(t testing.TB, name string, args ...string) []byte {
	t.Helper()
	out, err := exec.Command(name, args...).Output()
	if err != nil {
		t.Fatalf("%s %q: %v", name, args, err)
	}
	return out
}
