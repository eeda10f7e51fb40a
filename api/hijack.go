package api

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/moby/moby/api/types"
	"golang.org/x/sys/unix"
)

// A session is an HTTP connection that became a plain two-way byte stream: the client's bytes are the
// process's standard input, the server's are its output, framed if the process has no terminal.
//
// Whoever hijacked the connection closes the session. Reading and writing may happen at the same time.
type session struct {
	conn net.Conn
	in   io.Reader // what the HTTP server had read ahead, then the connection
	once sync.Once
	err  error
}

// hijack takes the connection over and answers the request: 101 UPGRADED to a client that asked for an
// upgrade, a bare 200 to others. What is left of a body of known length is no input: dockerode sends its options
// in one.
func hijack(w http.ResponseWriter, r *http.Request, mediaType string) (*session, error) {
	if r.ContentLength > 0 {
		if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxBody)); err != nil {
			return nil, badRequest("read request body: %w", err)
		}
	}
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	// The HTTP server leaves its own deadlines behind.
	if err := conn.SetDeadline(time.Time{}); err != nil {
		conn.Close()
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	reply := "HTTP/1.1 200 OK\r\nContent-Type: " + mediaType + "\r\n\r\n"
	if r.Header.Get("Upgrade") != "" {
		reply = "HTTP/1.1 101 UPGRADED\r\nContent-Type: " + mediaType +
			"\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n"
	}
	if _, err := io.WriteString(conn, reply); err != nil {
		conn.Close()
		return nil, fmt.Errorf("answer on the taken over connection: %w", err)
	}
	awaitRead(conn)
	// The server's own reader would cancel the request's context when the client ends its input: output
	// is still to come then.
	ahead, err := rw.Reader.Peek(rw.Reader.Buffered())
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("take over the connection: %w", err)
	}
	return &session{conn: conn, in: io.MultiReader(bytes.NewReader(bytes.Clone(ahead)), conn)}, nil
}

// headPatience is how long a client may take to read the head of a reply before the stream begins nonetheless.
const headPatience = 500 * time.Millisecond

// awaitRead waits until the client at the other end of a UNIX socket has read all. docker-py loses what it gets in
// one read with a reply's head, as it does when it is slow and an exec fast. Nobody tells that it has read.
func awaitRead(conn net.Conn) {
	unread, ok := conn.(*net.UnixConn)
	if !ok {
		return
	}
	raw, err := unread.SyscallConn()
	if err != nil {
		return
	}
	for end := time.Now().Add(headPatience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		size := 0
		if e := raw.Control(func(fd uintptr) { size, err = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) }); e != nil || err != nil || size == 0 {
			return
		}
	}
}

// streamType is the media type of a stream of output. Clients before 1.42 know only one.
func streamType(r *http.Request, tty bool) string {
	if tty || versionOf(r).less(version{1, 42}) {
		return types.MediaTypeRawStream
	}
	return types.MediaTypeMultiplexedStream
}

func (s *session) Read(p []byte) (int, error)  { return s.in.Read(p) }
func (s *session) Write(p []byte) (int, error) { return s.conn.Write(p) }

// linger is how long a closing session waits for the client to close its side.
const linger = 2 * time.Second

// close ends the session after the last byte of output. It closes our direction first and then reads
// what the client may still be sending: closing a socket with unread input resets the connection, and
// a reset overtakes output that the client has not read yet.
func (s *session) close() error {
	s.once.Do(func() {
		if half, ok := s.conn.(interface{ CloseWrite() error }); ok && half.CloseWrite() == nil {
			s.conn.SetReadDeadline(time.Now().Add(linger))
			io.Copy(io.Discard, s.conn)
		}
		s.err = s.conn.Close()
	})
	return s.err
}

// abort drops the connection at once; it makes pending reads and writes fail.
func (s *session) abort() { s.conn.Close() }

// gone says whether err only means that the client went away.
func gone(err error) bool {
	return errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe)
}
