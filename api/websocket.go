package api

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/coder/websocket"
)

// maxWebSocketMessage bounds a message of input, in bytes.
const maxWebSocketMessage = 1 << 20

// attachWebSocket is attachContainer over a WebSocket: input comes in messages of any kind, output goes
// in binary ones, stdout and stderr alike.
func (s *Server) attachWebSocket(w http.ResponseWriter, r *http.Request) error {
	c, err := s.container(r)
	if err != nil {
		return err
	}
	o, err := attachOptions(r, c)
	if err != nil {
		return err
	}
	a, err := c.Attach(o)
	if err != nil {
		return err
	}
	defer a.Close()
	// prepare has looked at where the request comes from.
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true})
	if err != nil {
		return nil // which has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(maxWebSocketMessage)
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	m := &messages{ctx: ctx, conn: conn}
	var in io.Reader
	if o.Stdin {
		in = m
	} else {
		m.ctx = conn.CloseRead(ctx) // ends when the client leaves
	}
	if err := a.Stream(m.ctx, in, m, m); err != nil {
		s.log.Debug("attachment ended", "container", c.ID(), "error", err)
	}
	_ = conn.Close(websocket.StatusNormalClosure, "") // the client may have left
	return nil
}

// messages are a WebSocket as a stream of bytes.
type messages struct {
	ctx  context.Context
	conn *websocket.Conn
	r    io.Reader // the message being read
}

// Read implements io.Reader. A client that closes has no more input.
func (m *messages) Read(p []byte) (int, error) {
	for {
		if m.r == nil {
			_, r, err := m.conn.Reader(m.ctx)
			if websocket.CloseStatus(err) != -1 {
				err = io.EOF
			}
			if err != nil {
				return 0, err
			}
			m.r = r
		}
		n, err := m.r.Read(p)
		if err == io.EOF {
			m.r, err = nil, nil
		}
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// Write implements io.Writer.
func (m *messages) Write(p []byte) (int, error) {
	if err := m.conn.Write(m.ctx, websocket.MessageBinary, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// ownOrigin says whether a WebSocket's request comes from where it goes to. Libraries send such an
// Origin; a page in a browser has another, unless its name was made to lead here: so a name does not do. On a socket
// without a name of its own, libraries have no Host; browsers always do.
func ownOrigin(r *http.Request) bool {
	u, err := url.Parse(r.Header.Get("Origin"))
	if err != nil || !strings.EqualFold(r.Header.Get("Upgrade"), "websocket") || u.Host == "" || r.Host != "" && u.Host != r.Host {
		return false
	}
	return u.Hostname() == "localhost" || net.ParseIP(u.Hostname()) != nil
}
