package containervm

import (
	"math/rand/v2"
	"regexp"
)

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

func checkName(name string) error {
	if !validName.MatchString(name) {
		return refuse(ErrInvalid, "Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", name)
	}
	return nil
}

// Names that are made up: a quality and a thing of the workshop.
var (
	qualities = []string{"amber", "brisk", "calm", "deft", "eager", "fair", "gentle", "hardy", "keen", "light", "merry", "neat", "plain", "quick", "ready", "steady", "tidy", "vivid", "warm", "wise"}
	things    = []string{"anvil", "auger", "bellows", "chisel", "compass", "file", "gimlet", "hammer", "jig", "lathe", "mallet", "plane", "pliers", "plumb", "rasp", "saw", "square", "tongs", "vise", "wedge"}
)

// randomName makes up a name; there are about 400,000.
func randomName() string {
	name := qualities[rand.IntN(len(qualities))] + "_" + things[rand.IntN(len(things))]
	const digits = "0123456789"
	for range 3 {
		name += string(digits[rand.IntN(len(digits))])
	}
	return name
}
