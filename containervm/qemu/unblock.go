package qemu

import (
	"context"
	"errors"
	"net"
	"path/filepath"
)

// unblock frees the NICs of a VM that was found. QEMU 7.2 forgets neither that a frame did not fit into a socket nor how
// much of it did when the VCH that read the socket is gone: the guest could send nothing any more. Stopping the VM
// for a moment has QEMU send that frame again, and connections that cannot be written to have it give the frame up.
func (m *machine) unblock(ctx context.Context) (err error) {
	ends, err := filepath.Glob(socket(m.vm, "net*"))
	if m.mon == nil || m.paused.Load() || len(ends) == 0 {
		return err
	}
	for _, path := range ends {
		conn, dialErr := dialUnix(ctx, path)
		if dialErr != nil {
			continue // a NIC that was taken out leaves its socket
		}
		defer conn.Close()
		if err := conn.(*net.UnixConn).CloseRead(); err != nil {
			return err
		}
	}
	if err := m.learnPaused(ctx); err != nil { // an answer from QEMU, which has then accepted the connections
		return err
	}
	_, stopErr := m.mon.Execute(ctx, "stop", nil)
	_, contErr := m.mon.Execute(ctx, "cont", nil)
	return errors.Join(stopErr, contErr)
}
