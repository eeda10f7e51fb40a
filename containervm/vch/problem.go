package vch

import (
	"fmt"
	"strings"
)

// A Problem is something that stands against a plan.
type Problem struct {
	Option  string   `json:"option"` // that is to be given otherwise, without dashes; "" if none is
	Message string   `json:"message"`
	Valid   []string `json:"valid,omitempty"` // what the option could be
}

func (p Problem) String() string {
	s := p.Message
	if p.Option != "" {
		s = "--" + p.Option + ": " + s
	}
	if len(p.Valid) > 0 {
		s += "; there are " + strings.Join(p.Valid, ", ")
	}
	return s
}

// Problems are all that stands against a plan.
type Problems []Problem

func (p Problems) Error() string {
	if len(p) == 1 {
		return p[0].String()
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%d problems:", len(p))
	for _, x := range p {
		b.WriteString("\n  " + x.String())
	}
	return b.String()
}

func (p *Problems) add(option, format string, args ...any) {
	*p = append(*p, Problem{Option: option, Message: fmt.Sprintf(format, args...)})
}

func (p *Problems) suggest(option, message string, valid []string) {
	*p = append(*p, Problem{Option: option, Message: message, Valid: valid})
}
