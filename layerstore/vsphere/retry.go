package vsphere

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"
	"time"

	"github.com/vmware/govmomi/fault"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// ErrUnavailable is wrapped by errors of a server that does not answer, or says that it cannot now.
var ErrUnavailable error = unavailableError{}

type unavailableError struct{}

func (unavailableError) Error() string { return "vSphere is not available" }

// Unavailable tells those who do not know this package that the same may succeed later.
func (unavailableError) Unavailable() bool { return true }

// A backOff says how often and when what failed is tried again.
type backOff struct {
	first, most time.Duration // waits: the first, and the longest
	tries       int
}

// defaultBackOff goes on for two minutes, which is how long a vCenter takes to restart its services.
var defaultBackOff = backOff{first: 500 * time.Millisecond, most: 20 * time.Second, tries: 10}

// do calls fn until it succeeds, fails with an error after which it is not to be called again, or has been called often enough.
func (b backOff) do(ctx context.Context, again func(error) bool, fn func() error) error {
	wait := b.first
	for try := 1; ; try++ {
		err := fn()
		if err == nil || ctx.Err() != nil || !again(err) {
			return err
		}
		if try >= b.tries {
			return fmt.Errorf("%w (tried %d times)", err, try)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return err
		}
		wait = min(2*wait, b.most)
	}
}

// A statusError is an answer of a file service.
type statusError struct {
	code   int
	status string
}

func (e *statusError) Error() string { return e.status }

// transient says whether an error may be gone when the same is asked for again.
func transient(err error) bool {
	var source sourceError
	if errors.As(err, &source) {
		return false
	}
	var status *statusError
	if errors.As(err, &status) {
		switch status.code {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	return unreachable(err) || busy(err)
}

// unreachable says whether the server could not be asked, or its answer was cut off.
func unreachable(err error) bool {
	if soap.IsCertificateUntrusted(err) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return false
	}
	var network net.Error
	var request *url.Error
	return errors.Is(err, ErrUnavailable) || errors.As(err, &network) || errors.As(err, &request) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// busy says whether an object was busy with something else, or a host with itself. The list is of what the original
// product found it had to try again.
func busy(err error) bool {
	for _, f := range []types.BaseMethodFault{&types.TaskInProgress{}, &types.VAppTaskInProgress{}, &types.NetworkDisruptedAndConfigRolledBack{},
		&types.FailToLockFaultToleranceVMs{}, &types.HostCommunication{}} {
		if fault.Is(err, f) {
			return true
		}
	}
	return false
}
