package main

import (
	"archive/tar"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"vic/bench/oracle"
	"vic/bench/testimage"
	"vic/containervm/qemu"
)

// Volumes without a container. (Scenarios 43 and 45.)
func testVolumes(t *testing.T, s *suite) {
	s.docker(t, "", "volume", "create", "--label", "a=b", "-o", "size=100m", "v1").want(0, "v1\n")
	s.docker(t, "", "volume", "create", "v1").want(0, "v1\n")
	s.docker(t, "", "volume", "inspect", "v1", "--format", "{{.Name}} {{.Driver}} {{.Scope}} {{.Labels}} {{.Options}} {{.Status.Capacity}}").
		want(0, "v1 local local map[a:b] map[size:100m] 100MiB\n")
	s.docker(t, "", "volume", "create", "-d", "vsphere", "-o", "Capacity=64", "v2").want(0, "v2\n")
	anonymous := s.docker(t, "", "volume", "create").ok()
	if len(anonymous) != 64 {
		t.Errorf("name %q", anonymous)
	}
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-d", "nope", "x1"}, `create x1: error looking up volume plugin nope: plugin "nope" not found`},
		{[]string{"-o", "VolumeStore=other", "x1"}, `invalid option: "VolumeStore"`},
		{[]string{"-o", "Capacity=0", "x1"}, "option Capacity: 0B: a volume has from 16MiB to"},
		{[]string{"-o", "Capacity=-1", "x1"}, "invalid size: '-1'"},
		{[]string{"-o", "size=4t", "x1"}, "option size: 4TiB: a volume has from 16MiB to"},
		{[]string{"a/b"}, `create a/b: "a/b" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path`},
	} {
		s.docker(t, "", append([]string{"volume", "create"}, tt.args...)...).wantError(1, tt.want)
	}
	for _, tt := range []struct{ filter, want string }{
		{"name=v[12]", "v1\nv2\n"},
		{"driver=vsphere", "v2\n"},
		{"label=a=b", "v1\n"},
		{"label=com.docker.volume.anonymous", anonymous + "\n"},
		{"dangling=false", ""},
	} {
		s.docker(t, "", "volume", "ls", "-q", "--filter", tt.filter).want(0, tt.want)
	}
	s.docker(t, "", "volume", "ls", "-q", "--filter", "dangling=true").has("v1\nv2\n", anonymous)
	s.docker(t, "", "volume", "ls", "--filter", "nope=1").wantError(1, "invalid filter 'nope'")
	s.docker(t, "", "info", "--format", "{{.Plugins.Volume}}").want(0, "[local vsphere]\n")
	s.docker(t, "", "system", "df", "-v", "--format", "{{range .Volumes}}{{.Name}} {{.Links}} {{.Size}}\n{{end}}").has("v1 0 ")

	s.docker(t, "", "create", "--name", "user", "-v", "v1:/data", "bb").ok()
	id := s.docker(t, "", "inspect", "user", "--format", "{{.Id}}").ok()
	s.docker(t, "", "volume", "rm", "v1").wantError(1, "remove v1: volume is in use - ["+id+"]")
	s.docker(t, "", "volume", "ls", "-q", "--filter", "dangling=false").want(0, "v1\n")
	s.docker(t, "", "volume", "prune", "-f").has("Deleted Volumes:\n"+anonymous, "Total reclaimed space:")
	s.docker(t, "", "rm", "user").ok()
	s.docker(t, "", "volume", "rm", "v1").want(0, "v1\n")
	s.docker(t, "", "volume", "rm", "v1").wantError(1, "get v1: no such volume")
	s.docker(t, "", "volume", "rm", "-f", "v1").want(0, "v1\n")
	s.docker(t, "", "events", "--since", "1h", "--until", "-1s", "--filter", "volume=v1", "--format", "{{.Type}} {{.Action}} {{.Actor.Attributes}}").
		want(0, "volume create map[driver:local]\nvolume destroy map[driver:local]\n")
	s.docker(t, "", "volume", "prune", "-af").has("Deleted Volumes:\nv2")
	s.docker(t, "", "volume", "ls", "-q").want(0, "")
}

