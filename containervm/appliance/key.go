package appliance

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
)

// A Key seals what a VCH must keep secret. Each VCH has its own.
type Key [32]byte

// ErrKey says that a configuration was sealed by another key, or was changed since it was sealed.
var ErrKey = errors.New("appliance: the configuration was not sealed by the key of this ISO, or was changed since")

// NewKey makes a key.
func NewKey() Key {
	var k Key
	rand.Read(k[:]) // does not fail
	return k
}

func (k Key) cipher() (cipher.AEAD, error) {
	if k == (Key{}) {
		return nil, errNoKey
	}
	block, err := aes.NewCipher(k[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

// seal encrypts a text and binds it to another that stays open.
func (k Key) seal(secret, open []byte) ([]byte, error) {
	a, err := k.cipher()
	if err != nil {
		return nil, err
	}
	return a.Seal(nil, nil, secret, open), nil
}

func (k Key) unseal(sealed, open []byte) ([]byte, error) {
	a, err := k.cipher()
	if err != nil {
		return nil, err
	}
	secret, err := a.Open(nil, nil, sealed, open)
	if err != nil {
		return nil, ErrKey
	}
	return secret, nil
}

var errNoKey = errors.New("appliance: the ISO has no key")

// KeyFile is the name of the file with the key at the root of an ISO.
const KeyFile = "KEY"

const isoBlock = 2048

// keyArchive is the contents of that file: a cpio archive (newc) with the file "key", of the length of a block.
func keyArchive(k Key) []byte {
	entry := func(name string, mode, size int) string {
		s := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00", 1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
		return s + "\x00\x00\x00"[:-len(s)&3]
	}
	p := make([]byte, isoBlock)
	n := copy(p, entry("key", 0o100400, len(k)))
	n += copy(p[n:], k[:])
	copy(p[n:], entry("TRAILER!!!", 0, 0))
	return p
}

// keyOffset is where in the archive the key is.
const keyOffset = 116

// EmptyKey is the contents of KeyFile in an ISO that is nobody's.
func EmptyKey() []byte { return keyArchive(Key{}) }

// WithKey returns the ISO of an appliance, of the same length, as the one of a VCH with this key. It reads iso while it is read.
func WithKey(iso io.ReaderAt, k Key) (io.ReaderAt, error) {
	if k == (Key{}) {
		return nil, errNoKey
	}
	at, err := findKey(iso)
	if err != nil {
		return nil, err
	}
	return keyed{iso, at + keyOffset, k}, nil
}

// ReadKey returns the key in the ISO of a VCH. It reads no more than a few blocks.
func ReadKey(iso io.ReaderAt) (Key, error) {
	at, err := findKey(iso)
	if err != nil {
		return Key{}, err
	}
	var k Key
	if err := readFull(iso, k[:], at+keyOffset); err != nil {
		return Key{}, err
	}
	if k == (Key{}) {
		return Key{}, errNoKey
	}
	return k, nil
}

// keyed is an ISO with a key in it.
type keyed struct {
	iso io.ReaderAt
	at  int64 // of the key
	key Key
}

func (r keyed) ReadAt(p []byte, off int64) (int, error) {
	n, err := r.iso.ReadAt(p, off)
	for i := range r.key {
		if at := r.at + int64(i) - off; at >= 0 && at < int64(n) {
			p[at] = r.key[i]
		}
	}
	return n, err
}
