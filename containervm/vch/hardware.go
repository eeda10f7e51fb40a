package vch

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"os"
	"path"
	"slices"
	"strconv"

	"github.com/vmware/govmomi/vim25/types"

	"vic/containervm/appliance"
)

// Keys of devices: that of the IDE controller that each VM has, and those that a specification adds, which are negative.
const (
	ideKey    = 200
	sioKey    = 400
	scsiKey   = -1
	diskKey   = -2
	cdromKey  = -3
	serialKey = -4
	nicKey    = -10 // and below
)

// firstSlot and slotStep are PCI slots of interfaces: so they keep their order.
const firstSlot, slotStep = 0x4a0, 0x20

// consoleFile is the console of the appliance, in the folder of its VM.
const consoleFile = "console.log"

// vmSpec is the VM of the appliance.
func (in *installation) vmSpec(ctx context.Context) (*types.VirtualMachineConfigSpec, error) {
	d, name := in.r.container, in.r.spec.Name
	for i := range in.r.net.nics {
		in.r.net.nics[i].MAC = newMAC()
	}
	extra, err := in.extraConfig()
	if err != nil {
		return nil, err
	}
	disk := &types.VirtualDisk{VirtualDevice: types.VirtualDevice{Key: diskKey, ControllerKey: scsiKey, UnitNumber: types.NewInt32(appliance.StateUnit),
		Backing: &types.VirtualDiskFlatVer2BackingInfo{
			VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: d.Path(stateFile)},
			DiskMode:                     string(types.VirtualDiskModeIndependent_persistent), // no snapshot takes it back
		}}}
	changes := []types.BaseVirtualDeviceConfigSpec{
		change(types.VirtualDeviceConfigSpecOperationAdd, &types.ParaVirtualSCSIController{VirtualSCSIController: types.VirtualSCSIController{
			SharedBus:         types.VirtualSCSISharingNoSharing,
			VirtualController: types.VirtualController{VirtualDevice: types.VirtualDevice{Key: scsiKey}},
		}}),
		change(types.VirtualDeviceConfigSpecOperationAdd, disk),
		change(types.VirtualDeviceConfigSpecOperationAdd, cdrom(cdromKey, d.Path(in.iso))),
		change(types.VirtualDeviceConfigSpecOperationAdd, &types.VirtualSerialPort{YieldOnPoll: true, VirtualDevice: types.VirtualDevice{Key: serialKey, ControllerKey: sioKey,
			Backing: &types.VirtualSerialPortFileBackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{
				FileName: d.Path(path.Join(applianceFolder, consoleFile))}},
			Connectable: connected()}}),
	}
	for i, n := range in.r.net.nics {
		backing, err := n.network.EthernetCardBackingInfo(ctx)
		if err != nil {
			return nil, fmt.Errorf("port group of the %s network: %w", n.Name, err)
		}
		changes = append(changes, change(types.VirtualDeviceConfigSpecOperationAdd, &types.VirtualVmxnet3{VirtualVmxnet: types.VirtualVmxnet{VirtualEthernetCard: types.VirtualEthernetCard{
			VirtualDevice: types.VirtualDevice{Key: nicKey - int32(i), Backing: backing, Connectable: connected(),
				SlotInfo: &types.VirtualDevicePciBusSlotInfo{PciSlotNumber: firstSlot + slotStep*int32(i)}},
			AddressType: string(types.VirtualEthernetCardMacTypeManual), MacAddress: n.MAC,
		}}}))
	}
	return &types.VirtualMachineConfigSpec{
		Name: name, Uuid: in.record.ID, GuestId: string(types.VirtualMachineGuestOsIdentifierOther3xLinux64Guest),
		Annotation:   fmt.Sprintf("The virtual container host %s. Made by vic-machine %s: use that to change or remove it.", name, in.o.Version),
		Files:        &types.VirtualMachineFileInfo{VmPathName: d.Path(path.Join(applianceFolder, applianceFolder+".vmx"))},
		NumCPUs:      in.r.spec.CPUs,
		MemoryMB:     in.r.spec.MemoryMB,
		BootOptions:  &types.VirtualMachineBootOptions{BootOrder: []types.BaseVirtualMachineBootOptionsBootableDevice{&types.VirtualMachineBootOptionsBootableCdromDevice{}}},
		DeviceChange: changes, ExtraConfig: extra,
	}, nil
}

