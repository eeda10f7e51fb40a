package vspc

import (
	"errors"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// silence is how long a host may say nothing at all, not even that it got what was sent to it, or take nothing of it.
const silence = 30 * time.Second

// keepAlive has a host asked for a sign of life. TCP_USER_TIMEOUT rules, not Count (tcp(7)).
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

// watchOver has the kernel end a connection whose host has gone.
func watchOver(c *net.TCPConn) error {
	if err := c.SetKeepAliveConfig(keepAlive); err != nil {
		return err
	}
	return control(c, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
	})
}

// established tells whether neither side has closed a connection.
func established(c *net.TCPConn) bool {
	const tcpEstablished = 1 // include/net/tcp_states.h
	var state uint8
	err := control(c, func(fd int) error {
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			state = info.State
		}
		return err
	})
	return err == nil && state == tcpEstablished
}

func control(c *net.TCPConn, fn func(fd int) error) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) { inner = fn(int(fd)) })
	return errors.Join(err, inner)
}
