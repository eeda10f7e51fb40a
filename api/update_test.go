package api

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"vic/containervm"
)

func TestUpdateSpec(t *testing.T) {
	const conflict, bad = http.StatusConflict, http.StatusBadRequest
	for _, tt := range []struct {
		name, made, body string
		running          bool
		status           int // 0: taken
		word             string
		want             containervm.Spec
	}{
		{"nothing", `{"Memory":134217728,"NanoCpus":500000000}`, `{}`, true, 0, "",
			containervm.Spec{Memory: 128 << 20, CPUs: 1, Limits: containervm.Limits{CPUQuota: 50_000, CPUPeriod: 100_000}}},
		{"pids", `{"PidsLimit":5}`, `{"PidsLimit":42}`, true, 0, "", containervm.Spec{Limits: containervm.Limits{Pids: 42}}},
		{"no pids", `{"PidsLimit":5}`, `{"PidsLimit":-1}`, true, 0, "", containervm.Spec{}},
		{"half a CPU", `{}`, `{"NanoCpus":500000000}`, true, 0, "", containervm.Spec{CPUs: 1, Limits: containervm.Limits{CPUQuota: 50_000, CPUPeriod: 100_000}}},
		{"one of two CPUs", `{"NanoCpus":2000000000}`, `{"NanoCpus":1000000000}`, true, 0, "", containervm.Spec{CPUs: 2, Limits: containervm.Limits{CPUQuota: 100_000, CPUPeriod: 100_000}}},
		{"one of two CPUs, stopped", `{"NanoCpus":2000000000}`, `{"NanoCpus":1000000000}`, false, 0, "", containervm.Spec{CPUs: 1}},
		{"reservation", `{"Memory":134217728}`, `{"MemoryReservation":67108864}`, true, 0, "", containervm.Spec{Memory: 128 << 20, Limits: containervm.Limits{MemoryLow: 64 << 20}}},
		{"memory", `{}`, `{"Memory":134217728,"MemorySwap":-1}`, false, 0, "", containervm.Spec{Memory: 128 << 20}},
		{"policy", `{}`, `{"RestartPolicy":{"Name":"on-failure","MaximumRetryCount":3}}`, true, 0, "", containervm.Spec{Restart: containervm.RestartPolicy{Name: "on-failure", MaxRetries: 3}}},
		{"policy and --rm", `{"AutoRemove":true}`, `{"RestartPolicy":{"Name":"always"}}`, true, conflict, "Restart policy cannot be updated because AutoRemove is enabled for the container", containervm.Spec{}},
		{"CPUs that no host has", `{}`, `{"NanoCpus":9000000000}`, false, bad, "range of CPUs is from 0.01 to 8.00, as there are only 8 CPUs available", containervm.Spec{}},
		{"CPU that no host has", `{}`, `{"CpusetCpus":"8"}`, false, bad, "Requested CPUs are not available", containervm.Spec{}},
		{"no policy", `{}`, `{"RestartPolicy":{"Name":"sometimes"}}`, true, bad, "unknown policy 'sometimes'", containervm.Spec{}},
		{"CPUs over a quota", `{"CpuQuota":50000}`, `{"NanoCpus":500000000}`, true, conflict, "Nano CPUs cannot be updated as CPU Quota has already been set", containervm.Spec{}},
		{"quota over CPUs", `{"NanoCpus":500000000}`, `{"CpuQuota":50000}`, true, conflict, "CPU Quota cannot be updated as NanoCPUs has already been set", containervm.Spec{}},
		{"memory below the reservation", `{"MemoryReservation":268435456}`, `{"Memory":134217728}`, false, bad, "Minimum memory limit can not be less than memory reservation limit", containervm.Spec{}},
		{"shares", `{}`, `{"CpuShares":3}`, true, bad, "--cpu-shares is not supported", containervm.Spec{}},
		{"kernel memory", `{}`, `{"KernelMemory":3}`, true, bad, "--kernel-memory is not supported", containervm.Spec{}},
		{"ulimit", `{}`, `{"Ulimits":[{"Name":"nofile","Soft":1,"Hard":1}]}`, true, bad, "--ulimit cannot be updated", containervm.Spec{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, _, err := specFrom(t, `{"Image":"x","HostConfig":`+tt.made+`}`, imageOf("a"))
			if err != nil {
				t.Fatal(err)
			}
			var body updateBody
			if err := decodeJSON(strings.NewReader(tt.body), &body); err != nil {
				t.Fatal(err)
			}
			if err = body.checkOptions(); err == nil {
				err = body.apply(&s, tt.running, testResources)
			}
			if tt.status != 0 {
				var refused *statusError
				if !errors.As(err, &refused) || refused.status != tt.status || !strings.Contains(err.Error(), tt.word) {
					t.Errorf("got %v, want %d %q", err, tt.status, tt.word)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.want.Restart.Name == "" {
				tt.want.Restart.Name = "no"
			}
			if s.Memory != tt.want.Memory || s.CPUs != tt.want.CPUs || s.Limits != tt.want.Limits || s.Restart != tt.want.Restart {
				t.Errorf("got %d, %d, %+v, %+v, want %+v", s.Memory, s.CPUs, s.Limits, s.Restart, tt.want)
			}
			shown := createdOf(containervm.Info{Spec: s}).HostConfig
			if shown.Memory != s.Memory || string(shown.RestartPolicy.Name) != s.Restart.Name {
				t.Errorf("inspect shows %+v, %+v", shown.Resources, shown.RestartPolicy)
			}
		})
	}
}
