package main

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var shortIDs = regexp.MustCompile(`\b[0-9a-f]{12}\b`)

// testBuild builds with the docker client's classic builder.
func testBuild(t *testing.T, s *suite) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("sub/file", "hello\n")
	write("Dockerfile", `ARG BASE=bb
FROM $BASE AS first
ARG WHO=nobody
LABEL made=here
COPY sub /sub
RUN echo "for $WHO"; echo oops >&2; cat /sub/file >/made; echo kept >/vol
FROM first
COPY --from=0 /made /copied
VOLUME /data
CMD ["cat", "/made", "/copied"]
`)
	before := strings.Fields(s.docker(t, "", "images", "-aq", "--no-trunc").ok())
	out := s.docker(t, "", "build", "-t", "built:1", "-t", "built:2", "--build-arg", "WHO=me", "--build-arg", "X=1", dir).ok()
	_, out, _ = strings.Cut(shortIDs.ReplaceAllString(out, "ID"), "\n") // "Sending build context …"
	const want = `Step 1/10 : ARG BASE=bb
Step 2/10 : FROM $BASE AS first
 ---> ID
Step 3/10 : ARG WHO=nobody
 ---> ID
Step 4/10 : LABEL made=here
 ---> ID
Step 5/10 : COPY sub /sub
 ---> ID
Step 6/10 : RUN echo "for $WHO"; echo oops >&2; cat /sub/file >/made; echo kept >/vol
 ---> Running in ID
for me
 ---> Removed intermediate container ID
 ---> ID
Step 7/10 : FROM first
 ---> ID
Step 8/10 : COPY --from=0 /made /copied
 ---> ID
Step 9/10 : VOLUME /data
 ---> ID
Step 10/10 : CMD ["cat", "/made", "/copied"]
 ---> ID
[Warning] One or more build-args [X] were not consumed
Successfully built ID
Successfully tagged built:1
Successfully tagged built:2`
	const complaint = "\x1b[91moops\n\x1b[0m" // which may come before or after what standard output has
	if strings.Replace(out, complaint, "", 1) != want || !strings.Contains(out, complaint) {
		t.Errorf("docker build:\n%s\nwant:\n%s", out, want)
	}
	s.docker(t, "", "run", "--rm", "built:1").want(0, "hello\nhello\n")
	id := s.docker(t, "", "images", "-q", "--no-trunc", "built:2").ok()

	// What was done is not done again, and nothing needs a container.
	s.docker(t, "", "build", "-q", "--build-arg", "WHO=me", dir).want(0, id+"\n")
	s.docker(t, "", "build", "--cache-from", "built:1", "--build-arg", "WHO=me", dir).has(" ---> Using cache\n ---> " + id[7:19])
	s.docker(t, "", "image", "inspect", "-f", "{{.Config.Labels.made}} {{json .Config.Cmd}} {{len .RootFS.Layers}} {{.Parent}}", id).has(`here ["cat","/made","/copied"] 4 sha256:`)
	history := strings.Fields(s.docker(t, "", "history", "-q", "--no-trunc", id).ok())
	if base := s.docker(t, "", "images", "-q", "--no-trunc", "bb").ok(); len(history) != 8 || history[0] != id || history[7] != base {
		t.Errorf("docker history: %q", history)
	}
	s.docker(t, "", "history", "--no-trunc", "--format", "{{.CreatedBy}}", id).has("/bin/sh -c #(nop)  VOLUME [/data]\n", "|1 WHO=me /bin/sh -c echo \"for $WHO\"", "/bin/sh -c #(nop) COPY dir:")

	// Steps are images that only -a shows, and that nothing removes but the image that was made of them.
	if all := strings.Fields(s.docker(t, "", "images", "-aq", "--no-trunc").ok()); len(all) != len(before)+7+1 {
		t.Errorf("%d images, %d were there before", len(all), len(before))
	}
	s.docker(t, "", "images", "-q", "--filter", "dangling=true").want(0, "")
	s.docker(t, "", "rmi", "-f", history[1]).wantError(1, "(cannot be forced) - image has dependent child images")
	s.docker(t, "", "image", "prune", "-f").has("Total reclaimed space: 0B")
	s.docker(t, "", "rmi", "built:1").want(0, "Untagged: built:1\n")
	s.docker(t, "", "rmi", "built:2").has("Untagged: built:2", "Deleted: "+id, "Deleted: "+history[6])
	if after := strings.Fields(s.docker(t, "", "images", "-aq", "--no-trunc").ok()); !slices.Equal(after, before) {
		t.Errorf("images %q are left, before there were %q", after, before)
	}

	// A command that fails is the build's failure, and its container stays to be looked at.
	write("Dockerfile", "FROM bb\nRUN echo told; exit 3\n")
	s.docker(t, "", "build", dir).wantError(3, "The command '/bin/sh -c echo told; exit 3' returned a non-zero code: 3")
	s.docker(t, "", "ps", "-a", "--no-trunc", "--format", "{{.Command}} {{.State}}").has(`echo told; exit 3`, "exited")
	s.docker(t, "", "container", "prune", "-f").ok()
	write("Dockerfile", "FROM bb\nCOPY nope /\n")
	s.docker(t, "", "build", dir).wantError(1, "COPY failed: file not found in build context or excluded by .dockerignore: stat nope: file does not exist")
	s.docker(t, "", "build", "-f", filepath.Join(dir, "sub/file"), dir).wantError(1, "unknown instruction: hello")

	// A client that leaves ends the build and its container.
	write("Dockerfile", "FROM bb\nRUN echo begun; sleep 100000\n")
	ctx, leave := context.WithTimeout(t.Context(), commandTimeout)
	defer leave()
	cmd := s.command(ctx, "build", dir)
	var told syncBuffer
	cmd.Stdout = &told
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(told.String(), "\nbegun\n") {
		if ctx.Err() != nil {
			t.Fatalf("docker build: %s", told.String())
		}
		time.Sleep(20 * time.Millisecond) // the client's output comes without telling anybody
	}
	cmd.Process.Kill()
	cmd.Wait()
	id = shortIDs.FindString(told.String()[strings.Index(told.String(), "Running in"):])
	if r := s.docker(t, "", "wait", id); r.code == 0 { // until it is gone
		for s.docker(t, "", "inspect", id).code == 0 && ctx.Err() == nil {
			time.Sleep(20 * time.Millisecond)
		}
	}
	s.docker(t, "", "ps", "-aq").want(0, "")

	for path, message := range map[string]string{
		"/build?version=2":               "set DOCKER_BUILDKIT=0",
		"/build?squash=1":                "squash is only supported with experimental mode",
		"/build?remote=git://host/x.git": "building from a Git repository",
		"/session":                       "set DOCKER_BUILDKIT=0",
	} {
		if _, v := s.request(t, http.MethodPost, path, "application/x-tar", ""); !strings.Contains(v["message"].(string), message) {
			t.Errorf("%s: %v, want %q", path, v, message)
		}
	}
	var b bytes.Buffer
	if err := run(t.Context(), []string{"check", "--store", filepath.Join(s.dir, "store")}, strings.NewReader(""), &b, &b); err != nil {
		t.Errorf("vic check: %v\n%s", err, b.String())
	}
}
