// Containerd applies layers to a folder with containerd's own code: a judge of diskfs.
// It is a module of its own, since what containerd requires is none of the project's.
//
//	containerd ROOT LAYER.tar...
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/containerd/containerd/v2/pkg/archive"
)

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: containerd ROOT LAYER.tar...")
		os.Exit(2)
	}
	for _, layer := range os.Args[2:] {
		if err := apply(os.Args[1], layer); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func apply(root, layer string) error {
	f, err := os.Open(layer)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = archive.Apply(context.Background(), root, f)
	return err
}
