package main

import (
	"github.com/docker/go-units"
	"github.com/spf13/cobra"

	"vic/containervm"
)

// quotaFlags bound the containers.
type quotaFlags struct {
	containers int
	storage    string

	quota containervm.Quota // when parse has read the flags
}

func (q *quotaFlags) add(cmd *cobra.Command) {
	cmd.Flags().IntVar(&q.containers, "containers", 0, "greatest `number` of containers, whatever they do; 0 is any")
	cmd.Flags().StringVar(&q.storage, "storage-quota", "", "greatest `size` of what images and containers take up together: no container is made beyond it; default any")
}

// parse reads the flags.
func (q *quotaFlags) parse() (err error) {
	if q.quota.Containers = q.containers; q.containers < 0 {
		return usageErrorf("--containers %d: it must be 0 or more", q.containers)
	}
	if q.storage != "" {
		if q.quota.Storage, err = units.RAMInBytes(q.storage); err != nil || q.quota.Storage <= 0 {
			return usageErrorf("--storage-quota %s: it must be a size, such as 100GiB", q.storage)
		}
	}
	return nil
}