// volumeImage has files where volumes are mounted.
func (s *suite) volumeImage(t *testing.T) string {
	t.Helper()
	busybox, err := testimage.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	files := testimage.Layer{CreatedBy: "COPY . /data", Write: func(w *tar.Writer) error {
		for _, f := range []struct {
			h    tar.Header
			text string
		}{
			{tar.Header{Name: "data/", Mode: 0o2750, Uid: 1000, Gid: 2000}, ""},
			{tar.Header{Name: "data/file", Mode: 0o4755, Uid: 1001, Gid: 2001, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}, "text"},
			{tar.Header{Name: "data/link", Typeflag: tar.TypeSymlink, Linkname: "/nowhere", Uid: 5}, ""},
			{tar.Header{Name: "data/hard", Typeflag: tar.TypeLink, Linkname: "data/file", Mode: 0o4755, Uid: 1001, Gid: 2001, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "b"}}, ""},
			{tar.Header{Name: "data/null", Typeflag: tar.TypeChar, Devmajor: 1, Devminor: 3, Mode: 0o666}, ""},
			{tar.Header{Name: "data/inner/", Mode: 0o700}, ""},
			{tar.Header{Name: "data/inner/deep", Mode: 0o600}, "deep"},
			{tar.Header{Name: "image/"}, ""},
			{tar.Header{Name: "image/file"}, "image's"},
			{tar.Header{Name: "over/"}, ""},
			{tar.Header{Name: "over/file"}, "over"},
		} {
			if err := testimage.Add(w, f.h, f.text); err != nil {
				return err
			}
		}
		return nil
	}}
	img, err := testimage.Build(v1.Config{Cmd: []string{"sh"}, Env: []string{"PATH=/bin"}, Volumes: map[string]struct{}{"/image": {}, "/over": {}}}, busybox, files)
	if err != nil {
		t.Fatal(err)
	}
	ref, err := s.registry.Push(t.Context(), "lib/volumes:1", img)
	if err != nil {
		t.Fatal(err)
	}
	s.docker(t, "", "pull", "-q", ref).ok()
	return ref
}