func change(op types.VirtualDeviceConfigSpecOperation, d types.BaseVirtualDevice) types.BaseVirtualDeviceConfigSpec {
	return &types.VirtualDeviceConfigSpec{Operation: op, Device: d}
}

func connected() *types.VirtualDeviceConnectInfo {
	return &types.VirtualDeviceConnectInfo{StartConnected: true, Connected: true}
}

func cdrom(key int32, iso string) *types.VirtualCdrom {
	return &types.VirtualCdrom{VirtualDevice: types.VirtualDevice{Key: key, ControllerKey: ideKey, UnitNumber: types.NewInt32(0),
		Backing:     &types.VirtualCdromIsoBackingInfo{VirtualDeviceFileBackingInfo: types.VirtualDeviceFileBackingInfo{FileName: iso}},
		Connectable: connected()}}
}

// newMAC is an address of the range that VMware leaves to administrators: 00:50:56:00:00:00 to 00:50:56:3f:ff:ff.
func newMAC() string {
	mac := net.HardwareAddr{0x00, 0x50, 0x56, 0, 0, 0}
	rand.Read(mac[3:]) // never fails (crypto/rand)
	mac[3] &= 0x3f
	return mac.String()
}

func option(key, value string) types.BaseOptionValue {
	return &types.OptionValue{Key: key, Value: value}
}

// extraConfig is what marks the VM, and the configuration of the guest.
func (in *installation) extraConfig() ([]types.BaseOptionValue, error) {
	record := in.record
	record.Changing = "" // that is in vch.json alone: what is set while a VM runs may not last
	text, err := record.marshal()
	if err != nil {
		return nil, err
	}
	config, err := in.config()
	if err != nil {
		return nil, err
	}
	info, err := config.GuestInfo(in.key)
	if err != nil {
		return nil, err
	}
	all := []types.BaseOptionValue{
		option(recordKey, string(text)),
		option("answer.msg.serial.file.open", "Append"),     // else a VM that is reset asks
		option("monitor_control.restrict_backdoor", "TRUE"), // guestinfo is for root alone
		option("disk.EnableUUID", "TRUE"),
	}
	for _, k := range sortedKeys(info) {
		all = append(all, option(k, info[k]))
	}
	return all, nil
}

// sortedKeys are those of a map.
func sortedKeys(m map[string]string) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// Files in the appliance.
var (
	passwordFile = path.Join(appliance.Folder, "password")
	targetCAFile = path.Join(appliance.Folder, "target-ca.pem")
	tlsCA        = path.Join(appliance.Folder, "tls", "ca.pem")
	tlsCert      = path.Join(appliance.Folder, "tls", "cert.pem")
	tlsKey       = path.Join(appliance.Folder, "tls", "key.pem")
)

// config is what the guest is told.
func (in *installation) config() (*appliance.Config, error) {
	spec, access := in.r.spec, in.o.Access
	c := &appliance.Config{Version: in.o.Version, Name: spec.Name, DNS: in.r.net.wireDNS(), Syslog: spec.Syslog}
	for _, n := range in.r.net.nics {
		c.NICs = append(c.NICs, n.NIC)
	}
	for _, x := range []struct{ name, value string }{{"HTTP_PROXY", spec.HTTPProxy}, {"HTTPS_PROXY", spec.HTTPS}, {"NO_PROXY", spec.NoProxy}} {
		if x.value != "" {
			c.Env = append(c.Env, x.name+"="+x.value)
		}
	}
	password := access.Password
	if spec.OpsUser != "" {
		password = access.OpsPassword
	}
	c.Secrets = append(c.Secrets, appliance.File{Path: passwordFile, Content: []byte(password)})
	if access.CAFile != "" {
		text, err := os.ReadFile(access.CAFile)
		if err != nil {
			return nil, fmt.Errorf("read the target's authority: %w", err)
		}
		c.Files = append(c.Files, appliance.File{Path: targetCAFile, Content: text})
	}
	if spec.TLS != NoTLS {
		c.Files = append(c.Files, appliance.File{Path: tlsCert, Content: in.o.TLS.Cert})
		c.Secrets = append(c.Secrets, appliance.File{Path: tlsKey, Content: in.o.TLS.Key})
	}
	if spec.TLS == MutualTLS {
		c.Files = append(c.Files, appliance.File{Path: tlsCA, Content: in.o.TLS.CA})
	}
	for i, text := range in.o.RegistryCAs {
		c.Files = append(c.Files, appliance.File{Path: registryCA(i), Content: text})
	}
	c.Args = in.serveArgs()
	return c, nil
}

