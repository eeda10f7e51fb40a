package main

import (
	"strconv"

	"github.com/spf13/pflag"

	"vic/containervm/vch"
)

// specFlags binds the flags of a VCH to its Spec: the one table of both, by which inspect config writes a command line.
func specFlags(fl *pflag.FlagSet, s *vch.Spec) {
	fl.StringVarP(&s.Name, "name", "n", "virtual-container-host", "`NAME` of the VCH")
	fl.StringVarP(&s.ComputeResource, "compute-resource", "r", "", "inventory `path` of a cluster, a host or a resource pool; default the only one there is")
	fl.StringVar(&s.Folder, "folder", "", "inventory `path` of the folder of VMs in which the VCH has its own; default the datacenter's")

	fl.StringVarP(&s.ImageStore, "image-store", "i", "", "`DATASTORE[/PATH]` of the disks of images, which VCHs may share; PATH is vic by default")
	fl.StringVar(&s.ContainerStore, "container-store", "", "`DATASTORE[/PATH]` of the VMs; default the image store's datastore, and the VCH's name")
	fl.StringArrayVar(&s.VolumeStores, "volume-store", nil, "`DATASTORE/PATH:LABEL` of volumes, the label default for those of docker that name none (may be given several times)")
	fl.Int64Var(&s.BaseImageSize, "base-image-size", 0, "`GiB` of containers' root disks, of an image store that is made; default 64, or what the store there is has")
	fl.Int64Var(&s.StorageQuota, "storage-quota", 0, "`GiB` that images and containers take up together at most: no container is made beyond it; 0 is no limit")
	fl.IntVar(&s.Containers, "containers", 0, "how many containers there may be, a `number`; 0 is no limit")
	fl.StringVar(&s.NameConvention, "container-name-convention", "", "what the VMs of containers are called, a `text` with {name} or {id} in it; default {name}-{id}")
	fl.Int64Var(&s.StateSize, "state-size", 100, "`GiB` of the appliance's disk, which is thin: what images are unpacked on")

	fl.StringVarP(&s.Bridge, "bridge-network", "b", "", "`port group` of bridge networks, which nothing else uses")
	fl.StringVar(&s.BridgeRange, "bridge-network-range", "172.16.0.0/12", "`CIDR` that bridge networks are taken from")
	fl.IntVar(&s.BridgeWidth, "bridge-network-width", 0, "`bits` of the prefix of each bridge network; default what makes sixteen of the range")
	for _, n := range []struct {
		role, what, otherwise string
		to                    *vch.Network
	}{
		{"public", "published ports and the way out", "VM Network", &s.Public},
		{"client", "the Docker API", "", &s.Client},
		{"management", "vCenter and the ESXi hosts", "", &s.Management},
	} {
		usage := "`port group` for " + n.what
		if n.otherwise == "" {
			usage += "; default the " + map[string]string{"client": "public", "management": "client"}[n.role] + " network's"
		}
		fl.StringVar(&n.to.PortGroup, n.role+"-network", n.otherwise, usage)
		fl.StringVar(&n.to.IP, n.role+"-network-ip", "", "static `ADDRESS/BITS` of the VCH there; default DHCP")
		fl.StringVar(&n.to.Gateway, n.role+"-network-gateway", "", "`ADDRESS` of the gateway there")
	}
	fl.StringArrayVar(&s.DNS, "dns-server", nil, "`ADDRESS` of a name server, before those of DHCP (may be given several times)")
	fl.StringArrayVar(&s.ContainerNetworks, "container-network", nil, "`PORTGROUP[:ALIAS]` that containers can be on (may be given several times, as those below)")
	fl.StringArrayVar(&s.ContainerGateways, "container-network-gateway", nil, "`PORTGROUP:ADDRESS/BITS` of the gateway of a container network")
	fl.StringArrayVar(&s.ContainerRanges, "container-network-ip-range", nil, "`PORTGROUP:FIRST-LAST` that containers get addresses from; default the gateway's whole network, and DHCP without a gateway")
	fl.StringArrayVar(&s.ContainerDNS, "container-network-dns", nil, "`PORTGROUP:ADDRESS` of a name server of a container network")
	fl.StringArrayVar(&s.ContainerFirewall, "container-network-firewall", nil, "`PORTGROUP:LEVEL` of trust: closed, outbound, peers, published or open")

	fl.Var(&tlsFlag{&s.TLS, vch.NoTLS}, "no-tls", "serve the Docker API without TLS: whoever reaches it controls all containers")
	fl.Lookup("no-tls").NoOptDefVal = "true"
	fl.Var(&tlsFlag{&s.TLS, vch.ServerTLS}, "no-tlsverify", "serve it with TLS, but let anybody in, without a certificate")
	fl.Lookup("no-tlsverify").NoOptDefVal = "true"
	fl.StringArrayVar(&s.TLSNames, "tls-cname", nil, "`NAME` or address that clients reach the VCH by, beside its static address (may be given several times)")
	fl.StringVar(&s.TLSCert, "tls-server-cert", "", "`file` of the server's certificate, PEM; default one is made")
	fl.StringVar(&s.TLSKey, "tls-server-key", "", "`file` of its private key, PEM")
	fl.StringVar(&s.TLSCA, "tls-ca", "", "`file` of the authorities whose certificates clients must have, PEM")
	fl.StringArrayVar(&s.Insecure, "insecure-registry", nil, "`HOST[:PORT]` of a registry whose certificate is not verified, or that has none (may be given several times)")
	fl.StringArrayVar(&s.Whitelist, "whitelist-registry", nil, "the only registries that the VCH speaks to, `REGISTRY`: HOST[:PORT], *.DOMAIN[:PORT] or CIDR (may be given several times); default all")
	fl.StringArrayVar(&s.RegistryCAs, "registry-ca", nil, "`file` of authorities that registries' certificates are trusted by, PEM (may be given several times)")
	fl.StringVar(&s.HTTPProxy, "http-proxy", "", "`URL` of the proxy to registries without TLS")
	fl.StringVar(&s.HTTPS, "https-proxy", "", "`URL` of the proxy to registries with TLS")
	fl.StringVar(&s.NoProxy, "no-proxy", "", "`HOSTS` that are reached without a proxy, with commas between them")
	fl.StringVar(&s.Syslog, "syslog-address", "", "`udp://HOST[:PORT]` or tcp://… that the VCH's log goes to as well")
	fl.BoolVar(&s.Debug, "debug", false, "log every request")

	fl.Int32Var(&s.CPUs, "endpoint-cpu", 1, "CPUs of the appliance")
	fl.Int64Var(&s.MemoryMB, "endpoint-memory", 2048, "memory of the appliance, `MiB`")
	for _, r := range []struct {
		name, unit string
		to         *vch.Shares
	}{{"cpu", "MHz", &s.CPU}, {"memory", "MiB", &s.Memory}} {
		fl.Int64Var(&r.to.Limit, r.name, 0, "`"+r.unit+"` that all VMs of the VCH have together at most; 0 is no limit")
		fl.Int64Var(&r.to.Reservation, r.name+"-reservation", 0, "`"+r.unit+"` that they have in any case")
		fl.StringVar(&r.to.Shares, r.name+"-shares", "", "their `share` when it is scarce: low, normal, high or a number; default normal")
	}

	fl.BoolVar(&s.AffinityGroup, "affinity-vm-group", false, "have a DRS group of the VCH's VMs in the cluster, of its name, for rules of yours that bind them to hosts")

	fl.StringVar(&s.OpsUser, "ops-user", "", "`name` by which the VCH logs in; default the user who installs it")
	fl.BoolVar(&s.OpsGrant, "ops-grant-perms", false, "give that user the roles that it needs, on vCenter")
}