// Containers with volumes: topologies, what the image has in their place, who may have them at once. (Scenarios 17,
// 44 and 46.)
func testContainerVolumes(t *testing.T, s *suite) {
	image := s.volumeImage(t)
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"-v", "rel/path:/x"}, "includes invalid characters for a local volume name"},
		{[]string{"-v", "vol:rel"}, "invalid mount path: 'rel' mount path must be absolute"},
		{[]string{"-v", "vol:/"}, "destination can't be '/'"},
		{[]string{"-v", "vol:/x:frob"}, "invalid mode: frob"},
		{[]string{"-v", "vol:/x:rshared"}, "mount propagation rshared is not supported"},
		{[]string{"-v", "vol:/x", "-v", "other:/x/"}, "Duplicate mount point: /x"},
		{[]string{"-v", "vol:/x", "--tmpfs", "/x"}, "Duplicate mount point: /x"},
		{[]string{"--volumes-from", "nope"}, "No such container: nope"},
		{[]string{"--volume-driver", "nope", "-v", "vol:/x"}, `plugin "nope" not found`},
		{[]string{"--mount", "type=volume,src=vol,dst=/x,volume-subpath=../y"}, "subpath must be a relative path within the volume"},
	} {
		s.docker(t, "", append(append([]string{"create"}, tt.args...), image)...).wantError(1, tt.want)
	}
	s.docker(t, "", "volume", "ls", "-q").want(0, "")

	s.docker(t, "", "run", "-d", "--name", "writer", "-v", "named:/data:z", "-v", "inner:/data/inner", "-v", "/anonymous", "-v", "over:/over",
		"--mount", "type=volume,src=empty,dst=/empty,volume-nocopy", "--mount", "type=volume,dst=/data/inner/tmp,volume-opt=size=32m",
		image, "sleep", "1000").ok()
	sh := func(name, script string) result { return s.docker(t, "", "exec", name, "sh", "-c", script) }
	sh("writer", "cd /data; stat -c '%n %a %u %g %h' . file hard inner; stat -c '%n %F %u %t,%T' link null; cat file inner/deep; readlink link").want(0,
		". 2750 1000 2000 3\nfile 4755 1001 2001 2\nhard 4755 1001 2001 2\ninner 700 0 0 3\nlink symbolic link 5 0,0\nnull character special file 0 1,3\ntextdeep/nowhere\n")
	sh("writer", "cat /image/file /over/file; ls -A /empty /anonymous; df -m /data /data/inner/tmp | awk 'NR>1{print ($2 > 20), $NF}'").want(0,
		"image'sover/anonymous:\n\n/empty:\n1 /data\n1 /data/inner/tmp\n")
	sh("writer", "echo mine > /data/mine; mkdir /data/sub; echo sub > /data/sub/file; rm /data/inner/deep; echo x > /data/inner/tmp/x; sync").want(0, "")
	s.docker(t, "", "inspect", "writer", "--format", "{{range .Mounts}}{{.Type}} {{.Destination}} {{.Driver}} {{.Mode}} {{.RW}}\n{{end}}").want(0,
		"volume /anonymous local  true\nvolume /data local z true\nvolume /data/inner local z true\nvolume /data/inner/tmp local z true\n"+
			"volume /empty local z true\nvolume /image local  true\nvolume /over local z true\n\n")
	s.docker(t, "", "ps", "--filter", "volume=named", "--format", "{{.Names}} {{.LocalVolumes}}").want(0, "writer 7\n")
	s.docker(t, "", "ps", "--filter", "volume=/data", "--format", "{{.Mounts}}").has("named")
	s.docker(t, "", "ps", "--filter", "volume=nope", "-q").want(0, "")

	// One machine may write, or several read.
	s.docker(t, "", "run", "--rm", "-v", "named:/x:ro", "bb").wantError(125, "volume named is in use by running container writer")
	s.docker(t, "", "create", "--name", "reader", "--volumes-from", "writer:ro", "bb", "sleep", "1000").ok()
	s.docker(t, "", "start", "reader").wantError(1, "is in use by running container writer")
	sh("writer", "ln -s / /data/out").ok()
	s.docker(t, "", "cp", "reader:/data/mine", "-").wantError(1, "volume named is in use by running container writer") // bb has no /data
	if status, text := s.put(t, "reader", "path=/data", tar.Header{Name: "x"}); status != http.StatusConflict || !strings.Contains(text, "volume named is in use by running container writer") {
		t.Errorf("copy into a volume that another container has: status %d, %s", status, text)
	}
	s.docker(t, "", "kill", "writer").ok()
	s.docker(t, "", "cp", "reader:/data/mine", "-").has("mine") // the journal included
	if status, text := s.put(t, "reader", "path=/data", tar.Header{Name: "x"}); status != http.StatusBadRequest || !strings.Contains(text, "mounted volume is marked read-only") {
		t.Errorf("copy into a volume that is mounted read-only: status %d, %s", status, text)
	}
	s.docker(t, "", "start", "reader").ok() // replays the journals, which it may
	sh("reader", "cat /data/mine /data/inner/tmp/x; ls /data/inner; echo no > /data/mine").wantError(1, "Read-only file system")
	s.docker(t, "", "start", "writer").wantError(1, "is in use by running container reader")
	s.docker(t, "", "stop", "-t", "0", "reader").ok()
	s.docker(t, "", "start", "reader").ok()
	s.docker(t, "", "run", "--rm", "-v", "named:/a:ro", "-v", "named:/b:ro", "--mount", "type=volume,src=named,dst=/c,volume-subpath=sub,ro",
		"--mount", "type=volume,src=named,dst=/d,volume-subpath=mine,ro", "bb", "cat", "/a/mine", "/b/mine", "/c/file", "/d").want(0, "mine\nmine\nsub\nmine\n")
	s.docker(t, "", "run", "--rm", "--mount", "type=volume,src=named,dst=/c,volume-subpath=out/etc,ro", "bb").wantError(125, "path concatenation escapes the base directory")
	sh("reader", "cat /data/mine").want(0, "mine\n")
	s.docker(t, "", "run", "--rm", "-v", "named:/x", "bb").wantError(125, "which reads it")

	// What goes with a container and what stays.
	s.docker(t, "", "rm", "-f", "-v", "reader").ok() // writer has its anonymous volumes
	if n := len(strings.Fields(s.docker(t, "", "volume", "ls", "-q").ok())); n != 7 {
		t.Errorf("%d volumes are left, want 7", n)
	}
	s.docker(t, "", "rm", "-v", "writer").ok()
	s.docker(t, "", "volume", "ls", "-q").want(0, "empty\ninner\nnamed\nover\n")
	store := filepath.Join(s.dir, "store")
	if out, _, err := vic(t, "volume", "grow", "--store", store, "named", "80g"); err != nil || out != "named has 80GiB\n" {
		t.Errorf("grow: %q, %v", out, err)
	}
	s.docker(t, "", "run", "--rm", "-v", "/gone", "-v", "named:/data", "-v", "inner:/inner:ro", image, "sh", "-c", "cat /data/mine; df -m /data | awk 'NR>1{print ($2 > 75000)}'").
		want(0, "mine\n1\n")
	s.docker(t, "", "volume", "ls", "-q").want(0, "empty\ninner\nnamed\nover\n")
	for _, name := range []string{"named", "inner"} {
		raw := filepath.Join(t.TempDir(), "raw")
		tool(t, "qemu-img", "convert", "-O", "raw", s.docker(t, "", "volume", "inspect", name, "--format", "{{.Mountpoint}}").ok(), raw)
		if out, err := exec.Command("e2fsck", "-fn", raw).CombinedOutput(); err != nil {
			t.Errorf("e2fsck %s: %v\n%s", name, err, out)
		}
	}
	if out, _, err := vic(t, "check", "--deep", "--store", store); err != nil {
		t.Errorf("vic check: %v\n%s", err, out)
	}
	testVolumeCopies(t, s, image)
	s.docker(t, "", "volume", "rm", "empty", "inner", "named", "over").ok()
	s.docker(t, "", "rmi", image).ok()
}

