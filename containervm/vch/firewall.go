package vch

import (
	"context"
	"fmt"

	"github.com/vmware/govmomi/object"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/types"
)

// Ruleset is the one of ESXi's firewall that lets VMs' serial ports reach a VCH.
const Ruleset = "vSPC"

// firewallOpen says whether a host lets its VMs' serial ports reach a VCH, by whatever rule.
func (s *Site) firewallOpen(ctx context.Context, host mo.HostSystem) (bool, error) {
	fs, err := object.NewHostSystem(s.client, host.Self).ConfigManager().FirewallSystem(ctx)
	if err != nil {
		return false, fmt.Errorf("look at firewall of host %s: %w", host.Name, err)
	}
	info, err := fs.Info(ctx)
	if err != nil {
		return false, fmt.Errorf("look at firewall of host %s: %w", host.Name, err)
	}
	if b := info.DefaultPolicy.OutgoingBlocked; b != nil && !*b {
		return true, nil
	}
	for _, set := range info.Ruleset {
		if !set.Enabled {
			continue
		}
		for _, r := range set.Rule {
			last := max(r.Port, r.EndPort)
			if r.Direction == types.HostFirewallRuleDirectionOutbound && r.Protocol == string(types.HostFirewallRuleProtocolTcp) &&
				r.PortType != types.HostFirewallRulePortTypeSrc && r.Port <= SerialPort && SerialPort <= last {
				return true, nil
			}
		}
	}
	return false, nil
}

// Firewall plans to let the serial ports of VMs on the hosts of a compute resource out, or not to. "" means the only one there is.
func (s *Site) Firewall(ctx context.Context, computeResource string, allow bool) (*Plan, error) {
	var p Problems
	pool, err := s.pool(ctx, &p, computeResource)
	if err != nil {
		return nil, err
	}
	if len(p) > 0 {
		return nil, p
	}
	plan := new(Plan)
	for _, host := range pool.hosts {
		fs, err := object.NewHostSystem(s.client, host.Self).ConfigManager().FirewallSystem(ctx)
		if err != nil {
			return nil, fmt.Errorf("look at firewall of host %s: %w", host.Name, err)
		}
		info, err := fs.Info(ctx)
		if err != nil {
			return nil, fmt.Errorf("look at firewall of host %s: %w", host.Name, err)
		}
		for _, set := range info.Ruleset {
			if set.Key != Ruleset || set.Enabled == allow {
				continue
			}
			what, change, back := "disable", fs.DisableRuleset, fs.EnableRuleset
			if allow {
				what, change, back = "enable", fs.EnableRuleset, fs.DisableRuleset
			}
			plan.add(fmt.Sprintf("%s ruleset %s on host %s", what, Ruleset, host.Name),
				simple(func(ctx context.Context) error { return change(ctx, Ruleset) }),
				func(ctx context.Context) error { return back(ctx, Ruleset) })
		}
	}
	return plan, nil
}
