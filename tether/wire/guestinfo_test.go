package wire

import (
	"errors"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestGuestInfo(t *testing.T) {
	noise := make([]byte, 20_000)
	rand.NewChaCha8([32]byte{3}).Read(noise)
	long := sampleConfig()
	long.Args = append(long.Args, strings.ToValidUTF8(string(noise), "?"))
	vm := map[string]string{"guestinfo.other": "x"}
	errNone := errors.New("none")
	get := func(key string) (string, error) {
		v, ok := vm[key]
		if !ok {
			return "", errNone
		}
		return v, nil
	}
	if _, err := ReadGuestInfo(get); !errors.Is(err, errNone) {
		t.Errorf("a VM without a configuration: %v", err)
	}
	for _, c := range []*Config{long, sampleConfig()} { // the second leaves keys of the first
		info, err := c.GuestInfo()
		if err != nil {
			t.Fatal(err)
		}
		maps.Copy(vm, info)
		for k, v := range info {
			if len(v) > maxString+32 {
				t.Errorf("%s has %d bytes", k, len(v))
			}
		}
		if c.Time == 0 || c.Seed == nil {
			t.Error("the configuration itself was changed")
		}
		values, err := ReadGuestInfo(get)
		if err != nil {
			t.Fatal(err)
		}
		if len(values) != len(info) {
			t.Errorf("%d of %d values were read", len(values), len(info))
		}
		want := *c
		want.Time, want.Seed = 0, nil
		if got, err := ParseConfig(values); err != nil || !reflect.DeepEqual(got, &want) {
			t.Errorf("got %+v, %v, want %+v", got, err, &want)
		}
		if oem, err := want.Strings(); err != nil || !slices.Equal(oem, values) {
			t.Errorf("values are not the OEM strings: %v", err)
		}
	}
	if len(vm) < 3 {
		t.Errorf("no key of the long configuration was left: %d keys", len(vm))
	}
	for _, bad := range []string{"", "x", "vic1:0/1000:x", "vic1:0/2:x"} {
		t.Run(bad, func(t *testing.T) {
			clear(vm)
			vm[GuestInfoKey+"0"] = bad
			if values, err := ReadGuestInfo(get); err == nil {
				t.Errorf("read %q", values)
			}
		})
	}
	if _, err := (&Config{Args: []string{strings.Repeat("x", maxConfig)}}).GuestInfo(); !errors.Is(err, ErrConfigTooLarge) {
		t.Errorf("long: %v", err)
	}
}