// A tlsFlag is a boolean flag that stands for a mode.
type tlsFlag struct {
	mode *vch.TLSMode
	is   vch.TLSMode
}

func (f *tlsFlag) String() string {
	if f.mode == nil {
		return "false"
	}
	return strconv.FormatBool(*f.mode == f.is)
}

func (f *tlsFlag) Set(text string) error {
	on, err := strconv.ParseBool(text)
	if err == nil && on {
		*f.mode = f.is
	}
	return err
}

func (f *tlsFlag) Type() string { return "bool" }

// commandLine is the flags that make a Spec, without those that are as by default.
func commandLine(s vch.Spec) []string {
	var bound vch.Spec
	fl := pflag.NewFlagSet("", pflag.ContinueOnError)
	specFlags(fl, &bound)
	bound = s
	var out []string
	fl.VisitAll(func(f *pflag.Flag) {
		if list, ok := f.Value.(pflag.SliceValue); ok {
			for _, v := range list.GetSlice() {
				out = append(out, "--"+f.Name, v)
			}
			return
		}
		switch value := f.Value.String(); {
		case value == f.DefValue && f.Name != "name":
		case value == "true":
			out = append(out, "--"+f.Name)
		default:
			out = append(out, "--"+f.Name, value)
		}
	})
	return out
}
