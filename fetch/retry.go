package fetch

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"syscall"
	"time"
)

// smallAttempts is how often a manifest or a configuration is asked for.
const smallAttempts = 3

// A retryPolicy decides whether and when a failed request is repeated.
type retryPolicy struct {
	attempts int           // at most so many
	backoff  time.Duration // times the number of failed attempts
	maxAfter time.Duration // longest Retry-After that is obeyed
}

func (c *Client) blobPolicy() retryPolicy {
	return retryPolicy{attempts: c.attempts(), backoff: c.backoff(), maxAfter: c.maxRetryAfter()}
}

func (c *Client) smallPolicy() retryPolicy {
	return retryPolicy{attempts: min(smallAttempts, c.attempts()), backoff: c.backoff() / 5, maxAfter: c.maxRetryAfter()}
}

// wait returns how long to wait after the failed-th attempt in a row failed
// with err, and false if there shall be no further one.
func (p retryPolicy) wait(failed int, err error) (time.Duration, bool) {
	if failed >= p.attempts || !temporary(err) {
		return 0, false
	}
	if re, ok := errors.AsType[*RegistryError](err); ok && re.RetryAfter > 0 {
		return re.RetryAfter, re.RetryAfter <= p.maxAfter
	}
	d := p.backoff * time.Duration(failed)
	// Clients that broke together should not come back together.
	return d - time.Duration(rand.Int64N(int64(d/4)+1)), true
}

// temporary says whether the same request may succeed later.
func temporary(err error) bool {
	if re, ok := errors.AsType[*RegistryError](err); ok {
		switch re.Status {
		case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError,
			http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
			return true
		}
		return false
	}
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.As(err, new(*uploadError)):
		return false
	case errors.As(err, new(*brokenError)), errors.Is(err, errIdle),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNABORTED), errors.Is(err, net.ErrClosed),
		errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return true
	}
	if de, ok := errors.AsType[*net.DNSError](err); ok {
		return de.IsTemporary || de.IsTimeout
	}
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// A brokenError is what ended a body before its end, whatever it was: the
// request had succeeded.
type brokenError struct{ cause error }

func (e *brokenError) Error() string { return e.cause.Error() }
func (e *brokenError) Unwrap() error { return e.cause }

// sleep waits for d, telling notify each second how long it still takes. It
// returns early with ctx's error.
func sleep(ctx context.Context, d time.Duration, cause error, notify func(left time.Duration, cause error)) error {
	end := time.Now().Add(d)
	for left := d; left > 0; left = time.Until(end) {
		notify(left, cause)
		t := time.NewTimer(min(left, time.Second))
		select {
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-t.C:
		}
	}
	return context.Cause(ctx)
}

// retry calls try until it succeeds or policy ends it.
func retry(ctx context.Context, p retryPolicy, notify func(time.Duration, error), try func() error) error {
	for failed := 1; ; failed++ {
		err := try()
		if err == nil {
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		d, again := p.wait(failed, err)
		if !again {
			return err
		}
		if err := sleep(ctx, d, err, notify); err != nil {
			return err
		}
	}
}

// parseRetryAfter reads a Retry-After header, a number of seconds or a date
// (RFC 9110, section 10.2.3). It is 0 if there is none or it is malformed, and
// at least a second otherwise.
func parseRetryAfter(h string, now time.Time) time.Duration {
	if h == "" {
		return 0
	}
	if s, err := strconv.ParseUint(h, 10, 31); err == nil {
		return max(time.Duration(s)*time.Second, time.Second)
	} else if errors.Is(err, strconv.ErrRange) {
		return 1<<31*time.Second - 1
	}
	t, err := http.ParseTime(h)
	if err != nil {
		return 0
	}
	return max(t.Sub(now), time.Second)
}

// errIdle is the cause of an attempt that was given up because nothing came.
var errIdle = errors.New("fetch: connection went silent")