// serveArgs are the arguments of vic serve.
func (in *installation) serveArgs() []string {
	spec, access := in.r.spec, in.o.Access
	poolPath := in.r.pool.path
	if in.record.Pool {
		poolPath = path.Join(poolPath, spec.Name)
	}
	args := []string{"--driver", "vsphere", "--target", access.Target, "--user", cmp.Or(spec.OpsUser, access.User), "--password-file", passwordFile}
	add := func(flag, value string) { args = append(args, flag, value) }
	if access.Thumbprint != "" {
		add("--thumbprint", access.Thumbprint)
	} else if access.CAFile != "" {
		add("--target-ca", targetCAFile)
	}
	add("--datacenter", in.record.Datacenter)
	add("--compute-resource", poolPath)
	if in.record.Folder {
		add("--vm-folder", path.Join(in.r.folder.InventoryPath, spec.Name))
	}
	add("--image-store", in.r.images.String())
	add("--container-store", in.r.containers.String())
	for _, v := range in.r.volumes {
		add("--volume-store", v.String()+":"+v.label)
	}
	add("--name", spec.Name)
	add("--bridge-network", spec.Bridge)
	add("--bridge-interface", in.r.net.role(bridge).Name)
	add("--bridge-network-range", spec.BridgeRange)
	for _, x := range []struct {
		flag   string
		values []string
	}{{"--container-network", spec.ContainerNetworks}, {"--container-network-gateway", spec.ContainerGateways}, {"--container-network-ip-range", spec.ContainerRanges},
		{"--container-network-dns", spec.ContainerDNS}, {"--container-network-firewall", spec.ContainerFirewall}, {"--insecure-registry", spec.Insecure}, {"--whitelist-registry", spec.Whitelist}} {
		for _, v := range x.values {
			add(x.flag, v)
		}
	}
	args = append(args, spec.limitArgs()...)
	// Where the address comes by DHCP, the interface stands for it.
	add("--serial-address", "tcp://"+net.JoinHostPort(in.r.net.host(management, in.r.net.role(management).Name), strconv.Itoa(SerialPort)))
	add("--host", "tcp://"+net.JoinHostPort(in.r.net.host(client, "0.0.0.0"), strconv.Itoa(spec.TLS.port())))
	switch spec.TLS {
	case MutualTLS:
		args = append(args, "--tlsverify", "--tlscacert", tlsCA, "--tlscert", tlsCert, "--tlskey", tlsKey)
	case ServerTLS:
		args = append(args, "--tls", "--open-tcp", "--tlscert", tlsCert, "--tlskey", tlsKey)
	case NoTLS:
		args = append(args, "--open-tcp")
	}
	if spec.Debug {
		add("--log-level", "debug")
	}
	return args
}

// host is the static address of a role, or else what stands for it.
func (r *resolvedNetworks) host(role, otherwise string) string {
	if n := r.role(role); len(n.Addresses) > 0 {
		return n.Addresses[0].Addr().String()
	}
	return otherwise
}

// port of the Docker API.
func (m TLSMode) port() int {
	if m == NoTLS {
		return 2375
	}
	return 2376
}
