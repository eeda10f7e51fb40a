//go:build linux

package main

import (
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Of an event of an input device (linux/input.h): type, code and value follow 16 bytes of time.
const (
	eventSize = 24
	eventKey  = 1
	keyPower  = 116
	keyDown   = 1
)

// watchButtons calls pressed whenever a power button of the machine is, and returns how many there are.
func watchButtons(pressed func()) (n int) {
	names, err := filepath.Glob("/sys/class/input/event*/device/name")
	if err != nil {
		return 0
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(text)) != "Power Button" {
			continue
		}
		f, err := os.Open("/dev/input/" + filepath.Base(filepath.Dir(filepath.Dir(name))))
		if err != nil {
			continue
		}
		n++
		go func() { // for the life of the VM
			defer f.Close()
			watchButton(f, pressed)
		}()
	}
	return n
}

// watchButton reads the events of a button until it is gone.
func watchButton(r io.Reader, pressed func()) {
	buf := make([]byte, eventSize)
	for {
		if _, err := io.ReadFull(r, buf); err != nil {
			return
		}
		le := binary.LittleEndian
		if le.Uint16(buf[16:]) == eventKey && le.Uint16(buf[18:]) == keyPower && le.Uint32(buf[20:]) == keyDown {
			pressed()
		}
	}
}
