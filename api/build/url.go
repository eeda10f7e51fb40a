package build

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path"
	"strings"
	"time"

	"vic/fetch/archive"
)

// isURL tells whether a source is to be downloaded.
func isURL(name string) bool {
	return strings.HasPrefix(name, "http://") || strings.HasPrefix(name, "https://")
}

// downloadPatience is how long a server may take to begin its answer.
const downloadPatience = 2 * time.Minute

// unnamed is what a file is called whose URL names none, and which gets another name where it goes.
const unnamed = "__unnamed__"

// download fetches what a URL leads to, as a file of a context of its own, which the caller closes.
func (b *builder) download(ctx context.Context, from, dest string) (source, error) {
	u, err := url.Parse(from)
	if err != nil {
		return source{}, invalidError{err}
	}
	resp, err := get(ctx, b.Client, from)
	if err != nil {
		return source{}, err
	}
	defer resp.Body.Close()
	name := fileName(u, resp)
	if name == "" {
		if strings.HasSuffix(dest, "/") {
			return source{}, invalid("cannot determine filename for source %s", from)
		}
		name = unnamed
	}
	c, err := newContext(b.Store.TempFile)
	if err != nil {
		return source{}, err
	}
	src, err := b.keep(c, name, resp)
	if err != nil {
		c.Close()
		return source{}, fmt.Errorf("download %s: %w", from, err)
	}
	return src, nil
}

// keep puts a download into an empty context.
func (b *builder) keep(c *Context, name string, resp *http.Response) (source, error) {
	n := &inode{header: tar.Header{Typeflag: tar.TypeReg, Mode: 0o600, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}, links: 1}
	if t, err := http.ParseTime(resp.Header.Get("Last-Modified")); err == nil {
		n.header.ModTime = t
	}
	size, err := io.Copy(io.NewOffsetWriter(c.data, 0), io.LimitReader(resp.Body, b.Store.Capacity()+1))
	if err != nil {
		return source{}, err
	}
	if size > b.Store.Capacity() {
		return source{}, invalid("more than %d bytes, which no disk of this store has room for", b.Store.Capacity())
	}
	n.header.Size = size
	if err := c.put([]string{name}, n); err != nil {
		return source{}, err
	}
	hash, err := sum(c, name)
	if err != nil {
		return source{}, err
	}
	b.Output.Say("\n")
	return source{tree: c, name: name, base: name, info: n.info(name), hash: hash}, nil
}

// Download makes a context of what a URL leads to: a tar, which may be compressed, or a Dockerfile alone. A nil client
// means http.DefaultClient. The file that temp makes is the Context's.
func Download(ctx context.Context, client *http.Client, from string, temp func() (*os.File, error)) (*Context, error) {
	resp, err := get(ctx, client, from)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body := bufio.NewReader(resp.Body)
	head, err := body.Peek(512)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("download %s: %w", from, err)
	}
	if !strings.HasPrefix(http.DetectContentType(head), "text/") || isTarHead(head) {
		tar, err := archive.Decompress(body)
		if err != nil {
			return nil, invalidError{err}
		}
		defer tar.Close()
		return ReadContext(ctx, tar, temp)
	}
	text, err := io.ReadAll(io.LimitReader(body, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("download %s: %w", from, err)
	}
	if len(text) > maxFile {
		return nil, invalid("%s has more than %d bytes", from, maxFile)
	}
	c, err := newContext(temp)
	if err != nil {
		return nil, err
	}
	n := &inode{header: tar.Header{Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(text)), ModTime: time.Now()}, links: 1}
	if _, err := c.data.WriteAt(text, 0); err != nil {
		c.Close()
		return nil, err
	}
	return c, c.put([]string{defaultFile}, n)
}

// isTarHead tells a tar of text files by its first header.
func isTarHead(head []byte) bool { return len(head) > 262 && string(head[257:262]) == "ustar" }

// get asks for a URL, and takes no answer but a good one.
func get(ctx context.Context, client *http.Client, from string) (*http.Response, error) {
	if client == nil {
		client = http.DefaultClient
	}
	ctx, cancel := context.WithCancelCause(ctx)
	late := time.AfterFunc(downloadPatience, func() { cancel(errors.New("the server does not answer")) })
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		cancel(nil)
		return nil, invalidError{err}
	}
	resp, err := client.Do(req)
	if err != nil {
		cancel(nil)
		return nil, err
	}
	late.Stop()
	resp.Body = &cancelBody{resp.Body, cancel}
	if resp.StatusCode >= 400 {
		resp.Body.Close()
		return nil, invalid("failed to GET %s with status %s", from, resp.Status)
	}
	return resp, nil
}

// A cancelBody ends its request when it is closed.
type cancelBody struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
}

func (b *cancelBody) Close() error {
	defer b.cancel(nil)
	return b.ReadCloser.Close()
}

// fileName is what a download is called, "" if nothing says it.
func fileName(u *url.URL, resp *http.Response) string {
	if name := baseName(u.Path); name != "" {
		return name
	}
	_, params, err := mime.ParseMediaType(resp.Header.Get("Content-Disposition"))
	if err != nil {
		return ""
	}
	return baseName(params["filename"])
}

// baseName is the last part of a path that is a file's.
func baseName(p string) string {
	if p == "" || strings.HasSuffix(p, "/") {
		return ""
	}
	if name := path.Base(p); name != "." && name != ".." && name != "/" && len(name) < 256 {
		return name
	}
	return ""
}
