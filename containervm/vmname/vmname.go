// Package vmname is what the VMs of containers are called on vSphere.
package vmname

import (
	"fmt"
	"strings"
)

// A Convention is how the VMs of containers are called: a text with {name}, {id} or both, for which the container's name and the beginning of
// its ID stand. "" is {name}-{id}.
type Convention string

const (
	nameField, idField = "{name}", "{id}"

	mostName    = 80 // of a VM's name, bytes
	mostLiteral = 40 // of what is neither name nor ID
)

// Check says what is wrong with a convention.
func (c Convention) Check() error {
	literal := strings.NewReplacer(nameField, "", idField, "").Replace(string(c))
	switch {
	case c != "" && literal == string(c):
		return fmt.Errorf("%q has neither {name} nor {id} in it", c)
	case strings.Count(string(c), nameField) > 1 || strings.Count(string(c), idField) > 1:
		return fmt.Errorf("%q has {name} or {id} twice", c)
	case len(literal) > mostLiteral:
		return fmt.Errorf("%q has %d characters beside {name} and {id}, and %d is most", c, len(literal), mostLiteral)
	case strings.ContainsFunc(literal, func(r rune) bool { return r < ' ' || r > '~' || strings.ContainsRune(`/\%{}`, r) }):
		return fmt.Errorf("%q has characters that do not belong into the name of a VM", c)
	}
	return nil
}

// Name is the name of a container's VM: container names have 7 bits and no slashes. What is too long of the container's name is cut off.
func (c Convention) Name(name, id string) string {
	if c == "" {
		c = nameField + "-" + idField
	}
	text := strings.ReplaceAll(string(c), idField, id[:12])
	room := mostName - len(text) + len(nameField)
	return strings.ReplaceAll(text, nameField, name[:min(len(name), room)])
}
