package api

import "strings"

// defaultDetach are the keys that detach from a terminal: ctrl-p ctrl-q.
var defaultDetach = []byte{16, 17}

// maxDetach bounds a sequence of detach keys.
const maxDetach = 32

// parseDetachKeys reads "ctrl-p,ctrl-q" or "a,b,c": the bytes that somebody types to detach. The empty
// string means the default.
func parseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		return defaultDetach, nil
	}
	var keys []byte
	for key := range strings.SplitSeq(s, ",") {
		b, ok := parseKey(key)
		if !ok || len(keys) == maxDetach {
			return nil, badRequest("Invalid detach keys (%s) provided", s)
		}
		keys = append(keys, b)
	}
	return keys, nil
}

func parseKey(key string) (byte, bool) {
	if len(key) == 1 {
		return key[0], true
	}
	c, ok := strings.CutPrefix(key, "ctrl-")
	if !ok || len(c) != 1 {
		return 0, false
	}
	switch b := c[0]; {
	case 'a' <= b && b <= 'z':
		return b - 'a' + 1, true
	case b == '@', '[' <= b && b <= '_':
		return b - '@', true
	}
	return 0, false
}
