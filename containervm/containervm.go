// Package containervm runs containers, each in a virtual machine of its own.
package containervm
