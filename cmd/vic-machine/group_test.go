package main

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"vic/bench/oracle"
	"vic/bench/vcsim"
	"vic/containervm/appliance"
)

// A VCH's VM group is what govc says of the cluster, the appliance is told of it, inspect tells of it, and it goes as it came.
func TestAffinityGroup(t *testing.T) {
	govc := oracle.Find(t, "govc")
	l := newLab(t, vcsim.Options{Switched: []string{"bridge"}})
	l.ok("update", "firewall", "--allow")
	groups := func() string {
		t.Helper()
		return l.judged(govc, "cluster.group.ls", "-cluster", "DC0_C0")
	}
	members := func() []string {
		t.Helper()
		return strings.Fields(l.judged(govc, "cluster.group.ls", "-cluster", "DC0_C0", "-name", "vch1"))
	}
	told := func() bool {
		t.Helper()
		c, err := appliance.Read(func(key string) (string, error) { return l.extra("vch1", key), nil })
		if err != nil {
			t.Fatal(err)
		}
		return strings.Contains(strings.Join(c.Args, " "), "--affinity-vm-group vch1")
	}
	before := groups()
	create := l.create("--affinity-vm-group")
	if out := l.ok(append(create, "--dry-run")...); !strings.Contains(out, "make VM group vch1") {
		t.Errorf("dry run:\n%s", out)
	}
	if after := groups(); after != before {
		t.Errorf("a dry run has made %s", after)
	}
	l.ok(create...)
	if all := members(); len(all) != 1 || !strings.HasSuffix(all[0], "vch1") || !told() {
		t.Errorf("members %q, the appliance is told: %t", all, told())
	}
	l.judged(govc, "cluster.group.create", "-cluster", "DC0_C0", "-name", "licensed", "-host", "DC0_C0_H0")
	l.judged(govc, "cluster.rule.create", "-cluster", "DC0_C0", "-name", "only-there", "-enable", "-vm-host", "-vm-group", "vch1", "-host-affine-group", "licensed")
	if out := l.ok("inspect", "-n", "vch1"); !strings.Contains(out, "vch1, VMs: 1, rules: only-there") {
		t.Errorf("inspect: %s", out)
	}
	var i inspected
	if err := json.Unmarshal([]byte(l.ok("inspect", "-n", "vch1", "--json")), &i); err != nil || i.VMGroup == nil || !i.VMGroup.There || !i.Spec.AffinityGroup {
		t.Errorf("inspect: %+v, %v", i, err)
	}
	if out := l.ok("inspect", "config", "-n", "vch1"); !strings.Contains(out, " --affinity-vm-group ") {
		t.Errorf("inspect config: %s", out)
	}
	_, warned, err := machine(t, "configure", "-n", "vch1", "--affinity-vm-group=false")
	if err != nil || !strings.Contains(warned, "these rules of the cluster are of it: only-there") || strings.Contains(groups(), "vch1") || told() {
		t.Errorf("configured: %s, %v, groups %s", warned, err, groups())
	}
	if out := l.ok("inspect", "config", "-n", "vch1"); strings.Contains(out, "affinity") {
		t.Errorf("inspect config: %s", out)
	}
	l.ok("configure", "-n", "vch1", "--affinity-vm-group")
	if all := members(); len(all) != 1 || !told() {
		t.Errorf("configured: members %q", all)
	}
	l.ok("configure", "-n", "vch1", "--debug")
	if !told() {
		t.Error("another change has taken the group from what the appliance is told")
	}
	l.judged(govc, "cluster.group.remove", "-cluster", "DC0_C0", "-name", "vch1")
	if out := l.ok("inspect", "-n", "vch1"); !strings.Contains(out, "vch1 is not there: configure --affinity-vm-group makes it again") {
		t.Errorf("inspect: %s", out)
	}
	l.ok("configure", "-n", "vch1", "--affinity-vm-group")
	members()
	if out := l.ok("delete", "-n", "vch1", "--dry-run"); !strings.Contains(out, "remove VM group vch1") {
		t.Errorf("dry run: %s", out)
	}
	l.ok("delete", "-n", "vch1")
	if after := groups(); strings.Contains(after, "vch1") {
		t.Errorf("deleted: groups %s", after)
	}
	l.judged(govc, "cluster.group.create", "-cluster", "DC0_C0", "-name", "vch1", "-host", "DC0_C0_H0")
	calls := l.writing()
	if _, _, err := machine(t, l.create("--affinity-vm-group", "--endpoint-cpu", "0")...); err == nil || !strings.Contains(err.Error(), "2 problems") || !strings.Contains(err.Error(), "--affinity-vm-group: there is a DRS group vch1 already") {
		t.Errorf("a name that is taken: %v", err)
	}
	if after := l.writing(); !reflect.DeepEqual(after, calls) {
		t.Errorf("what cannot be has called %v, before that were %v", after, calls)
	}
	l.judged(govc, "cluster.change", "-drs-enabled=false", "DC0_C0")
	if _, _, err := machine(t, l.create("--affinity-vm-group")...); err == nil || !strings.Contains(err.Error(), "--affinity-vm-group: cluster /DC0/host/DC0_C0 has no DRS") {
		t.Errorf("without DRS: %v", err)
	}
}
