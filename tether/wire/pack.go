package wire

import (
	"bytes"
	"compress/flate"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

const (
	// maxString bounds one OEM string, prefix excluded, so that a frame has room for it.
	maxString = MaxPayload - 32
	// maxStrings bounds all strings of a configuration. QEMU refuses SMBIOS tables
	// above 65535 bytes, and the machine's own structures need some of that.
	maxStrings = 60_000
	// maxConfig bounds the text that a guest inflates.
	maxConfig = 8 << 20
)

// ErrConfigTooLarge says that a Config does not fit into the VM's hardware: its
// arguments and environment, deflated, exceed about 45 KB.
var ErrConfigTooLarge = errors.New("wire: configuration is too large for a VM")

// ErrNoConfig says that a machine's hardware holds no configuration.
var ErrNoConfig = errors.New("wire: no configuration")

// Pack deflates text into strings that fit a machine's hardware, each
//
//	PREFIX INDEX "/" COUNT ":" BASE64
//
// The same text gives the same strings. The error is ErrConfigTooLarge.
func Pack(prefix string, text []byte) ([]string, error) {
	if len(text) > maxConfig {
		return nil, ErrConfigTooLarge
	}
	var packed bytes.Buffer
	w, err := flate.NewWriter(&packed, flate.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(text); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	enc := base64.StdEncoding.EncodeToString(packed.Bytes())
	count := (len(enc) + maxString - 1) / maxString
	if len(enc)+count*32 > maxStrings {
		return nil, ErrConfigTooLarge
	}
	out := make([]string, count)
	for i := range out {
		part := enc[i*maxString : min((i+1)*maxString, len(enc))]
		out[i] = fmt.Sprintf("%s%d/%d:%s", prefix, i, count, part)
	}
	return out, nil
}

// Unpack returns the text that Pack has put into those strings that have the prefix, in any order. ErrNoConfig is
// returned if there are none.
func Unpack(prefix string, all []string) ([]byte, error) {
	var parts []string
	seen := 0
	for _, s := range all {
		p, ok, err := parsePart(prefix, s)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if parts == nil {
			parts = make([]string, p.count)
		}
		if len(parts) != p.count {
			return nil, fmt.Errorf("wire: configuration strings of %d and of %d parts", len(parts), p.count)
		}
		if parts[p.index] != "" || p.data == "" {
			return nil, fmt.Errorf("wire: configuration string %d is empty or comes twice", p.index)
		}
		parts[p.index] = p.data
		seen++
	}
	if parts == nil {
		return nil, ErrNoConfig
	}
	if seen != len(parts) {
		return nil, fmt.Errorf("wire: %d of %d configuration strings", seen, len(parts))
	}
	packed, err := base64.StdEncoding.DecodeString(strings.Join(parts, ""))
	if err != nil {
		return nil, fmt.Errorf("wire: decode configuration: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(packed)), maxConfig+1))
	if err != nil {
		return nil, fmt.Errorf("wire: inflate configuration: %w", err)
	}
	if len(text) > maxConfig {
		return nil, errors.New("wire: configuration inflates to more than 8 MiB")
	}
	return text, nil
}

// A part is one string of a text.
type part struct {
	index, count int
	data         string
}

// parsePart reports false for a string that is none.
func parsePart(prefix, s string) (part, bool, error) {
	s, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return part{}, false, nil
	}
	place, data, ok := strings.Cut(s, ":")
	is, ns, ok2 := strings.Cut(place, "/")
	i, err := strconv.Atoi(is)
	n, err2 := strconv.Atoi(ns)
	if !ok || !ok2 || err != nil || err2 != nil || i < 0 || i >= n || n > 255 {
		return part{}, false, fmt.Errorf("wire: configuration string has place %.20q", place)
	}
	return part{i, n, data}, true, nil
}
