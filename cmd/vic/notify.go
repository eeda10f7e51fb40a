package main

import (
	"errors"
	"net"
	"os"
)

// notifyReady tells who started this process that it serves, if that asked to be told (sd_notify(3)): systemd, for units of
// Type=notify, and an appliance.
func notifyReady() error {
	socket := os.Getenv("NOTIFY_SOCKET")
	if socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"}) // "@" begins an abstract name for both
	if err != nil {
		return err
	}
	_, err = conn.Write([]byte("READY=1"))
	return errors.Join(err, conn.Close())
}
