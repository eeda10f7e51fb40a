package guestrpc

import (
	"errors"
	"fmt"
	"strings"
)

// ErrNoValue says that the VM has no guestinfo of that key.
var ErrNoValue = errors.New("guestrpc: no value")

// Call has the VMX carry out a request, "NAME ARGUMENTS", and returns the result. The error has what the VMX says
// if it refuses.
func Call(request string) (result string, err error) {
	name, _, _ := strings.Cut(request, " ")
	if err := withPorts(func() error {
		result, err = exchange(request)
		return err
	}); err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return result, nil
}

// exchange opens a channel for one request.
func exchange(request string) (result string, err error) {
	c, err := open(rpci)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := c.send([]byte(request)); err != nil {
		return "", err
	}
	reply, err := c.receive()
	if err != nil {
		return "", err
	}
	return parseReply(reply)
}

// noValue is the VMX's error for a guestinfo that is not there.
const noValue = "No value found"

// parseReply takes the result, or the error, out of a reply.
func parseReply(reply []byte) (string, error) {
	if result, ok := strings.CutPrefix(string(reply), "1 "); ok {
		return result, nil
	}
	msg, ok := strings.CutPrefix(string(reply), "0 ")
	switch {
	case !ok:
		return "", fmt.Errorf("guestrpc: reply %.40q is no reply", reply)
	case strings.TrimRight(msg, "\x00") == noValue:
		return "", ErrNoValue
	}
	return "", fmt.Errorf("guestrpc: refused: %.500q", msg)
}

// Info returns the guestinfo of a key that begins with "guestinfo.". The error is ErrNoValue if there is none.
func Info(key string) (string, error) {
	value, err := Call("info-get " + key)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", key, err)
	}
	return value, nil
}

// SetInfo sets the guestinfo of a key. It lasts until the VM is powered off.
func SetInfo(key, value string) error {
	if _, err := Call("info-set " + key + " " + value); err != nil {
		return fmt.Errorf("set %s: %w", key, err)
	}
	return nil
}
