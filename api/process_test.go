package api

import (
	"slices"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"

	"vic/containervm"
)

func TestCapabilities(t *testing.T) {
	const docker = 0xa80425fb // as a container of dockerd shows it in CapBnd
	for _, tt := range []struct {
		name      string
		add, drop []string
		want      uint64
		err       string
	}{
		{"default", nil, nil, docker, ""},
		{"one more", []string{"NET_ADMIN"}, nil, docker | 1<<12, ""},
		{"with its prefix, in small letters", []string{"cap_net_admin"}, nil, docker | 1<<12, ""},
		{"one less", nil, []string{"CHOWN"}, docker &^ 1, ""},
		{"none", nil, []string{"ALL"}, 0, ""},
		{"none but one", []string{"CHOWN"}, []string{"ALL"}, 1, ""},
		{"all but one", []string{"ALL"}, []string{"CHOWN"}, ^uint64(1), ""},
		{"dropped wins", []string{"NET_ADMIN"}, []string{"NET_ADMIN"}, docker, ""},
		{"no such one", []string{"FLY"}, nil, 0, `invalid CapAdd: unknown capability: "FLY"`},
		{"no such one to drop", nil, []string{"CAP_FLY"}, 0, `invalid CapDrop: unknown capability: "CAP_FLY"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := capabilities(&container.HostConfig{CapAdd: tt.add, CapDrop: tt.drop})
			if tt.err == "" && (err != nil || got != tt.want) || tt.err != "" && (err == nil || err.Error() != tt.err) {
				t.Errorf("got %#x, %v, want %#x, %s", got, err, tt.want, tt.err)
			}
		})
	}
}

// testResources are a hypervisor's.
var testResources = containervm.Resources{CPUs: 16, Memory: 64 << 30, VMCPUs: 8, VMMemory: 32 << 30, CPUSet: 8}

func TestResources(t *testing.T) {
	limits := func(quota, period int64) containervm.Limits {
		return containervm.Limits{CPUQuota: quota, CPUPeriod: period}
	}
	for _, tt := range []struct {
		name   string
		r      container.Resources
		cpus   int
		limits containervm.Limits
		err    string
	}{
		{"nothing", container.Resources{}, 0, limits(0, 0), ""},
		{"one CPU", container.Resources{NanoCPUs: 1e9}, 1, limits(0, 0), ""},
		{"a fraction", container.Resources{NanoCPUs: 25e7}, 1, limits(25_000, 100_000), ""},
		{"quota", container.Resources{CPUQuota: 50_000}, 1, limits(50_000, 100_000), ""},
		{"quota and period", container.Resources{CPUQuota: 10_000, CPUPeriod: 10_000}, 1, limits(10_000, 10_000), ""},
		{"no quota", container.Resources{CPUQuota: -1}, 0, limits(0, 0), ""},
		{"set", container.Resources{CpusetCpus: "0"}, 1, limits(0, 0), ""},
		{"all of them", container.Resources{CpusetCpus: "0-7"}, 8, limits(0, 0), ""},
		{"pids", container.Resources{PidsLimit: new(int64(7))}, 0, containervm.Limits{Pids: 7}, ""},
		{"no limit of pids", container.Resources{PidsLimit: new(int64(-1))}, 0, containervm.Limits{}, ""},
		{"reservation", container.Resources{MemoryReservation: 64 << 20}, 0, containervm.Limits{MemoryLow: 64 << 20}, ""},
		{"too many CPUs", container.Resources{NanoCPUs: 1000e9}, 0, limits(0, 0), "range of CPUs is from 0.01 to 8.00, as there are only 8 CPUs available"},
		{"all CPUs", container.Resources{NanoCPUs: 8e9}, 8, limits(0, 0), ""},
		{"more quota than there is", container.Resources{CPUQuota: 1e9}, 8, limits(800_000, 100_000), ""},
		{"too few", container.Resources{NanoCPUs: 1}, 0, limits(0, 0), "range of CPUs is from 0.01 to "},
		{"CPUs and quota", container.Resources{NanoCPUs: 1e9, CPUQuota: 5000}, 0, limits(0, 0), "Conflicting options: Nano CPUs and CPU Quota cannot both be set"},
		{"CPUs and period", container.Resources{NanoCPUs: 1e9, CPUPeriod: 5000}, 0, limits(0, 0), "Conflicting options: Nano CPUs and CPU Period cannot both be set"},
		{"short quota", container.Resources{CPUQuota: 5}, 0, limits(0, 0), "CPU cfs quota can not be less than 1ms"},
		{"short period", container.Resources{CPUPeriod: 5}, 0, limits(0, 0), "CPU cfs period can not be less than 1ms"},
		{"no such CPU", container.Resources{CpusetCpus: "5000"}, 0, limits(0, 0), "Requested CPUs are not available - requested 5000, available: 0-7"},
		{"no set", container.Resources{CpusetCpus: "1-0"}, 0, limits(0, 0), "Invalid value 1-0 for cpuset cpus"},
		{"swap alone", container.Resources{MemorySwap: 1 << 30}, 0, limits(0, 0), "You should always set the Memory limit when using Memoryswap limit"},
		{"less swap than memory", container.Resources{Memory: 2 << 30, MemorySwap: 1 << 30}, 0, limits(0, 0), "Minimum memoryswap limit should be larger than memory limit"},
		{"reserved more than there is", container.Resources{Memory: 1 << 30, MemoryReservation: 2 << 30}, 0, limits(0, 0), "Minimum memory limit can not be less than memory reservation limit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s containervm.Spec
			err := checkCPUs(&tt.r, testResources)
			if err == nil {
				err = setResources(&s, &tt.r, testResources)
			}
			if tt.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), tt.err) {
					t.Errorf("got %v, want %s", err, tt.err)
				}
				return
			}
			if err != nil || s.CPUs != tt.cpus || s.Limits != tt.limits {
				t.Errorf("got %d CPUs, %+v, %v; want %d, %+v", s.CPUs, s.Limits, err, tt.cpus, tt.limits)
			}
		})
	}
	if set, err := parseCPUSet("0,0-0", 8); err != nil || !slices.Equal(set, []int{0}) {
		t.Errorf("got %v, %v", set, err)
	}
	if _, err := parseCPUSet("0", 0); err == nil || !strings.Contains(err.Error(), "the hypervisor chooses") {
		t.Errorf("a set where there is no choosing: %v", err)
	}
}
