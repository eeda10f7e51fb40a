package telnet

import "slices"

// Options are what the two sides have agreed on, by RFC 1143: nothing is answered that changes nothing, so two sides never answer
// each other for ever.
type Options struct {
	// Us are the options that this side agrees to have itself, Them those that it agrees to the other side having.
	Us, Them []byte

	us, them [256]agreement
}

type agreement byte

const (
	no agreement = iota
	asked
	yes
)

// Offer appends to dst the offer of all Us and the request for all Them.
func (o *Options) Offer(dst []byte) []byte {
	for _, option := range o.Us {
		o.us[option] = asked
		dst = AppendNegotiation(dst, WILL, option)
	}
	for _, option := range o.Them {
		o.them[option] = asked
		dst = AppendNegotiation(dst, DO, option)
	}
	return dst
}

// Receive appends to dst the answer to what the other side says, if it takes one.
func (o *Options) Receive(dst []byte, verb, option byte) []byte {
	switch verb {
	case WILL:
		return receive(dst, &o.them[option], slices.Contains(o.Them, option), option, DO, DONT)
	case WONT:
		return refuse(dst, &o.them[option], option, DONT)
	case DO:
		return receive(dst, &o.us[option], slices.Contains(o.Us, option), option, WILL, WONT)
	case DONT:
		return refuse(dst, &o.us[option], option, WONT)
	}
	return dst
}

func receive(dst []byte, a *agreement, agreed bool, option, accept, decline byte) []byte {
	switch {
	case *a == yes:
		return dst
	case *a == asked:
		*a = yes
		return dst
	case agreed:
		*a = yes
		return AppendNegotiation(dst, accept, option)
	}
	return AppendNegotiation(dst, decline, option)
}

func refuse(dst []byte, a *agreement, option, confirm byte) []byte {
	was := *a
	*a = no
	if was == yes {
		return AppendNegotiation(dst, confirm, option)
	}
	return dst
}