// Files that are copied into a container's volumes before its first start are there beside the image's, and what it wrote can be
// copied out once it has ended. (Scenario 48.)
func testVolumeCopies(t *testing.T, s *suite, image string) {
	dir := t.TempDir()
	for name, text := range map[string]string{"mine": "mine", "tree/over/mine": "over", "sub/file": "sub", "tree/top": "top"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	s.docker(t, "", "create", "--name", "fresh", "-v", "fresh:/data", "-v", "nested:/data/inner", image, "sh", "-c",
		"cd /data; stat -c '%n %a %u %g %h' . file hard inner inner/sub; stat -c '%n %F %u %t,%T' link null; cat file mine inner/deep inner/sub/file /top /over/*; echo later > inner/later; rm mine").ok()
	s.docker(t, "", "cp", "fresh:/data/inner/deep", "-").has("deep")
	s.docker(t, "", "cp", filepath.Join(dir, "mine"), "fresh:/data/mine").ok()
	s.docker(t, "", "cp", filepath.Join(dir, "tree")+"/.", "fresh:/").ok()
	s.docker(t, "", "cp", filepath.Join(dir, "sub"), "fresh:/data/inner/").ok()
	s.docker(t, "", "cp", filepath.Join(dir, "mine"), "fresh:/data/nope/").wantError(1, "no such directory")
	s.docker(t, "", "start", "-a", "fresh").want(0,
		". 2750 1000 2000 3\nfile 4755 1001 2001 2\nhard 4755 1001 2001 2\ninner 700 0 0 3\ninner/sub 755 0 0 2\nlink symbolic link 5 0,0\nnull character special file 0 1,3\n"+
			"textminedeepsubtopoverover")
	s.docker(t, "", "cp", "fresh:/data", filepath.Join(dir, "out")).ok()
	for name, want := range map[string]string{"file": "text", "inner/deep": "deep", "inner/sub/file": "sub", "inner/later": "later\n"} {
		if b, err := os.ReadFile(filepath.Join(dir, "out", name)); string(b) != want {
			t.Errorf("%s: %q, %v, want %q", name, b, err, want)
		}
	}
	s.docker(t, "", "cp", "fresh:/data/mine", "-").wantError(1, "Could not find the file /data/mine in container fresh")
	for _, name := range []string{"fresh", "nested"} {
		raw := filepath.Join(dir, name)
		tool(t, "qemu-img", "convert", "-O", "raw", s.docker(t, "", "volume", "inspect", name, "--format", "{{.Mountpoint}}").ok(), raw)
		if out, err := exec.Command("e2fsck", "-fn", raw).CombinedOutput(); err != nil {
			t.Errorf("e2fsck %s: %v\n%s", name, err, out)
		}
	}
	s.docker(t, "", "rm", "-v", "fresh").ok()
	// The kernel has enlarged this one beyond what can be written without it.
	s.docker(t, "", "create", "--name", "fresh", "-v", "named:/data", image).ok()
	s.docker(t, "", "cp", "fresh:/data/mine", "-").has("mine")
	s.docker(t, "", "cp", filepath.Join(dir, "mine"), "fresh:/data/").wantError(1, "in a state in which only a guest can write to it: start a container that has it")
	s.docker(t, "", "rm", "-v", "fresh").ok()
	s.docker(t, "", "volume", "rm", "fresh", "nested").ok()
}

// Volumes by the commands of vic, without a daemon.
func TestVolumeCommands(t *testing.T) {
	store := filepath.Join(t.TempDir(), "store")
	for _, tt := range []struct {
		args []string
		out  string // a pattern
		err  string
		exit int
	}{
		{[]string{"create", "data", "--size", "64m", "--label", "a=b"}, "^data\n$", "", 0},
		{[]string{"create", "data"}, "^data\n$", "", 0},
		{[]string{"create", "data", "--size", "1g"}, "", "vic volume grow enlarges it", 1},
		{[]string{"grow", "data", "1g", "--target", "x"}, "", "--target is of no use without --volume-store", 2},
		{[]string{"grow", "data", "1g", "--volume-store", "ds/v"}, "", "give one of them", 2},
		{[]string{"create", "a/b"}, "", "includes invalid characters", 1},
		{[]string{"create", "v2", "--label", "=x"}, "", "has no name", 2},
		{[]string{"create"}, "", "accepts 1 arg", 2},
		{[]string{"ls"}, `(?s)^NAME +CAPACITY +STORED.*\ndata +64MiB +[0-9.]+KiB +[-0-9]+ [:0-9]+ +0\n$`, "", 0},
		{[]string{"ls", "--json"}, `(?s)"name": "data".*"capacity": 67108864.*"users": \[\]`, "", 0},
		{[]string{"inspect", "data"}, `(?s)name +data\n.*capacity +64MiB\n.*disk +/.*disk\.vmdk\nlabel +a=b\noption +size=64m\n$`, "", 0},
		{[]string{"inspect", "nope"}, "", "get nope: no such volume", 1},
		{[]string{"grow", "data", "200m"}, "^data has 200MiB\n$", "", 0},
		{[]string{"grow", "data", "100m"}, "", "cannot be made smaller", 1},
		{[]string{"grow", "data", "much"}, "", "SIZE much", 2},
		{[]string{"rm", "nope", "data"}, "^removed data\n$", "get nope: no such volume", 1},
		{[]string{"ls", "--json"}, `^\[\]\n$`, "", 0},
	} {
		out, _, err := vic(t, append([]string{"volume"}, append(tt.args, "--store", store)...)...)
		if !regexp.MustCompile(tt.out).MatchString(out) || (err != nil) != (tt.err != "") || err != nil && (!strings.Contains(err.Error(), tt.err) || exitCode(err) != tt.exit) {
			t.Errorf("vic volume %q: %q, %v, want %q, %q and status %d", tt.args, out, err, tt.out, tt.err, tt.exit)
		}
	}
	if err := os.MkdirAll(filepath.Join(store, "volumes", "broken"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, _, err := vic(t, "volume", "ls", "--store", store); err == nil || !strings.Contains(err.Error(), "volume broken is damaged") {
		t.Errorf("ls with a damaged volume: %v", err)
	}
	if out, _, err := vic(t, "check", "--store", store); err == nil || !strings.Contains(out, "volume record: is missing") {
		t.Errorf("check with a damaged volume: %v\n%s", err, out)
	}
	if _, _, err := vic(t, "volume", "rm", "broken", "--store", store); err != nil {
		t.Error(err)
	}
	if _, _, err := vic(t, "check", "--store", store); err != nil {
		t.Error(err)
	}
}

// Folders and files of the host in containers.
func testBinds(t *testing.T, s *suite) {
	if err := new(qemu.Driver).CanShare(); err != nil {
		oracle.Missing(t, err)
	}
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, sub := range []string{"rw", "ro"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("rw/host", "of the host")
	write("ro/host", "read-only")
	write("file", "alone")
	write("secret", "a sibling")
	for _, tt := range []struct {
		args []string
		want string
	}{
		{[]string{"--mount", "type=bind,src=" + dir + "/nope,dst=/x"}, `invalid mount config for type "bind": bind source path does not exist: ` + dir + "/nope"},
		{[]string{"--mount", "type=bind,src=" + dir + ",dst=/x,bind-propagation=rshared"}, "mount propagation rshared is not supported"},
		{[]string{"--mount", "type=bind,src=" + dir + ",dst=/x,bind-recursive=disabled"}, "bind-recursive=disabled is not supported"},
		{[]string{"-v", s.socket + ":/var/run/docker.sock"}, "neither a folder nor a regular file"},
		{[]string{"-v", dir + ":/x:nocopy"}, "invalid mode: nocopy"},
		{[]string{"-v", dir + ":/x:slave"}, "mount propagation slave is not supported"},
	} {
		s.docker(t, "", append(append([]string{"create"}, tt.args...), "bb")...).wantError(1, tt.want)
	}
	s.docker(t, "", "run", "-d", "--privileged", "--name", "binds", "-v", dir+"/rw:/rw", "-v", dir+"/new/folder:/rw/new", "--mount", "type=bind,src="+dir+"/ro,dst=/ro,readonly",
		"-v", dir+"/file:/etc/alone", "-v", dir+"/file:/etc/hosts", "bb", "sleep", "1000").ok()
	sh := func(script string) result { return s.docker(t, "", "exec", "binds", "sh", "-c", script) }
	sh("cat /rw/host /ro/host /etc/alone /etc/hosts; ls /rw").want(0, "of the hostread-onlyalonealonehost\nnew\n")
	sh("echo guest > /rw/guest; chown 5:6 /rw/guest; chmod 640 /rw/guest; mkdir /rw/new/sub; echo more >> /etc/alone; echo no > /ro/host").wantError(1, "Read-only file system")
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "rw/guest"), &st); err != nil || st.Uid != 5 || st.Gid != 6 || st.Mode != unix.S_IFREG|0o640 {
		t.Errorf("what the guest made is %+v, %v", st, err)
	}
	if b, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(b) != "alonemore\n" {
		t.Errorf("the file has %q, %v", b, err)
	}
	if _, err := os.Stat(filepath.Join(dir, "new/folder/sub")); err != nil {
		t.Error(err)
	}
	// The host keeps what the guest's root tries: another view of the shares shows no more and is as read-only.
	tried := sh("mkdir /t; for i in 0 1 2 3 4; do mount -t virtiofs bind$i /t && { ls -A /t; echo x > /t/break; mknod /t/dev b 8 0; umount /t; }; done")
	tried.wantError(0, "Read-only file system")
	if strings.Count(tried.out, "host") != 2 || strings.Count(tried.out, "file") != 2 || strings.Contains(tried.out, "secret") {
		t.Errorf("the guest sees %q", tried.out)
	}
	for _, name := range []string{"ro/break", "break", "rw/dev"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !os.IsNotExist(err) {
			t.Errorf("the guest made %s: %v", name, err)
		}
	}
	s.docker(t, "", "inspect", "binds", "--format", "{{range .Mounts}}{{.Type}} {{.Destination}} {{.Mode}} {{.RW}} {{.Propagation}}\n{{end}}{{.HostConfig.Binds}}").
		has("bind /rw  true rprivate\n", "bind /rw/new  true rprivate\n", "bind /etc/alone  true rprivate\n", "bind /ro  false rprivate\n", dir+"/rw:/rw")

	// What serves the folders outlives the daemon, and ends with the VM.
	id := s.docker(t, "", "inspect", "binds", "--format", "{{.Id}}").ok()
	s.end(t)
	s.serve(t)
	write("rw/later", "later")
	sh("cat /rw/later; echo x > /rw/after").want(0, "later")
	servers := serversOf(t, id)
	if len(servers) < 4 {
		t.Errorf("%d processes serve 4 folders", len(servers))
	}
	s.docker(t, "", "rm", "-f", "binds").ok()
	for _, p := range servers {
		ended(t, p)
	}
}

// serversOf opens the processes that serve a container's VM its folders: their command lines name its folder of sockets.
func serversOf(t *testing.T, container string) []int {
	t.Helper()
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var fds []int
	for _, path := range lines {
		line, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(line), "/"+container[:12]+"/share\x00") {
			continue // the process may have ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		if err != nil {
			t.Fatal(err)
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		fds = append(fds, fd)
	}
	return fds
}

// ended waits for the end of a process.
func ended(t *testing.T, pidfd int) {
	t.Helper()
	const patience = 60_000 // ms
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, patience); n != 1 || err != nil {
		t.Errorf("a process that served folders to a VM outlives it: %v", err)
	}
}
