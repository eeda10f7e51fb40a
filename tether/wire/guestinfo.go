package wire

import "fmt"

// GuestInfoKey and a number is the key of a string of the Config in a VMware VM.
const GuestInfoKey = "guestinfo.vic.config."

// GuestInfo encodes c for a VMware VM, as keys and values of its extraConfig: Strings by other names, so the bounds and the
// error are the same. VMware takes 64 KiB in a value and 1 MiB in all. The VM has them for as long as it lives, so Time
// and Seed, which are good for one boot, are left out: the hardware clock and processor of such a VM have both. Keys of
// an earlier Config may stay beside these.
//
// The VM is also to have monitor_control.restrict_backdoor = TRUE: else every process of the container can read these
// values, and change what the next boot reads.
func (c *Config) GuestInfo() (map[string]string, error) {
	lasting := *c
	lasting.Time, lasting.Seed = 0, nil
	values, err := lasting.Strings()
	if err != nil {
		return nil, err
	}
	return Keyed(GuestInfoKey, values), nil
}

// Keyed are the strings that Pack has made as keys, which are key and a number, and values of a VM's extraConfig.
func Keyed(key string, values []string) map[string]string {
	info := make(map[string]string, len(values))
	for i, v := range values {
		info[fmt.Sprint(key, i)] = v
	}
	return info
}

// ReadGuestInfo returns the strings of a Config, for ParseConfig, from what GuestInfo has made. get returns the value of
// a key; its error is returned.
func ReadGuestInfo(get func(key string) (string, error)) ([]string, error) {
	return ReadKeyed(GuestInfoKey, configPrefix, get)
}

// ReadKeyed returns the strings with the prefix that Keyed was given.
func ReadKeyed(key, prefix string, get func(key string) (string, error)) ([]string, error) {
	var values []string
	for i, n := 0, 1; i < n; i++ {
		v, err := get(fmt.Sprint(key, i))
		if err != nil {
			return nil, err
		}
		if i == 0 {
			p, ok, err := parsePart(prefix, v)
			if err != nil {
				return nil, err
			}
			if !ok {
				return nil, fmt.Errorf("wire: %s0 is %.20q, no configuration", key, v)
			}
			n = p.count
		}
		values = append(values, v)
	}
	return values, nil
}
