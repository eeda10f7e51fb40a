package corpus

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/docker/go-units"
)

// Sizes is how large files are, in bytes:
//
//	fixed:SIZE               all alike
//	uniform:MIN-MAX          each size between as likely as the others
//	lognormal:MEDIAN,SIGMA   as in real file systems: half of the files below the median, two
//	                         thirds within a factor of e^SIGMA of it, no file over 1 GiB
//
// The zero value is empty files.
type Sizes struct {
	kind     string // "" is fixed
	min, max int64  // fixed: both the size; lognormal: both the median
	sigma    float64
}

// maxSize is the greatest size of a file.
const maxSize = 1 << 30

// maxSigma keeps a lognormal distribution within what a float64 can say.
const maxSigma = 10

// Fixed returns the sizes that are all n bytes.
func Fixed(n int64) Sizes { return Sizes{kind: "fixed", min: n, max: n} }

// ParseSizes reads the text form of a distribution; sizes in it may have units: 4KiB, 1MB.
func ParseSizes(text string) (Sizes, error) {
	kind, rest, _ := strings.Cut(text, ":")
	bad := func(err error) (Sizes, error) {
		return Sizes{}, fmt.Errorf("sizes %q: want fixed:SIZE, uniform:MIN-MAX or lognormal:MEDIAN,SIGMA: %w", text, err)
	}
	s := Sizes{kind: kind}
	var err error
	switch kind {
	case "fixed":
		s.min, err = units.RAMInBytes(rest)
		s.max = s.min
	case "uniform":
		low, high, _ := strings.Cut(rest, "-")
		if s.min, err = units.RAMInBytes(low); err == nil {
			s.max, err = units.RAMInBytes(high)
		}
	case "lognormal":
		median, sigma, _ := strings.Cut(rest, ",")
		if s.min, err = units.RAMInBytes(median); err == nil {
			s.max = s.min
			s.sigma, err = strconv.ParseFloat(sigma, 64)
		}
	default:
		return bad(fmt.Errorf("unknown distribution %q", kind))
	}
	if err == nil {
		err = s.check(0)
	}
	if err != nil {
		return bad(err)
	}
	return s, nil
}

// check tells what is wrong with the sizes, or with so many files of them.
func (s Sizes) check(files int) error {
	if s.min < 0 || s.max < s.min || s.max > maxSize {
		return fmt.Errorf("sizes from %d to %d bytes: 0 to %d can be made", s.min, s.max, maxSize)
	}
	if !(s.sigma >= 0 && s.sigma <= maxSigma) {
		return fmt.Errorf("sigma %v: 0 to %d can be made", s.sigma, maxSigma)
	}
	mean := min(float64(s.min+s.max)/2*math.Exp(s.sigma*s.sigma/2), maxSize)
	if mean*float64(files) > maxBytes {
		return fmt.Errorf("%d files of %s are more than %d bytes", files, s, int64(maxBytes))
	}
	return nil
}

func (s Sizes) String() string {
	switch s.kind {
	case "uniform":
		return fmt.Sprintf("uniform:%d-%d", s.min, s.max)
	case "lognormal":
		return fmt.Sprintf("lognormal:%d,%v", s.min, s.sigma)
	}
	return fmt.Sprintf("fixed:%d", s.min)
}

func (s Sizes) draw(rng *rand.Rand) int64 {
	switch s.kind {
	case "uniform":
		return s.min + rng.Int64N(s.max-s.min+1)
	case "lognormal":
		return int64(math.Min(float64(s.min)*math.Exp(s.sigma*rng.NormFloat64()), maxSize))
	}
	return s.min
}
