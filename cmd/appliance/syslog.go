//go:build linux

package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

const (
	// maxWaiting bounds the lines that wait for a server that is slow or away. What comes then is lost, and counted.
	maxWaiting = 4096
	// maxDatagram is what every server takes (RFC 5426 section 3.2).
	maxDatagram = 2048
	// sendTimeout is for how long a server may take nothing, and lastTimeout that once the VM is to end.
	sendTimeout = 10 * time.Second
	lastTimeout = 3 * time.Second
	// How long it is left alone when it cannot be reached.
	minSyslogPause = time.Second
	maxSyslogPause = time.Minute
)

// syslog sends lines to a server: RFC 5424, over UDP (RFC 5426) or TCP, each after its length (RFC 6587 section 3.4.1).
type syslog struct {
	network, address, hostname string
	diagnose                   func(error)

	lines chan syslogLine
	lost  int // by send; told with the next line that finds room

	conn  net.Conn // run's, nil when there is none
	pause time.Duration
}

type syslogLine struct {
	at   time.Time
	text string
}

func newSyslog(network, address, hostname string, diagnose func(error)) *syslog {
	return &syslog{network: network, address: address, hostname: hostname, diagnose: diagnose, lines: make(chan syslogLine, maxWaiting), pause: minSyslogPause}
}

// send takes a line. It does not wait, and is not for concurrent use.
func (s *syslog) send(text string) {
	if s.lost > 0 {
		text = fmt.Sprintf("(%d lines before this were lost) %s", s.lost, text)
	}
	select {
	case s.lines <- syslogLine{time.Now(), text}:
		s.lost = 0
	default:
		s.lost++
	}
}

// close lets run end. Nothing may be sent after.
func (s *syslog) close() { close(s.lines) }

// run sends the lines until close. Once ctx ends, it is not tried again what the server does not take at once.
func (s *syslog) run(ctx context.Context) {
	for l := range s.lines {
		for s.try(ctx, l) != nil && ctx.Err() == nil {
			select {
			case <-ctx.Done():
			case <-time.After(s.pause):
			}
			s.pause = min(2*s.pause, maxSyslogPause)
		}
	}
	if s.conn != nil {
		_ = s.conn.Close() // what the server did not take is lost
	}
}

// try sends a line. The first failure after a success is told.
func (s *syslog) try(ctx context.Context, l syslogLine) (err error) {
	if s.conn == nil {
		s.conn, err = s.dial(ctx)
	}
	if err == nil {
		err = s.write(ctx, l)
	}
	if err == nil {
		s.pause = minSyslogPause
		return nil
	}
	if s.conn != nil {
		_ = s.conn.Close() // it is of no use
		s.conn = nil
	}
	if s.pause == minSyslogPause && ctx.Err() == nil {
		s.diagnose(fmt.Errorf("send log to %s://%s: %w", s.network, s.address, err))
	}
	return err
}

func (s *syslog) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: sendTimeout}
	return d.DialContext(ctx, s.network, s.address)
}

func (s *syslog) write(ctx context.Context, l syslogLine) error {
	timeout := sendTimeout
	if ctx.Err() != nil {
		timeout = lastTimeout
	}
	if err := s.conn.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	m := s.message(l)
	if s.network == "udp" {
		m = m[:min(len(m), maxDatagram)]
	} else {
		m = fmt.Sprintf("%d %s", len(m), m)
	}
	_, err := s.conn.Write([]byte(m))
	return err
}

// message is the message of RFC 5424 section 6: facility daemon, and the severity that the line says it has.
func (s *syslog) message(l syslogLine) string {
	const facility = 3
	severity := 6
	switch {
	case strings.Contains(l.text, "level=ERROR"):
		severity = 3
	case strings.Contains(l.text, "level=WARN"):
		severity = 4
	case strings.Contains(l.text, "level=DEBUG"):
		severity = 7
	}
	return fmt.Sprintf("<%d>1 %s %s vic %d - - %s", facility*8+severity, l.at.UTC().Format("2006-01-02T15:04:05.000000Z"), s.hostname, os.Getpid(), l.text)
}
