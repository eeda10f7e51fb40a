package api

import (
	"context"
	"fmt"
	"strconv"
)

// quotaStatus is what docker info shows of quotas, nothing if there are none. The rows are named as they were in the original product. What
// cannot be measured is said so: the rest of the info is of use without it.
func (s *Server) quotaStatus(ctx context.Context) (rows [][2]string) {
	q := s.containers.Quota()
	if q.Containers > 0 {
		rows = append(rows, [2]string{"VCH containers limit", strconv.Itoa(q.Containers)})
	}
	if q.Storage == 0 {
		return rows
	}
	gib := func(n int64) string { return fmt.Sprintf("%.2f GiB", float64(n)/(1<<30)) }
	rows = append(rows, [2]string{"VCH storage limit", gib(q.Storage)})
	charge, err := s.containers.Charge(ctx)
	if err != nil {
		return append(rows, [2]string{"VCH storage usage", "unknown: " + err.Error()})
	}
	return append(rows,
		[2]string{"VCH storage usage", gib(charge.Images + charge.Containers)},
		[2]string{"VCH image storage usage", gib(charge.Images)},
		[2]string{"VCH containers storage usage", gib(charge.Containers)})
}
